"""Curves of a patch: KL over the number of patched features and over the size of the edit, with floors and intervals.

Every number is kept a prompt pair, so that intervals, areas and comparisons of two curves resample the same pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from monolex import stats
from monolex.causal.patch.patch import Outcome, Patch
from monolex.causal.patch.searches import FeatureSet
from monolex.stats import Bootstrap, Estimate

PROMPTS = "prompts"
BOOTSTRAP = Bootstrap()
PerPrompt = Float[NDArray, "points prompts"]


class Curve(NamedTuple):
    """Sets of patched features, measured; a row a set, a column a prompt pair."""

    sizes: Int[NDArray, "points"]
    """Features in each set."""
    kl: PerPrompt
    """KL(patched ‖ donor), nats."""
    reverse: PerPrompt
    """KL(donor ‖ patched)."""
    metric: PerPrompt
    """Logit difference of the base's answer over its foil."""
    kept: PerPrompt
    """The same with everything *but* the set patched."""
    edit: PerPrompt
    """Mean of ‖x' − x‖ over tokens."""
    edit_changed: PerPrompt
    """The same over the tokens that are changed."""
    edit_relative: PerPrompt
    """Size of the edit over that of replacing the whole activation."""


class Reference(NamedTuple):
    """A set that every curve is read against, a number a prompt pair."""

    kl: Float[NDArray, "prompts"]
    """KL(patched ‖ donor)."""
    metric: Float[NDArray, "prompts"]
    """Logit difference."""
    edit: Float[NDArray, "prompts"]
    """Mean of ‖x' − x‖ over tokens."""


class Floors(NamedTuple):
    """What no search can go below, or above."""

    none: Reference
    """No feature patched: the base."""
    all: Reference
    """Every feature patched: the floor that the reconstruction error leaves."""
    whole: Reference
    """The donor's whole activation."""
    donor_metric: Float[NDArray, "prompts"]
    """Logit difference after the donor."""


def measure(patch: Patch, sets: Sequence[FeatureSet], sizes: Sequence[int] | None = None) -> Curve:
    """Measure sets exactly, each on its own edit, with its complement; ``sizes`` where theirs are not the masks'."""
    edits = (patch.edit(mask) for features in sets for mask in (features.chosen, ~features.chosen))
    outcomes = list(patch.outcomes(edits))
    sizes = [int(features.chosen.sum()) for features in sets] if sizes is None else sizes
    points = []
    for features, does, without in zip(sets, outcomes[::2], outcomes[1::2], strict=True):
        values = (*does, without.metric, *patch.size(patch.edit(features.chosen)))
        points.append([value.double().cpu().numpy() for value in values])
    return Curve(np.array(sizes), *(np.stack(column) for column in zip(*points, strict=True)))


def floors(patch: Patch) -> Floors:
    """The references of a patch."""
    nothing, everything = patch.edit(~patch.all()), patch.edit(patch.all())
    whole = ((patch.donor - patch.base) * patch.real[..., None]).to(everything.dtype)
    none, full = patch.outcomes([nothing, everything])
    donor = patch.metric(patch.donor_log_p)
    parts = ((none, nothing), (full, everything), (patch.whole(), whole))
    below, above, replaced = (_reference(patch, *part) for part in parts)
    return Floors(below, above, replaced, donor.double().cpu().numpy())


def _reference(patch: Patch, outcome: Outcome, edit: Tensor) -> Reference:
    values = (outcome.kl, outcome.metric, patch.size(edit).mean)
    return Reference(*(value.double().cpu().numpy() for value in values))


def faithfulness(curve: Curve, point: int, ends: Floors, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """``(m(C) − m(∅)) / (m(M) − m(∅))`` of the set C: the metric with all but C patched, 1 if C is everything.

    The denominator is the effect of patching all features (``ends.none`` and ``ends.all`` hold its two parts); where
    that is small the ratio means little.
    """
    return _share(curve.kept[point], ends, bootstrap)


def completeness(curve: Curve, point: int, ends: Floors, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """The same of the complement, low where C is complete: 0 if C is everything."""
    return _share(curve.metric[point], ends, bootstrap)


def recovered(curve: Curve, point: int, ends: Floors, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Share of the way from the base's logit difference to the donor's."""
    return bootstrap.ratio(curve.metric[point] - ends.none.metric, ends.donor_metric - ends.none.metric, PROMPTS)


def _share(metric: NDArray, ends: Floors, bootstrap: Bootstrap) -> Estimate:
    return bootstrap.ratio(metric - ends.all.metric, ends.none.metric - ends.all.metric, PROMPTS)


def area(curve: Curve, ends: Floors, limit: int) -> Float[NDArray, "prompts"]:
    """Area under KL over the number of features from 0 to ``limit``, by trapezoids over the measured sizes.

    A curve begins at no feature, whether that was among its sets or not; one that ends earlier stays where it is.
    """
    sizes, (kl,) = _by_size(curve, ends, "kl")
    grid = np.arange(limit + 1)
    dense = np.stack([np.interp(grid, sizes, column) for column in kl.T])
    return np.trapezoid(dense, grid, axis=1)


def area_ratio(curve: Curve, reference: Curve, ends: Floors, limit: int, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Area of one curve over that of another, with an interval over prompt pairs."""
    return bootstrap.ratio(area(curve, ends, limit), area(reference, ends, limit), PROMPTS)


def needed(curve: Curve, ends: Floors, share: float, bootstrap: Bootstrap) -> tuple[NDArray, NDArray]:
    """Features, and size of the edit, at which a curve first gets down to a ``share`` of the base's mean KL.

    The first entry of either array is of all pairs, the others of bootstrap resamples; NaN where the curve stays
    above. Between two measured sets both are interpolated in KL.
    """
    sizes, (kl, edit) = _by_size(curve, ends, "kl", "edit")
    pairs = kl.shape[1]
    drawn = stats.resample_counts(pairs, bootstrap.resamples, bootstrap.seed)
    weights = np.concatenate([np.ones((1, pairs)), drawn]) / pairs
    curves, target = weights @ kl.T, share * weights @ ends.none.kl
    return _crossing(curves, target, np.broadcast_to(sizes, curves.shape)), _crossing(curves, target, weights @ edit.T)


def _crossing(curves: NDArray, target: NDArray, values: NDArray) -> NDArray:
    """The value of each row where its curve first is at or below its target; NaN where it never is."""
    below, rows = curves <= target[:, None], np.arange(len(curves))
    first = below.argmax(1)
    before = np.maximum(first - 1, 0)
    high, low = curves[rows, before], curves[rows, first]
    share = np.divide(high - target, high - low, out=np.zeros_like(high), where=high > low)
    at = values[rows, before] + share * (values[rows, first] - values[rows, before])
    return np.where(below.any(1), at, np.nan)


def _by_size(curve: Curve, ends: Floors, *fields: str) -> tuple[NDArray, list[NDArray]]:
    """Sizes ascending from 0 without repeats, and the rows of ``fields`` that belong to them; of one size the first."""
    sizes, first = np.unique(np.concatenate([curve.sizes, [0]]), return_index=True)
    columns = [np.concatenate([getattr(curve, name), [getattr(ends.none, name)]])[first] for name in fields]
    return sizes.astype(np.float64), columns
