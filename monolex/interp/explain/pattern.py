"""What a feature looks at, found by asking the subject model itself; after Neuron-to-Graph (Foote et al. 2023).

From the explain fragments alone:

1. *Prune*: of the text that ends at an active token, the shortest suffix that keeps more than half of the activation.
2. *Saliency*: each token before it is replaced by another. Where that leaves no more than half, the token matters; the
   others may be any. Each is replaced alone: of two that stand in for each other, neither matters.
3. *Augment*: tokens like the active one, and like those that matter, take their places; those that keep more than half
   are let in.
4. *Lines*: what is left predicts the mean of the activations that were stored; lines alike become one.

One cut, a half, serves all three. For saliency that is a choice. Cuts that keep more tokens (a loss of .1 or .25)
predicted other documents worse at all four sites of the demo that were tried; one that keeps fewer (.75, as in
Neuron-to-Graph) did better at two, but calls any what takes most of the activation away.

Activations were stored in longer texts than the model is shown here. At most the last 16 tokens are tried, and shorter
suffixes must keep half of what the longest gives. A feature that needs text further back is weaker there (and the whole
suffix is kept if no shorter one will do), or not active at all: such an occurrence teaches nothing and is left out, and
if all are like that the feature has no pattern.

The corpus's separator goes before every suffix, as it stood before every document in training: many models have an
outlier at their first position, whose activation would say nothing about the token there.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monolex.dictionaries.base import Dictionary
from monolex.interp.config import ExplainConfig
from monolex.interp.explain.pattern_text import described
from monolex.interp.explain.similar_tokens import alike
from monolex.interp.explain.subject import Asked, Read, reader
from monolex.interp.records import Examples, Explanation, Failure
from monolex.interp.rules import ANY, Line, Rule, Slot
from monolex.model.language_model import LanguageModel
from monolex.text.vocabulary import Texts

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Tokens of the suffixes that are tried; the last is the longest."""
KEPT = 0.5
"""Share of the activation that must be exceeded by what keeps it."""

Other = Callable[[tuple[int, ...], int], int | None]
"""Another token for one place of a text; None where there is none."""


class Clue(NamedTuple):
    """An occurrence of a feature: a token, and as much of the text before it as is under consideration."""

    number: int
    """Which of the examples it is of."""
    asked: Asked
    """The text that ends at the token, and the feature."""
    stored: float
    """Activation at the token in its own fragment."""
    given: float = 0.0
    """What the model gives for this text alone."""


Places = tuple[frozenset[int], ...]
"""The tokens that may stand at every place of a clue; none where any may."""


