"""What a dictionary recovers of features that are known.

Only the features *within reach* count: the d_sae most frequent ones, for a dictionary cannot hold more (all of them
where it is as wide). Features that are present in none of the rows are left out.

``mmcs``: mean over them of the largest cosine of a feature's direction to a decoder row; ``recovered``: the share whose
cosine is above .9. ``f1``: every learned feature says, where its code is not 0, that a known one is present; of each
known feature the learned one with the best F1 on one half of the rows is scored on the other, and the mean taken.
``f1_nearest`` is the same of the learned feature with the largest cosine. ``splitting``: of the learned features that
are ever active, the share that is not needed to have each of their nearest known features once. ``absorption``: how
much more often a parent's best detector is silent where one of its children is present than where none is, the parent
being present in both, over all parents by the weights of Mantel and Haenszel (a parent counts by its rows of both
sorts). Where L0 is fixed a child takes a place that its parent could have had, so that known features themselves are a
little above 0. ``leaning``: mean cosine of the decoder row of a child's best detector to its parent's direction, where
the parent has another; 0 is right.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from monolex.dictionaries.base import Dictionary, SparseCodes
from monolex.evals.similarity import nearest, unit_rows
from monolex.toy.world import World

FOUND = 0.9
"""Cosine above which a feature counts as recovered."""
CHUNK = 1024
"""Rows that are encoded at once."""
METRICS = (
    "f1", "f1_nearest", "mmcs", "recovered", "l0", "fvu", "dead", "splitting", "absorption", "leaning",
)  # fmt: skip
"""What is measured of a dictionary."""


class Half(NamedTuple):
    """Encoded rows: who was present and what was active."""

    present: csr_array
    """Known features within reach by row, 0 or 1."""
    active: csr_array
    """Learned features by row, 0 or 1."""

    def f1(self) -> NDArray[np.float32]:
        """Of every known feature (rows) and learned feature (columns); NaN where the known one is never present."""
        both = (self.present.T @ self.active).toarray()
        said, true = self.active.sum(0), self.present.sum(0)
        total = (true[:, None] + said[None]).astype(np.float32)
        total[true == 0] = np.nan
        return np.divide(2 * both, total, out=both)


class EncodedHalves(NamedTuple):
    """A dictionary's codes of both halves of the rows, and how well it reconstructs."""

    halves: tuple[Half, Half]
    """Detectors are chosen on the first and scored on the second."""
    l0: float
    """Active features of a row."""
    fvu: float
    """Summed squared error over the summed squared distance from the mean."""


@torch.no_grad()
def recovery(dictionary: Dictionary, world: World, seed: int, rows: int) -> dict[str, float | None]:
    """All of :data:`METRICS` on ``rows`` rows of ``seed``; None of what the world or the dictionary does not have."""
    reach = min(world.features, dictionary.d_sae)
    encoded = _encoded(dictionary, world, seed, rows, reach)
    choice, score = (half.f1() for half in encoded.halves)
    counted = np.isfinite(choice[:, 0]) & np.isfinite(score[:, 0])
    best = np.where(counted, np.nan_to_num(choice).argmax(1), -1)
    truth, decoder = unit_rows(world.directions), unit_rows(dictionary.W_dec)
    cosines, partner = nearest_rows(truth[:reach], decoder)
    every = np.arange(reach)
    alive = torch.from_numpy(np.concatenate([half.active.indices for half in encoded.halves])).unique()
    metrics: dict[str, float | None] = {
        "f1": float(score[every[counted], best[counted]].mean()),
        "f1_nearest": float(score[every[counted], partner.numpy()[counted]].mean()),
        "mmcs": float(cosines.mean()),
        "recovered": float((cosines > FOUND).float().mean()),
        "l0": encoded.l0,
        "fvu": encoded.fvu,
        "dead": 1 - len(alive) / dictionary.d_sae,
        "splitting": None,
        "absorption": None,
        "leaning": None,
    }
    if len(alive):
        _, sources = nearest_rows(decoder[alive], truth)
        metrics["splitting"] = 1 - len(sources.unique()) / len(alive)
    if bool((world.parent >= 0).any()):
        metrics |= _of_trees(world, encoded.halves[1], best, decoder, truth)
    return metrics


