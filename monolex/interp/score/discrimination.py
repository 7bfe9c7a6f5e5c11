"""How well predictions tell fragments with a feature from silent ones, and its tokens from others of a fragment."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64
from numpy.typing import NDArray

from monolex.interp.protocol import Correlation
from monolex.interp.records import Failure, Fragment, Prediction
from monolex.interp.simulate.batch import Guess
from monolex.text.characters import pieces

Marks = tuple[Int64[NDArray, "_active"], Int64[NDArray, "_silent"]]
"""Tokens of a fragment: active ones and as many others."""
Reading = float | Failure | None
"""A number to rank by; None of a fragment that has no such tokens."""
ACTIVE = 0.3
"""Tokens above this share of a fragment's maximum are those that fuzzing marks."""
NO_CHANCE = Correlation(np.nan, "not measured: it would cost further calls")


class Discrimination(NamedTuple):
    """How well explanations tell two kinds of things apart."""

    balanced_accuracy: Correlation
    """Mean of the shares of either kind that are judged rightly; by chance 0.5."""
    auc: Correlation
    """Chance that a thing of the right kind is ranked above one of the other; by chance 0.5."""
    chance_auc: Correlation = NO_CHANCE
    """The same by other features' explanations, the mean over shuffles."""


def with_chance(discrimination: Discrimination, chance: Sequence[Discrimination]) -> Discrimination:
    """With the mean of what other features' explanations reach."""
    return discrimination._replace(chance_auc=average([other.auc for other in chance]))


def average(correlations: Sequence[Correlation]) -> Correlation:
    """The mean over shuffles that have one."""
    known = [correlation.value for correlation in correlations if np.isfinite(correlation.value)]
    if known:
        return Correlation(float(np.mean(known)))
    return correlations[0] if correlations else Correlation(np.nan, "no other feature's explanation")


def told_apart(right: Sequence[Reading], wrong: Sequence[Reading], threshold: float | None) -> Discrimination:
    """Compare what the right things were given with what the others were; None is a thing that does not exist."""
    for value in (*right, *wrong):
        if isinstance(value, Failure):
            return Discrimination(*(Correlation(np.nan, value.reason),) * 2)
    a = np.array([value for value in right if value is not None], np.float64)
    b = np.array([value for value in wrong if value is not None], np.float64)
    if not len(a) or not len(b):
        reason = f"nothing to tell it from: {len(a)} with and {len(b)} without the feature"
        return Discrimination(*(Correlation(np.nan, reason),) * 2)
    auc = float((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())
    if threshold is None:
        return Discrimination(Correlation(np.nan, "no threshold could be learned"), Correlation(auc))
    return Discrimination(Correlation(float((a >= threshold).mean() + (b < threshold).mean()) / 2), Correlation(auc))


def best_cut(positive: Sequence[Reading], negative: Sequence[Reading]) -> float | None:
    """The threshold that tells the explained fragments apart best, in the middle of the gap; None without both."""
    a = np.array([v for v in positive if isinstance(v, float)])
    b = np.array([v for v in negative if isinstance(v, float)])
    if not len(a) or not len(b):
        return None
    values = np.unique(np.concatenate([a, b]))
    cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    right = (a[:, None] >= cuts).mean(0) + (b[:, None] < cuts).mean(0)
    return float(cuts[int(right.argmax())])


def peaks(guesses: Sequence[Guess]) -> list[Reading]:
    """The largest prediction on every fragment."""
    return [guess if isinstance(guess, Failure) else float(np.nanmax(guess)) for guess in guesses]


def fuzz_marks(fragment: Fragment, rng: np.random.Generator) -> Marks:
    """Active tokens of a fragment and as many silent ones: counting marks must not tell them apart.

    A silent token that is part of a character with an active one is neither: marks stand around whole characters.
    """
    silent = fragment.activations <= 0
    if any("\\x" in text for text in fragment.texts):  # most fragments have no cut character
        for piece in pieces(fragment.texts):
            silent[piece.start : piece.stop] = silent[piece.start : piece.stop].all()
    active, quiet = np.flatnonzero(active_tokens(fragment)), np.flatnonzero(silent)
    count = min(len(active), len(quiet))
    return np.sort(rng.permutation(active)[:count]), np.sort(rng.permutation(quiet)[:count])


def means_at(marks: Sequence[Marks], guesses: Sequence[Guess]) -> tuple[list[Reading], list[Reading]]:
    """Mean prediction on the active tokens of every fragment, and on the silent ones; None where none is predicted."""
    sides: tuple[list[Reading], ...] = ([], [])
    for pair, guess in zip(marks, guesses, strict=False):
        for side, where in zip(sides, pair, strict=True):
            side.append(guess if isinstance(guess, Failure) else _known_mean(guess[where]))
    return sides[0], sides[1]


def _known_mean(values: Prediction) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def active_tokens(fragment: Fragment) -> Bool[NDArray, "tokens"]:
    """Tokens that fuzzing marks: above :data:`ACTIVE` of the fragment's maximum, and above zero."""
    return (fragment.activations > 0) & (fragment.activations >= ACTIVE * fragment.maximum)
