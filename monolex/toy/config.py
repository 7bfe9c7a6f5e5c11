"""What is asked of toy data; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from monolex.config import require, require_known, unhashed
from monolex.kinds import BASELINES, KINDS, BaselineKind, Kind

Part = Literal["grid", "kinds", "superposition"]
PlantedData = Literal["independent", "correlated", "noisy", "hierarchical"]
ToyPreset = Literal["small", "full", "benchmark"]
CONTROLS: tuple[BaselineKind, ...] = ("neurons-pm", "random-topk", "pca-pm", "pca-topk", "ica-pm", "ica-topk", "nmf")


@dataclass(frozen=True)
class ToyConfig:
    """Dictionaries of data whose features are known. Left out, a number is the preset's."""

    preset: ToyPreset = "small"
    """`small`: minutes on two cores; `full`: the grid of the work that the paper grew out of, three sorts of data, five
    seeds: for a GPU; `benchmark`: 16,384 features with hierarchy, correlations and Zipf frequencies, all kinds, five
    seeds: days on two cores, of which `--steps`, `--seeds` and `--kinds` take less."""
    parts: tuple[Part, ...] | None = None
    """`grid`: the four heat-maps over L1 and size; `kinds`: every kind and the controls at one L0; `superposition`:
    what comes back as features outnumber dimensions. The benchmark is `kinds` alone."""
    data: tuple[PlantedData, ...] | None = None
    """Of `grid` and `kinds`."""
    d_in: int | None = None
    """Width of a row."""
    features: int | None = None
    """Known features."""
    active: float | None = None
    """Features that are present in a row, on average."""
    decay: float | None = None
    """Probability of a feature over that of the one before; not of hierarchical data, which follow Zipf's law."""
    noise: float = 0.1
    """Of noisy data: mean squared length of the noise over that of a row without."""
    truth_seed: int | None = None
    """Seed of the known features; left out, every seed has its own (the benchmark has one, of seed 0)."""
    seeds: tuple[int, ...] | None = None
    """Of `kinds` and `superposition`: seeds of rows and initialisation, over which intervals are."""
    kinds: tuple[Kind, ...] = tuple(KINDS)
    """Trained kinds of `kinds`."""
    controls: tuple[BaselineKind, ...] | None = None
    """Dictionaries of `kinds` that nobody trains; the `-topk` ones at the same L0. The benchmark leaves out those that
    cannot be had at it."""
    size: float | None = None
    """Learned features of `kinds` over known ones."""
    k: int | None = None
    """L0 at which kinds are compared; left out: the mean number of present features among as many of the most
    frequent ones as are learned."""
    steps: int | None = None
    """Optimiser steps of `kinds` and `superposition`."""
    batch_size: int | None = None
    """Rows of such a step."""
    l1: tuple[float, ...] | None = None
    """Of `grid`: coefficients in the convention of that work, MSE + l1 · Σ|c| / n features (alpha is l1 / n)."""
    grid_sizes: tuple[float, ...] | None = None
    """Of `grid`: learned features over known ones."""
    grid_kinds: tuple[Literal["untied", "tied"], ...] = ("untied", "tied")
    """Of `grid`: whether the encoder is its own or the decoder."""
    grid_steps: int | None = None
    """Optimiser steps of `grid`."""
    grid_batch: int | None = None
    """Rows of such a step."""
    crowding: tuple[float, ...] | None = None
    """Of `superposition`: known features over dimensions."""
    crowded_kinds: tuple[Kind, ...] | None = None
    """Of `superposition`: kinds."""
    crowded_width: int | None = None
    """Of `superposition`: dimensions."""
    test_rows: int | None = None
    """Rows that no training saw, on which everything is measured."""
    fit_rows: int | None = None
    """Rows that the controls are fitted on."""
    toy_device: str = unhashed("auto")
    """Where dictionaries are trained."""

    def __post_init__(self) -> None:
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        require_known(self.kinds, KINDS)
        require_known(self.must("crowded_kinds"), KINDS)
        require_known(self.controls or (), BASELINES)
        for name in ("parts", "data", "seeds", "l1", "grid_sizes", "grid_kinds", "crowding"):
            value = getattr(self, name)
            require(isinstance(value, tuple | list), f"{name} = {value!r}: give a list, ({value!r},)")
            require(len(value) > 0, f"{name} is empty: give at least one")
        for name in (
            "d_in",
            "features",
            "steps",
            "batch_size",
            "grid_steps",
            "grid_batch",
            "crowded_width",
            "fit_rows",
        ):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        require(self.must("test_rows") >= 2048, f"test_rows = {self.test_rows}: give at least 2048")
        require(self.k is None or self.k >= 1, f"k = {self.k}: at least one feature must be active")
        for name in ("active", "size"):
            require(getattr(self, name) > 0, f"{name} = {getattr(self, name)}: must be positive")
        for name in ("grid_sizes", "crowding"):
            require(min(getattr(self, name)) > 0, f"{name} holds {min(getattr(self, name))}: must be positive")
        require(min(self.must("l1")) >= 0, f"l1 holds {min(self.must('l1'))}: a coefficient cannot be negative")
        require(self.noise >= 0, f"noise = {self.noise}: cannot be negative")
        require(0 < self.must("decay") <= 1, f"decay = {self.decay}: give a factor in (0, 1]")
        of_grid = "grid" in self.must("parts") and "hierarchical" in self.must("data")
        require(not of_grid, f"data = {list(self.must('data'))}: the grid is of planted data; leave hierarchical out")

    def must(self, name: str) -> Any:
        """A field that the preset has filled."""
        value = getattr(self, name)
        assert value is not None, name
        return value


