"""The arithmetic of OpenAI's protocol (Bills et al. 2023): what prompts show, what is read out, what is scored.

Only prompts hold whole numbers; scores compare raw activations with expected values, because a correlation does not
mind the scale.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike, NDArray

from monolex.interp.records import TOP

T = TypeVar("T")
SPLIT_SIZE = 5
"""Fragments of a split."""
TOP_RANKS = 4 * SPLIT_SIZE
"""Top fragments, of which every fourth is explained; features with fewer are skipped (paper, A)."""


class TopSplits(NamedTuple):
    """The top fragments by what they are for: every fourth, so that each part holds some of the strongest."""

    train: tuple
    """0, 4, 8, 12, 16: explained."""
    calibration: tuple
    """1, 5, 9, 13, 17."""
    valid: tuple
    """2, 6, 10, 14, 18: scored."""
    test: tuple
    """3, 7, 11, 15, 19."""


class RandomSplits(NamedTuple):
    """The random fragments by what they are for: every third."""

    calibration: tuple
    """0, 3, 6, 9, 12."""
    valid: tuple
    """1, 4, 7, 10, 13: scored."""
    test: tuple
    """2, 5, 8, 11, 14."""


def top_splits(fragments: Sequence[T]) -> TopSplits:
    """Splits of the fragments with the largest maxima, strongest first; those past the first 20 are left out."""
    return TopSplits(*(tuple(fragments[start : 4 * SPLIT_SIZE : 4]) for start in range(4)))


def random_splits(fragments: Sequence[T]) -> RandomSplits:
    """Splits of random fragments; those past the first 15 are left out."""
    return RandomSplits(*(tuple(fragments[start : 3 * SPLIT_SIZE : 3]) for start in range(3)))


def normalise(activations: ArrayLike, maximum: float, top: int = TOP) -> Int64[NDArray, "tokens"]:
    """``min(top, floor(top · relu(x) / maximum))``: rounded down, never up; all 0 where nothing is above zero.

    >>> normalise([-1, 0, 0.1, 0.299999, 0.3, 2.999, 3, 4], 3).tolist()
    [0, 0, 0, 0, 1, 9, 10, 10]
    """
    positive = np.maximum(np.asarray(activations, np.float64), 0)
    if maximum <= 0:
        return np.zeros(positive.shape, np.int64)
    return np.minimum(top, np.floor(top * positive / maximum)).astype(np.int64)


def largest(fragments: Sequence[ArrayLike]) -> float:
    """The maximum to normalise by: over all the fragments that are shown together; 0 if nothing is above zero."""
    return max((float(np.max(activations)) for activations in fragments if np.size(activations)), default=0.0)


def expected_value(logprobs: Mapping[str, float], top: int = TOP) -> float | None:
    """The mean of 0 … ``top`` under the log-probabilities of the tokens that spell one of them exactly.

    None where no such token is known: OpenAI's code says 0 there, which no one can tell from a prediction.

    >>> expected_value({"0": -0.6931471805599453, "10": -0.6931471805599453, " 3": -0.1})
    5.0
    """
    spelled = {str(number) for number in range(top + 1)}
    known = {int(text): logprob for text, logprob in logprobs.items() if text in spelled}
    if not known:
        return None
    numbers, logs = np.array(list(known)), np.array(list(known.values()), np.float64)
    weights = np.exp(logs - logs.max())
    return float((numbers * weights).sum() / weights.sum())


CONSTANT = "the {} are constant"
SAYS_NOTHING = CONSTANT.format("predictions")
"""Why an explanation that tells no token from another has no score."""


class Correlation(NamedTuple):
    """A score, or why there is none."""

    value: float
    """Pearson's correlation; NaN where it does not exist."""
    reason: str = ""
    """Why it does not."""


def correlation(actual: ArrayLike, predicted: ArrayLike) -> Correlation:
    """Correlation of activations with predictions over all tokens of all scored fragments, laid end to end.

    >>> round(correlation([-0.1, 0, 3, 1], [0, 1, 7, 2]).value, 8)
    0.98754869
    """
    x, y = np.asarray(actual, np.float64).ravel(), np.asarray(predicted, np.float64).ravel()
    if len(x) == 0:
        return Correlation(np.nan, "no token")
    for values, name in ((x, "activations"), (y, "predictions")):
        if not np.isfinite(values).all():
            return Correlation(np.nan, f"the {name} are not finite")
        if np.ptp(values) == 0:
            return Correlation(np.nan, CONSTANT.format(name))
    x, y = x - x.mean(), y - y.mean()
    return Correlation(float(x @ y / np.sqrt((x @ x) * (y @ y))))
