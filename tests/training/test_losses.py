import math

import pytest
import torch
from helpers.planted import ALL, batch, config, loss_of, one
from torch import Tensor

from monolex.kinds import KINDS
from monolex.training.losses import Jump, member_loss
from monolex.training.members import SweepMember
from monolex.training.optim import recipe
from monolex.training.parameters import initial
from monolex.training.records import Revival, StepBatch, StepSettings
from monolex.training.steps import auxk_loss, unit


def parameters(member: SweepMember, chosen: str = "modern", seed: int = 3) -> dict[str, Tensor]:
    """Float64 parameters away from every special value, with rows that are not unit."""
    g = torch.Generator().manual_seed(seed)
    start = initial(member, recipe(config(preset=chosen), member.kind))
    return {n: t.double() * 1.3 + 0.2 * torch.randn(t.shape, generator=g).double() for n, t in start.items()}


def refined_by_hand(pre, enc, dec, inner, b_enc, k):
    """The pre-activations of every feature on what all others left, the first k having written."""
    refined = []
    for said, row in zip(pre, inner, strict=True):
        largest = sorted(range(len(said)), key=lambda j: -said[j])[:k]
        first = [max(said[j], 0.0) if j in largest else 0.0 for j in range(len(said))]
        left = [v - sum(c * d[i] for c, d in zip(first, dec, strict=True)) for i, v in enumerate(row)]
        refined.append(
            [
                c + sum(a * w for a, w in zip(left, e, strict=True)) + b
                for c, e, b in zip(first, enc, b_enc, strict=True)
            ]
        )
    return refined


def pursued_by_hand(dec, row, b_enc, k):
    """k times the feature that finds most in what is left."""
    codes, left = [0.0] * len(dec), list(row)
    for _ in range(k):
        said = [sum(a * w for a, w in zip(left, d, strict=True)) + b for d, b in zip(dec, b_enc, strict=True)]
        j = max(range(len(dec)), key=lambda j: said[j])
        value = max(said[j], 0.0)
        codes[j] += value
        left = [v - value * w for v, w in zip(left, dec[j], strict=True)]
    return codes


def by_hand(params: dict[str, Tensor], x: Tensor, member: SweepMember) -> dict[str, float]:
    """The losses of every kind, one number at a time."""
    d_sae, d_in, rows = member.d_sae, member.d_in, len(x)
    free = KINDS[member.kind].frozen == "W_enc"
    norms = [1.0 if free else max(sum(float(w) ** 2 for w in row) ** 0.5, 1e-8) for row in params["W_dec"]]
    dec = [[float(w) / norms[j] for w in row] for j, row in enumerate(params["W_dec"])]
    enc = dec if KINDS[member.kind].tied else params["W_enc"].tolist()
    bias = params["b_dec"].tolist() if "b_dec" in params else [0.0] * d_in
    b_enc, inner = params["b_enc"].tolist(), [[float(v) - bias[i] for i, v in enumerate(row)] for row in x]
    pre = [[sum(a * w for a, w in zip(row, enc[j], strict=True)) + b_enc[j] for j in range(d_sae)] for row in inner]
    kept = {(r, j) for r in range(rows) for j in range(d_sae)}
    loss = KINDS[member.kind].loss
    if loss == "topk":
        kept = {(r, j) for r in range(rows) for j in sorted(range(d_sae), key=lambda j: -pre[r][j])[: member.k]}
    if loss in ("batchtopk", "matryoshka"):
        kept = set(sorted(kept, key=lambda rj: -pre[rj[0]][rj[1]])[: member.k * rows])
    if loss == "jumprelu":
        kept = {(r, j) for r, j in kept if pre[r][j] > math.exp(params["log_threshold"][j])}
    gate = [[max(p, 0.0) for p in row] for row in pre]
    if loss == "gated":
        kept = {(r, j) for r, j in kept if pre[r][j] > 0}
        for j in range(d_sae):
            for row in pre:
                row[j] = (row[j] - b_enc[j]) * math.exp(params["r_mag"][j]) + float(params["b_mag"][j])
    if loss == "lista":
        pre = refined_by_hand(pre, enc, dec, inner, b_enc, member.k or 0)
        kept = set(sorted(kept, key=lambda rj: -pre[rj[0]][rj[1]])[: (member.k or 0) * rows])
    code = [[max(pre[r][j], 0.0) if (r, j) in kept else 0.0 for j in range(d_sae)] for r in range(rows)]
    if loss == "pursuit":
        code = [pursued_by_hand(dec, row, b_enc, member.k or 0) for row in inner]

    def error(codes: list[list[float]], features: int = d_sae) -> float:
        total = 0.0
        for r in range(rows):
            for i in range(d_in):
                total += (float(x[r, i]) - bias[i] - sum(codes[r][j] * dec[j][i] for j in range(features))) ** 2
        return total / (rows * d_in)

    mse, l1 = error(code), sum(sum(row) for row in code) / rows
    l0 = sum(c > 0 for row in code for c in row) / rows
    total, aux = mse + (member.alpha or 0) * l1, 0.0
    if loss == "matryoshka":
        total = sum(error(code, features) for features in member.prefixes) / len(member.prefixes)
    if loss == "jumprelu":
        total = mse + l0 / 64
    if loss == "gated":
        aux = error(gate)
        total = mse + (member.alpha or 0) * sum(sum(row) for row in gate) / rows + aux
    if loss == "p-anneal":
        total = mse + (member.alpha or 0) * 1.01 * l1
    return {"total": total, "mse": mse, "l1": l1, "l0": l0, "aux": aux}


