"""Products of float32 matrices on a CPU by the faster of torch's two libraries, where nothing needs a gradient."""

import platform
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


def _onednn() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """oneDNN's product, for which torch's own on x86 (MKL) takes twice as long on an AMD processor (docs/log.md).

    Where this build of torch has it: it is what torch's compiler calls, no public function.
    """
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if operator is None else lambda x, rows, bias: operator(x, rows, bias, "none", [], "")


_ON_CPU = _onednn()


def by_rows(
    x: Float[Tensor, "*batch d"], rows: Float[Tensor, "n d"], bias: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "*batch n"]:
    """``x @ rows.T + bias``, with a gradient where one is wanted."""
    exact = x.device.type == "cpu" and x.dtype == rows.dtype == torch.float32
    quick = exact and not torch.is_grad_enabled() and x.numel() > 0
    return _ON_CPU(x, rows, bias) if quick and _ON_CPU else linear(x, rows, bias)


def quicken(model: nn.Module) -> None:
    """Let the linear layers of ``model`` multiply by :func:`by_rows`; layers of any other class are left alone."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_forward, module)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return by_rows(x, layer.weight, layer.bias)
