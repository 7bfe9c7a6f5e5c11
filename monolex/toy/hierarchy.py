"""The large synthetic benchmark, in the manner of SynthSAEBench (Chanin and Garriga-Alonso 2026, arXiv 2602.14687).

Features form trees: a root that is present hands on to one of its children with a fixed chance, that one to one of
its own, so that siblings exclude each other and a child is never there without its parent, whose strength it shares.
The rest stand alone. Roots and those are present by a Gaussian copula with a few common factors and Zipf's law of
frequencies. All is drawn event by event; the frequencies are exact but for the cut of the copula (:data:`CUT`).

It is not their data: theirs are drawn by another code, with probabilities bounded at both ends and directions that are
pushed apart. What is alike are sizes, mean number of present features, trees, exclusion, factors and strengths.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex import runtime
from monolex.config import require
from monolex.dictionaries.base import SparseCodes
from monolex.toy.world import World, listed, present, random_directions

BRANCHES, DEPTH = 4, 3
"""Children of a feature, and generations below a root."""
ROOTS = 128
"""Features over roots: 16,384 have 128 roots, whose trees hold 10,880."""
HANDS_ON = 0.8
"""Chance that a feature with children that is present hands on to one of them."""
FACTORS, SHARED = 25, 0.25
"""Common factors of the copula, and the share of a normal's variance in them."""
CUT = 3.0
"""Standard deviations at which what the factors say of a feature is cut above, which bounds every chance."""
STRONGEST, WEAKEST = 5.0, 4.0
"""Mean strength of the most frequent and of the rarest feature."""
SPREAD = 0.5
"""Mean, and deviation before it is folded at 0, of the deviations of strengths."""


@dataclass(frozen=True)
class HierarchySettings:
    """What the benchmark is made by."""

    d_in: int = 768
    """Width of a row."""
    features: int = 16_384
    """Known features, of which a 128th are roots."""
    active: float = 34.0
    """Features that are present in a row, on average."""
    zipf: float = 0.5
    """Exponent of the law of frequencies: rank r has 1 / r^zipf of the first."""
    seed: int = 0
    """Of the directions, the trees' order, the factors and the strengths."""


class _Trees:
    """Features by place: roots, then generation by generation, then those that stand alone."""

    def __init__(self, settings: HierarchySettings) -> None:
        roots = settings.features // ROOTS
        self.sizes = [roots * BRANCHES**depth for depth in range(DEPTH + 1)]
        self.inside = sum(self.sizes)
        self.parent = torch.full((settings.features,), -1)
        first = 0
        for size in self.sizes[:-1]:
            below = torch.arange(first + size, first + size + size * BRANCHES)
            self.parent[below] = first + (below - first - size) // BRANCHES
            first += size
        self.with_children = first
        weights = torch.arange(1, BRANCHES + 1, dtype=torch.float64) ** -settings.zipf
        self.shares = weights / weights.sum()
        self.tops = torch.cat([torch.arange(roots), torch.arange(self.inside, settings.features)])
        falling = (self.tops + 1).double() ** -settings.zipf
        of_root = sum(HANDS_ON**depth for depth in range(DEPTH + 1))
        scale = settings.active / float(falling[:roots].sum() * of_root + falling[roots:].sum())
        self.top_frequency = scale * falling

    def first_child(self, feature: Int[Tensor, "events"]) -> Int[Tensor, "events"]:
        """The place of the first child of features that have some."""
        return feature * BRANCHES + self.sizes[0]

    def frequency(self) -> Float[Tensor, "features"]:
        """Of every place."""
        frequency = torch.zeros(len(self.parent), dtype=torch.float64)
        frequency[self.tops] = self.top_frequency
        for place in range(self.sizes[0], self.inside, BRANCHES):
            frequency[place : place + BRANCHES] = frequency[self.parent[place]] * HANDS_ON * self.shares
        return frequency


def hierarchical(settings: HierarchySettings) -> World:
    """The world of these settings.

    Raises:
        UserError: too few features for a tree, or more present ones than the law of frequencies leaves room for.
    """
    require(
        settings.features >= ROOTS,
        f"features = {settings.features}: hierarchical data need at least {ROOTS}, of which one is a root",
    )
    trees = _Trees(settings)
    require(
        float(trees.top_frequency[0]) <= 0.5,
        f"active = {settings.active:g}: of features = {settings.features} the first would be present in more than half "
        "of the rows; lower active or add features",
    )
    frequency = trees.frequency()
    order = frequency.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    g = runtime.generator("hierarchical", settings.seed, settings.features)
    mean = torch.empty(len(order))
    mean[order] = torch.linspace(STRONGEST, WEAKEST, len(order))
    deviation = (SPREAD + SPREAD * torch.randn(len(order), generator=g)).abs()
    loads = torch.randn(len(trees.tops), FACTORS, generator=g)
    loads *= 1 / loads.norm(dim=1, keepdim=True)
    threshold = -torch.special.ndtri(trees.top_frequency)
    most = _chance(torch.tensor(CUT, dtype=torch.float64), threshold)

    def draw(rows: int, generator: torch.Generator) -> SparseCodes:
        row, top = present(most, rows, generator)
        common = torch.randn(rows, FACTORS, generator=generator)
        # of all tops at once: a product is cheaper than gathering factors event by event
        said = (common @ loads.T)[row, top].double().clamp_max(CUT)
        kept = torch.rand(len(row), generator=generator) * most[top] < _chance(said, threshold[top])
        row, place = row[kept], trees.tops[top[kept]]
        over_mean, parts = torch.ones(len(row)), []
        while len(row):
            value = (mean[place] + deviation[place] * torch.randn(len(row), generator=generator)).relu() * over_mean
            parts.append((row, rank[place], value))
            goes_on = torch.rand(len(row), generator=generator) < HANDS_ON
            goes_on &= (place < trees.with_children) & (value > 0)
            row, place, over_mean = (part[goes_on] for part in (row, place, value / mean[place]))
            if len(row):
                child = torch.multinomial(trees.shares, len(row), replacement=True, generator=generator)
                place = trees.first_child(place) + child
        row, feature, value = (torch.cat(part) for part in zip(*parts, strict=True))
        return listed(row, feature, value, rows, settings.features)

    parent = torch.where(trees.parent >= 0, rank[trees.parent], -1)[order]
    directions = random_directions(settings.features, settings.d_in, settings.seed)
    return World(directions, frequency[order], parent, 0.0, draw)


def _chance(said: Tensor, threshold: Tensor) -> Tensor:
    """Of a feature to be present, where the factors say so much of it, in standard deviations."""
    return torch.special.ndtr((SHARED**0.5 * said - threshold) / (1 - SHARED) ** 0.5)
