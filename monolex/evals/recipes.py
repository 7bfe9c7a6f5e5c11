"""Dictionaries by what they were made with: what a row of metrics.json says of one, and neighbours in a sweep."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import relative_place
from monolex.dictionaries.listing import RunDictionary

RECIPE = ("kind", "target", "d_sae", "alpha", "k", "ratio", "seed", "lr")
AXES = ("kind", "target", "alpha", "k", "ratio", "seed", "lr")


def recipe(dictionary: RunDictionary) -> dict[str, Any]:
    """The values of :data:`RECIPE`; of a baseline None but for kind, d_sae and k. ``target`` is a transcoder's."""
    config = dictionary.config
    trained = config.recipe if dictionary.trained else {}
    known = {"kind": config.kind, "target": config.target or None, "d_sae": config.d_sae, "k": config.k}
    return {name: known[name] if name in known else trained.get(name) for name in RECIPE}


def identification(dictionary: RunDictionary, folder: Path) -> dict[str, Any]:
    """What identifies a dictionary in every row; its path is relative to ``folder``."""
    names = {"model": dictionary.model, "site": dictionary.site, "name": dictionary.name}
    return {**names, **recipe(dictionary), "path": relative_place(dictionary.folder, folder)}


def neighbours(dictionaries: Sequence[RunDictionary]) -> Iterator[tuple[RunDictionary, RunDictionary]]:
    """Pairs of trained dictionaries of one source that differ along one axis, at consecutive values of it."""
    trained = {dictionary.key: dictionary for dictionary in dictionaries if dictionary.trained}
    recipes = {key: recipe(dictionary) for key, dictionary in trained.items()}
    axes = {(a, b): _axis(trained[a], trained[b]) for a, b in itertools.permutations(trained, 2)}
    for a, b in itertools.combinations(trained, 2):
        axis = axes[a, b]
        if axis is None:
            continue
        between = [
            c
            for c in trained
            if c not in (a, b)
            and axes[a, c] == axes[b, c] == axis
            and axis not in ("kind", "target", "seed")
            and min(recipes[a][axis], recipes[b][axis]) < recipes[c][axis] < max(recipes[a][axis], recipes[b][axis])
        ]
        if not between:
            yield trained[a], trained[b]


def seed_groups(dictionaries: Sequence[RunDictionary]) -> list[list[RunDictionary]]:
    """Trained dictionaries that differ in nothing but their seed, in groups."""
    groups: dict[tuple[Any, ...], list[RunDictionary]] = {}
    for dictionary in dictionaries:
        if dictionary.trained:
            values = {**recipe(dictionary), "seed": None}.values()
            groups.setdefault((dictionary.source, *values), []).append(dictionary)
    return list(groups.values())


def _axis(a: RunDictionary, b: RunDictionary) -> str | None:
    """The one axis along which two dictionaries differ; presets tie the learning rate to width and kind."""
    if a.source != b.source:
        return None
    values, others = recipe(a), recipe(b)
    differing = [axis for axis in AXES if values[axis] != others[axis]]
    if len(differing) == 2 and differing[0] in ("kind", "ratio") and differing[1] == "lr":
        differing.pop()
    return differing[0] if len(differing) == 1 else None
