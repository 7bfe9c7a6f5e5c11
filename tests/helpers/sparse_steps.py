"""Sparse steps beside autograd and torch's Adam: values, moments and parameters, step after step."""

import dataclasses

import torch
from helpers.planted import SITE, config, settings

from monolex.kinds import KINDS
from monolex.training.losses import member_loss
from monolex.training.members import SweepMember, members
from monolex.training.optim import MOMENTS, adam, recipe, set_rate
from monolex.training.parameters import constant, initial
from monolex.training.records import Revival, StepBatch
from monolex.training.sparse.parts import StepParts
from monolex.training.sparse.step import SparseStep
from monolex.training.steps import free_rows, unit

DECODER_RATE = 2.5


def _parameters(member: SweepMember, *, unit_rows: bool, bias: bool, device: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    chosen = dataclasses.replace(recipe(config(preset="modern"), member.kind), unit=unit_rows, bias=bias)
    params = initial(member, chosen)
    noise = {"W_dec": member.d_out**-0.5, "W_enc": member.d_in**-0.5, "b_dec": 0.1, "W_skip": 0.1, "r_mag": 0.3}
    for name, tensor in params.items():
        tensor += noise.get(name, 0.01) * torch.randn(tensor.shape, generator=g)
    if unit_rows and not free_rows(member):
        params["W_dec"] = unit(params["W_dec"])
    if "log_threshold" in params:
        params["log_threshold"] += -0.5 + 0.3 * torch.randn(member.d_sae, generator=g)
    still = constant(member)
    return {name: tensor.to(device).requires_grad_(name not in still) for name, tensor in params.items()}


def compare(
    parts: type[StepParts], kind: str, d_in: int, d_sae: int, batch: int, k: int = 1, *, unit_rows: bool, bias: bool,
    dead: float, d_out: int = 0, skip: bool = False, device: str = "cpu",
) -> None:  # fmt: skip
    """Four steps of a member by ``parts`` and by autograd from the same parameters."""
    target = {"target": "mlp_out", "skip": skip} if d_out else {}
    made = config(kinds=(kind,), ks=(k,), ratios=(d_sae / d_in,), lrs=(1e-3,), **target)
    (member,) = members(made, {SITE: d_in}, {"mlp_out.0": d_out})
    assert member.d_sae == d_sae
    keep_unit = unit_rows and not free_rows(member) and "W_dec" not in constant(member)
    slow, fast = (_parameters(member, unit_rows=unit_rows, bias=bias, device=device) for _ in range(2))
    reference, moments = (adam([params]) for params in (slow, fast))
    for optimiser in (reference, moments):
        set_rate(optimiser, 0, 1e-3, DECODER_RATE)
    quick = SparseStep(member, fast, moments, unit_rows=keep_unit, decoder_rate=DECODER_RATE, bf16=False, parts=parts)
    g = torch.Generator().manual_seed(1)
    revival = Revival(1 / 32, (torch.rand(d_sae, generator=g) < dead).to(device)) if KINDS[kind].auxk else None
    now = settings(member, revival)
    for number in range(1, 5):
        x = torch.randn(batch, d_in, generator=g).to(device)
        rows = StepBatch(x, torch.randn(batch, d_out, generator=g).to(device) if d_out else x)
        expected = member_loss(slow, rows, member, now)
        expected.total.backward()
        loss = quick.step(rows, 1e-3, now, number)
        assert loss is not None
        for params, optimiser in ((slow, reference), (fast, moments))[: 1 + (not parts.adam)]:
            optimiser.step()
            optimiser.zero_grad()
            if keep_unit:
                with torch.no_grad():
                    params["W_dec"].copy_(unit(params["W_dec"]))
        close = {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(loss.total, expected.total.detach(), **close)
        for name, value in expected.parts.items():
            torch.testing.assert_close(loss.parts[name], value, **close)
        assert torch.equal(loss.fired, expected.fired)
        assert (loss.threshold is None) == (expected.threshold is None)
        if loss.threshold is not None:
            torch.testing.assert_close(loss.threshold, expected.threshold, **close)
        for name, tensor in slow.items():
            assert (tensor in reference.state) == (fast[name] in moments.state) == tensor.requires_grad
            if tensor.requires_grad:
                ours, theirs = moments.state[fast[name]], reference.state[tensor]
                assert ours["step"] == theirs["step"]
                for moment in MOMENTS:
                    scale = float(theirs[moment].abs().max())
                    torch.testing.assert_close(ours[moment], theirs[moment], rtol=1e-3, atol=1e-4 * scale)
    for name, tensor in slow.items():
        torch.testing.assert_close(fast[name], tensor, rtol=0, atol=1e-4)  # a tenth of a step
