"""Intervals, paired and two-group tests, corrected p-values, and matching.

Rows of one document are not independent, so intervals resample whole *units* (documents, features or seeds); every
interval carries the name of its unit.
"""

from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest, false_discovery_control, norm, rankdata
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


def share(hits: int, trials: int, over: str, *, level: float = 0.95) -> Estimate:
    """``hits`` of ``trials`` as a probability with Wilson's interval, which holds for a handful of trials, too."""
    if trials == 0:
        return not_applicable(f"no {over}")
    interval = binomtest(hits, trials).proportion_ci(level, "wilson")
    return Estimate(hits / trials, float(interval.low), float(interval.high), trials, over)


def widened(estimate: Estimate, comparisons: int, *, level: float = 0.95) -> Estimate:
    """One of so many ``comparisons`` with an interval that leaves out the truth in none of them, at ``level``.

    Bonferroni's, by the normal shape of an interval that covers ``level`` alone.
    """
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    wider = float(norm.isf((1 - level) / 2 / comparisons) / norm.isf((1 - level) / 2))
    value = estimate.value
    low, high = value - wider * (value - estimate.low), value + wider * (estimate.high - value)
    return estimate._replace(low=low, high=high)


def difference(
    a: ArrayLike, b: ArrayLike, over: str, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of one group's units less that of another's, with its interval: each group's units are resampled apart."""
    groups = [np.asarray(group, dtype=np.float64) for group in (a, b)]
    if min(map(len, groups)) == 0:
        return Estimate(None, over=over, reason="a group is empty")
    if not all(np.isfinite(group).all() for group in groups):
        return Estimate(None, over=over, reason="not finite")
    value, n = float(groups[0].mean() - groups[1].mean()), sum(map(len, groups))
    if min(map(len, groups)) < 2:
        return Estimate(value, n=n, over=over, reason=f"one of {over} only: no interval")
    first, second = (
        resample_counts(len(group), resamples, seed + number) @ group / len(group)
        for number, group in enumerate(groups)
    )
    low, high = np.quantile(first - second, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, over)


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


@lru_cache(maxsize=3)
def resample_counts(units: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each unit is drawn in each bootstrap resample, ``[resamples, units]``, read-only.

    Kept for the next metric: a dictionary's metrics resample documents, features and contexts' documents in turn.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)
    counts.flags.writeable = False
    return counts


class Bootstrap(NamedTuple):
    """How intervals are drawn."""

    resamples: int = 1000
    """Resamples."""
    level: float = 0.95
    """Coverage."""
    seed: int = 0
    """Seed."""

    def mean(self, values: ArrayLike, over: str) -> Estimate:
        """:func:`mean`, drawn so."""
        return mean(values, over, **self._asdict())

    def ratio(self, numerator: ArrayLike, denominator: ArrayLike, over: str) -> Estimate:
        """:func:`ratio`, drawn so."""
        return ratio(numerator, denominator, over, **self._asdict())


class RankSum(NamedTuple):
    """The Mann-Whitney test of every column."""

    auroc: Float[NDArray, "columns"]
    """Probability that a positive unit's value is above a negative one's, ties counted half."""
    p: Float[NDArray, "columns"]
    """Two-sided, by the normal approximation with ties and continuity corrected, but never below what the most
    extreme of all labellings has."""


def rank_sum(values: Float[NDArray, "units columns"], positive: Bool[NDArray, "units"]) -> RankSum:
    """Compare the positive units with the others, column by column."""
    ranks = rankdata(values, axis=0)
    units, above = len(ranks), int(positive.sum())
    below = units - above
    pairs = above * below
    won = ranks[positive].sum(0) - above * (above + 1) / 2
    # The variance of a rank sum under random labels, from the ranks themselves: ties need no formula of their own.
    spread = np.sqrt(pairs / (units * (units - 1)) * ((ranks - (units + 1) / 2) ** 2).sum(0))
    distance = np.maximum(np.abs(won - pairs / 2) - 0.5, 0)
    z = np.divide(distance, spread, out=np.zeros_like(distance), where=spread > 0)
    return RankSum(won / pairs, np.maximum(2 * norm.sf(z), min(1.0, 2 / comb(units, above))))


def benjamini_hochberg(p: Float[NDArray, "tests"]) -> Float[NDArray, "tests"]:
    """P-values adjusted so that those below q have a false discovery rate of q; a NaN is no test and stays NaN."""
    adjusted, known = np.full(len(p), np.nan), ~np.isnan(p)
    adjusted[known] = false_discovery_control(p[known]) if known.any() else np.nan
    return adjusted


def paired(values: Float[NDArray, "units columns"]) -> Float[NDArray, "columns"]:
    """Two-sided p-values of the t-test that the mean over units is 0; NaN for fewer than three units or no spread."""
    units = len(values)
    if units < 3:
        return np.full(values.shape[1], np.nan)
    error = values.std(axis=0, ddof=1) / units**0.5
    t = np.divide(np.abs(values.mean(axis=0)), error, out=np.full(values.shape[1], np.nan), where=error > 0)
    return 2 * student_t.sf(t, units - 1)


def two_groups(
    values: Float[NDArray, "units"],
    positive: Bool[NDArray, "units"],
    over: str,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """AUROC and Cohen's d of positive units against the others; intervals resample each group's units apart.

    Where the groups do not overlap at all every resample says so too, and the interval of the AUROC is instead the
    exact one of m disjoint pairs that were all in order, m being the smaller group.
    """
    a, b = np.asarray(values[positive], np.float64), np.asarray(values[~positive], np.float64)
    drawn = resample_counts(len(a), resamples, seed), resample_counts(len(b), resamples, seed + 1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    area, effect = _auroc(a, b, np.ones((1, len(a))), np.ones((1, len(b))))[0], _effects(a, b)
    if np.ptp(values) == 0:
        flat = Estimate(float(area), n=len(values), over=over, reason="constant: no interval")
        return flat, not_applicable("constant")
    low, high = np.quantile(_auroc(a, b, *drawn), tails)
    bound = tails[0] ** (1 / min(len(a), len(b)))
    low, high = (bound if area == 1 else low), (1 - bound if area == 0 else high)
    ranked = Estimate(float(area), float(low), float(high), len(values), over)
    if not np.isfinite(effect[0]):
        return ranked, not_applicable("no spread within the groups")
    effects = _effects(a, b, *drawn)
    if np.isfinite(effects).mean() < level:
        return ranked, Estimate(float(effect[0]), n=len(values), over=over, reason="too little spread: no interval")
    low, high = np.quantile(effects[np.isfinite(effects)], tails)
    return ranked, Estimate(float(effect[0]), float(low), float(high), len(values), over)


def _auroc(a: NDArray, b: NDArray, drawn_a: NDArray, drawn_b: NDArray) -> NDArray:
    """AUROC in every resample, whose counts are ``[resamples, len(a)]`` and ``[resamples, len(b)]``."""
    distinct, group = np.unique(np.concatenate([a, b]), return_inverse=True)
    above, below = (
        _by_group(drawn, part, len(distinct))
        for drawn, part in ((drawn_a, group[: len(a)]), (drawn_b, group[len(a) :]))
    )
    return (above * (below.cumsum(1) - below / 2)).sum(1) / (len(a) * len(b))


def _by_group(drawn: NDArray, group: NDArray, groups: int) -> NDArray:
    order = group.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sums = np.zeros((len(drawn), groups))
    sums[:, group[order][starts]] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return sums


def _effects(a: NDArray, b: NDArray, drawn_a: NDArray | None = None, drawn_b: NDArray | None = None) -> NDArray:
    """Cohen's d in every resample, or of the units as they are; infinite or NaN where both groups are constant."""
    centre, spread = np.concatenate([a, b]).mean(), np.concatenate([a, b]).var()
    means, squares = [], []
    for x, drawn in ((a - centre, drawn_a), (b - centre, drawn_b)):
        drawn = np.ones((1, len(x))) if drawn is None else drawn
        means.append(drawn @ x / len(x))
        squares.append(drawn @ x**2 - len(x) * means[-1] ** 2)
    pooled = (squares[0] + squares[1]) / (len(a) + len(b) - 2)
    # Of equal numbers the difference above is a rounding error.
    pooled = np.where(pooled > 1e-12 * spread, pooled, np.nan)
    return (means[0] - means[1]) / np.sqrt(pooled)


def correlate(
    x: ArrayLike,
    y: ArrayLike,
    over: str,
    *,
    ranks: bool = False,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Pearson's correlation of two values a unit, or Spearman's (``ranks``), with its percentile bootstrap interval.

    Spearman's ranks, ties at their middle, are taken anew in every resample.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) < 3:
        return Estimate(None, n=len(a), over=over, reason=f"fewer than 3 {over}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Estimate(None, n=len(a), over=over, reason="not finite")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate(None, n=len(a), over=over, reason="constant")
    value = float(_correlations(a, b, np.ones((1, len(a))), ranks)[0])
    drawn = _correlations(a, b, resample_counts(len(a), resamples, seed), ranks)
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < level * len(drawn):
        return Estimate(value, n=len(a), over=over, reason="too little spread: no interval")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), len(a), over)


def _correlations(a: NDArray, b: NDArray, counts: NDArray, ranks: bool) -> NDArray:
    """The correlation in every resample; NaN where a resample is constant."""
    x, y = (_midranks(v, counts) if ranks else (v - v.mean()) / v.std() for v in (a, b))
    units = counts.shape[1]
    x, y = (v - (counts * v).sum(-1, keepdims=True) / units for v in (x, y))
    covariance, spread, other = ((counts * product).sum(-1) for product in (x * y, x * x, y * y))
    # Of equal numbers the spread is a rounding error.
    known = (spread > 1e-12 * units) & (other > 1e-12 * units)
    below = np.sqrt(np.where(known, spread * other, 1))
    return np.where(known, covariance / below, np.nan)


def _midranks(values: NDArray, counts: NDArray) -> NDArray:
    """Every unit's rank in every resample, ``[resamples, units]``; of units that are not drawn, anything."""
    distinct, group = np.unique(values, return_inverse=True)
    held = _by_group(counts, group, len(distinct))
    return (held.cumsum(1) - (held - 1) / 2)[:, group]


def match(similarity: Float[NDArray, "a b"]) -> tuple[Int[NDArray, "pairs"], Int[NDArray, "pairs"]]:
    """The one-to-one matching of rows to columns with the largest total similarity (Hungarian algorithm)."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return rows, columns
