"""What the causal experiments are asked: patching curves, ablations and trees; needs no torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from monolex.config import place, require, unhashed

Search = Literal["ranking", "effects", "random", "sweep", "greedy", "swaps"]
SEARCHES: tuple[str, ...] = ("ranking", "effects", "random", "sweep", "greedy", "swaps")
To = Literal["zero", "mean", "resample"]
"""What an activation becomes: 0, its mean over the corpus, or what it is on a random token."""
Positions = Literal["token", "all"]
"""At the occurrence alone, or at every token of its context on which the feature is active."""


@dataclass(frozen=True)
class PatchConfig:
    """Features patched against KL to the donor, for dictionaries and baselines at some sites."""

    task: str = place("ioi")
    """`ioi`, `greater-than`, `pronoun`, or a .jsonl file of own pairs (`base`, `donor`, `right`, `wrong`)."""
    wordings: Literal["standard", "practised", "held-out"] = "standard"
    """IOI: sentences for any English model, or, of the bundled model alone, those that it practised or never saw."""
    names: Literal["common", "practised", "held-out"] = "common"
    """IOI: the people in them, in the same way."""
    corruption: Literal["io_swap", "p_abc", "s2_io"] = "io_swap"
    """IOI: the donor has another indirect object (the paper), three other names, or its second subject swapped."""
    pairs: int = 50
    """Prompt pairs."""
    prompt_seed: int = 0
    """Seed of their draw."""
    held_out: float = 0.5
    """Share of them on which sets of features are measured; they are chosen on the others. 0 chooses and measures on
    all, as the paper does, which flatters every curve."""
    sites: tuple[str, ...] = ()
    """Sites; left out: every residual site with a dictionary."""
    dictionaries: tuple[str, ...] = ()
    """Names of dictionaries and baselines, or patterns of them; left out: all."""
    controls: bool = True
    """Also the control models' dictionaries of these names, used on the subject's activations."""
    searches: tuple[Search, ...] = ("ranking", "random")
    """`ranking` by integrated gradients, `effects` by exact single patches, `random` order, the paper's threshold
    `sweep`, `greedy`, and `swaps` that improve the ranking's sets."""
    exact: tuple[str, ...] = ()
    """Dictionaries, or patterns, on which `effects`, `sweep`, `greedy` and `swaps` run; left out: all of the chosen."""
    points: int = 24
    """Set sizes of a ranking's curve, even in the logarithm."""
    thresholds: int = 50
    """Thresholds of the sweep, 1e-5 to 1 nat, even in the logarithm."""
    budget: Literal["step", "full"] = "step"
    """Sweep: compare a loss with the KL before the step (the paper), or with that of all features patched."""
    limit: int = 64
    """Features that greedy adds, and the size to which areas are taken."""
    against: str = "pca"
    """Baseline that the paper's claims compare with."""
    patch_seed: int = 0
    """Seed of random orders and of the bootstrap."""
    resamples: int = 1000
    """Bootstrap resamples of an interval."""
    level: float = 0.95
    """Coverage of the intervals."""
    batch_tokens: int = unhashed(1024)
    """Tokens in a forward pass, all versions of the prompts together: more on an accelerator, some ten thousands."""
    patch_device: str = unhashed("auto")
    """Where the model runs."""

    @property
    def folder_name(self) -> str:
        """Of its artefact, where none is given."""
        return Path(self.task).stem

    def __post_init__(self) -> None:
        for name in ("pairs", "points", "thresholds", "limit", "resamples", "batch_tokens"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        _require_seeds(self)
        require(0 < self.level < 1, f"level = {self.level}: give a coverage in (0, 1)")
        require(0 <= self.held_out < 1, f"held_out = {self.held_out}: give a share of the pairs in [0, 1)")
        for search in self.searches:
            require(search in SEARCHES, f"searches holds {search!r}: choose from {', '.join(SEARCHES)}")
        require(len(self.searches) > 0, "searches is empty: give at least one, such as ranking")
        for name in ("sites", "dictionaries", "exact", "searches"):
            _require_list(getattr(self, name), name)


@dataclass(frozen=True)
class AblateConfig:
    """What the model predicts otherwise when a feature is taken away where it is active."""

    features: tuple[str, ...] = ()
    """SITE/NAME:NUMBER, or SITE/NAME@TOKEN for the feature with the largest share on that token."""
    occurrences: int = 200
    """Tokens on which it is active, at random, of as many documents as there are."""
    low: float = 0.0
    """Only where its activation is at least this share of its largest."""
    to: To = "zero"
    """What its activation becomes: `zero`, its `mean` over the corpus, or that of another token (`resample`)."""
    positions: Positions = "token"
    """At the token alone, or at every token before it too."""
    control_within: float = 2.0
    """How many times larger or smaller than the feature's own contribution that of its control, another active feature,
    may be; where there is none so near, the occurrence has no control."""
    rescue: tuple[str, ...] = ()
    """Sites of later layers where it is added back, as `resid_post.20`; `resid_post.*` means all; left out:
    five of them, evenly spread up to the last."""
    top: int = 20
    """Tokens listed that lose and that gain most."""
    ablate_seed: int = 0
    """Seed of the occurrences, the controls and the bootstrap."""
    resamples: int = 1000
    """Bootstrap resamples of an interval."""
    level: float = 0.95
    """Coverage of the intervals."""
    batch_tokens: int = unhashed(8192)
    """Tokens in a forward pass."""
    ablate_device: str = unhashed("auto")
    """Where the model runs."""

    @property
    def folder_name(self) -> str:
        """Of its artefact, where none is given."""
        return _called(self.features)

    def __post_init__(self) -> None:
        _require_list(self.features)
        _require_list(self.rescue, "rescue")
        _require_seeds(self)
        for name in ("occurrences", "top", "resamples", "batch_tokens"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        for name, known in (("to", get_args(To)), ("positions", get_args(Positions))):
            value = getattr(self, name)
            require(value in known, f"{name} = {value!r}: choose one of {', '.join(known)}")
        require(self.control_within >= 1, f"control_within = {self.control_within}: give 1 or more")
        require(0 <= self.low <= 1, f"low = {self.low}: give a share in [0, 1]")
        require(0 < self.level < 1, f"level = {self.level}: give a coverage in (0, 1)")


@dataclass(frozen=True)
class TreeConfig:
    """Which features of earlier layers cause a feature, site by site."""

    features: tuple[str, ...] = ()
    """Roots: SITE/NAME:NUMBER, or SITE/NAME@TOKEN for the feature with the largest share on that token."""
    dictionaries: tuple[str, ...] = ()
    """Names of the dictionaries of the earlier sites, or patterns: sites with one that fits are gone through, however
    many blocks apart; left out: those called as the root's."""
    contexts: int = 20
    """Contexts of a node, one a document."""
    low: float = 0.5
    """Its activation in them is at least this share of its largest (the paper: a half)."""
    depth: int = 3
    """Sites below the root; 0 leaves the tokens that it raises."""
    children: int = 3
    """Features kept below a node."""
    confirm: int = 64
    """Candidates with the largest attribution that are ablated exactly."""
    exact: bool = False
    """Ablate every active feature instead."""
    tree_seed: int = 0
    """Seed of the contexts and the bootstrap."""
    level: float = 0.95
    """Coverage of the intervals."""
    batch_tokens: int = unhashed(16384)
    """Tokens in a forward pass of the blocks between two sites."""
    tree_device: str = unhashed("auto")
    """Where the model runs."""

    @property
    def folder_name(self) -> str:
        """Of its artefact, where none is given."""
        return _called(self.features)

    def __post_init__(self) -> None:
        _require_list(self.features)
        _require_seeds(self)
        for name, least in (("contexts", 2), ("depth", 0), ("children", 1), ("confirm", 1), ("batch_tokens", 1)):
            require(getattr(self, name) >= least, f"{name} = {getattr(self, name)}: give at least {least}")
        require(0 < self.low <= 1, f"low = {self.low}: give a share in (0, 1]")
        require(0 < self.level < 1, f"level = {self.level}: give a coverage in (0, 1)")


def _called(features: tuple[str, ...]) -> str:
    """A name for a folder out of what is asked for."""
    first = re.sub(r"[^\w.-]+", "-", features[0]).strip("-.") if features else ""
    return (first or "features") + (f"-and-{len(features) - 1}" if len(features) > 1 else "")


def _require_list(said: tuple[str, ...], name: str = "features") -> None:
    require(not isinstance(said, str), f"{name} = {said!r} is one text: give a list, [{said!r}]")


def _require_seeds(config: "PatchConfig | AblateConfig | TreeConfig") -> None:
    for name, value in vars(config).items():
        require(not name.endswith("seed") or value >= 0, f"{name} = {value}: a seed cannot be negative")
