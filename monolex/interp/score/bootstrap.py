"""Intervals of scores: documents are drawn anew for all features at once, features anew for every mean.

A fragment enters a correlation through six sums, so that a resample of documents is a weighted sum of small vectors.
Documents get Poisson(1) weights, the same for every dictionary, so that differences are paired; means also draw the
features anew (Owen 2007, "The pigeonhole bootstrap"). What a resample of documents shifts a correlation by on average
is taken away: with ten fragments a feature it is no longer small.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from monolex import stats
from monolex.interp.protocol import SAYS_NOTHING
from monolex.stats import Estimate

SUMS = 6
UNITS = "features and documents"
ENOUGH = 0.9
"""Share of the resamples that must have a number for an interval."""


def sums(actual: Float[NDArray, "tokens"], predicted: Float[NDArray, "tokens"]) -> Float[NDArray, "6"]:
    """Number of tokens, sums of both, of their squares, and of their product."""
    x, y = actual.astype(np.float64), predicted
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])


def correlations(totals: Float[NDArray, "*batch 6"]) -> Float[NDArray, "*batch"] | np.float64:
    """Pearson's correlation out of summed :func:`sums`; NaN where either side is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(totals, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (xx - x * x / n) * (yy - y * y / n)
        # of equal numbers the difference is a rounding error
        spread = np.where(spread > 1e-18 * xx * yy, spread, np.nan)
        return (xy - x * y / n) / np.sqrt(spread)


class ResampledScore(NamedTuple):
    """A score of one feature, with its resamples."""

    value: float
    """The correlation; NaN if there is none."""
    reason: str
    """Why not."""
    drawn: Float[NDArray, "resamples"]
    """In every resample of documents, without bias; NaN throughout where there is no value."""


@final
class Documents:
    """Weights of documents in every resample."""

    def __init__(self, docs: Int64[NDArray, "docs"], resamples: int, seed: int) -> None:
        self._known = np.unique(docs)
        rng = np.random.default_rng(seed)
        self._weights = rng.poisson(1.0, (len(self._known), resamples)).astype(np.uint8)
        self.resamples, self.seed = resamples, seed

    def resample(
        self, value: float, reason: str, fragments: Float[NDArray, "fragments 6"], docs: Int64[NDArray, "fragments"]
    ) -> ResampledScore:
        """Resample one feature's correlation over the documents of its fragments."""
        if not np.isfinite(value):
            return ResampledScore(np.nan, reason, np.full(self.resamples, np.nan))
        weights = self._weights[np.searchsorted(self._known, docs)].astype(np.float64)
        drawn = np.asarray(correlations(np.einsum("fb,fs->bs", weights, fragments)))
        if np.isfinite(drawn).any():
            drawn = drawn - np.nanmean(drawn) + value
        return ResampledScore(value, "", drawn)


def interval(score: ResampledScore, level: float) -> Estimate:
    """The feature's score with its interval over documents."""
    if not np.isfinite(score.value):
        return Estimate(None, reason=score.reason)
    known = score.drawn[np.isfinite(score.drawn)]
    if len(known) < ENOUGH * len(score.drawn):
        return Estimate(score.value, over="documents", reason="constant in most resamples: no interval")
    low, high = np.clip(np.quantile(known, [(1 - level) / 2, (1 + level) / 2]), -1, 1)
    return Estimate(score.value, float(low), float(high), over="documents")


class Mean(NamedTuple):
    """The mean over features, with its resamples.

    An explanation that predicts the same everywhere has no correlation; in means it counts as 0, because it tells
    nothing. Left out, an explainer would gain by saying little.
    """

    estimate: Estimate
    """Value and interval."""
    drawn: Float[NDArray, "resamples"]
    """In every resample of features and documents; empty where there is no interval."""
    missing: Mapping[str, int]
    """Features without a number that are left out, by reason."""
    constant: int = 0
    """Features that count as 0, because the predictions are constant."""
    others: float | None = None
    """The mean without those."""


def mean(scores: Sequence[ResampledScore], level: float, seed: Sequence[int]) -> Mean:
    """Mean over features; ``seed`` is of the draw of features."""
    missing = dict(
        Counter(score.reason for score in scores if not np.isfinite(score.value) and not _says_nothing(score))
    )
    known = [score for score in scores if np.isfinite(score.value) or _says_nothing(score)]
    silent = sum(map(_says_nothing, known))
    if not known:
        reason = max(missing, key=lambda why: missing[why], default="no feature was explained")
        return Mean(Estimate(None, over=UNITS, reason=reason), np.zeros(0), missing)
    values = np.nan_to_num([score.value for score in known])
    value = float(values.mean())
    facts = {"missing": missing, "constant": silent}
    facts["others"] = float(values.sum() / (len(known) - silent)) if silent < len(known) else None
    if len(known) < 2:
        return Mean(Estimate(value, n=1, over=UNITS, reason="one feature only: no interval"), np.zeros(0), **facts)
    drawn = np.stack([np.zeros_like(score.drawn) if _says_nothing(score) else score.drawn for score in known], 1)
    rng = np.random.default_rng(list(seed))
    counts = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=len(drawn)).astype(np.float64)
    # a resample in which a feature is constant says nothing of it
    finite = np.isfinite(drawn)
    weight = (counts * finite).sum(1)
    means = (counts * np.where(finite, drawn, 0)).sum(1)[weight > 0] / weight[weight > 0]
    if len(means) < ENOUGH * len(drawn):
        reason = "constant in too many resamples: no interval"
        return Mean(Estimate(value, n=len(known), over=UNITS, reason=reason), np.zeros(0), **facts)
    whole = np.full(len(drawn), np.nan)
    whole[weight > 0] = means - means.mean() + value
    low, high = np.clip(np.nanquantile(whole, [(1 - level) / 2, (1 + level) / 2]), -1, 1)
    return Mean(Estimate(value, float(low), float(high), len(known), UNITS), whole, **facts)


def _says_nothing(score: ResampledScore) -> bool:
    return score.reason == SAYS_NOTHING


def difference(a: Mean, b: Mean, level: float) -> Estimate:
    """How far the mean ``a`` is above ``b``; both of the same resamples of documents."""
    if a.estimate.value is None or b.estimate.value is None:
        return stats.not_applicable(a.estimate.reason or b.estimate.reason)
    value = a.estimate.value - b.estimate.value
    n = min(a.estimate.n, b.estimate.n)
    if not (len(a.drawn) and len(b.drawn)):
        return Estimate(value, n=n, over=UNITS, reason="one feature only: no interval")
    low, high = np.nanquantile(a.drawn - b.drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, UNITS)
