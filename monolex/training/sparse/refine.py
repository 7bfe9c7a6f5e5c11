"""One LISTA step inside of a sparse step (:func:`monolex.dictionaries.refined.refined`): forth and back.

A TopK's codes are decoded, the encoder reads what they leave, and the codes of the step are chosen from both. Back, the
slope of what was left comes by the encoder's rows of the chosen codes, and that of the first codes by the decoder's.
So encoder and decoder have two batches to learn from: what was left with the chosen codes, and the rows with the first.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.ranks.group import RankGroup
from monolex.training.sparse.codes import ActiveCodes, BatchErrors, Passed, Weights
from monolex.training.sparse.operators import rows_of
from monolex.training.sparse.parts import StepParts


class FirstCodes(NamedTuple):
    """What a refinement begins with."""

    codes: ActiveCodes
    """A TopK's."""
    left: Float[Tensor, "batch d_in"]
    """What they leave of every row."""


def first_codes(codes: ActiveCodes, decoded: BatchErrors) -> FirstCodes:
    """``codes`` and what they leave, from their errors, which are taken over."""
    error = decoded.error[0]
    # it is 2 / (batch · d_in) times x̂ - x
    return FirstCodes(codes, error.mul_(-error.numel() / 2))


def add_codes(pre: Float[Tensor, "batch n"], codes: ActiveCodes) -> Float[Tensor, "batch n"]:
    """``pre``, in place, with the codes of its rows added."""
    pre[rows_of(codes), codes.features.long()] += codes.values.to(pre.dtype)
    return pre


def with_first(
    passed: Passed,
    first: FirstCodes,
    centred: Float[Tensor, "batch d_in"],
    by_dead: Float[Tensor, "batch added"],
    parts: StepParts,
    weights: Weights,
    features: RankGroup,
) -> Passed:
    """The batch of the chosen codes, which read what was ``left``, and below it that of the ``first`` codes.

    ``by_dead`` are the slopes of the auxiliary loss by the pre-activations of ``passed.added.features``.
    """
    (codes, left), chosen, dead = first, passed.codes, passed.added.features
    encoder, scale = weights.params["W_enc"].detach(), 2 / left.numel()
    by_chosen = chosen._replace(values=passed.out.slopes)
    by_left = parts.decode(torch.zeros_like(left), weights._replace(rows=encoder), by_chosen).error[0]
    # what first codes write is taken off
    by_first = features.sum(by_left.div_(-scale).addmm_(by_dead, encoder[dead], alpha=-1))
    slopes = parts.slopes(by_first[None], weights, codes)
    # a first code is part of its own refined pre-activation
    direct = left.new_zeros(len(left), len(encoder))
    direct[rows_of(chosen), chosen.features.long()] = passed.out.slopes
    direct[:, dead] += by_dead
    slopes = slopes.add_(direct[rows_of(codes), codes.features.long()]).mul_(codes.values > 0)
    counts = torch.cat([chosen.counts, codes.counts])
    listed = [torch.cat(pair) for pair in zip(chosen[2:], codes[2:], strict=True)]
    error = torch.cat([passed.out.error[0], by_first])[None]
    out = BatchErrors(error, torch.cat([passed.out.slopes, slopes]), passed.out.squares)
    both = ActiveCodes(counts.cumsum(0) - counts, counts, *listed)
    return Passed(torch.cat([left, centred]), both, out, passed.added)
