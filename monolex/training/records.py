"""What a training step is told and what it says: a batch, what is set at a step, the loss."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

Params = Mapping[str, Tensor]
PARTS = ("mse", "l1", "l0", "aux")
PER_FEATURE = ("W_dec", "W_enc", "b_enc", "b_mag", "r_mag", "log_threshold")
"""Parameters with an entry or a row a feature."""


class StepBatch(NamedTuple):
    """What a member reads and what it reconstructs, in the units of training."""

    x: Float[Tensor, "batch d_in"]
    y: Float[Tensor, "batch d_out"]
    """``x`` itself but for transcoders."""


class Revival(NamedTuple):
    """What AuxK needs to know."""

    weight: float
    """Coefficient of the auxiliary loss."""
    dead: Bool[Tensor, "d_sae"]
    """Features that count as dead."""


class StepSettings(NamedTuple):
    """What of a member changes from step to step."""

    k: int = 1
    """Active features of the kinds that take that."""
    p: float = 1.0
    """Power of the codes in an annealed L1."""
    pressure: Float[Tensor, ""] | None = None
    """JumpReLU: multiplier of the mean number of active features."""
    revival: Revival | None = None
    """None until features can be dead."""


class Loss(NamedTuple):
    """A loss on one batch."""

    total: Float[Tensor, ""]
    """What is minimised."""
    parts: dict[str, Tensor]
    """Scalars named in :data:`PARTS`, detached."""
    fired: Bool[Tensor, "d_sae"]
    """Features active on some row of the batch."""
    threshold: Float[Tensor, ""] | None = None
    """BatchTopK: smallest active pre-activation of the batch, infinity where nothing was active."""


def trained_numbers(params: Params, *, shared: bool) -> int:
    """How many numbers of a member are trained: those of its features here and, if ``shared``, those that all share."""
    return sum(t.numel() for name, t in params.items() if t.requires_grad and (shared or name in PER_FEATURE))
