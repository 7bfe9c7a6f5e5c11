"""What the losses of all kinds share: decoder rows, pre-activations, the choice of the largest, AuxK.

Decoder rows are unit by reparametrisation: the stored rows are divided by their norm inside the loss and the gradient
flows through the division (paper, section 2 and its released code). That gradient has no component along the row,
which is also what constrained optimisers achieve by projecting; so one way serves every kind. Only a dictionary whose
encoder stays random has rows of any length, for nothing else could learn the size of its codes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from monolex.kinds import KINDS
from monolex.training.members import SweepMember
from monolex.training.records import Params, StepBatch


class Pass(NamedTuple):
    """The linear parts that all kinds share."""

    rows: Float[Tensor, "d_sae d_out"]
    """Decoder rows as they enter the reconstruction."""
    centred: Float[Tensor, "batch d_in"]
    """What the encoder's weights are applied to."""
    pre: Float[Tensor, "batch d_sae"]
    """Pre-activations."""
    target: Float[Tensor, "batch d_out"]
    """What the codes alone have to reconstruct: without bias and linear skip."""


def unit(rows: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "d_sae d_out"]:
    """Rows divided by their norm, clamped at 1e-8 as in the paper's code."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)


def free_rows(member: SweepMember) -> bool:
    """Whether decoder rows have a length of their own."""
    return KINDS[member.kind].frozen == "W_enc"


def centred_input(params: Params, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
    """``x`` around the constant ``centre`` of a transcoder, else around ``b_dec``, where there is one."""
    shift = params.get("centre", params.get("b_dec"))
    return x if shift is None else x - shift


def left_to_codes(
    params: Params, centred: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]
) -> Float[Tensor, "batch d_out"]:
    """``y`` without the decoder bias and what a linear skip gives."""
    target = y - params["b_dec"] if "b_dec" in params else y
    return target - linear(centred, params["W_skip"]) if "W_skip" in params else target


def encode(params: Params, batch: StepBatch, member: SweepMember) -> Pass:
    """Decoder rows, pre-activations and target; without ``W_enc`` the weights are tied."""
    rows = params["W_dec"] if free_rows(member) else unit(params["W_dec"])
    centred = centred_input(params, batch.x)
    pre = linear(centred, params.get("W_enc", rows), params["b_enc"])
    return Pass(rows, centred, pre, left_to_codes(params, centred, batch.y))


def keep_largest(pre: Float[Tensor, "*rows n"], k: int) -> Float[Tensor, "*rows n"]:
    """ReLU of the k largest entries along the last dimension, zero elsewhere."""
    values, places = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, places, values.relu())


def auxk_loss(rows: Tensor, pre: Tensor, residual: Float[Tensor, "batch d_out"], dead: Tensor) -> Float[Tensor, ""]:
    """How badly the dead features' d_out / 2 largest pre-activations predict what the live ones left over.

    The residual is a constant here and already lacks the decoder bias, so the bias is not added again. Without dead
    features the loss is 0.
    """
    width = max(1, min(residual.shape[1] // 2, pre.shape[1]))
    codes = keep_largest(pre.masked_fill(~dead, -torch.inf), width)
    return (residual.detach() - codes @ rows).square().mean() * dead.any()


def statistics(codes: Tensor, mse: Tensor, aux: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The parts of a loss, and which features fired."""
    codes = codes.detach()
    active = codes > 0
    l0 = active.sum(1).to(codes.dtype).mean()
    parts = {"mse": mse.detach(), "l1": codes.sum(1).mean(), "l0": l0, "aux": aux.detach()}
    return parts, codes.amax(0) > 0
