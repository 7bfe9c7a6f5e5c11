"""Products by oneDNN against float64, and what they leave alone."""

import pytest
import torch
from torch import nn

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


def test_gradients_go_through_where_they_are_wanted():
    x, rows = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    by_rows(x, rows).sum().backward()
    assert rows.grad is not None and torch.equal(rows.grad, x.sum(0).expand(5, 3))
    jacobian = torch.func.jacrev(lambda v: by_rows(v, rows.detach()))(x[0])
    torch.testing.assert_close(jacobian, rows.detach())


@pytest.mark.skipif(products._ON_CPU is None, reason="this torch has no oneDNN")
def test_only_plain_linear_layers_in_float32_are_quickened(monkeypatch):
    class Other(nn.Linear):
        pass

    calls, quick = [], products._ON_CPU
    monkeypatch.setattr(products, "_ON_CPU", lambda *given: (calls.append(1), quick(*given))[1])
    model = nn.Sequential(nn.Linear(3, 4), Other(4, 5), nn.Linear(5, 2, bias=False))
    x = torch.randn(7, 3)
    before = model(x)
    quicken(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)
    assert len(calls) == 2
    model(x)
    with torch.no_grad():
        model.bfloat16()(x.bfloat16())
    assert len(calls) == 2
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}
