"""Planted dictionaries: independent features, features that come together, and rows with noise.

The data of the work that the paper grew out of (its released ``replicate_toy_models.py``): a feature of rank *i* is
present with a probability that falls as ``decay^i``, at a strength that is uniform between 0 and 1. Three of its
traits are not taken over. There independent features are scaled before the decay, so that .97 of 512 are present
instead of the 5 that are asked for; correlated ones take their probabilities from one normal vector a batch, so that
all rows of a batch share them; and its noisy data multiply two uniforms, which leaves most strengths near 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from monolex import runtime
from monolex.config import require
from monolex.dictionaries.base import SparseCodes
from monolex.toy.world import World, listed, present, random_directions

FACTORS, SHARED = 3, 0.8
"""Directions in which the normals of correlated features vary together, and the share of a normal's variance there."""


@dataclass(frozen=True)
class PlantedSettings:
    """What planted data are made by."""

    d_in: int = 256
    """Width of a row."""
    features: int = 512
    """Known features."""
    active: float = 5.0
    """Features that are present in a row, on average."""
    decay: float = 0.99
    """Probability of a feature over that of the one before."""
    noise: float = 0.1
    """Of the noisy data: mean squared length of the noise over that of a row without."""
    seed: int = 0
    """Of the directions and of what comes with what."""


def independent(settings: PlantedSettings) -> World:
    """Every feature is present or not whatever the others are."""
    probability = probabilities(settings)

    def draw(rows: int, generator: torch.Generator) -> SparseCodes:
        row, feature = present(probability, rows, generator)
        return listed(row, feature, strengths(len(row), generator), rows, settings.features)

    return _world(settings, probability, 0.0, draw)


def noisy(settings: PlantedSettings) -> World:
    """Independent features and Gaussian noise in every entry."""
    world = independent(settings)
    power = float(world.frequency.sum()) / 3  # a uniform strength squared is a third on average
    deviation = (settings.noise * power / settings.d_in) ** 0.5
    return World(world.directions, world.frequency, world.parent, deviation, world.draw)


def correlated(settings: PlantedSettings) -> World:
    """Features whose chances rise and fall together from row to row.

    In every row a feature has its usual probability times 2Φ(g), which is between 0 and 2 and 1 on average; g are
    standard normals that vary together in :data:`FACTORS` random directions.
    """
    probability = probabilities(settings)
    generator = runtime.generator("correlated", settings.seed, settings.features)
    loads = torch.randn(settings.features, FACTORS, generator=generator)
    loads *= SHARED**0.5 / loads.norm(dim=1, keepdim=True)

    def draw(rows: int, generator: torch.Generator) -> SparseCodes:
        # twice the usual probability bounds what any row can have, and half of these are kept
        row, feature = present(2 * probability, rows, generator)
        common = torch.randn(rows, FACTORS, generator=generator)
        alone = torch.randn(len(row), generator=generator)
        normal = (common[row] * loads[feature]).sum(1) + (1 - SHARED) ** 0.5 * alone
        kept = torch.rand(len(row), generator=generator) < torch.special.ndtr(normal)
        strength = strengths(len(row), generator) * kept
        return listed(row, feature, strength, rows, settings.features)

    return _world(settings, probability, 0.0, draw)


def probabilities(settings: PlantedSettings) -> Float[Tensor, "features"]:
    """Of every feature, ``active`` in all.

    Raises:
        UserError: more are asked for than the decay leaves room for.
    """
    falling = settings.decay ** torch.arange(settings.features, dtype=torch.float64)
    probability = settings.active * falling / falling.sum()
    require(
        float(probability[0]) <= 0.5,
        f"active = {settings.active:g}: with features = {settings.features} and decay = {settings.decay:g} the first "
        "feature would be present in more than half of the rows; lower active or raise decay",
    )
    return probability


def strengths(count: int, generator: torch.Generator) -> Float[Tensor, "events"]:
    """Uniform between 0 and 1."""
    return torch.rand(count, generator=generator)


def _world(
    settings: PlantedSettings,
    probability: Tensor,
    noise: float,
    draw: Callable[[int, torch.Generator], SparseCodes],
) -> World:
    directions = random_directions(settings.features, settings.d_in, settings.seed)
    alone = torch.full((settings.features,), -1)
    return World(directions, probability, alone, noise, draw)
