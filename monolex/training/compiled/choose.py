"""Which codes of a batch are active, as lists by row, from the pre-activations of one product."""

from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monolex.training.compiled.codes import ActiveCodes

DENSEST = 1 / 6
"""Active share of a ReLU's codes up to which going by active codes is faster; half of it in bf16 (docs/log.md)."""


def largest_of_rows(kernels: ModuleType, pre: Tensor, k: int) -> ActiveCodes:
    """The ``k`` largest positive ones of every row."""
    bits, top_bit, shift = _bits(pre)
    counts = np.empty(len(pre), np.int64)
    features, values = np.empty(len(pre) * k, np.int32), np.empty(len(pre) * k, np.float32)
    kernels.topk(bits, k, top_bit, shift, counts, features, values.view(np.uint32))
    if counts.sum() < len(values):
        # rows have as many slots each; those to spare are left out
        used = (np.arange(k)[None] < counts[:, None]).reshape(-1)
        features, values = features[used], values[used]
    return ActiveCodes(np.cumsum(counts) - counts, counts, features, values)


def largest_of_batch(kernels: ModuleType, pre: Tensor, k: int | None) -> ActiveCodes | None:
    """The ``k`` times batch largest positive ones of all; without ``k`` all positive ones, None if they are many."""
    batch, n = pre.shape
    bits, top_bit, shift = _bits(pre)
    least = bits.dtype.type(1)
    groups = _groups(kernels, n, k or 1)
    top = np.empty((batch, groups), bits.dtype)
    kernels.maxima(bits, groups, top)
    wanted = batch * (k or n)
    low = max(kernels.kth(top.reshape(-1), wanted, top_bit), least) if wanted <= top.size else least
    counts = np.empty(batch, np.int64)
    kernels.count_reaching(bits, groups, top, low, counts)
    total = int(counts.sum())
    if k is None and total > DENSEST / (1 + (bits.dtype == np.int16)) * batch * n:
        return None
    features, candidates = np.empty(total, np.int32), np.empty(total, bits.dtype)
    codes = ActiveCodes(np.cumsum(counts) - counts, counts, features, np.empty(total, np.float32))
    kernels.gather_reaching(bits, groups, top, low, codes.starts, features, candidates)
    cut, ties = least, total
    if total > wanted:
        cut = kernels.kth(candidates, wanted, top_bit)
        ties = wanted - int((candidates > cut).sum())
    kept = kernels.cut_rows(candidates, cut, ties, shift, tuple(codes), codes.values.view(np.uint32))
    return codes._replace(features=features[:kept], values=codes.values[:kept])


def above(kernels: ModuleType, pre: Tensor, lowest: NDArray[np.float32]) -> ActiveCodes:
    """Those that are at least their feature's own ``lowest``, positive (and in bf16 as it is there)."""
    batch, n = pre.shape
    bits, _, shift = _bits(pre)
    low = np.maximum(lowest.view(np.int32) >> np.int32(shift), 1).astype(bits.dtype)
    groups = _groups(kernels, n, 1)
    hits, counts = np.empty((batch, groups), np.bool_), np.empty(batch, np.int64)
    kernels.reaching_own(bits, groups, low, hits, counts)
    total = int(counts.sum())
    codes = ActiveCodes(np.cumsum(counts) - counts, counts, np.empty(total, np.int32), np.empty(total, np.float32))
    kernels.gather_own(bits, groups, low, hits, shift, tuple(codes._replace(values=codes.values.view(np.uint32))))
    return codes


def _groups(kernels: ModuleType, n: int, k: int) -> int:
    return max(n // kernels.GROUP, min(n, 2 * k))


def _bits(pre: Tensor) -> tuple[NDArray, int, np.uint32]:
    """Pre-activations as signed integers, which compare like them where positive; their top bit; what float32 lacks."""
    if pre.dtype == torch.bfloat16:
        return pre.view(torch.int16).numpy(), 14, np.uint32(16)
    return pre.view(torch.int32).numpy(), 30, np.uint32(0)
