"""The parts of a sparse step by kernels in Triton, for GPUs; Adam's step is in them.

Choosing what is active is left to torch's operators: it is a pass over the pre-activations and small sorts. What costs
by rows of weights (decoding, slopes, gradients, Adam, unit rows) reads and writes each once.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from monolex.runtime import log
from monolex.training.optim import MOMENTS
from monolex.training.sparse.codes import ActiveCodes, BatchErrors, FeatureSums, Passed, Weights
from monolex.training.sparse.operators import Operators, rows_of

A_WARP = 256
"""Numbers of a row that a warp holds, eight a thread: more would not fit into registers beside its moments."""
BLOCK = 128
"""Slopes of a feature that are summed at once."""


class Fused(Operators):
    """A :class:`~monolex.training.sparse.parts.StepParts`; ``state`` is Adam's, by parameter."""

    adam: ClassVar[bool] = True

    def __init__(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        from monolex.training.sparse import triton_kernels

        super().__init__(state)
        self._kernels: ModuleType = triton_kernels
        self._state = state

    def decode(self, target: Tensor, weights: Weights, codes: ActiveCodes) -> BatchErrors:
        with _on(target.device):
            return self._decode(target, weights, codes)

    def move(self, passed: Passed, weights: Weights, by: tuple[float, float, float, float] | None) -> FeatureSums:
        assert by is not None, "Adam is in the kernel"
        with _on(passed.centred.device):
            return self._move(passed, weights, by)

    def _decode(self, target: Tensor, weights: Weights, codes: ActiveCodes) -> BatchErrors:
        prefixes, (batch, width) = len(weights.ends), target.shape
        codes = _dense(codes)
        out = BatchErrors(
            target.new_empty(prefixes, batch, width),
            torch.zeros_like(codes.values),
            target.new_empty(prefixes, batch),
        )
        self._kernels.decode[(batch,)](
            target, weights.rows, codes.starts, codes.counts, codes.features, codes.values, weights.prefixes,
            *(out.error, out.slopes, out.squares), batch, width, 2 / (batch * width * prefixes),
            PREFIXES=prefixes, WIDTH=_power(width), num_warps=_warps(width),
        )  # fmt: skip
        return out

    def _move(self, passed: Passed, weights: Weights, by: tuple[float, float, float, float]) -> FeatureSums:
        params, (centred, codes, out, added) = weights.params, passed
        codes = _dense(codes)
        n = len(weights.rows)
        order = codes.features.argsort(stable=True)
        features, slopes = codes.features[order], out.slopes[order]
        ends = torch.zeros(n + 1, dtype=torch.int64, device=centred.device)
        ends[1:] = torch.bincount(features, minlength=n).cumsum(0)
        number = torch.full((n,), -1, device=centred.device)
        number[added.features] = torch.arange(len(added.features), device=centred.device)
        every = torch.arange(n, device=centred.device)
        level = torch.searchsorted(weights.prefixes, every, right=True)
        pre = centred.new_empty(n)
        self._kernels.feature_sums[(n,)](ends, slopes, number, added.pre, pre, BLOCK=BLOCK)
        tied, encoder = "W_enc" not in params, params.get("W_enc", weights.rows).detach()
        pull = pre @ encoder
        nowhere = torch.zeros_like(level)
        sums = (rows_of(codes)[order], ends)
        decoder = (out.error, codes.values[order], centred, slopes, *sums, level, number, added.dec, added.enc)
        if params["W_dec"].requires_grad:
            by_unit, keep = not weights.free, weights.unit
            faster = (weights.decoder_rate * by[0], *by[1:])
            self._move_matrix(params["W_dec"], decoder, weights.rows, faster, two=tied, through=by_unit, unit=keep)
        if not tied and params["W_enc"].requires_grad:
            alone = (centred, slopes, centred, slopes, *sums, nowhere, number, added.enc, added.enc)
            self._move_matrix(params["W_enc"], alone, weights.rows, by, two=False, through=False, unit=False)
        return FeatureSums(pre, pull)

    def _move_matrix(
        self, parameter: Tensor, gradient: tuple[Tensor, ...], rows: Tensor, by: tuple[float, ...], *, two: bool,
        through: bool, unit: bool,
    ) -> None:  # fmt: skip
        """Adam's step of a matrix with what its gradient is the sum of."""
        moments = (self._state[parameter][moment] for moment in MOMENTS)
        width = parameter.shape[1]
        self._kernels.move[(len(parameter),)](
            *gradient, rows, parameter.detach(), *moments, gradient[0].shape[-2], width, *by,
            TWO=two, THROUGH_UNIT=through, UNIT=unit, WIDTH=_power(width), num_warps=_warps(width),
        )  # fmt: skip


def works(device: torch.device) -> bool:
    """Whether a kernel can be compiled and started on ``device``; the log says why not.

    Triton needs a C compiler for it, and a GPU that is not too old.
    """
    kernels: ModuleType = import_module("monolex.training.sparse.triton_kernels")
    ends, slopes, sums = (
        torch.tensor([0, 2], device=device),
        torch.ones(2, device=device),
        torch.zeros(1, device=device),
    )
    try:
        with _on(device):
            kernels.feature_sums[(1,)](ends, slopes, ends[:1] - 1, slopes, sums, BLOCK=BLOCK)
        if float(sums) == 2:
            return True
        reason: object = "it adds 1 and 1 wrongly"
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    log.warning("triton cannot be used on %s, so training steps are not compiled: %s", device, reason)
    return False


def _dense(codes: ActiveCodes) -> ActiveCodes:
    """The same without gaps in memory, of which kernels know nothing."""
    return ActiveCodes(*(part.contiguous() for part in codes))


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels are started on the current GPU, whatever their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _power(width: int) -> int:
    """The next power of two."""
    return 1 << (width - 1).bit_length()


def _warps(width: int) -> int:
    return min(max(_power(width) // A_WARP, 1), 16)