def explain(
    lm: LanguageModel,
    dictionary: Dictionary,
    site: str,
    examples: Sequence[Examples],
    config: ExplainConfig,
) -> list[Explanation | Failure]:
    """A pattern for the feature of each of ``examples``, all of one dictionary.

    What is found for a feature does not depend on which others are asked with it.

    Raises:
        UserError: the model has no such site.
    """
    read = reader(lm, dictionary, site, config.batch_tokens)
    longest = min(LENGTHS[-1], lm.max_context - 1)
    clues = [clue for number, feature in enumerate(examples) for clue in occurrences(number, feature, longest)]
    clues = prune(read, clues)
    matters = saliency(read, clues, [others(feature, config.explain_seed) for feature in examples])
    likely = alike(lm, (t for clue in clues for t in clue.asked.tokens))
    places = augment(read, clues, matters, likely)
    texts = _texts(lm, examples, places)
    lines: dict[int, dict[tuple[Slot, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    for clue, slots in zip(clues, places, strict=True):
        lines[clue.number][_slots(slots, texts)].append(clue.stored)
    return [_explanation(feature, lines[number]) for number, feature in enumerate(examples)]


def occurrences(number: int, examples: Examples, longest: int) -> list[Clue]:
    """The most active token of every explain fragment, and one more of another text if above half the maximum."""
    clues = []
    for fragment in examples.explain:
        order = np.argsort(-fragment.activations, kind="stable").tolist()
        second = [at for at in order if fragment.texts[at] != fragment.texts[order[0]]][:1]
        chosen = [order[0], *(at for at in second if fragment.activations[at] > examples.maximum / 2)]
        for at in (at for at in chosen if fragment.activations[at] > 0):
            tokens = fragment.tokens[max(0, at + 1 - longest) : at + 1]
            clues.append(Clue(number, Asked(tokens, examples.feature), float(fragment.activations[at])))
    return clues


def prune(read: Read, clues: Sequence[Clue]) -> list[Clue]:
    """Clues cut to the shortest suffix that keeps the activation; those that are not active alone are left out."""
    whole = [clue._replace(given=given) for clue, given in zip(clues, _given(read, clues), strict=True) if given > 0]
    found: dict[int, Clue] = {}
    for length in LENGTHS:
        left = [i for i, clue in enumerate(whole) if i not in found and len(clue.asked.tokens) > length]
        cut = [whole[i]._replace(asked=Asked(whole[i].asked.tokens[-length:], whole[i].asked.feature)) for i in left]
        for i, clue, given in zip(left, cut, _given(read, cut), strict=True):
            if given > KEPT * whole[i].given:
                found[i] = clue._replace(given=given)
    return [found.get(i, clue) for i, clue in enumerate(whole)]


def _given(read: Read, clues: Sequence[Clue]) -> list[float]:
    return read([clue.asked for clue in clues]).tolist()


def others(examples: Examples, seed: int) -> Other:
    """Draws from the tokens of the feature's own explain fragments, with and without it."""
    pool = np.array([t for one in (*examples.explain, *examples.explain_silent) for t in one.tokens], dtype=np.int64)

    def other(tokens: tuple[int, ...], at: int) -> int | None:
        different = pool[pool != tokens[at]]
        drawn = np.random.default_rng([seed, at, *tokens])
        return int(drawn.choice(different)) if len(different) else None

    return other


def saliency(read: Read, clues: Sequence[Clue], draws: Sequence[Other]) -> list[list[bool]]:
    """Which tokens of every clue matter: those without which it is not kept, those that have no other to put in their
    place, and the last."""
    matters = [[True] * len(clue.asked.tokens) for clue in clues]
    asked, where = [], []
    for index, (number, (tokens, feature), *_) in enumerate(clues):
        for at in range(len(tokens) - 1):
            token = draws[number](tokens, at)
            if token is not None:
                asked.append(_with(tokens, at, token, feature))
                where.append((index, at))
    for (index, at), given in zip(where, read(asked).tolist(), strict=True):
        matters[index][at] = given <= KEPT * clues[index].given
    return matters


def augment(
    read: Read, clues: Sequence[Clue], matters: Sequence[Sequence[bool]], likely: Mapping[int, Sequence[int]]
) -> list[Places]:
    """What may stand at the places that matter: the token itself, and of those like it the ones that keep the clue."""
    found = [
        [frozenset([token]) if kept else frozenset() for token, kept in zip(clue.asked.tokens, some, strict=True)]
        for clue, some in zip(clues, matters, strict=True)
    ]
    asked, where = [], []
    for index, (_, (tokens, feature), *_) in enumerate(clues):
        for at in (at for at, kept in enumerate(matters[index]) if kept):
            asked += [_with(tokens, at, token, feature) for token in likely[tokens[at]]]
            where += [(index, at, token) for token in likely[tokens[at]]]
    for (index, at, token), given in zip(where, read(asked).tolist(), strict=True):
        if given > KEPT * clues[index].given:
            found[index][at] |= {token}
    return [tuple(some) for some in found]


def _with(tokens: tuple[int, ...], at: int, token: int, feature: int) -> Asked:
    return Asked((*tokens[:at], token, *tokens[at + 1 :]), feature)


def _texts(lm: LanguageModel, examples: Sequence[Examples], places: Sequence[Places]) -> dict[int, str]:
    """Texts of tokens, those of the fragments as they stand there."""
    texts = dict(Texts(lm).of(token for some in places for place in some for token in place))
    for fragment in (fragment for one in examples for fragment in one.explain):
        texts.update(zip(fragment.tokens, fragment.texts, strict=True))
    return texts


def _slots(places: Places, texts: Mapping[int, str]) -> tuple[Slot, ...]:
    """From the first place that matters on: what may stand before it says nothing."""
    first = next(i for i, place in enumerate(places) if place)
    return tuple(Slot(frozenset(texts[t] for t in place)) if place else ANY for place in places[first:])


def _explanation(examples: Examples, found: Mapping[tuple[Slot, ...], Sequence[float]]) -> Explanation | Failure:
    if examples.maximum <= 0:
        return Failure("never above zero")
    if not found:
        return Failure("not active without the text before")
    lines = [Line(slots, float(np.mean(values))) for slots, values in merged(found).items()]
    seen = {text for fragment in examples.explain for text in fragment.texts}
    return Explanation("pattern", described(lines, examples.maximum, seen), Rule(tuple(lines)))


def merged(found: Mapping[tuple[Slot, ...], Sequence[float]]) -> dict[tuple[Slot, ...], list[float]]:
    """Lines' slots with their values: those with more conditions first, then the longer, then as they were found.

    A line that would never be reached, since an earlier one fits wherever it does, adds its values to that one.
    """
    kept: dict[tuple[Slot, ...], list[float]] = {}
    for slots in sorted(found, key=lambda slots: (-sum(slot != ANY for slot in slots), -len(slots))):
        into = next((earlier for earlier in kept if _covers(earlier, slots)), slots)
        kept.setdefault(into, []).extend(found[slots])
    return kept


def _covers(wide: tuple[Slot, ...], narrow: tuple[Slot, ...]) -> bool:
    """Whether a line of tokens fits wherever another does."""
    pairs = zip(reversed(wide), reversed(narrow), strict=False)
    return len(wide) <= len(narrow) and all(w == ANY or (n != ANY and n.tokens <= w.tokens) for w, n in pairs)
