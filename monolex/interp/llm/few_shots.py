"""Worked examples that explainers and simulators are shown: three made-up features of our own.

As in OpenAI's protocol there are two short fragments a feature. The first two features are active on few tokens and the
third on many, so that both sides of the share below which silent tokens are left out have an example. Some words are
split, as tokenizers split them. Activations are raw numbers, so that they can be written on any scale.
"""

from typing import NamedTuple


class Record(NamedTuple):
    """Tokens with activations, to be shown to a language model."""

    tokens: tuple[str, ...]
    """Texts of the tokens."""
    activations: tuple[float, ...]
    """One a token, in any unit."""


class Shot(NamedTuple):
    """A feature with its explanation."""

    explanation: str
    """What stands behind :data:`monolex.interp.llm.prompts.OPENING`."""
    records: tuple[Record, ...]
    """Its fragments."""
    revealed: tuple[int, ...]
    """Of each fragment the first token whose activation a simulator is shown; those before it are `unknown`."""


def _record(text: str) -> Record:
    """Tokens apart by bars, an activation above zero behind a tilde.

    >>> _record("a| b~1.5")
    Record(tokens=('a', ' b'), activations=(0.0, 1.5))
    """
    parts = [token.partition("~") for token in text.split("|")]
    return Record(tuple(token for token, *_ in parts), tuple(float(value or 0) for *_, value in parts))


SHOTS = (
    Shot(
        "words that set one thing against another by degree, such as comparatives and what introduces the comparison",
        (
            _record(
                "The| new| bridge| is| nearly| twice~2.9| as~5.1| long| as~6.2| the| old| one|,| yet| it| was| much|"
                " cheap~5.6|er~9.3| to| build| and| will| take| far~1.8| less~7.7| paint| than~8.4| any| of| the|"
                " others|.|\n"
            ),
            _record(
                "My| brother| runs| faster~8.8| than~7.9| me|,| but| I| am| the| more~6.4| patient| of| us| and|"
                " rarely| come| home| hungry|.|\n"
            ),
        ),
        (9, 4),
    ),
    Shot(
        "tools and vessels that people cook with",
        (
            _record(
                "Put| the| butter| in| a| sauce~4.4|pan~11.2| and| wait|.| When| it| foams|,| stir| with| the| wooden|"
                " spoon~8.1|.|\n"
            ),
            _record(
                "Our| train| was| late| again|,| so| we| talked| about| the| weekend|,| the| children| and| what| to|"
                " do| with| the| garden|.| In| the| end| she| told| me| that| the| kettle~9.7| had| to| be| replaced|."
            ),
        ),
        (6, 18),
    ),
    Shot(
        "ships, and what sailors do with them",
        (
            _record(" sailors~6.8| hoisted~4.1| the| main~3.3|sail~7.5| and| the| ship~6.0| left| harb~1.9|our~2.6"),
            _record(
                "After| the| storm| the| captain~4.9| had| the| crew~3.7| check| every| rope~2.2| on| deck~5.3| and|"
                " by| noon| the| yacht~7.1| was| back|."
            ),
        ),
        (0, 11),
    ),
)
"""In the order in which they are shown."""
