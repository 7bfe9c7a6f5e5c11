"""Sweeps of every kind on planted data, for one process and for several ranks alike."""

from pathlib import Path

from helpers.planted import ALL, MemoryStream, config, planted

from monolex.artifact import Manifest
from monolex.train_config import TrainConfig
from monolex.training.data import TrainingData
from monolex.training.trainer import train_from

SITES = ("resid_post.0", "resid_post.1")
STEPS = 24


def sweep(**changes: object) -> TrainConfig:
    """All kinds, wide enough that four ranks have features that are active, with features that die and come back."""
    fixed = {
        "sites": SITES, "kinds": ALL, "ks": (3,), "alphas": (1e-2,), "ratios": (2.0,), "batch_size": 32, "steps": STEPS,
        "dead_after": 96, "log_every": 6, "save_every": 8, "lrs": (3e-3,), "precision": "fp32", "preset": "modern",
        "keep_checkpoints": 1,
    }  # fmt: skip
    return TrainConfig(**{**fixed, **changes})  # pyright: ignore[reportArgumentType]


def train(folder: Path, **changes: object) -> Manifest:
    x = {site: planted(512, 16, 40, seed=number).x for number, site in enumerate(SITES)}
    chosen = sweep(**changes)
    data = TrainingData(MemoryStream(x, chosen.batch_size), dict.fromkeys(chosen.sites, 16), "planted", "m", "f")
    return train_from(folder, data, chosen)
