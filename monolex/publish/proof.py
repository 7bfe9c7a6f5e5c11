"""Whether the features of a file are those of a dictionary: by directions, promoted tokens, or where they are active.

Feature numbers alone prove nothing: two dictionaries of one width have the same.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from monolex.dictionaries.listing import RunDictionary
from monolex.errors import UserError
from monolex.features.known import open_store
from monolex.features.store import FeatureStore
from monolex.publish.incoming import ForeignFeature, ForeignPeak

LEAST_COSINE = 0.99
"""Cosine of two directions that are the same."""
LEAST_SHARE, TIMES_CHANCE = 0.5, 2.0
"""Mean share of tokens that must agree, and how many times that of another feature of the file it must be."""
STRONG = 0.5
"""Contexts are compared whose strongest token has at least this share of the largest activation in the file."""
SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})
"""How tokenizers write what is not seen."""


class Proof(NamedTuple):
    """By what features were known again."""

    by: str
    """``directions``, ``promoted tokens`` or ``activations``."""
    features: int
    """How many had it."""
    agreement: float
    """The smallest cosine of directions; else the mean share of tokens that agree."""
    chance: float | None
    """The mean share that agrees with another feature; None of directions."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return self._asdict()


def prove(features: Sequence[ForeignFeature], dictionary: RunDictionary) -> Proof | None:
    """Compare the features of files with those of the same number in ``dictionary``.

    The first of directions, promoted tokens and activations that the files have decides. None where they have nothing
    that could be compared.

    Raises:
        UserError: they are of another dictionary.
    """
    if directed := [feature for feature in features if feature.vector]:
        return _directions(directed, dictionary)
    if dictionary.evidence is None:
        return None
    with closing(open_store(dictionary)) as store:
        said: Mapping[str, dict[int, set[str]]] = {
            "promoted tokens": _promoted(features),
            "activations": _strongest(features),
        }
        for by, tokens in said.items():
            known = {number: known for number in tokens if (known := _of_store(store, number, by))}
            compared = {number: tokens[number] for number in known}
            if compared:
                return _tokens(by, compared, known, store, dictionary)
    return None


def _directions(directed: Sequence[ForeignFeature], dictionary: RunDictionary) -> Proof:
    rows = dictionary.weights().W_dec.double().numpy()
    smallest = 1.0
    for feature in directed:
        if len(feature.vector) != rows.shape[1]:
            raise UserError(
                f"feature {feature.number}: its vector has {len(feature.vector)} numbers and those of "
                f"{dictionary.title} have {rows.shape[1]}; the file is of another dictionary"
            )
        row, other = rows[feature.number], np.array(feature.vector, np.float64)
        size = float(np.linalg.norm(row) * np.linalg.norm(other))
        cosine = float(row @ other) / size if size else float(not row.any() and not other.any())
        if cosine < LEAST_COSINE:
            raise UserError(
                f"feature {feature.number}: its vector has cosine {cosine:.3f} with that of {dictionary.title}, below "
                f"{LEAST_COSINE}; the file is of another dictionary, or of another numbering"
            )
        smallest = min(smallest, cosine)
    return Proof("directions", len(directed), smallest, None)


def _tokens(
    by: str, said: Mapping[int, set[str]], known: dict[int, set[str]], store: FeatureStore, dictionary: RunDictionary
) -> Proof:
    numbers = list(said)
    if len(numbers) == 1:
        # the next feature that is known stands for others
        other = next((i for i in _others(numbers[0], len(store)) if _of_store(store, i, by)), numbers[0])
        known = {**known, other: _of_store(store, other, by)}
        turned = [other]
    else:
        turned = [*numbers[1:], numbers[0]]
    agreement = float(np.mean([_share(said[number], known[number]) for number in numbers]))
    pairs = zip(numbers, turned, strict=True)
    chance = float(np.mean([_share(said[number], known[other]) for number, other in pairs]))
    if agreement < LEAST_SHARE or agreement < TIMES_CHANCE * chance:
        raise UserError(
            f"by their {by} the {len(numbers)} features of the files are not those of {dictionary.title}: "
            f"{agreement:.0%} of tokens agree, and {chance:.0%} with those of another feature; choose the "
            "dictionary that they are of"
        )
    return Proof(by, len(numbers), agreement, chance)


def _others(number: int, count: int) -> list[int]:
    return [(number + step) % count for step in range(1, count)]


def _promoted(features: Sequence[ForeignFeature]) -> dict[int, set[str]]:
    said: dict[int, set[str]] = {}
    for feature in features:
        for sign, texts in (("+", feature.promoted), ("-", feature.suppressed)):
            for text in texts:
                said.setdefault(feature.number, set()).add(sign + plain(text))
    return said


def _strongest(features: Sequence[ForeignFeature]) -> dict[int, set[str]]:
    """Of every feature the strongest token of its strong contexts; on weak ones many features are active."""
    peaks: dict[int, list[ForeignPeak]] = {}
    for feature in features:
        if feature.peaks:
            peaks.setdefault(feature.number, []).extend(feature.peaks)
    said: dict[int, set[str]] = {}
    for number, known in peaks.items():
        least = STRONG * max(peak.activation for peak in known)
        said[number] = {plain(peak.text) for peak in known if peak.activation >= least}
    return said


def _of_store(store: FeatureStore, number: int, by: str) -> set[str]:
    """What the evidence says of a feature, to be compared."""
    evidence = store.feature(number)
    if by == "promoted tokens":
        sides = (("+", evidence.promoted), ("-", evidence.suppressed))
        return {sign + plain(token.text) for sign, tokens in sides for token in tokens}
    strongest = [
        c.texts[int(np.argmax(c.activations))] for g, cs in evidence.examples.items() if g != "inactive" for c in cs
    ]
    return {plain(text) for text in (*strongest, *(share.text for share in evidence.tokens))}


def _share(said: set[str], known: set[str]) -> float:
    """Of the smaller set how much is in the other."""
    return len(said & known) / max(1, min(len(said), len(known)))


def plain(text: str) -> str:
    """A token without the spaces around it, however its tokenizer writes them.

    >>> plain("Ġthe"), plain("▁the"), plain(" the"), plain("  ")
    ('the', 'the', 'the', '  ')
    """
    spelled = text.translate(SPACES)
    return spelled.strip() or spelled
