import pytest
import torch
from helpers.planted import ALL, batch, config, one
from torch import Tensor

from monolex.training.members import SweepMember
from monolex.training.optim import recipe
from monolex.training.parameters import initial
from monolex.training.steps import Revival, auxk_loss, member_loss, unit


def parameters(member: SweepMember, chosen: str = "modern", seed: int = 3) -> dict[str, Tensor]:
    """Float64 parameters away from every special value, with rows that are not unit."""
    g = torch.Generator().manual_seed(seed)
    start = initial(member, recipe(config(preset=chosen), member.kind))
    return {n: t.double() * 1.3 + 0.2 * torch.randn(t.shape, generator=g).double() for n, t in start.items()}


def by_hand(params: dict[str, Tensor], x: Tensor, member: SweepMember) -> dict[str, float]:
    """The losses of every kind, one number at a time."""
    d_sae, d_in, rows = member.d_sae, member.d_in, len(x)
    norms = [max(sum(float(w) ** 2 for w in row) ** 0.5, 1e-8) for row in params["W_dec"]]
    dec = [[float(w) / norms[j] for w in row] for j, row in enumerate(params["W_dec"])]
    enc = dec if member.kind == "tied" else params["W_enc"].tolist()
    bias = params["b_dec"].tolist() if "b_dec" in params else [0.0] * d_in
    b_enc, inner = params["b_enc"].tolist(), [[float(v) - bias[i] for i, v in enumerate(row)] for row in x]
    pre = [[sum(a * w for a, w in zip(row, enc[j], strict=True)) + b_enc[j] for j in range(d_sae)] for row in inner]
    kept = {(r, j) for r in range(rows) for j in range(d_sae)}
    if member.kind == "topk":
        kept = {(r, j) for r in range(rows) for j in sorted(range(d_sae), key=lambda j: -pre[r][j])[: member.k]}
    if member.kind == "batchtopk":
        kept = set(sorted(kept, key=lambda rj: -pre[rj[0]][rj[1]])[: member.k * rows])
    code = [[max(pre[r][j], 0.0) if (r, j) in kept else 0.0 for j in range(d_sae)] for r in range(rows)]
    error, l1 = 0.0, 0.0
    for r in range(rows):
        for i in range(d_in):
            error += (float(x[r, i]) - bias[i] - sum(code[r][j] * dec[j][i] for j in range(d_sae))) ** 2
        l1 += sum(code[r])
    mse = error / (rows * d_in)
    l0 = sum(c > 0 for row in code for c in row) / rows
    return {"total": mse + (member.alpha or 0) * l1 / rows, "mse": mse, "l1": l1 / rows, "l0": l0}


@pytest.mark.parametrize("preset", ["paper", "modern"])
@pytest.mark.parametrize("kind", ALL)
def test_loss_is_the_formula(kind, preset):
    member = one(kind)
    params, x = parameters(member, preset), batch()
    loss = member_loss(params, x, member, None)
    expected = by_hand(params, x, member)
    assert float(loss.total) == pytest.approx(expected.pop("total"), rel=1e-12)
    for name, value in expected.items():
        assert float(loss.parts[name]) == pytest.approx(value, rel=1e-12), name
    assert float(loss.parts["auxk"]) == 0


@pytest.mark.parametrize("kind", ALL)
def test_gradient_is_that_of_finite_differences_and_crosses_the_norm(kind):
    member = one(kind)
    params = {name: tensor.requires_grad_() for name, tensor in parameters(member).items()}
    x = batch()
    names = list(params)

    def total(*tensors: Tensor) -> Tensor:
        return member_loss(dict(zip(names, tensors, strict=True)), x, member, None).total

    assert torch.autograd.gradcheck(total, tuple(params.values()), eps=1e-7, atol=1e-6)
    total(*params.values()).backward()
    rows = params["W_dec"]
    assert rows.grad is not None
    # A loss of the direction alone has no slope along the row.
    assert (rows.grad * rows).sum(1).abs().max() < 1e-12 < rows.grad.abs().max()


def test_loss_ignores_the_length_of_decoder_rows():
    for kind in ALL:
        member = one(kind)
        params = parameters(member)
        longer = {**params, "W_dec": params["W_dec"] * 7}
        a, b = (member_loss(p, batch(), member, None).total for p in (params, longer))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_auxk_is_the_error_of_the_dead_features_and_moves_only_them():
    member = one("topk", d_in=6)
    params = {name: tensor.requires_grad_() for name, tensor in parameters(member).items()}
    x = batch(d_in=6)
    dead = torch.tensor([True, False] * 6)
    loss = member_loss(params, x, member, Revival(0.25, dead))
    plain = member_loss(params, x, member, None)
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
    torch.testing.assert_close(loss.parts["auxk"], expected, rtol=1e-12, atol=0)
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