def nearest_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine of each unit row of ``a`` to one of ``b``, and whose it is."""
    parts = [(part @ b.T).max(1) for part in a.split(2048)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def mmcs(directions: Tensor, rows: Tensor) -> float:
    """Mean over directions of the largest cosine to a row."""
    return float(nearest(directions, rows).mean())


def _encoded(dictionary: Dictionary, world: World, seed: int, rows: int, reach: int) -> EncodedHalves:
    error = energy = 0.0
    active, presence, total = [], [], torch.zeros(dictionary.config.d_in, dtype=torch.float64)
    for batch in world.batches(seed, rows, CHUNK):
        codes = dictionary.encode_sparse(batch.x)
        missed = batch.x - dictionary.decode(codes.dense())
        error += float(missed.double().square().sum())
        energy += float(batch.x.double().square().sum())
        total += batch.x.double().sum(0)
        active.append(codes)
        presence.append(batch.codes)
    spread = energy - float(total.square().sum()) / rows
    half = len(active) // 2 or 1
    halves = [
        Half(_stacked(presence[part], world.features)[:, :reach], _stacked(active[part], dictionary.d_sae))
        for part in (slice(half), slice(half, None) if len(active) > 1 else slice(half))
    ]
    l0 = sum(len(codes.values) for codes in active) / rows
    return EncodedHalves((halves[0], halves[1]), l0, error / spread)


def _stacked(parts: list[SparseCodes], width: int) -> csr_array:
    """Codes of batches, one below the other, as 0 and 1."""
    features = torch.cat([part.features for part in parts]).numpy()
    counts = torch.cat([part.offsets.diff() for part in parts]).numpy()
    offsets = np.concatenate([[0], counts.cumsum()])
    ones = np.ones(len(features), np.float32)
    return csr_array((ones, features, offsets), shape=(len(counts), width))


def _of_trees(
    world: World, half: Half, best: NDArray[np.int64], decoder: Tensor, truth: Tensor
) -> dict[str, float | None]:
    """``absorption`` and ``leaning``."""
    parent = world.parent.numpy()
    children = np.flatnonzero((parent[: len(best)] >= 0) & (best >= 0))
    children = children[best[parent[children]] >= 0]
    parents = np.unique(parent[children])
    present, active = half.present[:, parents], half.active[:, best[parents]]
    column = np.searchsorted(parents, parent[children])
    below = csr_array((np.ones(len(children), np.float32), (children, column)), (len(best), len(parents)))
    with_child = csr_array(half.present @ below)
    with_child.data[:] = 1
    counts, silent = [], []
    for cells in (present.multiply(with_child), present - present.multiply(with_child)):
        counts.append(np.asarray(cells.sum(0)).ravel())
        silent.append(counts[-1] - np.asarray(cells.multiply(active).sum(0)).ravel())
    every = np.maximum(counts[0] + counts[1], 1)
    weight = float((counts[0] * counts[1] / every).sum())
    difference = float(((silent[0] * counts[1] - silent[1] * counts[0]) / every).sum())
    mine, other = best[children], best[parent[children]]
    apart = mine != other
    leaning = (decoder[mine[apart]] * truth[parent[children[apart]]]).sum(1)
    return {
        "absorption": difference / weight if weight else None,
        "leaning": float(leaning.mean()) if len(leaning) else None,
    }


def known_dictionary(world: World, d_sae: int, k: int, **described: Any) -> Dictionary:
    """The features within reach themselves as a TopK: what could be had with the right directions and k a row."""
    from monolex.dictionaries.base import DictionaryConfig

    rows, d_in = world.directions[:d_sae].clone(), world.directions.shape[1]
    config = DictionaryConfig("known", "topk", d_in, d_in, len(rows), min(k, len(rows)), **described)
    biases = {"b_enc": torch.zeros(len(rows)), "centre": torch.zeros(d_in), "b_dec": torch.zeros(d_in)}
    return Dictionary(config, {"W_enc": rows, "W_dec": rows.clone(), **biases})
