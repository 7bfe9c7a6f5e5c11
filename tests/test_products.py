"""Products by oneDNN against float64, and what they leave alone."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.functional import linear

from monolex import products
from monolex.products import by_rows, quicken


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 7), (64, 33, 129), (0, 3, 7), (2, 7, 768, 50)])
def test_a_product_is_that_of_float64(shape, bias):
    *batch, d, n = shape
    g = torch.Generator().manual_seed(0)
    x, rows = torch.randn(*batch, d, generator=g), torch.randn(n, d, generator=g)
    shift = torch.randn(n, generator=g) if bias else None
    expected = x.double() @ rows.double().T + (0.0 if shift is None else shift.double())
    columns = rows.T.contiguous().T  # another order in memory
    with torch.no_grad():
        for result in (by_rows(x, rows, shift), by_rows(x, columns, shift), by_rows(x[..., :], rows, shift)):
            torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(
            by_rows(x.double(), rows.double(), None if shift is None else shift.double()), expected
        )


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own
def test_gradients_go_through_where_they_are_wanted():
    x, rows = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    by_rows(x, rows).sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, x.sum(0).expand(5, 3))
    bias, vector = torch.randn(5, requires_grad=True), torch.randn(3, requires_grad=True)
    for ours, theirs in zip(
        *(torch.autograd.grad(f(vector, rows, bias).pow(3).sum(), (vector, rows, bias)) for f in (by_rows, linear)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        assert torch.equal(by_rows(x, rows, bias), by_rows(x, rows.detach().requires_grad_(), bias))
    assert torch.equal(by_rows(x, rows, bias), by_rows(x, rows.detach(), bias.detach()))
    tangent = torch.ones(4, 3)
    with torch.no_grad():  # which leaves forward mode as it is
        assert torch.equal(torch.func.jvp(lambda v: by_rows(v, rows.detach()), (x,), (tangent,))[1], tangent @ rows.T)
        with forward_ad.dual_level():
            out = by_rows(forward_ad.make_dual(x, tangent), rows.detach())
            assert forward_ad.unpack_dual(out).tangent is not None
        with torch.autocast("cpu", torch.bfloat16):
            assert by_rows(x, rows).dtype == torch.bfloat16
    jacobian = torch.func.jacrev(lambda v: by_rows(v, rows.detach()))(x[0])
    torch.testing.assert_close(jacobian, rows.detach())


@pytest.mark.parametrize("bias", [torch.randn(10)[::2], torch.randn(5, 3)[:, 1], torch.randn(1).expand(5)])
def test_a_bias_lies_in_memory_as_it_likes(bias):
    x, rows = torch.randn(4, 3), torch.randn(5, 3)
    with torch.no_grad():
        torch.testing.assert_close(by_rows(x, rows, bias), x @ rows.T + bias)


@pytest.mark.skipif(not products._native_bf16(), reason="this CPU has no bf16 of its own")
def test_a_product_in_bf16_is_torchs():
    x, rows, bias = (torch.randn(shape).bfloat16() for shape in ((64, 33), (129, 33), (129,)))
    with torch.no_grad():
        torch.testing.assert_close(by_rows(x, rows, bias), torch.nn.functional.linear(x, rows, bias))


def test_tensors_of_several_types_are_refused():
    x, rows = torch.randn(4, 3), torch.randn(5, 3)
    for given in ((x, rows.double()), (x, rows, torch.zeros(5).double())):
        with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
            by_rows(*given)


@pytest.mark.skipif(products._ON_CPU is None, reason="this torch has no oneDNN")
def test_only_plain_linear_layers_are_quickened(monkeypatch):
    class Other(nn.Linear):
        pass

    calls, quick = [], products._ON_CPU
    assert quick is not None
    monkeypatch.setattr(products, "_ON_CPU", lambda *given: (calls.append(1), quick(*given))[1])
    last = nn.Linear(2, 2)
    hooked = last.forward = partial(nn.Linear.forward, last)
    model = nn.Sequential(nn.Linear(3, 4), Other(4, 5), nn.Linear(5, 2, bias=False), last)
    x = torch.randn(7, 3)
    before = model(x)
    quicken(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)
    assert len(calls) == 2 and last.forward is hooked
    with torch.no_grad():
        model.double()(x.double())
        assert len(calls) == 2
        model.bfloat16()(x.bfloat16())
    assert len(calls) == (4 if products._native_bf16() else 2)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "3.weight", "3.bias"}