@pytest.mark.parametrize("preset", ["paper", "modern"])
@pytest.mark.parametrize("kind", ALL)
def test_loss_is_the_formula(kind, preset):
    member = one(kind)
    params, x = parameters(member, preset), batch()
    loss = loss_of(params, x, member)
    expected = by_hand(params, x, member)
    assert float(loss.total) == pytest.approx(expected.pop("total"), rel=1e-12)
    for name, value in expected.items():
        assert float(loss.parts[name]) == pytest.approx(value, rel=1e-12), name


SMOOTH = [name for name, row in KINDS.items() if row.loss not in ("jumprelu", "gated", "p-anneal")]
"""Kinds whose slope is that of their loss: others have constants in it, or a slope where the loss has a step."""


@pytest.mark.parametrize("kind", SMOOTH)
def test_gradient_is_that_of_finite_differences_and_crosses_the_norm(kind):
    member = one(kind)
    params = {name: tensor.requires_grad_() for name, tensor in parameters(member).items()}
    x = batch()
    names = list(params)

    def total(*tensors: Tensor) -> Tensor:
        return loss_of(dict(zip(names, tensors, strict=True)), x, member).total

    assert torch.autograd.gradcheck(total, tuple(params.values()), eps=1e-7, atol=1e-6)
    total(*params.values()).backward()
    rows = params["W_dec"]
    assert rows.grad is not None
    # A loss of the direction alone has no slope along the row.
    assert ((rows.grad * rows).sum(1).abs().max() < 1e-12) == (KINDS[kind].frozen != "W_enc")
    assert rows.grad.abs().max() > 1e-12


def test_a_jumprelus_threshold_moves_by_the_codes_in_a_window_around_it():
    pre = torch.tensor([[1.1, 0.9, 0.8, 3.0], [0.87, -1.0, 1.13, 1.12]], dtype=torch.float64, requires_grad=True)
    threshold = torch.ones(4).double().requires_grad_()
    codes, active = Jump.apply(pre, threshold)
    assert codes.tolist() == [[1.1, 0, 0, 3.0], [0, 0, 1.13, 1.12]]
    by_code, by_active = torch.full((2, 4), 2.0), torch.full((2, 4), 10.0)
    torch.autograd.backward((codes, active), (by_code.double(), by_active.double()))
    assert pre.grad is not None and threshold.grad is not None
    assert pre.grad.tolist() == [[2, 0, 0, 2], [0, 0, 2, 2]]
    # of a window from 0.875 to 1.125: the first, the second, none, the last
    torch.testing.assert_close(threshold.grad, torch.tensor([-48.0, -48.0, 0.0, -48.0]).double())


