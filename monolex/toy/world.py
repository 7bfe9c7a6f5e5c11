"""Known features and rows that are made of them: what every generator gives, and what is asked of it.

Batch *i* is a pure function of a seed and *i*, so that a training resumes by its step alone and memory does not grow
with the rows. Only features that are present are drawn: a row of some tens out of 16,384 costs some tens.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from monolex import runtime
from monolex.dictionaries.base import SparseCodes

PRINTED_ROWS = 256
"""Rows that a world's hash is taken over, beside its directions."""


class PlantedBatch(NamedTuple):
    """Rows and what they are made of."""

    x: Float[Tensor, "rows d_in"]
    """Activations."""
    codes: SparseCodes
    """Strengths of the features that are present, all positive."""


@dataclass(frozen=True)
class World:
    """Features that are known, the most frequent first."""

    directions: Float[Tensor, "features d_in"]
    """Unit rows."""
    frequency: Float[Tensor, "features"]
    """Probability that a feature is present in a row, float64."""
    parent: Int[Tensor, "features"]
    """The feature without which one is never present; -1 of a feature without."""
    noise: float
    """Standard deviation of the Gaussian that is added to every entry."""
    draw: Callable[[int, torch.Generator], SparseCodes]
    """Codes of so many rows."""

    @property
    def features(self) -> int:
        """How many there are."""
        return len(self.directions)

    def batch(self, seed: int, number: int, rows: int) -> PlantedBatch:
        """Batch ``number`` of the rows of ``seed``: the same whenever it is asked for."""
        generator = runtime.generator("planted", seed, number)
        codes = self.draw(rows, generator)
        x = embedding_bag(
            codes.features, self.directions, codes.offsets[:-1], per_sample_weights=codes.values, mode="sum"
        )
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return PlantedBatch(x, codes)

    def batches(self, seed: int, rows: int, size: int) -> Iterator[PlantedBatch]:
        """``rows`` rows of ``seed`` in batches of ``size``; the last may be smaller."""
        for number, start in enumerate(range(0, rows, size)):
            yield self.batch(seed, number, min(size, rows - start))

    def digest(self) -> str:
        """Hash of the directions and of the first rows of seed 0; equal where the arithmetic of a machine is."""
        first, known = self.batch(0, 0, PRINTED_ROWS), hashlib.sha256()
        for part in (self.directions, self.frequency, self.parent, first.x, *first.codes[:3]):
            known.update(part.contiguous().numpy().tobytes())
        return known.hexdigest()


class WorldRows:
    """Rows of a world as baselines read them: an :class:`~monolex.dictionaries.axes.ActivationRows` in memory."""

    def __init__(self, world: World, seed: int, n_rows: int, site: str) -> None:
        self._x = torch.cat([batch.x for batch in world.batches(seed, n_rows, 4096)])
        self.site, self.n_rows, self.d_in = site, n_rows, self._x.shape[1]
        self.model: dict[str, Any] = {"name": "toy", "fingerprint": ""}

    def chunks(self, size: int = 4096, limit: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Rows from the beginning, with the number of the first."""
        for start in range(0, min(self.n_rows, limit or self.n_rows), size):
            yield start, self._x[start : min(start + size, limit or self.n_rows)]

    def gather(self, index: Int[Tensor, "rows"]) -> Float[Tensor, "rows d_in"]:
        """Rows of these numbers."""
        return self._x[index]


def random_directions(features: int, d_in: int, seed: int) -> Float[Tensor, "features d_in"]:
    """Unit rows in directions that are uniform on the sphere."""
    rows = torch.randn(features, d_in, generator=runtime.generator("directions", seed, features, d_in))
    return rows / rows.norm(dim=1, keepdim=True)


def present(
    probability: Float[Tensor, "features"], rows: int, generator: torch.Generator
) -> tuple[Int[Tensor, "events"], Int[Tensor, "events"]]:
    """Rows and features of independent events: every feature in every row with its probability.

    A cell that at least one point of a Poisson process falls into is an event, so that the number of points to draw is
    about that of the events, and every cell is independent of the others, exactly. Sorted by row, then feature.
    """
    rate = -torch.log1p(-probability.double().clamp_max(1 - 1e-9))
    points = torch.poisson(rate * rows, generator=generator).long()
    feature = torch.repeat_interleave(torch.arange(len(probability)), points)
    row = torch.randint(rows, (len(feature),), generator=generator)
    cell = torch.unique(row * len(probability) + feature)
    return cell // len(probability), cell % len(probability)


def listed(
    row: Int[Tensor, "events"], feature: Int[Tensor, "events"], value: Tensor, rows: int, features: int
) -> SparseCodes:
    """Events as codes, whatever their order; those that are not positive are left out."""
    kept = value > 0
    row, feature, value = row[kept], feature[kept], value[kept]
    order = (row * features + feature).argsort()
    offsets = torch.zeros(rows + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(row, minlength=rows).cumsum(0)
    return SparseCodes(offsets, feature[order], value[order].float(), features)
