"""Which way the parts of a sparse step are done here."""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from monolex.runtime import log
from monolex.training.sparse import fused
from monolex.training.sparse.compiled import Compiled
from monolex.training.sparse.fused import Fused
from monolex.training.sparse.operators import Operators
from monolex.training.sparse.parts import StepParts

Parts = Callable[[Mapping[Tensor, dict[str, Tensor]]], StepParts]
"""Makes them of Adam's state."""


def parts_for(device: torch.device) -> Parts:
    """By numba on a CPU, by Triton on a GPU of NVIDIA's or AMD's, where they are; else by torch's operators."""
    if device.type == "cpu" and usable("numba"):
        return Compiled
    if device.type == "cuda" and usable("triton") and _works(device):
        return Fused
    return Operators


_works = cache(fused.works)


@cache
def usable(compiler: str) -> bool:
    """Whether a compiler is installed and works."""
    if find_spec(compiler) is None:
        return False
    try:
        import_module(compiler)  # a version of its own mind about numpy's says so here
    except ImportError as error:
        log.warning("%s is installed but cannot be used, so training steps are not compiled: %s", compiler, error)
        return False
    return True
