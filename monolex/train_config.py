"""What is trained, as a table: the fields of ``[train]`` and the flags of its verb."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from monolex.config import place, require, require_known, unhashed
from monolex.kinds import KINDS, Kind

Preprocess = Literal["none", "centre", "scale", "whiten"]
Preset = Literal["paper", "paper-effective", "modern"]
SOME_KINDS = {"auxk": 0.0, "k_start": None, "p_end": 1.0, "anneal": None, "prefixes": None, "decoder_rate": 1.0}
"""Fields that only some kinds take, and the value, if any, at which they ask nothing of a kind: another value that no
kind takes is refused."""


@dataclass(frozen=True)
class TrainConfig:
    """One sweep: every combination of site, kind, sparsity, ratio, seed and learning rate, in one pass."""

    sites: tuple[str, ...] = ()
    """Sites to train on; empty means every harvested site."""
    kinds: tuple[Kind, ...] = ("tied",)
    """Kinds of dictionary; `tied` is the paper's."""
    alphas: tuple[float, ...] = (8.6e-4,)
    """L1 coefficients of the ReLU kinds, in the paper's code convention: MSE averaged over batch and dimensions, |c|
    summed over features (so without scaling 8.6e-4 is 0.44 in the literal Eq. 4 at d=512)."""
    ks: tuple[int, ...] = (32,)
    """Active features a row of the kinds that take a number of them: of every row for `topk`, on average for others, of
    which `jumprelu` holds it by a controller."""
    k_start: int | None = None
    """Active features at the first step of the kinds that take `ks`, annealed to each of these; None begins there."""
    p_end: float = 0.2
    """Power of the codes at which `p-anneal` ends; it begins with 1, which is L1."""
    anneal: float = 0.8
    """Fraction of the steps after which `k_start` and `p_end` have been annealed, evenly."""
    prefixes: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)
    """Fractions of the features of `matryoshka` by which a row must be reconstructed without the later ones."""
    ratios: tuple[float, ...] = (4.0,)
    """R = d_sae / d_in; below 1 is allowed."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initialisation."""
    lrs: tuple[float, ...] = ()
    """Learning rates; empty takes the preset's."""
    preset: Preset = "paper-effective"
    """`paper`: Adam at 0.001, as printed; `paper-effective`: at 0.00032, what the released code really does; either
    with warmup 0, decay 0, preprocess none, and for the paper's kinds no decoder bias and free rows. `modern`: 0.0002 /
    sqrt(d_sae / 16384), warmup 0.05, decay 0.2, preprocess scale, and for every kind a decoder bias that starts at the
    geometric median of a sample of rows and decoder rows of unit length."""
    steps: int | None = None
    """Optimiser steps; None means `epochs` passes over the stored rows."""
    epochs: float = 1.0
    """Passes over the rows when `steps` is not given."""
    batch_size: int = 1024
    """Activations in a step."""
    data_seed: int = 0
    """Seed of the order of rows, the same for every member."""
    buffer_rows: int = 262_144
    """Rows of a shuffle window; larger mixes better and needs more memory."""
    warmup: float | None = None
    """Fraction of the steps over which the learning rate rises; None takes the preset's."""
    decay: float | None = None
    """Last fraction of the steps over which the learning rate falls to 0; None takes the preset's."""
    preprocess: Preprocess | None = None
    """What is done to activations before training, and folded into what is saved, which reads them as they are.
    `scale`: units in which the mean squared entry of a row of the site's median norm is 1, so that an alpha and a
    learning rate mean the same at every site; `centre`: around the geometric median of a sample of rows; `whiten`:
    that, and the covariance of the sample made the identity, so that directions count alike (logged errors and fvu are
    then those of whitened rows); `none`. None takes the preset's (`modern` scales)."""
    target: str = ""
    """Train transcoders: the kind of site that is reconstructed from every one of `sites`, in the same layer (such as
    `mlp_out`), or a site by its whole name; empty reconstructs what is read."""
    skip: bool = False
    """Give transcoders a linear map from what they read to what they reconstruct, beside their features."""
    auxk: float | None = None
    """Weight of the auxiliary loss that revives dead features of the kinds that take `ks`; 0 is none, None is 1/32."""
    decoder_rate: float | None = None
    """Learning rate of a decoder whose rows are kept at unit length, as a multiple of that of the rest, of the kinds
    that train an encoder beside it; None is 5."""
    resamplings: int = 0
    """How often, evenly over the first 80 % of the run, dead features start anew from badly reconstructed rows."""
    dead_after: int | None = None
    """Activations without firing after which a feature counts as dead; None is a tenth of the run's, at most
    1,000,000."""
    init: str | None = place(None)
    """Folder of a dictionary to continue from; kind, width and site of every member must match it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products in a step by active codes: the encoder's and, of a ReLU with many active codes,
    those of its gradients; reconstructions and all else are float32. `auto` takes bf16 where the CPU has it natively,
    and every saved dictionary says which it was."""
    keep_checkpoints: int = 0
    """Dictionaries kept along the way, at steps spaced evenly in the logarithm."""
    save_every: int = unhashed(500)
    """Steps between states from which a killed run resumes."""
    log_every: int = unhashed(50)
    """Steps between lines of metrics.jsonl."""
    train_device: str = unhashed("auto")
    """Where the dictionaries are trained."""
    data_ranks: int = unhashed(1)
    """Under torchrun: ranks that share the batch of a member, each with its part of the rows."""
    feature_ranks: int = unhashed(1)
    """Under torchrun: ranks that share the features of a dictionary, for one that fits on no single device. What
    `torchrun` starts beyond `data_ranks` times `feature_ranks` takes other members of the sweep."""

    def __post_init__(self) -> None:
        for name in ("sites", "kinds", "alphas", "ks", "ratios", "seeds", "lrs", "prefixes"):
            value = getattr(self, name)
            require(isinstance(value, tuple | list), f"{name} = {value!r}: give a list, ({value!r},)")
            require(len(value) > 0 or name not in ("kinds", "ratios", "seeds"), f"{name} is empty: give at least one")
        require_known(self.kinds, KINDS)
        self._check_members()
        self._check_kinds()
        self._check_run()

    def _check_members(self) -> None:
        sparsities = {KINDS[kind].sparsity for kind in self.kinds}
        require("alpha" not in sparsities or len(self.alphas) > 0, "alphas is empty: the ReLU kinds need at least one")
        require("k" not in sparsities or len(self.ks) > 0, "ks is empty: the TopK kinds need at least one")
        for alpha in self.alphas:
            require(alpha >= 0, f"alphas holds {alpha}: an L1 coefficient cannot be negative")
        for k in self.ks:
            require(k >= 1, f"ks holds {k}: at least one feature must be active")
        for ratio in self.ratios:
            require(ratio > 0, f"ratios holds {ratio}: R = d_sae / d_in must be positive")
        for lr in self.lrs:
            require(lr > 0, f"lrs holds {lr}: a learning rate must be positive")

    def _check_kinds(self) -> None:
        """What only some kinds take."""
        for name, nothing in SOME_KINDS.items():
            value, takers = getattr(self, name), [kind for kind in KINDS if self.acts(name, kind)]
            require(
                value in (getattr(TrainConfig, name), nothing) or not set(takers).isdisjoint(self.kinds),
                f"{name} = {value!r} acts on {', '.join(takers)} only, and kinds holds none; leave it out or add one",
            )
        require(
            self.k_start is None or self.k_start >= max(self.ks),
            f"k_start = {self.k_start} anneals down to ks = {list(self.ks)}: give at least the largest",
        )
        rising = list(self.prefixes) == sorted(set(self.prefixes))
        require(
            rising and self.prefixes[-1:] == (1.0,) and self.prefixes[0] > 0,
            f"prefixes = {list(self.prefixes)}: give rising fractions of the features, the last of them 1",
        )
        require(not self.skip or self.target != "", f"skip = {self.skip} is for transcoders: give target too")
        tied = [kind for kind in self.kinds if KINDS[kind].tied]
        require(
            not self.target or not tied,
            f"target = {self.target!r} cannot be reconstructed by {', '.join(tied)}, whose decoder is its encoder; "
            "leave that kind out",
        )
        back = [kind for kind in self.kinds if KINDS[kind].reads_back]
        require(
            not self.target or not back,
            f"target = {self.target!r} cannot be reconstructed by {', '.join(back)}, which compares what it writes "
            "with what it reads; leave that kind out",
        )
        require(self.auxk is None or self.auxk >= 0, f"auxk = {self.auxk}: a weight cannot be negative; 0 is none")
        require(
            self.decoder_rate is None or self.decoder_rate > 0,
            f"decoder_rate = {self.decoder_rate}: a multiple of the learning rate must be positive",
        )

    def _check_run(self) -> None:
        require(self.steps is None or self.steps >= 1, f"steps = {self.steps}: give at least 1")
        require(self.epochs > 0, f"epochs = {self.epochs}: give a positive number")
        require(self.batch_size >= 1, f"batch_size = {self.batch_size}: give at least 1")
        require(self.buffer_rows >= self.batch_size, f"buffer_rows = {self.buffer_rows} is below the batch size")
        for name in ("warmup", "decay"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{name} = {value}: give a fraction in [0, 1]")
        for name in ("p_end", "anneal"):
            value = getattr(self, name)
            require(0 < value <= 1, f"{name} = {value}: give a fraction in (0, 1]")
        known = get_args(Preprocess)
        require(
            self.preprocess is None or self.preprocess in known,
            f"preprocess = {self.preprocess!r}: choose from {', '.join(known)}",
        )
        for name in ("dead_after", "save_every", "log_every", "data_ranks", "feature_ranks"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} = {value}: give at least 1")
        for name in ("keep_checkpoints", "resamplings"):
            value = getattr(self, name)
            require(value >= 0, f"{name} = {value}: cannot be negative")
        require(
            self.batch_size % self.data_ranks == 0,
            f"batch_size = {self.batch_size} cannot be shared evenly by data_ranks = {self.data_ranks}; change either",
        )

    def acts(self, name: str, kind: str) -> bool:
        """Whether a kind takes the field ``name``, one of :data:`SOME_KINDS`."""
        return takes(kind, name, self.preset, self.k_start)

    def target_of(self, site: str) -> str:
        """What a transcoder reconstructs from ``site``: of its layer, or the site that is named; else nothing.

        >>> TrainConfig(kinds=("topk",), target="mlp_out").target_of("mlp_in.3")
        'mlp_out.3'
        """
        if not self.target or "." in self.target:
            return self.target
        return f"{self.target}.{site.rpartition('.')[2]}"

    @property
    def smallest(self) -> "TrainConfig":
        """One member a site: the smallest of the ratios and the first of every other list.

        It starts anew and keeps no checkpoints, for it is trained on another model.
        """
        first = {name: getattr(self, name)[:1] for name in ("kinds", "alphas", "ks", "seeds", "lrs")}
        of_kind = {n: getattr(TrainConfig, n) for n in SOME_KINDS if not self.acts(n, self.kinds[0])}
        alone = {"ratios": (min(self.ratios),), **of_kind, "init": None, "keep_checkpoints": 0}
        return dataclasses.replace(self, **first, **alone)


def takes(kind: str, name: str, preset: str, k_start: int | None) -> bool:
    """Whether a kind takes the field ``name``, one of :data:`SOME_KINDS`, beside those two others."""
    row = KINDS[kind]
    return {
        "auxk": row.auxk,
        "k_start": row.sparsity == "k",
        "p_end": row.loss == "p-anneal",
        "anneal": row.loss == "p-anneal" or (k_start is not None and row.sparsity == "k"),
        "prefixes": row.loss == "matryoshka",
        "decoder_rate": row.two_matrices and (row.modern or preset == "modern"),
    }[name]


def shared_with(shared: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values that several tables share those that the table ``table`` takes, as they are read from a file."""
    values = {**shared, **table}
    kinds = values.get("kinds", TrainConfig.kinds)
    if not isinstance(kinds, list | tuple) or not all(kind in tuple(KINDS) for kind in kinds):
        return dict(shared)  # which is refused where the table is read
    beside = values.get("preset", TrainConfig.preset), values.get("k_start")
    return {
        name: value
        for name, value in shared.items()
        if name not in SOME_KINDS or any(takes(kind, name, *beside) for kind in kinds)
    }
