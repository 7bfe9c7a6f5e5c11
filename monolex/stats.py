"""Intervals and matching.

Rows of one document are not independent, so intervals resample whole *units* (documents, features or seeds); every
interval carries the name of its unit.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student_t


class Estimate(NamedTuple):
    """A number and how sure we are of it."""

    value: float | None
    """The number over all units; None if it makes no sense (see ``reason``)."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end of the interval."""
    n: int = 0
    """How many units the interval resamples."""
    over: str = ""
    """What a unit is: documents, features or seeds."""
    reason: str = ""
    """Why there is no value or no interval."""


def not_applicable(reason: str) -> Estimate:
    """A cell that makes no sense, with the reason a person reads."""
    return Estimate(None, reason=reason)


def mean(values: ArrayLike, over: str, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean of one value a unit with its percentile bootstrap interval."""
    array = np.asarray(values, dtype=np.float64)
    return ratio(array, np.ones_like(array), over, resamples=resamples, level=level, seed=seed)


def small_mean(values: ArrayLike, over: str, *, level: float = 0.95) -> Estimate:
    """Mean of one value a unit with Student's t interval: for a handful of units, where a bootstrap is far too narrow.

    The percentile bootstrap over three values covers 75 % instead of 95 %; the t interval supposes that the values
    are near normal and is wide, as it should be.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0 or not np.isfinite(array).all():
        return Estimate(None, n=len(array), over=over, reason="not finite" if len(array) else "no data")
    value = float(array.mean())
    if len(array) < 2:
        return Estimate(value, n=1, over=over, reason=f"one of {over} only: no interval")
    half = float(student_t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)
    return Estimate(value, value - half, value + half, len(array), over)


def ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    over: str,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """``sum(numerator) / sum(denominator)`` over units, with its percentile bootstrap interval.

    Both arguments have one entry a unit: for a mean over tokens, the sum over a document's tokens and their number.
    """
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if len(top) == 0 or bottom.sum() == 0:
        return Estimate(None, n=len(top), over=over, reason="no data")
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        return Estimate(None, n=len(top), over=over, reason="not finite")
    value = float(top.sum() / bottom.sum())
    if len(top) < 2:
        return Estimate(value, n=len(top), over=over, reason=f"one of {over} only: no interval")
    counts = resample_counts(len(top), resamples, seed)
    sums = counts @ bottom
    drawn = (counts @ top)[sums != 0] / sums[sums != 0]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), len(top), over)


@lru_cache(maxsize=2)
def resample_counts(units: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each unit is drawn in each bootstrap resample, ``[resamples, units]``, read-only.

    Kept for the next metric: every metric of a dictionary resamples the same units.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)
    counts.flags.writeable = False
    return counts


def match(similarity: Float[NDArray, "a b"]) -> tuple[Int[NDArray, "pairs"], Int[NDArray, "pairs"]]:
    """The one-to-one matching of rows to columns with the largest total similarity (Hungarian algorithm)."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return rows, columns
