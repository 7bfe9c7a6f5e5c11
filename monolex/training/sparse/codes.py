"""What the parts of a sparse step hand to each other."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex.training.records import Params


class ActiveCodes(NamedTuple):
    """The listed codes of a batch, row by row."""

    starts: Int[Tensor, "batch"]
    """Where those of a row begin."""
    counts: Int[Tensor, "batch"]
    """How many it has."""
    features: Int[Tensor, "listed"]
    """Of each."""
    values: Float[Tensor, "listed"]
    """Positive; 0 of one that is listed but not active."""


class BatchErrors(NamedTuple):
    """What decoding a batch gives, for every prefix of the features that reconstructs (one, but for Matryoshka)."""

    error: Float[Tensor, "prefixes batch d_out"]
    """The gradient of the loss by what the features up to each prefix reconstruct."""
    slopes: Float[Tensor, "listed"]
    """That of the loss by every listed code."""
    squares: Float[Tensor, "prefixes batch"]
    """Summed squared error of every row."""


class AddedGradients(NamedTuple):
    """What is added to what the listed codes give: of dead features by the auxiliary loss, of all by products."""

    features: Int[Tensor, "added"]
    """Whose."""
    dec: Float[Tensor, "added d_out"]
    """By the decoder's rows."""
    enc: Float[Tensor, "added d_in"]
    """By the encoder's."""
    pre: Float[Tensor, "added"]
    """By the pre-activation, summed over the batch."""


class Passed(NamedTuple):
    """A batch as a step has seen it."""

    centred: Float[Tensor, "batch d_in"]
    """What the encoder is applied to."""
    codes: ActiveCodes
    """What was listed."""
    out: BatchErrors
    """What decoding gave; ``slopes`` by pre-activation."""
    added: AddedGradients
    """What else has a say."""


class Weights(NamedTuple):
    """The weights of a member, as a step reads and moves them."""

    params: Params
    """All parameters; those without ``requires_grad`` stay as they are."""
    rows: Float[Tensor, "d_sae d_out"]
    """Decoder rows as they entered the reconstruction."""
    prefixes: Int[Tensor, "prefixes"]
    """Where each prefix of the features ends."""
    ends: tuple[int, ...]
    """The same, for the host."""
    unit: bool
    """Rows are brought back to unit length after a step."""
    free: bool
    """Rows have any length, as a gradient has any direction."""
    decoder_rate: float
    """Learning rate of these rows, as a multiple of that of the rest."""


class FeatureSums(NamedTuple):
    """What is left to say once decoder and encoder have their gradients."""

    pre: Float[Tensor, "d_sae"]
    """Slope by every feature's pre-activation, summed over the batch."""
    pull: Float[Tensor, "d_in"]
    """Slope by what the encoder reads, summed over the batch."""


def no_codes(batch: Tensor) -> ActiveCodes:
    """None for any row of ``batch``: what a step hands on whose gradients have been summed already."""
    counts = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
    return ActiveCodes(counts, counts, counts.new_zeros(0, dtype=torch.int32), batch.new_zeros(0))
