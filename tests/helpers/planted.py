"""Activations made of known features, served as a training stream from memory."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from monolex.kinds import KINDS
from monolex.train_config import TrainConfig
from monolex.training.losses import member_loss
from monolex.training.members import SweepMember, members
from monolex.training.records import Loss, Params, Revival, StepBatch, StepSettings
from monolex.training.sweep import Trainer

SITE = "resid_post.0"


class Planted(NamedTuple):
    x: Tensor
    rows: Tensor


def planted(n: int = 8192, d_in: int = 16, features: int = 32, density: float = 0.04, seed: int = 0) -> Planted:
    """Sparse non-negative combinations of ``features`` random unit rows."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(features, d_in, generator=g))
    codes = (torch.rand(n, features, generator=g) < density) * (torch.rand(n, features, generator=g) + 0.5)
    return Planted(codes @ rows, rows)


class MemoryStream:
    """StepBatch i is a pure function of i; ``before`` is called with i ahead of serving it."""

    def __init__(self, x: dict[str, Tensor], batch: int, before: Callable[[int], None] = lambda _step: None) -> None:
        self.x, self.batch, self.before = x, batch, before
        self.steps_per_epoch = len(next(iter(x.values()))) // batch

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Tensor]]:
        step = start_step
        while True:
            self.before(step)
            yield self.at(step)
            step += 1

    def at(self, step: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(step)
        n = len(next(iter(self.x.values())))
        index = torch.randint(n, (self.batch,), generator=g)
        return {site: x[index] for site, x in self.x.items()}


def trained(config: TrainConfig, x: dict[str, Tensor], steps: int, dtype: torch.dtype = torch.float32) -> Trainer:
    """All members of ``config`` after ``steps`` steps."""
    widths = {site: rows.shape[1] for site, rows in x.items()}
    trainer = Trainer(members(config, widths), config, steps, dtype=dtype)
    stream = MemoryStream(x, config.batch_size)
    for step in range(steps):
        trainer.step(stream.at(step))
    return trainer


ALL = tuple(KINDS)


def config(**fields) -> TrainConfig:
    base = {"kinds": ALL, "alphas": (1e-2,), "ks": (2,), "ratios": (2.0,), "batch_size": 16, "steps": 20}
    base["precision"] = "fp32"  # the same on every machine
    return TrainConfig(**{**base, **fields})


def one(kind: str, d_in: int = 5, **fields) -> SweepMember:
    return members(config(kinds=(kind,), **fields), {SITE: d_in})[0]


def batch(rows: int = 7, d_in: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed)).double()


def settings(member: SweepMember, revival: Revival | None = None) -> StepSettings:
    """Those of a step in the middle of a run."""
    return StepSettings(member.k or 1, 0.6, torch.tensor(1 / 64), revival)


def loss_of(params: Params, x: Tensor, member: SweepMember, revival: Revival | None = None) -> Loss:
    """Of an autoencoder in the middle of a run."""
    return member_loss(params, StepBatch(x, x), member, settings(member, revival))
