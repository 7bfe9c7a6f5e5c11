"""One dictionary of several that differ in nothing but their seed: the features that come back, and what else fits.

Features of different seeds that are alike (:mod:`monolex.features.seeds`) are one group, at most one of every seed. A
pooled feature is a group's mean; the groups of most seeds come first, then those nearest to another seed's features,
until the dictionary is as wide as its sources. After "Unstable Features, Reproducible Subspaces" (arXiv 2606.12138),
which pools the unique features of several seeds too. What is pooled was never trained together, so its
reconstruction is worse than theirs: a short training that begins with it (`monolex train --init`) mends that.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from monolex.config import require
from monolex.dictionaries.base import Dictionary, load
from monolex.features.seeds import nearest_in, recipe_of
from monolex.kinds import KINDS

BY_FEATURE: Final = ("W_enc", "W_dec", "b_enc", "threshold")
"""Weights with a row a feature; of others the mean over dictionaries is taken."""


class Group(NamedTuple):
    """Features of different dictionaries that are taken for one."""

    members: dict[int, int]
    """Feature by dictionary."""
    likeness: float
    """Mean over its members of their likeness to the nearest features of the other dictionaries."""


class Pooled(NamedTuple):
    """What became of several dictionaries."""

    dictionary: Dictionary
    """The pooled one."""
    seeds: list[int]
    """Of every feature in how many of the dictionaries it is, the largest first."""


def pool(dictionaries: Sequence[Dictionary]) -> Pooled:
    """Pool dictionaries of one recipe and different seeds into one that is as wide as each of them.

    Raises:
        UserError: fewer than two, of different recipes, models or shapes, of one seed, one given twice, or of a kind
            whose features have an order.
    """
    _require_alike(dictionaries)
    groups = grouped(dictionaries)[: dictionaries[0].d_sae]
    weights = {name: _mean(name, dictionaries, groups) for name in dictionaries[0].weights}
    lengths = _mean_by_group([dictionary.W_dec.norm(dim=1) for dictionary in dictionaries], groups)
    shrunk = weights["W_dec"].norm(dim=1).clamp_min(1e-8)  # the mean of unit rows is shorter than they are
    weights["W_dec"] = weights["W_dec"] * (lengths / shrunk)[:, None]
    config = dictionaries[0].config
    if KINDS[config.kind].tied:
        weights["W_enc"] = weights["W_dec"].clone()
    thresholds = [d.config.threshold for d in dictionaries if d.config.threshold is not None]
    threshold = sum(thresholds) / len(thresholds) if thresholds else None
    recipe = {**config.recipe, "name": "pooled", "seed": None}
    recipe["pooled"] = [d.config.recipe.get("seed") for d in dictionaries]
    pooled = Dictionary(dataclasses.replace(config, threshold=threshold, recipe=recipe), weights)
    return Pooled(pooled, [len(group.members) for group in groups])


def pool_folders(out: Path, folders: Sequence[Path]) -> Pooled:
    """Pool the dictionaries in ``folders`` and save the result in ``out``, which continues them by `train --init`.

    Raises:
        UserError: as :func:`pool`, no dictionary in a folder, or ``out`` holds something.
    """
    require(not out.exists() or not any(out.iterdir()), f"{out} is not empty: give another folder")
    pooled = pool([load(folder) for folder in folders])
    pooled.dictionary.save(out)
    return pooled


def grouped(dictionaries: Sequence[Dictionary]) -> list[Group]:
    """All features of all dictionaries in groups, those of most dictionaries first, then the likest.

    Pairs of like features are joined, the likest first, unless the group would hold two features of one dictionary.
    """
    pairs: list[tuple[float, tuple[int, int], tuple[int, int]]] = []
    likeness = [torch.zeros(dictionary.d_sae) for dictionary in dictionaries]
    for a, b in itertools.permutations(range(len(dictionaries)), 2):
        nearest = nearest_in(dictionaries[a], dictionaries[b])
        likeness[a] += nearest.likeness.clamp_min(0) / (len(dictionaries) - 1)
        if a < b:
            alike = nearest.alike.nonzero()[:, 0].tolist()
            partners, values = nearest.partner.tolist(), nearest.likeness.tolist()
            pairs += [(values[i], (a, i), (b, partners[i])) for i in alike]
    group_of = {(d, i): {d: i} for d, dictionary in enumerate(dictionaries) for i in range(dictionary.d_sae)}
    for _, first, second in sorted(pairs, key=lambda pair: -pair[0]):
        group, other = group_of[first], group_of[second]
        if group is not other and not group.keys() & other.keys():
            group |= other
            for member in other.items():
                group_of[member] = group
    unique = {id(members): members for members in group_of.values()}.values()
    groups = [Group(dict(sorted(m.items())), _mean_likeness(m, likeness)) for m in unique]
    return sorted(groups, key=lambda group: (-len(group.members), -group.likeness, sorted(group.members.items())))


def _mean_likeness(members: dict[int, int], likeness: Sequence[Tensor]) -> float:
    return sum(float(likeness[d][i]) for d, i in members.items()) / len(members)


def _mean(name: str, dictionaries: Sequence[Dictionary], groups: Sequence[Group]) -> Tensor:
    """A weight of the pooled dictionary: by group where it has a row a feature, else over the dictionaries."""
    stored = [dictionary.weights[name] for dictionary in dictionaries]
    if name not in BY_FEATURE:
        return torch.stack(stored).mean(0)
    return _mean_by_group(stored, groups)


def _mean_by_group(stored: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
    """Mean over the members of every group of what is stored of them, a row a feature in each of the dictionaries."""
    total = stored[0].new_zeros(len(groups), *stored[0].shape[1:])
    count = total.new_zeros(len(groups))
    for d, rows in enumerate(stored):
        held = [(number, group.members[d]) for number, group in enumerate(groups) if d in group.members]
        number, feature = torch.tensor(held, dtype=torch.int64).reshape(-1, 2).T
        total.index_add_(0, number, rows[feature])
        count.index_add_(0, number, count.new_ones(len(number)))
    return total / count.reshape(-1, *[1] * (total.ndim - 1))


def _require_alike(dictionaries: Sequence[Dictionary]) -> None:
    require(len(dictionaries) >= 2, f"{len(dictionaries)} dictionaries: give two or more, of different seeds")
    first = dictionaries[0]
    require(first.config.kind in KINDS, f"a {first.config.kind} dictionary has no seed: pool trained ones")
    nested = KINDS[first.config.kind].loss == "matryoshka"
    require(not nested, "the first features of a matryoshka reconstruct alone; pooling keeps no such order")
    recipe = recipe_of(first.config) | {"weights": sorted(first.weights)}
    for dictionary in dictionaries[1:]:
        other = recipe_of(dictionary.config) | {"weights": sorted(dictionary.weights)}
        for name in {**recipe, **other}:
            mine, its = recipe.get(name), other.get(name)
            require(mine == its, f"the dictionaries differ in {name} ({mine!r} and {its!r}): pool seeds of one recipe")
    twice = any(torch.equal(a.W_dec, b.W_dec) for a, b in itertools.combinations(dictionaries, 2))
    require(not twice, "a dictionary is given twice: pool different seeds")
    seeds = [dictionary.config.recipe.get("seed") for dictionary in dictionaries]
    require(len({*seeds}) == len(seeds) or seeds[0] is None, f"their seeds are {seeds}: pool different ones")