def test_gated_keeps_its_auxiliary_loss_from_the_decoder_and_its_reconstruction_from_the_gate():
    """Two leaks of peers: the decoder learning from the gate's codes, and a gate that opens because it reconstructs."""
    member = one("gated", alphas=(0.0,))
    params = {name: tensor.requires_grad_() for name, tensor in parameters(member).items()}
    x = batch()
    loss = loss_of(params, x, member)
    aux, decoder = torch.autograd.grad(loss.total, (params["b_enc"], params["W_dec"]))
    closed = {**params, "b_mag": params["b_mag"] - 1000.0}
    alone = loss_of(closed, x, member)
    (same,) = torch.autograd.grad(alone.total, (params["b_enc"],), retain_graph=True)
    torch.testing.assert_close(aux, same)
    (nothing,) = torch.autograd.grad(alone.total, (params["W_dec"],))
    assert not nothing.any() and decoder.any() and float(alone.parts["l0"]) == 0


def test_p_anneal_is_l1_at_first_and_presses_small_codes_later():
    member, x = one("p-anneal"), batch()
    params = {name: tensor.requires_grad_() for name, tensor in parameters(member).items()}
    rows, names = StepBatch(x, x), ("b_enc", "W_enc")
    slopes = []
    for loss in (
        member_loss(params, rows, member, StepSettings(p=1.0)),
        loss_of(params, x, one("untied")),
        member_loss(params, rows, member, StepSettings(p=0.3)),
    ):
        slopes.append(torch.autograd.grad(loss.total, [params[name] for name in names]))
    for ours, theirs, later in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.allclose(ours, later)


def test_loss_ignores_the_length_of_decoder_rows():
    for kind in ALL:
        member = one(kind)
        params = parameters(member)
        if KINDS[kind].frozen == "W_enc":
            continue
        longer = {**params, "W_dec": params["W_dec"] * 7}
        a, b = (loss_of(p, batch(), member).total for p in (params, longer))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_auxk_is_the_error_of_the_dead_features_and_moves_only_them():
    member = one("topk", d_in=6)
    params = {name: tensor.requires_grad_() for name, tensor in parameters(member).items()}
    x = batch(d_in=6)
    dead = torch.tensor([True, False] * 6)
    loss = loss_of(params, x, member, Revival(0.25, dead))
    plain = loss_of(params, x, member)
    with torch.no_grad():
        rows = unit(params["W_dec"])
        pre = (x - params["b_dec"]) @ params["W_enc"].T + params["b_enc"]
        live = torch.zeros_like(pre)
        for r in range(len(x)):
            for j in pre[r].argsort(descending=True)[:2]:
                live[r, j] = pre[r, j].clamp_min(0)
        residual = x - params["b_dec"] - live @ rows
        aux = torch.zeros_like(pre)
        for r in range(len(x)):
            for j in [int(j) for j in pre[r].argsort(descending=True) if dead[j]][:3]:
                aux[r, j] = pre[r, j].clamp_min(0)
        expected = (residual - aux @ rows).square().mean()
        # d/dW of mean((e - aux Ŵ)²), through Ŵ = W / |W|.
        slope = -2 * aux.T @ (residual - aux @ rows) / x.numel()
        norm = params["W_dec"].norm(dim=1, keepdim=True)
        slope = (slope - (slope * rows).sum(1, keepdim=True) * rows) / norm
    torch.testing.assert_close(loss.parts["aux"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.total - plain.total, 0.25 * expected, rtol=1e-9, atol=0)
    (loss.total - plain.total).backward()
    for name in ("W_dec", "W_enc", "b_enc"):
        grad = params[name].grad
        assert grad is not None
        assert grad[~dead].abs().max() < 1e-15, name
        assert grad[dead].abs().max() > 0, name
    assert params["W_dec"].grad is not None
    torch.testing.assert_close(params["W_dec"].grad[dead], 0.25 * slope[dead], rtol=1e-6, atol=1e-12)


def test_auxk_of_none_dead_is_zero():
    member = one("topk", d_in=6)
    params = {name: tensor.requires_grad_() for name, tensor in parameters(member).items()}
    pre = batch(d_in=6) @ params["W_enc"].T
    loss = auxk_loss(unit(params["W_dec"]), pre, batch(d_in=6), torch.zeros(12, dtype=torch.bool))
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in params.values())
