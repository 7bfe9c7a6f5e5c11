"""The parts of a sparse step by kernels that numba compiles, for CPUs; Adam's step is in them.

Parameters, moments and codes are torch's own tensors, of which the kernels see the memory.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monolex.training.optim import MOMENTS
from monolex.training.sparse.codes import ActiveCodes, BatchErrors, FeatureSums, Passed, Weights

DENSEST = 1 / 6
"""Active share of a ReLU's codes up to which going by active codes is faster; half of it in bf16 (docs/log.md)."""


class Compiled:
    """A :class:`~monolex.training.sparse.parts.StepParts`; ``state`` is Adam's, by parameter."""

    adam: ClassVar[bool] = True

    def __init__(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        from monolex.training.sparse import choices, kernels  # numba takes a second to import

        self._kernels: ModuleType = kernels
        self._choices: ModuleType = choices
        self._state = state

    def largest_of_rows(self, pre: Tensor, k: int) -> ActiveCodes:
        self._kernels.use_threads(torch.get_num_threads())
        bits, top_bit, shift = _bits(pre)
        counts = torch.empty(len(pre), dtype=torch.int64)
        features, values = _lists(len(pre) * k)
        self._choices.topk(bits, k, top_bit, shift, counts.numpy(), features.numpy(), _unsigned(values))
        if int(counts.sum()) < len(values):
            # rows have as many slots each; those to spare are left out
            used = (torch.arange(k)[None] < counts[:, None]).flatten()
            features, values = features[used], values[used]
        return ActiveCodes(counts.cumsum(0) - counts, counts, features, values)

    def largest_of_batch(self, pre: Tensor, k: int | None) -> ActiveCodes | None:
        self._kernels.use_threads(torch.get_num_threads())
        batch, n = pre.shape
        bits, top_bit, shift = _bits(pre)
        least = bits.dtype.type(1)
        groups = self._groups(n, k or 1)
        top = np.empty((batch, groups), bits.dtype)
        self._choices.maxima(bits, groups, top)
        wanted = batch * (k or n)
        low = max(self._choices.kth(top.reshape(-1), wanted, top_bit), least) if wanted <= top.size else least
        counts = torch.empty(batch, dtype=torch.int64)
        self._choices.count_reaching(bits, groups, top, low, counts.numpy())
        total = int(counts.sum())
        if k is None and total > DENSEST / (1 + (bits.dtype == np.int16)) * batch * n:
            return None
        candidates = np.empty(total, bits.dtype)
        codes = ActiveCodes(counts.cumsum(0) - counts, counts, *_lists(total))
        self._choices.gather_reaching(bits, groups, top, low, codes.starts.numpy(), codes.features.numpy(), candidates)
        cut, ties = least, total
        if total > wanted:
            cut = self._choices.kth(candidates, wanted, top_bit)
            ties = wanted - int((candidates > cut).sum())
        kept = self._choices.cut_rows(candidates, cut, ties, shift, _arrays(codes), _unsigned(codes.values))
        return codes._replace(features=codes.features[:kept], values=codes.values[:kept])

    def above(self, pre: Tensor, lowest: Tensor) -> ActiveCodes:
        self._kernels.use_threads(torch.get_num_threads())
        batch, n = pre.shape
        bits, _, shift = _bits(pre)
        low = np.maximum(lowest.numpy().view(np.int32) >> np.int32(shift), 1).astype(bits.dtype)
        groups = self._groups(n, 1)
        hits, counts = np.empty((batch, groups), np.bool_), torch.empty(batch, dtype=torch.int64)
        self._choices.reaching_own(bits, groups, low, hits, counts.numpy())
        codes = ActiveCodes(counts.cumsum(0) - counts, counts, *_lists(int(counts.sum())))
        starts, counted, features, values = _arrays(codes)
        self._choices.gather_own(bits, groups, low, hits, shift, (starts, counted, features, values.view(np.uint32)))
        return codes

    def decode(self, target: Tensor, weights: Weights, codes: ActiveCodes) -> BatchErrors:
        prefixes = len(weights.prefixes)
        out = BatchErrors(
            torch.empty(prefixes, *target.shape), torch.empty(len(codes.values)), torch.empty(prefixes, len(target))
        )
        rows = (target.numpy(), weights.rows.numpy(), _arrays(codes))
        if prefixes > 1:
            self._kernels.decode_nested(*rows, weights.prefixes.numpy(), _arrays(out))
        else:
            self._kernels.decode(*rows, _arrays(out))
        return out

    def slopes(self, error: Tensor, weights: Weights, codes: ActiveCodes) -> Tensor:
        self._kernels.use_threads(torch.get_num_threads())
        out = torch.empty(len(codes.values))
        self._kernels.slopes(error.numpy(), weights.rows.numpy(), _arrays(codes), weights.prefixes.numpy(), out.numpy())
        return out

    def move(self, passed: Passed, weights: Weights, by: tuple[float, float, float, float] | None) -> FeatureSums:
        assert by is not None, "Adam is in the kernel"
        params, (centred, codes, out, added) = weights.params, passed
        n, count = len(weights.rows), len(codes.values)
        ends, rows, slots = np.empty(n + 1, np.int64), np.empty(count, np.int32), np.empty(count, np.int32)
        self._kernels.by_feature(_arrays(codes), (ends, rows, slots))
        number = np.full(n, -1, np.int32)
        number[added.features.numpy()] = np.arange(len(added.features), dtype=np.int32)
        pre, pull = torch.empty(n), torch.zeros(self._kernels.BLOCKS, centred.shape[1])
        moving = [self._moving(params[name]) for name in ("W_dec", "W_enc") if name in params]
        tied = "W_enc" not in params
        moves = (params["W_dec"].requires_grad, not tied and params["W_enc"].requires_grad)
        self._kernels.update(
            (*_arrays((centred, codes.values, out.error, out.slopes)), ends, rows, slots),
            (number, *_arrays(added[1:])), (moving[0], moving[-1]), weights.rows.numpy(), weights.prefixes.numpy(),
            _arrays((pre, pull)), (tied, weights.unit, weights.free, *moves),
            tuple(tuple(map(np.float32, (rate * by[0], *by[1:]))) for rate in (weights.decoder_rate, 1.0)),
        )  # fmt: skip
        return FeatureSums(pre, pull.sum(0))

    def _moving(self, parameter: Tensor) -> tuple[NDArray, NDArray, NDArray]:
        """A matrix with its moments, which one that stays as it is has none of."""
        if parameter.requires_grad:
            first, second = (self._state[parameter][moment].numpy() for moment in MOMENTS)
            return parameter.detach().numpy(), first, second
        still = np.zeros((0, 0), np.float32)
        return parameter.numpy(), still, still

    def _groups(self, n: int, k: int) -> int:
        return max(n // self._choices.GROUP, min(n, 2 * k))


def _bits(pre: Tensor) -> tuple[NDArray, int, np.uint32]:
    """Pre-activations as signed integers, which compare like them where positive; their top bit; what float32 lacks."""
    if pre.dtype == torch.bfloat16:
        return pre.view(torch.int16).numpy(), 14, np.uint32(16)
    return pre.view(torch.int32).numpy(), 30, np.uint32(0)


def _lists(count: int) -> tuple[Tensor, Tensor]:
    return torch.empty(count, dtype=torch.int32), torch.empty(count)


def _arrays(record: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """The memory of tensors as numba takes it: its parallel loops know plain tuples alone."""
    return tuple(tensor.detach().numpy() for tensor in record)


def _unsigned(values: Tensor) -> NDArray[np.uint32]:
    return values.numpy().view(np.uint32)
