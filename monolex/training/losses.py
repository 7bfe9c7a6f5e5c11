"""The training losses, a plain function a kind, all of one signature and without side effects.

All are in one unit: squared error averaged over batch *and* dimensions; L1 is summed over features and averaged over
the batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.dictionaries.refined import pursue, refined
from monolex.kinds import KINDS
from monolex.training.members import SweepMember
from monolex.training.records import Loss, Params, StepBatch, StepSettings
from monolex.training.steps import Pass, auxk_loss, encode, keep_largest, left_to_codes, statistics

BANDWIDTH = 0.25
"""Width of the window around a JumpReLU's threshold in which a code has a say about it, over the threshold.
From 0.1 to 1 it makes no difference to what is learned (docs/log.md); a wider one costs more."""
SOFTENING = 0.01
"""What is added to a code before it is raised to a power below 1, over the batch's mean active code: without it the
smallest codes would have all the gradient."""
LEAST = 1e-8


def l1_loss(params: Params, batch: StepBatch, member: SweepMember, _settings: StepSettings) -> Loss:
    """Paper, section 2 in its code's convention: MSE over batch and dimensions + alpha · mean over rows of Σ|c|."""
    assert member.alpha is not None, member
    passed = encode(params, batch, member)
    codes = passed.pre.relu()
    mse = (passed.target - codes @ passed.rows).square().mean()
    l1 = codes.sum(1).mean()
    return Loss(mse + member.alpha * l1, *statistics(codes, mse, mse.new_zeros(())))


def p_anneal_loss(params: Params, batch: StepBatch, member: SweepMember, settings: StepSettings) -> Loss:
    """L1 whose shape becomes that of Σ c^p (Karvonen et al. 2024) while its size stays that of Σ c.

    They rescale the coefficient whenever p changes, by means over earlier batches; here it is rescaled at every step by
    the batch itself, so the loss stays comparable and there is nothing to remember.
    """
    assert member.alpha is not None, member
    passed = encode(params, batch, member)
    codes = passed.pre.relu()
    mse = (passed.target - codes @ passed.rows).square().mean()
    active = codes.detach() > 0
    soft, coefficient = SOFTENING * codes.detach().sum() / active.sum().clamp_min(1), member.alpha / len(codes)
    softened = torch.where(active, codes + soft, 0.0)
    powers = (torch.where(active, softened, 1.0) ** settings.p * active).sum()
    rescaled = softened.detach().sum() / powers.detach().clamp_min(LEAST) * powers
    return Loss(mse + coefficient * rescaled, *statistics(codes, mse, mse.new_zeros(())))


def topk_loss(params: Params, batch: StepBatch, member: SweepMember, settings: StepSettings) -> Loss:
    """MSE with the k largest positive pre-activations of every row (Gao et al. 2024), + AuxK."""
    passed = encode(params, batch, member)
    return _revived(passed, keep_largest(passed.pre, settings.k), settings)


def batchtopk_loss(params: Params, batch: StepBatch, member: SweepMember, settings: StepSettings) -> Loss:
    """MSE with the k·batch largest positive pre-activations of the whole batch (Bussmann et al. 2024), + AuxK."""
    passed = encode(params, batch, member)
    codes = _largest_of_batch(passed.pre, settings.k)
    return _revived(passed, codes, settings)._replace(threshold=_smallest(codes))


def matryoshka_loss(params: Params, batch: StepBatch, member: SweepMember, settings: StepSettings) -> Loss:
    """BatchTopK whose first features must do without the later ones (Bussmann et al. 2025), + AuxK.

    The mean over ``member.prefixes`` of the MSE of the reconstruction by the features before each; the codes are chosen
    once, among all. The part ``mse`` is that of the whole reconstruction.
    """
    passed = encode(params, batch, member)
    codes = _largest_of_batch(passed.pre, settings.k)
    residual, errors = passed.target, []
    for begin, end in zip((0, *member.prefixes), member.prefixes, strict=False):
        residual = residual - codes[:, begin:end] @ passed.rows[begin:end]
        errors.append(residual.square().mean())
    loss = _revived(passed, codes, settings, residual)
    nested = torch.stack(errors).mean()
    return loss._replace(total=loss.total - errors[-1] + nested, threshold=_smallest(codes))


def jumprelu_loss(params: Params, batch: StepBatch, member: SweepMember, settings: StepSettings) -> Loss:
    """MSE + pressure · L0 with a learned threshold a feature (Rajamanoharan et al. 2024), + AuxK.

    The step at the threshold has the straight-through gradient of a window around it (:class:`Jump`).
    """
    assert settings.pressure is not None, member
    passed = encode(params, batch, member)
    codes, active = Jump.apply(passed.pre, params["log_threshold"].exp())
    loss = _revived(passed, codes, settings)
    return loss._replace(total=loss.total + settings.pressure * active.sum(1).mean())