def _quarters(first: int, last: int) -> tuple[float, ...]:
    return tuple(round(10 ** (quarter / 4), 4) for quarter in range(first, last + 1))


PRESETS: Mapping[ToyPreset, Mapping[str, Any]] = {
    "small": {
        "parts": ("grid", "kinds", "superposition"),
        "data": ("independent",),
        "d_in": 64, "features": 128, "active": 3.0, "decay": 0.99, "seeds": (0, 1, 2), "controls": CONTROLS,
        "size": 1.0, "steps": 2000, "batch_size": 512, "l1": _quarters(-8, 8)[::2],
        "grid_sizes": (0.25, 0.5, 1.0, 2.0, 4.0), "grid_steps": 2000, "grid_batch": 512,
        "crowding": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), "crowded_width": 32,
        "crowded_kinds": ("topk", "batchtopk", "lista"),
        "test_rows": 8192, "fit_rows": 20_000,
    },
    "full": {
        "parts": ("grid", "kinds", "superposition"),
        "data": ("independent", "correlated", "noisy"),
        "d_in": 256, "features": 512, "active": 5.0, "decay": 0.99, "seeds": (0, 1, 2, 3, 4), "controls": CONTROLS,
        "size": 1.0, "steps": 5000, "batch_size": 4096, "l1": _quarters(-8, 8),
        "grid_sizes": tuple(2.0**power for power in range(-2, 6)), "grid_steps": 5000, "grid_batch": 4096,
        "crowding": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), "crowded_width": 64,
        "crowded_kinds": ("untied", "topk", "batchtopk", "matching-pursuit", "lista", "frozen-decoder"),
        "test_rows": 40_960, "fit_rows": 100_000,
    },
    "benchmark": {
        "parts": ("kinds",),
        "data": ("hierarchical",),
        "d_in": 768, "features": 16_384, "active": 34.0, "decay": 1.0, "seeds": (0, 1, 2, 3, 4), "truth_seed": 0,
        "controls": ("random-topk", "pca-topk", "ica-topk"), "size": 0.25, "steps": 5000, "batch_size": 1024,
        "l1": (1.0,), "grid_sizes": (1.0,), "grid_steps": 1, "grid_batch": 1, "crowding": (1.0,), "crowded_width": 1,
        "crowded_kinds": ("topk",),
        "test_rows": 40_960, "fit_rows": 50_000,
    },
}  # fmt: skip
