"""What a first run is sized by: the model, the text, the steps of a ladder, and what a run may take."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from monolex.config import Dtype
from monolex.cost import Shape

CONTEXT = 256
"""Tokens of a row, where the model can read so many."""


class Rung(NamedTuple):
    """One step of the ladder."""

    ratio: float
    """Features of a dictionary for each dimension."""
    sparsities: int
    """Of each of the two kinds."""
    ica: bool
    """Whether ICA is fitted."""
    controls: tuple[str, ...]
    """Control models."""
    contexts: int
    """Rows for the fidelity of every dictionary."""
    explained: int
    """Features of a dictionary that are explained."""
    pairs: int
    """Pairs of prompts for patching."""


LADDER = (
    Rung(8.0, 3, True, ("random", "shuffled"), 32, 100, 40),
    Rung(4.0, 2, True, ("random", "shuffled"), 16, 50, 30),
    Rung(2.0, 2, True, ("random", "shuffled"), 8, 30, 20),
    Rung(2.0, 2, False, ("random",), 4, 20, 10),
    Rung(2.0, 1, False, ("random",), 2, 10, 8),
    Rung(1.0, 1, False, ("random",), 2, 10, 8),
)
"""Richest first."""


@dataclass(frozen=True)
class Subject:
    """What the file needs to know of the model."""

    name: str
    """As the user gave it."""
    shape: Shape
    """Its sizes."""
    positions: int
    """Tokens that it can read at once."""
    dtype: Dtype
    """Precision of its weights."""
    why: str = ""
    """Why that one."""
    automatic: bool = False
    """Whether that is what `auto` chooses, which may depend on the machine."""
    unspelled: str = ""
    """Why its tokenizer cannot spell name-swapping prompts; empty if it can."""

    @property
    def context(self) -> int:
        """Tokens of a row."""
        return min(CONTEXT, self.positions)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks after which a quarter, half and three quarters of the depth are behind; fewer in a shallow model."""
        return tuple(dict.fromkeys(max(int(self.shape.layers * q + 0.5) - 1, 0) for q in (0.25, 0.5, 0.75)))

    @property
    def middle(self) -> str:
        """The residual stream at half of the depth."""
        return f"resid_post.{max(int(self.shape.layers * 0.5 + 0.5) - 1, 0)}"

    @property
    def sites(self) -> list[str]:
        """The residual stream at these depths, and what the MLP at half of it adds."""
        return [f"resid_post.{layer}" for layer in self.layers] + [self.middle.replace("resid_post", "mlp_out")]

    @property
    def width(self) -> int:
        """``d_in`` of these sites."""
        return self.shape.widths[self.middle]


@dataclass(frozen=True)
class Text:
    """What the file needs to know of the corpus."""

    name: str
    """As the user gave it."""
    text_field: str
    """Field of a line of JSON."""
    tokens: int
    """How many were counted, of all its documents or as far as the minutes reach."""
    document_tokens: int
    """At most so many of a document were."""
    mean: float = math.inf
    """Tokens of a document on average."""


class Sizes(NamedTuple):
    """What is chosen to fit."""

    rung: Rung
    """Step of the ladder."""
    tokens: int
    """How much text is read."""
    epochs: int
    """Passes over its activations."""

    @property
    def rows(self) -> int:
        """Activations that a dictionary is trained on."""
        return int(self.tokens * 0.9) * self.epochs

    @property
    def worth(self) -> float:
        """Activations, where another pass over the same ones is worth less than new ones."""
        return self.rows / math.sqrt(self.epochs)


class Spent(NamedTuple):
    """What a run is estimated to take, or may take."""

    minutes: float
    """On this machine, now."""
    disk: int
    """Bytes."""
    memory: int
    """Bytes at the peak, libraries among them."""
