"""The four heat-maps of the work that the paper grew out of: dictionaries over L1 and size, on planted data.

Its convention is MSE + l1 · Σ|c| / n with the mean over the n features, ours a sum (:mod:`monolex.training.losses`):
alpha = l1 / n. Trained as there with Adam at 0.001, a flat rate, no decoder bias, unit rows; the decoder starts from
Xavier's numbers instead of an orthogonal matrix. A cell counts as there: MMCS of the known features to the learned
ones, features that are active on none of the test rows, the mean squared error, and the mean over the wider
dictionaries of the same l1 of the MMCS of this one's features to theirs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from monolex.dictionaries.base import Dictionary
from monolex.toy.config import ToyConfig
from monolex.toy.learn import TEST, stream, trained, world_of
from monolex.toy.recovery import CHUNK, FOUND, mmcs
from monolex.toy.world import World
from monolex.train_config import TrainConfig

DEAD_MOST = 100
"""Dead features from which on the heat-map has one colour, as there."""


def row(config: ToyConfig, data: str, kind: str, size: float, decoders: Path) -> list[dict[str, Any]]:
    """The cells of one size, all trained on one stream; decoder rows are left in ``decoders`` by the place of l1."""
    world = world_of(config, data, 0)
    d_sae = max(1, round(size * world.features))
    l1 = config.must("l1")
    recipe = TrainConfig(
        kinds=(kind,), alphas=tuple(value / d_sae for value in l1), ratios=(d_sae / world.directions.shape[1],),
        preset="paper", steps=config.must("grid_steps"), batch_size=config.must("grid_batch"), precision="fp32",
    )  # fmt: skip
    learned = [dictionary for _, dictionary in trained(world, recipe, 0, config.toy_device)]
    save_file({str(place): dictionary.directions() for place, dictionary in enumerate(learned)}, decoders)
    about = {"data": data, "kind": kind, "size": size, "d_sae": d_sae}
    return [
        {**about, "l1": value, "alpha": value / d_sae, **_measured(dictionary, world, config.must("test_rows"))}
        for value, dictionary in zip(l1, learned, strict=True)
    ]


@torch.no_grad()
def _measured(dictionary: Dictionary, world: World, rows: int) -> dict[str, float]:
    error, active, fired = 0.0, 0, torch.zeros(dictionary.d_sae, dtype=torch.bool)
    for batch in world.batches(stream(0, TEST), rows, CHUNK):
        codes = dictionary.encode(batch.x)
        error += float((batch.x - dictionary.decode(codes)).double().square().sum())
        active += int((codes != 0).sum())
        fired |= (codes != 0).any(0)
    cosines = (world.directions @ dictionary.directions().T).amax(1)
    return {
        "mmcs": mmcs(world.directions, dictionary.W_dec),
        "recovered": float((cosines > FOUND).float().mean()),
        "dead": int((~fired).sum()),
        "mse": error / (rows * dictionary.config.d_in),
        "l0": active / rows,
    }


def with_larger(rows: Sequence[list[dict[str, Any]]], decoders: Sequence[Path]) -> list[dict[str, Any]]:
    """All cells of one data and kind, by rising size, with ``larger``: None of the widest."""
    held: list[dict[str, Tensor]] = [load_file(path) for path in decoders]
    cells = []
    for number, cells_of_row in enumerate(rows):
        for place, cell in enumerate(cells_of_row):
            wider = [mmcs(held[number][str(place)], later[str(place)]) for later in held[number + 1 :]]
            cells.append({**cell, "larger": sum(wider) / len(wider) if wider else None})
    return cells
