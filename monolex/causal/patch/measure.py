"""The patching experiment of one dictionary: every search, its curve, and all of it as plain values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from monolex.causal.config import PatchConfig
from monolex.causal.patch import searches, sweep
from monolex.causal.patch.curves import (
    PROMPTS,
    Curve,
    Floors,
    Reference,
    area_ratio,
    completeness,
    faithfulness,
    floors,
    measure,
    recovered,
)
from monolex.causal.patch.patch import Patch
from monolex.causal.patch.searches import FeatureSet
from monolex.stats import Bootstrap

IN_SAMPLE = "in_sample/"
"""Before the names of arrays of the prompts on which sets were chosen."""
EXACT = ("effects", "sweep", "greedy", "swaps")
"""Searches that try many sets exactly and take minutes where the others take seconds."""
NESTED = ("ranking", "effects", "sweep", "greedy")
"""Searches whose sets are nested and know something of features: these take them in an order."""
TAKEN = 64
"""Features whose place in such an order is kept, the first."""
WORTH_SWAPS = 1.10
"""A ranking whose area is above this multiple of greedy's is improved by local swaps."""


class Result(NamedTuple):
    """What one dictionary's features do to the prompts."""

    candidates: int
    """Features whose codes differ."""
    ends: Floors
    """References."""
    curves: dict[str, Curve]
    """By search."""
    in_sample: dict[str, Curve]
    """The same on the prompts on which the sets were chosen; empty where those are the same."""
    thresholds: tuple[float | None, ...]
    """Of the sweep's points."""
    attributed: float
    """Sum of the attributions: near KL(all) − KL(none) where integrated gradients can be trusted."""
    unmoved: int
    """Pairs whose activation not even all candidates together change."""
    order: dict[str, list[int]]
    """By search of :data:`NESTED` the numbers of the first :data:`TAKEN` features, as it takes them."""


def measure_patch(patch: Patch, config: PatchConfig, exact: bool, held_out: Patch | None = None) -> Result:
    """Run the searches of ``config`` that are cheap, with ``exact`` all of them, and measure what they find.

    Args:
        held_out: the same dictionary on other prompts, on which the sets are measured; None measures where they were
            chosen.
    """
    measured = held_out or patch
    scores = searches.attribution(patch)
    order = searches.ranking(scores)
    sizes = searches.log_sizes(len(order), config.points)
    limit = min(config.limit, len(order))
    wanted = [name for name in config.searches if exact or name not in EXACT]
    ties = dict.fromkeys(NESTED, order)
    if "effects" in wanted:
        ties["effects"] = searches.ranking(searches.effects(patch))
    thresholds = sweep.paper_thresholds(config.thresholds)
    ranked = searches.prefixes(order, sizes)
    find: dict[str, Callable[[], list[FeatureSet]]] = {
        "ranking": lambda: ranked,
        "random": lambda: searches.prefixes(searches.random_order(patch, config.patch_seed), sizes),
        "effects": lambda: searches.prefixes(ties["effects"], sizes),
        "sweep": lambda: sweep.threshold_sweep(patch, thresholds, budget=config.budget, seed=config.patch_seed),
        "greedy": lambda: searches.greedy(patch, limit),
        "swaps": lambda: [searches.local_swaps(patch, features) for features in ranked],
    }
    sets = {name: find[name]() for name in wanted}
    chosen = {name: measure(patch, sets[name]) for name in wanted}
    if "greedy" in sets and "ranking" in sets and "swaps" not in sets:
        ratio = area_ratio(chosen["ranking"], chosen["greedy"], floors(patch), limit).value
        if ratio is not None and ratio > WORTH_SWAPS:
            sets["swaps"] = find["swaps"]()
            chosen["swaps"] = measure(patch, sets["swaps"])
    swept = tuple(features.threshold for features in sets.get("sweep", ()))
    curves = chosen
    if held_out is not None:
        curves = {name: elsewhere(held_out, patch, searched) for name, searched in sets.items()}
    orders = {name: searches.taken(sets[name], ties[name]) for name in NESTED if name in sets}
    numbers = {name: patch.candidates[taken[:TAKEN]].tolist() for name, taken in orders.items()}
    known = (swept, float(scores.sum()), int(measured.unmoved().sum()), numbers)
    return Result(len(order), floors(measured), curves, {} if held_out is None else chosen, *known)


