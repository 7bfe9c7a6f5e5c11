"""Dictionaries trained on a world, and those that nobody trains, as they are trained and fitted everywhere else."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from monolex import runtime
from monolex.config import BaselineConfig
from monolex.dictionaries import baselines
from monolex.dictionaries.base import Dictionary
from monolex.kinds import KINDS
from monolex.toy.config import ToyConfig
from monolex.toy.hierarchy import HierarchySettings, hierarchical
from monolex.toy.planted import PlantedSettings, correlated, independent, noisy
from monolex.toy.world import World, WorldRows
from monolex.train_config import TrainConfig
from monolex.training.members import SweepMember, members
from monolex.training.sweep import Trainer

SITE = "toy"
TRAIN, TEST, FIT = 0, 1, 2
"""Rows that dictionaries are trained on, measured on, and fitted on: streams of their own under one seed."""
RUNGS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Coefficients of L1 that are tried for an L0, over 2 / sqrt(d_in · k)."""
SMALL = 2**25
"""Multiplications of a product below which a second thread costs more than it gains (docs/log.md)."""


def world_of(config: ToyConfig, data: str, seed: int) -> World:
    """The world of ``data``, of the config's seed or of ``seed``."""
    truth = seed if config.truth_seed is None else config.truth_seed
    d_in, features, active = config.must("d_in"), config.must("features"), config.must("active")
    if data == "hierarchical":
        return hierarchical(HierarchySettings(d_in, features, active, seed=truth))
    settings = PlantedSettings(d_in, features, active, config.must("decay"), config.noise, truth)
    return {"independent": independent, "correlated": correlated, "noisy": noisy}[data](settings)


def stream(seed: int, rows: int) -> int:
    """The seed of rows of ``seed`` for one of :data:`TRAIN`, :data:`TEST` and :data:`FIT`."""
    return 3 * seed + rows


def trained(world: World, config: TrainConfig, seed: int, device: str) -> list[tuple[SweepMember, Dictionary]]:
    """The members of ``config`` after its steps, on the training rows of ``seed``, which they share."""
    assert config.steps is not None
    sweep = members(config, {SITE: world.directions.shape[1]})
    trainer = Trainer(sweep, config, config.steps, device=runtime.device(device))
    largest = max(config.batch_size * member.d_in * member.d_sae for member in sweep)
    with runtime.threads(1 if largest < SMALL else 2**16):
        for step in range(config.steps):
            trainer.step({SITE: world.batch(stream(seed, TRAIN), step, config.batch_size).x})
        trainer.verify()
    return list(zip(sweep, trainer.dictionaries("toy"), strict=True))


def recipe_of(kind: str, world: World, d_sae: int, sparsity: float, seed: int, config: ToyConfig) -> TrainConfig:
    """How a kind is trained to be compared: the modern recipe, in float32, at a k or an alpha."""
    takes_k = KINDS[kind].sparsity == "k"
    return TrainConfig(
        kinds=(kind,), ks=(int(sparsity),) if takes_k else (1,), alphas=(1.0,) if takes_k else (sparsity,),
        ratios=(d_sae / world.directions.shape[1],), seeds=(seed,), preset="modern", steps=config.must("steps"),
        batch_size=config.must("batch_size"), precision="fp32",
    )  # fmt: skip


def reachable(world: World, d_sae: int) -> int:
    """The mean number of present features among the ``d_sae`` most frequent ones, at least 1."""
    return max(1, round(float(world.frequency[:d_sae].sum())))


def ladder(kind: str, world: World, d_sae: int, k: int, config: ToyConfig) -> list[tuple[float, float]]:
    """What L0 some coefficients of L1 lead to, trained beside each other as long as what is compared: (alpha, L0)."""
    unit = 2 / math.sqrt(world.directions.shape[1] * k)
    alphas = tuple(rung * unit for rung in RUNGS)
    first = recipe_of(kind, world, d_sae, alphas[0], 0, config)
    whole = TrainConfig(**{**vars(first), "alphas": alphas})
    tried = []
    for member, dictionary in trained(world, whole, 0, config.toy_device):
        x = world.batch(stream(0, TEST), 0, 2048).x
        assert member.alpha is not None
        tried.append((member.alpha, float((dictionary.encode(x) != 0).sum() / len(x))))
    return tried


def alpha_at(tried: Sequence[tuple[float, float]], k: float) -> float:
    """The coefficient at which L0 is ``k``, between those that were tried, or the nearest of them.

    L0 is taken to fall from the last coefficient that has more active features: at small ones it rises where features
    have not yet learned to be silent.

    >>> round(alpha_at([(0.01, 40.0), (0.1, 10.0), (1.0, 1.0)], 10.0), 6)
    0.1
    """
    above = max((number for number, (_, l0) in enumerate(tried) if l0 >= k), default=None)
    if above is None:
        return tried[0][0]
    if above == len(tried) - 1:
        return tried[-1][0]
    (a, many), (b, few) = tried[above], tried[above + 1]
    share = np.log(many / k) / np.log(many / max(few, 1e-3))
    return float(np.exp((1 - share) * np.log(a) + share * np.log(b)))


def controls(world: World, seed: int, d_sae: int, k: int, config: ToyConfig) -> dict[str, Dictionary]:
    """Dictionaries that nobody trains, by kind; those that did not converge are left out."""
    d_in, kinds = world.directions.shape[1], config.controls or ()
    if not kinds:
        return {}
    rows = WorldRows(world, stream(seed, FIT), config.must("fit_rows"), SITE)
    fit = BaselineConfig(
        kinds=kinds, ks=(min(k, d_in),), ratio=d_sae / d_in, fit_rows=rows.n_rows, ica_rows=rows.n_rows,
        nmf_rows=min(rows.n_rows, 20_000), nmf_features=min(d_sae, 2 * d_in), baseline_seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        fitted = baselines.fit(rows, fit)
    return {dictionary.config.kind: dictionary for dictionary in fitted.values()}
