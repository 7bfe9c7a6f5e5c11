"""Products of matrices on a CPU by the faster of torch's two libraries: equal bits with a gradient and without."""

import platform
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import linear


def _onednn() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """oneDNN's product. In float32 torch's own on x86 (MKL) takes twice as long on an AMD processor (docs/log.md); in
    bf16 both are oneDNN's, but torch writes a bias over all of the result first, and reads it back.

    Where this build of torch has it: it is what torch's compiler calls, no public function.
    """
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not hasattr(torch._C, "_are_functorch_transforms_active"):
        return None
    # it reads a bias as if it were contiguous
    return lambda x, rows, bias: operator(x, rows, None if bias is None else bias.contiguous(), "none", [], "")


_ON_CPU = _onednn()


def _plain(*tensors: Tensor) -> bool:
    """Whether these are of one type on a CPU that has it, and nobody asks for more than their product and its gradient:
    the operator itself knows of no forward mode, no transform and no autocast."""
    watched = torch.is_autocast_enabled("cpu") or forward_ad._current_level >= 0
    if watched or torch._C._are_functorch_transforms_active():
        return False
    dtype = tensors[0].dtype
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and _native_bf16()):
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in tensors)


@cache
def _native_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def by_rows(
    x: Float[Tensor, "*batch d"], rows: Float[Tensor, "n d"], bias: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "*batch n"]:
    """``x @ rows.T + bias``, with a gradient where one is wanted."""
    tensors = (x, rows) if bias is None else (x, rows, bias)
    if not (_ON_CPU and x.numel() > 0 and _plain(*tensors)):
        return linear(x, rows, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Product.apply(x, rows, bias)
    return _ON_CPU(x, rows, bias)


class _Product(torch.autograd.Function):
    """oneDNN's product with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        assert _ON_CPU is not None
        ctx.save_for_backward(x, rows)
        return _ON_CPU(x, rows, bias)

    @staticmethod
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, rows = ctx.saved_tensors
        flat = by_out.reshape(-1, by_out.shape[-1])
        of_x, of_rows, of_bias = ctx.needs_input_grad
        return (
            by_out @ rows if of_x else None,
            flat.T @ x.reshape(-1, x.shape[-1]) if of_rows else None,
            flat.sum(0) if of_bias else None,
        )


def quicken(model: nn.Module) -> None:
    """Let the linear layers of ``model`` multiply by :func:`by_rows`.

    Layers of any other class are left alone, and those whose ``forward`` is another's already (accelerate's hooks).
    """
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            module.forward = partial(_forward, module)  # pyright: ignore[reportAttributeAccessIssue]


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return by_rows(x, layer.weight, layer.bias)
