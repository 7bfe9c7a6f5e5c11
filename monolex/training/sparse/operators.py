"""The parts of a sparse step by torch's operators: on any device, without a compiler.

A batch's codes are bags of decoder rows, and a feature's gradient is a bag of a batch's rows, so that ``embedding_bag``
sums both without a matrix of codes and without a copy of a row a code. Gradients are left to torch's fused Adam.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from monolex.training.sparse.codes import ActiveCodes, BatchErrors, FeatureSums, Passed, Weights

GROUP = 32
"""Neighbouring pre-activations of which only the largest is looked at first."""
DENSEST = 1 / 8
"""Active share of a ReLU's codes up to which going by active codes is faster (docs/log.md)."""


class Operators:
    """A :class:`~monolex.training.sparse.parts.StepParts`; leaves gradients to Adam, whose ``_state`` is not read."""

    adam: ClassVar[bool] = False

    def __init__(self, _state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        pass

    def largest_of_rows(self, pre: Tensor, k: int) -> ActiveCodes:
        values, places = pre.topk(k, dim=1, sorted=False)
        counts = torch.full((len(pre),), k, device=pre.device)
        return ActiveCodes(counts.cumsum(0) - counts, counts, places.flatten(), values.relu().flatten().float())

    def largest_of_batch(self, pre: Tensor, k: int | None) -> ActiveCodes | None:
        batch, n = pre.shape
        if k is None:
            active = pre > 0
            return None if int(active.sum()) > DENSEST * batch * n else listed(active, pre)
        low, wanted = torch.zeros((), dtype=pre.dtype, device=pre.device), batch * k
        groups = n // GROUP
        if batch * groups >= wanted:
            # as many groups have an entry at least as large, so all that is wanted is
            low = _kth_largest(_maxima(pre).flatten(), wanted).clamp_min(0)
        codes = listed((pre >= low) & (pre > 0), pre)
        if len(codes.values) <= wanted:
            return codes
        kept = torch.zeros_like(codes.values, dtype=torch.bool)
        kept[codes.values.topk(wanted, sorted=False).indices] = True
        rows = rows_of(codes)[kept]
        counts = torch.bincount(rows, minlength=batch)
        return ActiveCodes(counts.cumsum(0) - counts, counts, codes.features[kept], codes.values[kept])

    def above(self, pre: Tensor, lowest: Tensor) -> ActiveCodes:
        return listed(pre >= lowest.to(pre.dtype), pre)

    def decode(self, target: Tensor, weights: Weights, codes: ActiveCodes) -> BatchErrors:
        prefixes = weights.ends
        residual, errors, squares = -target, [], []
        for begin, end in zip((0, *prefixes), prefixes, strict=False):
            values = codes.values if len(prefixes) == 1 else codes.values * _between(codes.features, begin, end)
            residual = residual + bags(weights.rows, codes, values)
            errors.append(residual)
            squares.append(residual.square().sum(1))
        error = torch.stack(errors).mul_(2 / (target.numel() * len(prefixes)))
        # a feature before a prefix has a say in its reconstruction and in all that follow
        error = error.flip(0).cumsum(0).flip(0) if len(prefixes) > 1 else error
        return BatchErrors(error, self.slopes(error, weights, codes), torch.stack(squares))

    def slopes(self, error: Tensor, weights: Weights, codes: ActiveCodes) -> Tensor:
        prefixes, slopes = weights.ends, torch.zeros_like(codes.values)
        for level, (begin, end) in enumerate(zip((0, *prefixes), prefixes, strict=False)):
            part = bag_slopes(weights.rows, codes, error[level])
            slopes += part if len(prefixes) == 1 else part * _between(codes.features, begin, end)
        return slopes

    def move(self, passed: Passed, weights: Weights, by: tuple[float, float, float, float] | None) -> FeatureSums:  # noqa: ARG002
        params, (centred, codes, out, added) = weights.params, passed
        n = len(weights.rows)
        order = codes.features.argsort(stable=True)
        features, rows = codes.features[order].long(), rows_of(codes)[order]
        ends = torch.bincount(features, minlength=n).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        level = torch.searchsorted(weights.prefixes, features, right=True)
        # the errors of all prefixes are one table of rows
        table = out.error.flatten(0, 1)
        dec = _sums(table, rows + level * len(centred), starts, codes.values[order])
        enc = _sums(centred, rows, starts, out.slopes[order])
        pre = torch.zeros(n, device=enc.device, dtype=enc.dtype).index_add_(0, features, out.slopes[order])
        dec.index_add_(0, added.features, added.dec)
        enc.index_add_(0, added.features, added.enc)
        pre.index_add_(0, added.features, added.pre)
        encoder = params.get("W_enc", weights.rows).detach()
        pull = pre @ encoder
        if "W_enc" not in params:
            dec += enc
        elif params["W_enc"].requires_grad:
            params["W_enc"].grad = enc
        if params["W_dec"].requires_grad:
            if not weights.free:
                length = params["W_dec"].detach().norm(dim=1, keepdim=True).clamp_min(1e-8)
                dec = (dec - (dec * weights.rows).sum(1, keepdim=True) * weights.rows) / length
            params["W_dec"].grad = dec
        return FeatureSums(pre, pull)


def _maxima(pre: Tensor) -> Tensor:
    """Of every group of neighbours in a row; those at its end that fill none are left out."""
    groups = pre.shape[1] // GROUP
    return pre[:, : groups * GROUP].unflatten(1, (groups, GROUP)).amax(2)


def _kth_largest(values: Tensor, k: int) -> Tensor:
    # quickselect is one thread's work: fast on a CPU, on a GPU slower than a sort
    if values.device.type == "cpu":
        return values.kthvalue(len(values) - k + 1).values
    return values.topk(k, sorted=False).values.min()


def listed(active: Tensor, pre: Tensor) -> ActiveCodes:
    """The pre-activations where ``active``."""
    rows, features = active.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(pre))
    return ActiveCodes(counts.cumsum(0) - counts, counts, features, pre[rows, features].float())


def rows_of(codes: ActiveCodes) -> Int[Tensor, "listed"]:
    """The row of every code."""
    rows = torch.arange(len(codes.counts), device=codes.counts.device)
    return torch.repeat_interleave(rows, codes.counts, output_size=len(codes.values))


def _between(features: Tensor, begin: int, end: int) -> Tensor:
    return (features >= begin) & (features < end)


def bags(table: Tensor, codes: ActiveCodes, values: Tensor) -> Float[Tensor, "batch d"]:
    """For every row of the batch the sum of its features' rows of ``table``."""
    return embedding_bag(codes.features, table, codes.starts, per_sample_weights=values, mode="sum")


def bag_slopes(table: Tensor, codes: ActiveCodes, error: Tensor) -> Float[Tensor, "listed"]:
    """Product of every code's row of ``table`` with the error of its row of the batch."""
    with torch.enable_grad():
        values = codes.values.detach().requires_grad_()
        out = bags(table, codes, values)
        return torch.autograd.grad(out, values, error)[0]


def _sums(table: Tensor, rows: Tensor, starts: Tensor, values: Tensor) -> Float[Tensor, "d_sae d"]:
    """For every feature the sum of its rows of ``table``."""
    return embedding_bag(rows, table, starts, per_sample_weights=values, mode="sum")