def elsewhere(held_out: Patch, patch: Patch, sets: Sequence[FeatureSet]) -> Curve:
    """Sets of features that were chosen on ``patch``, measured on other prompts.

    A feature whose codes differ in none of those has nothing to patch there, and counts all the same.
    """
    place = {feature: number for number, feature in enumerate(patch.candidates.tolist())}
    at = [place.get(feature, -1) for feature in held_out.candidates.tolist()]
    known = torch.tensor(at, dtype=torch.long, device=held_out.candidates.device)
    none = torch.zeros(1, dtype=torch.bool, device=known.device)  # what -1 finds
    moved = [features._replace(chosen=torch.cat([features.chosen, none])[known]) for features in sets]
    return measure(held_out, moved, [int(features.chosen.sum()) for features in sets])


def as_json(result: Result, limit: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Means with intervals of everything in a result."""
    ends, curves = result.ends, {}
    for name, curve in result.curves.items():
        points = [_point(curve, i, ends, bootstrap) for i in range(len(curve.sizes))]
        if name == "sweep":
            points = [{**point, "threshold": t} for point, t in zip(points, result.thresholds, strict=True)]
        curves[name] = points
    in_sample = {name: _in_sample(curve, bootstrap) for name, curve in result.in_sample.items()}
    greedy, most = result.curves.get("greedy"), min(limit, result.candidates)
    areas = {
        f"{name} over greedy": area_ratio(curve, greedy, ends, most, bootstrap)
        for name, curve in result.curves.items()
        if greedy is not None and name != "greedy"
    }
    return {
        "candidates": result.candidates,
        "attributed": result.attributed,
        "unmoved": result.unmoved,
        "floors": {name: _reference(getattr(ends, name), bootstrap) for name in ("none", "all", "whole")},
        "donor_metric": _mean(ends.donor_metric, bootstrap),
        "curves": curves,
        "in_sample": in_sample,
        "order": result.order,
        "areas": {name: area._asdict() for name, area in areas.items()},
    }


def arrays(result: Result) -> dict[str, NDArray]:
    """Every number of every pair, by name; :func:`from_arrays` reads them."""
    named = {f"floors.{name}": np.stack(getattr(result.ends, name)) for name in ("none", "all", "whole")}
    named["floors.donor_metric"] = result.ends.donor_metric
    for searched, prefix in ((result.curves, ""), (result.in_sample, IN_SAMPLE)):
        for search, curve in searched.items():
            fields = {field: np.ascontiguousarray(getattr(curve, field)) for field in Curve._fields}
            named |= {f"{prefix}{search}.{field}": column for field, column in fields.items()}
    return named


def from_arrays(stored: Mapping[str, NDArray]) -> tuple[Floors, dict[str, Curve]]:
    """The references and curves that :func:`arrays` wrote, without those in sample."""
    ends = [Reference(*stored[f"floors.{name}"]) for name in ("none", "all", "whole")]
    others = ("floors.", IN_SAMPLE)
    names = dict.fromkeys(key.partition(".")[0] for key in stored if not key.startswith(others))
    curves = {name: Curve(*(stored[f"{name}.{field}"] for field in Curve._fields)) for name in names}
    return Floors(*ends, donor_metric=stored["floors.donor_metric"]), curves


def _point(curve: Curve, i: int, ends: Floors, bootstrap: Bootstrap) -> dict[str, Any]:
    measured = ("kl", "reverse", "metric", "edit", "edit_changed", "edit_relative")
    return {
        "size": int(curve.sizes[i]),
        **{name: _mean(getattr(curve, name)[i], bootstrap) for name in measured},
        "recovered": recovered(curve, i, ends, bootstrap)._asdict(),
        "faithfulness": faithfulness(curve, i, ends, bootstrap)._asdict(),
        "completeness": completeness(curve, i, ends, bootstrap)._asdict(),
    }


def _in_sample(curve: Curve, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """KL and edit of a curve on the prompts on which its sets were chosen."""
    return [
        {"size": int(size), "kl": _mean(curve.kl[i], bootstrap), "edit": _mean(curve.edit[i], bootstrap)}
        for i, size in enumerate(curve.sizes)
    ]


def _reference(reference: Reference, bootstrap: Bootstrap) -> dict[str, Any]:
    return {name: _mean(value, bootstrap) for name, value in reference._asdict().items()}


def _mean(values: Sequence[float] | NDArray, bootstrap: Bootstrap) -> dict[str, Any]:
    return bootstrap.mean(values, PROMPTS)._asdict()
