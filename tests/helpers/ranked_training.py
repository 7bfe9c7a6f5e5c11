"""Sweeps of every kind on planted data, for several ranks and, to compare, in one process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from helpers.planted import ALL, MemoryStream, planted

from monolex import kinds
from monolex.artifact import Manifest
from monolex.errors import UserError
from monolex.ranks import here, world
from monolex.train_config import TrainConfig
from monolex.training.data import TrainingData
from monolex.training.sparse.step import SHARED
from monolex.training.trainer import train_from

KINDS = tuple(kind for kind in ALL if kinds.KINDS[kind].loss in SHARED)
"""Those whose members can be shared."""
SITE = "resid_post.0"
STEPS = 16


def sweep(**changes: object) -> TrainConfig:
    """Every kind, wide enough that four ranks have features that are active, with features that die and start anew."""
    fixed = {
        "sites": (SITE,), "kinds": KINDS, "ks": (3,), "alphas": (1e-2,), "ratios": (2.0,), "batch_size": 32,
        "steps": STEPS, "dead_after": 96, "log_every": 4, "save_every": 6, "lrs": (3e-3,), "precision": "fp32",
        "preset": "modern", "keep_checkpoints": 1, "resamplings": 1, "train_device": "cpu",
    }  # fmt: skip
    return TrainConfig(**{**fixed, **changes})  # pyright: ignore[reportArgumentType]


def train(
    folder: Path, *, before: Callable[[int], None] = lambda _step: None, content: str = "planted", **changes: object
) -> Manifest:
    chosen = sweep(**changes)
    x = {SITE: planted(512, 16, 40).x}
    stream = MemoryStream(x, chosen.batch_size, before)
    return train_from(folder, TrainingData(stream, dict.fromkeys(x, 16), content, "m", "f"), chosen)


class Stopped(Exception):
    pass


def stop_at(step: int) -> Callable[[int], None]:
    def before(now: int) -> None:
        if now == step:
            raise Stopped

    return before


def fall_at(step: int, rank: int, number: int = signal.SIGKILL) -> Callable[[int], None]:
    """Before a step, a signal to this process, if it is that rank."""

    def before(now: int) -> None:
        if now == step and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), number)

    return before


def refusals(folder: Path) -> None:
    """What this rank says where the others have other data, settings or code, in a file of its own."""
    said = []
    for changes in ({"content": f"of {here.rank()}"}, {"batch_size": 32 * (1 + here.rank())}, {}):
        if not changes:
            own, world.code = world.code, lambda: f"of {here.rank()}"
        try:
            train(folder, **changes)
        except UserError as error:
            said.append(str(error))
    world.code = own
    (folder / f"{here.rank()}.txt").write_text("\n".join(said), encoding="utf-8")
