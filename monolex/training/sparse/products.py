"""Products of float32 matrices as a training step takes them: without gradients, by the faster of torch's libraries."""

import platform
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear


def _onednn() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """oneDNN's product, which takes torch's own on x86 (MKL) half of the time on an AMD processor (docs/log.md).

    Where this build of torch has it: it is what torch's compiler calls, no public function.
    """
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if operator is None else lambda x, rows, bias: operator(x, rows, bias, "none", [], "")


_ON_CPU = _onednn()


@torch.no_grad()
def by_rows(
    x: Float[Tensor, "batch d"], rows: Float[Tensor, "n d"], bias: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "batch n"]:
    """``x @ rows.T + bias``."""
    on_cpu = x.device.type == "cpu" and x.dtype == rows.dtype == torch.float32
    return _ON_CPU(x, rows, bias) if _ON_CPU and on_cpu else linear(x, rows, bias)
