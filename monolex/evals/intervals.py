"""How evals turn what they counted into an :class:`~monolex.stats.Estimate`: one function a unit of resampling.

Activations and predictions of one document depend on each other, so numbers about text resample documents; numbers
about a dictionary's geometry resample features; numbers about training resample seeds (or pairs of them).
"""

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
    return mean_over(values, "features", config)


def mean_over(values: ArrayLike, unit: str, config: EvalConfig) -> Estimate:
    """Mean of one value a ``unit``."""
    array = np.asarray(values, dtype=np.float64)
    return stats.mean(array, unit, resamples=config.resamples, level=config.level, seed=config.eval_seed)


def exact(value: float, n: int, over: str, what: str) -> Estimate:
    """A number that is no mean and has no interval: ``what`` says why (`a count`, `a maximum`)."""
    return Estimate(value, n=n, over=over, reason=f"{what}: no interval")
