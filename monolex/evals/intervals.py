"""How evals turn what they counted into an :class:`~monolex.stats.Estimate`: one function a unit of resampling.

Activations and predictions of one document depend on each other, so numbers about text resample documents; numbers
about a dictionary's geometry resample features. Seeds are too few to resample and get Student's t.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from monolex import stats
from monolex.config import EvalConfig
from monolex.stats import Estimate


def over_documents(numerator: ArrayLike, denominator: ArrayLike, config: EvalConfig) -> Estimate:
    """``sum(numerator) / sum(denominator)``, both with one entry a document."""
    return stats.ratio(
        numerator,
        denominator,
        "documents",
        resamples=config.resamples,
        level=config.level,
        seed=config.eval_seed,
    )


def over_features(values: ArrayLike, config: EvalConfig) -> Estimate:
    """Mean of one value a feature."""
    array = np.asarray(values, dtype=np.float64)
    return stats.mean(array, "features", resamples=config.resamples, level=config.level, seed=config.eval_seed)


def over_seeds(values: ArrayLike, config: EvalConfig) -> Estimate:
    """Mean of one value a seed."""
    return stats.small_mean(values, "seeds", level=config.level)


def over_pairs(values: Sequence[float], what: str) -> Estimate:
    """Mean of one value a pair; pairs share members, so there is a range and no interval."""
    low, high = min(values), max(values)
    reason = f"{low:.3g} to {high:.3g} over {len(values)} {what}, which share members: no interval"
    return Estimate(sum(values) / len(values), n=len(values), over=what, reason=reason)


def exact(value: float, n: int, over: str, what: str) -> Estimate:
    """A number that is no mean and has no interval: ``what`` says why (`a count`, `a maximum`)."""
    return Estimate(value, n=n, over=over, reason=f"{what}: no interval")
