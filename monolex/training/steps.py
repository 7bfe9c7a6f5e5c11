"""The training losses, plain functions, all of one signature and without side effects.

Decoder rows are unit by reparametrisation: the stored rows are divided by their norm inside the loss and the gradient
flows through the division (paper, section 2 and its released code). That gradient has no component along the row,
which is also what constrained optimisers achieve by projecting; so one way serves every kind.

All losses are in one unit: squared error averaged over batch *and* dimensions; L1 is summed over features and averaged
over the batch.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import linear

from monolex.kinds import KINDS
from monolex.training.members import SweepMember

Params = Mapping[str, Tensor]
PARTS = ("mse", "l1", "l0", "auxk")


class Revival(NamedTuple):
    """What AuxK needs to know."""

    weight: float
    """Coefficient of the auxiliary loss."""
    dead: Bool[Tensor, "d_sae"]
    """Features that count as dead."""


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


class Pass(NamedTuple):
    """The linear parts that all kinds share."""

    rows: Float[Tensor, "d_sae d_in"]
    """Unit decoder rows."""
    pre: Float[Tensor, "batch d_sae"]
    """Pre-activations."""


def unit(rows: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
    """Rows divided by their norm, clamped at 1e-8 as in the paper's code."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)


def encode(params: Params, x: Float[Tensor, "batch d_in"]) -> Pass:
    """Unit rows and pre-activations; without ``W_enc`` the weights are tied, without ``b_dec`` nothing is centred."""
    rows = unit(params["W_dec"])
    centred = x - params["b_dec"] if "b_dec" in params else x
    return Pass(rows, linear(centred, params.get("W_enc", rows), params["b_enc"]))


def decode(params: Params, rows: Tensor, codes: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
    """The reconstruction."""
    out = codes @ rows
    return out + params["b_dec"] if "b_dec" in params else out


def l1_loss(params: Params, x: Float[Tensor, "batch d_in"], member: SweepMember, _revival: Revival | None) -> Loss:
    """Paper, section 2 in its code's convention: MSE over batch and dimensions + alpha · mean over rows of Σ|c|."""
    assert member.alpha is not None, member
    rows, pre = encode(params, x)
    codes = pre.relu()
    mse = (x - decode(params, rows, codes)).square().mean()
    l1 = codes.sum(1).mean()
    return Loss(mse + member.alpha * l1, *_statistics(codes, mse, mse.new_zeros(())))


def topk_loss(params: Params, x: Float[Tensor, "batch d_in"], member: SweepMember, revival: Revival | None) -> Loss:
    """MSE with the k largest positive pre-activations of every row (Gao et al. 2024), + AuxK."""
    assert member.k is not None, member
    rows, pre = encode(params, x)
    return _sparse_loss(params, x, rows, pre, keep_largest(pre, member.k), revival)


def batchtopk_loss(
    params: Params, x: Float[Tensor, "batch d_in"], member: SweepMember, revival: Revival | None
) -> Loss:
    """MSE with the k·batch largest positive pre-activations of the whole batch (Bussmann et al. 2024), + AuxK."""
    assert member.k is not None, member
    rows, pre = encode(params, x)
    codes = keep_largest(pre.flatten(), member.k * len(x)).view_as(pre)
    active = codes.detach()
    smallest = active.masked_fill(active <= 0, torch.inf).min()
    return _sparse_loss(params, x, rows, pre, codes, revival)._replace(threshold=smallest)


LossFunction = Callable[[Params, Tensor, SweepMember, Revival | None], Loss]
LOSSES: dict[str, LossFunction] = {"l1": l1_loss, "topk": topk_loss, "batchtopk": batchtopk_loss}
"""By the name that the rows of :data:`monolex.kinds.KINDS` give them."""


def member_loss(params: Params, x: Float[Tensor, "batch d_in"], member: SweepMember, revival: Revival | None) -> Loss:
    """The loss of a member's kind."""
    return LOSSES[KINDS[member.kind].loss](params, x, member, revival)


def keep_largest(pre: Float[Tensor, "*rows n"], k: int) -> Float[Tensor, "*rows n"]:
    """ReLU of the k largest entries along the last dimension, zero elsewhere."""
    values, places = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, places, values.relu())


def auxk_loss(rows: Tensor, pre: Tensor, residual: Float[Tensor, "batch d_in"], dead: Tensor) -> Float[Tensor, ""]:
    """How badly the dead features' d_in / 2 largest pre-activations predict what the live ones left over.

    The residual is a constant here and already lacks the decoder bias, so the bias is not added again. Without dead
    features the loss is 0.
    """
    width = max(1, min(residual.shape[1] // 2, pre.shape[1]))
    codes = keep_largest(pre.masked_fill(~dead, -torch.inf), width)
    return (residual.detach() - codes @ rows).square().mean() * dead.any()


def _sparse_loss(params: Params, x: Tensor, rows: Tensor, pre: Tensor, codes: Tensor, revival: Revival | None) -> Loss:
    residual = x - decode(params, rows, codes)
    mse = residual.square().mean()
    if revival is None:
        return Loss(mse, *_statistics(codes, mse, mse.new_zeros(())))
    auxk = auxk_loss(rows, pre, residual, revival.dead)
    return Loss(mse + revival.weight * auxk, *_statistics(codes, mse, auxk))


def _statistics(codes: Tensor, mse: Tensor, auxk: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    codes = codes.detach()
    active = codes > 0
    l0 = active.sum(1).to(codes.dtype).mean()
    parts = {"mse": mse.detach(), "l1": codes.sum(1).mean(), "l0": l0, "auxk": auxk.detach()}
    return parts, codes.amax(0) > 0