class Jump(torch.autograd.Function):
    """``(pre · 1[pre > threshold], 1[pre > threshold])``, whose step has the slope of a window around the threshold.

    The window is :data:`BANDWIDTH` times the threshold wide, so that it means the same in every unit.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.save_for_backward(pre, threshold)
        active = (pre > threshold).to(pre.dtype)
        return pre * active, active

    @staticmethod
    def backward(ctx: Any, by_code: Tensor, by_active: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        inside = (pre - threshold).abs() < BANDWIDTH / 2 * threshold
        slope = (inside * (by_code * threshold + by_active)).sum(0) / (BANDWIDTH * threshold)
        return by_code * (pre > threshold), -slope


def gated_loss(params: Params, batch: StepBatch, member: SweepMember, _settings: StepSettings) -> Loss:
    """A gate says which features are active, a magnitude how much (Rajamanoharan et al. 2024, Gated).

    MSE + alpha · mean over rows of Σ relu(gate) + the MSE of decoding relu(gate) with a constant decoder, the part
    ``aux``. Gate and magnitude share their weights but for a factor and a bias a feature.
    """
    assert member.alpha is not None, member
    passed = encode(params, batch, member)
    gate = passed.pre.relu()
    magnitude = (passed.pre - params["b_enc"]) * params["r_mag"].exp() + params["b_mag"]
    codes = magnitude.relu() * (passed.pre.detach() > 0)
    mse = (passed.target - codes @ passed.rows).square().mean()
    constant = {name: params[name].detach() for name in ("b_dec", "W_skip") if name in params}
    target = left_to_codes(constant, passed.centred, batch.y)
    aux = (target - gate @ passed.rows.detach()).square().mean()
    return Loss(mse + member.alpha * gate.sum(1).mean() + aux, *statistics(codes, mse, aux))


def pursuit_loss(params: Params, batch: StepBatch, member: SweepMember, settings: StepSettings) -> Loss:
    """MSE with the features that matching pursuit takes (Costa et al. 2025, MP-SAE), + AuxK.

    Which are taken has no slope; the value of each is what its row finds in what those before it left, and the slope
    goes through all of them.
    """
    passed = encode(params, batch, member)
    weights = {"W_enc": passed.rows.detach(), "W_dec": passed.rows.detach()}
    features, _ = pursue(passed.pre.detach(), weights, settings.k)
    taken = passed.rows[features]
    overlaps = taken @ taken.transpose(1, 2)
    values: list[Tensor] = []
    for turn, alone in enumerate(passed.pre.gather(1, features).unbind(1)):
        before = (torch.stack(values, 1) * overlaps[:, turn, :turn]).sum(1) if values else 0.0
        values.append((alone - before).relu())
    codes = torch.zeros_like(passed.pre).scatter_add(1, features, torch.stack(values, 1))
    return _revived(passed, codes, settings)


def lista_loss(params: Params, batch: StepBatch, member: SweepMember, settings: StepSettings) -> Loss:
    """BatchTopK of pre-activations that one LISTA step has refined, from the codes of a TopK, + AuxK."""
    passed = encode(params, batch, member)
    weights = {"W_enc": params["W_enc"], "b_enc": params["b_enc"], "W_dec": passed.rows}
    pre = refined(keep_largest(passed.pre, settings.k), passed.centred, weights)
    codes = _largest_of_batch(pre, settings.k)
    return _revived(passed._replace(pre=pre), codes, settings)._replace(threshold=_smallest(codes))


LossFunction = Callable[[Params, StepBatch, SweepMember, StepSettings], Loss]
LOSSES: dict[str, LossFunction] = {
    "l1": l1_loss,
    "p-anneal": p_anneal_loss,
    "topk": topk_loss,
    "batchtopk": batchtopk_loss,
    "matryoshka": matryoshka_loss,
    "jumprelu": jumprelu_loss,
    "gated": gated_loss,
    "pursuit": pursuit_loss,
    "lista": lista_loss,
}
"""By the name that the rows of :data:`monolex.kinds.KINDS` give them."""


def member_loss(params: Params, batch: StepBatch, member: SweepMember, settings: StepSettings) -> Loss:
    """The loss of a member's kind."""
    return LOSSES[KINDS[member.kind].loss](params, batch, member, settings)


def _largest_of_batch(pre: Float[Tensor, "batch d_sae"], k: int) -> Float[Tensor, "batch d_sae"]:
    return keep_largest(pre.flatten(), k * len(pre)).view_as(pre)


def _smallest(codes: Tensor) -> Float[Tensor, ""]:
    active = codes.detach()
    return active.masked_fill(active <= 0, torch.inf).min()


def _revived(passed: Pass, codes: Tensor, settings: StepSettings, residual: Tensor | None = None) -> Loss:
    """MSE of the reconstruction by ``codes`` and, once features can be dead, AuxK."""
    residual = passed.target - codes @ passed.rows if residual is None else residual
    mse, revival = residual.square().mean(), settings.revival
    if revival is None:
        return Loss(mse, *statistics(codes, mse, mse.new_zeros(())))
    aux = auxk_loss(passed.rows, passed.pre, residual, revival.dead)
    return Loss(mse + revival.weight * aux, *statistics(codes, mse, aux))
