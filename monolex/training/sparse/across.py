"""What a sparse step does among ranks: it chooses the largest among all features and rows, and adds up reconstructions.

A member's features lie on the ranks of ``features`` by ranges, its batch on those of ``rows`` by parts of equal size
(:mod:`monolex.ranks.mesh`). With one rank of each, nothing here does anything.

Who has the features of a row chooses its candidates; only these are told. How large the largest is that is left out is
found by its bits, from two histograms that are added up, so that what is told does not grow with what is compared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.config import require
from monolex.ranks.group import ALONE, RankGroup
from monolex.training.records import PER_FEATURE, Params
from monolex.training.sparse.codes import ActiveCodes, BatchErrors, Weights
from monolex.training.sparse.operators import rows_of
from monolex.training.sparse.parts import StepParts

HALF = 16
"""Bits of a number that one histogram counts."""


class Across(NamedTuple):
    """The ranks that share a member."""

    rows: RankGroup = ALONE
    """Those with the same features, each with its part of the batch."""
    features: RankGroup = ALONE
    """Those with the same part of the batch, each with its features."""
    every: RankGroup = ALONE
    """All of them."""
    owned: range | None = None
    """Numbers of this rank's features; None: all."""

    @property
    def alone(self) -> bool:
        """Whether there is one."""
        return self.every.size == 1

    def part(self, batch: Float[Tensor, "batch d"]) -> Float[Tensor, "part d"]:
        """The rows of a batch that are this rank's."""
        size = len(batch) // self.rows.size
        return batch[self.rows.index * size : (self.rows.index + 1) * size]


def require_same(members: Sequence[Params], group: RankGroup) -> None:
    """Refuse to go on where what all features share is not the same on all ranks of ``group``, to the last bit.

    Every rank moves it by itself, by numbers that all have.

    Raises:
        UserError: names the rank.
    """
    shared = [t.detach().flatten() for params in members for name, t in params.items() if name not in PER_FEATURE]
    if group.size == 1 or not shared:
        return
    bits = torch.cat(shared).view(torch.int32).long()
    places = torch.arange(1, len(bits) + 1, device=bits.device)
    sums = torch.stack(group.alike(torch.stack([bits.sum(), (bits * places).sum()]))).tolist()
    for rank, of_rank in zip(group.ranks, sums, strict=True):
        require(
            of_rank == sums[0],
            f"rank {rank} has another decoder bias or skip than rank {group.ranks[0]}, though both moved it by the "
            "same numbers; go on from what was saved last, on other machines or fewer ranks",
        )


class Cut(NamedTuple):
    """Where the largest of many numbers end."""

    value: Float[Tensor, ""]
    """The smallest of them."""
    ties: Int[Tensor, ""]
    """How many that are equal to it belong to them."""


def kth_largest(values: Float[Tensor, "values"], wanted: int, group: RankGroup) -> Cut:
    """The ``wanted``-th largest of the positive ``values`` of all ranks of ``group``; 0 where there are fewer.

    ``values`` are float32; none is read by the host.
    """
    bits = values[values > 0].contiguous().view(torch.int32).long()
    upper, left = _bin(bits >> HALF, wanted, group)
    lower, left = _bin((bits & (2**HALF - 1))[(bits >> HALF) == upper], left, group)
    value = ((upper << HALF) | lower).int().view(torch.float32)
    return Cut(torch.where(left > 0, value, torch.zeros_like(value)), left)


def _bin(numbers: Int[Tensor, "numbers"], wanted: int | Tensor, group: RankGroup) -> tuple[Tensor, Tensor]:
    """The bin that the ``wanted``-th largest number lies in, and how many of its own are wanted; 0 and 0 for none."""
    counts = torch.zeros(2**HALF, dtype=torch.int32, device=numbers.device)
    ones = torch.ones((), dtype=torch.int32, device=numbers.device).expand_as(numbers)
    counts = group.sum(counts.scatter_add_(0, numbers, ones)).long()
    above = counts.flip(0).cumsum(0).flip(0)  # numbers of this bin and those above
    reached = above >= wanted
    place = (reached.sum() - 1).clamp_min(0)
    return place, torch.where(reached.any(), wanted - (above[place] - counts[place]), 0)


def cut_listed(codes: ActiveCodes, wanted: int, group: RankGroup) -> tuple[ActiveCodes, Float[Tensor, ""]]:
    """Of the listed codes of all ranks the ``wanted`` largest, of equal ones the first ranks'; where they end."""
    cut = kth_largest(codes.values, wanted, group)
    equal = codes.values == cut.value
    before = torch.stack(group.alike(equal.sum()[None]))[: group.index].sum()
    kept = (codes.values > cut.value) | (equal & (equal.cumsum(0) <= cut.ties - before))
    return kept_codes(codes, kept), cut.value


def kept_codes(codes: ActiveCodes, kept: Bool[Tensor, "listed"]) -> ActiveCodes:
    """Those of the listed codes that are ``kept``."""
    counts = torch.bincount(rows_of(codes)[kept], minlength=len(codes.counts))
    return ActiveCodes(counts.cumsum(0) - counts, counts, codes.features[kept], codes.values[kept])


def among_largest(values: Float[Tensor, "rows places"], k: int, group: RankGroup) -> Bool[Tensor, "rows places"]:
    """Which of a rank's ``values`` are among the ``k`` largest of a row on all ranks, of equal ones the first."""
    if group.size == 1 and values.shape[1] <= k:
        return torch.ones_like(values, dtype=torch.bool)
    every = torch.stack(group.alike(values))
    joined = every.transpose(0, 1).flatten(1)
    if joined.shape[1] <= k:
        return torch.ones_like(values, dtype=torch.bool)
    cut = joined.topk(k, sorted=True).values[:, -1:]
    above = (joined > cut).sum(1, keepdim=True)
    equal = values == cut
    before = (every[: group.index] == cut).sum((0, 2))[:, None]
    return (values > cut) | (equal & (equal.cumsum(1) <= k - above - before))


def gathered(
    listed: ActiveCodes, decoded: Sequence[BatchErrors], group: RankGroup
) -> tuple[ActiveCodes, list[BatchErrors]]:
    """The codes of all parts of a batch, with their errors, as slopes of the mean over all of its rows."""
    if group.size == 1:
        return listed, list(decoded)
    counts = torch.cat(group.alike(listed.counts))
    # numbers of 32 bits each, so that they go as one table
    floats = (listed.values, *(out.slopes for out in decoded))
    columns = [listed.features.int(), *(column.view(torch.int32) for column in floats)]
    features, *rest = torch.cat(group.parts(torch.stack(columns, 1))).unbind(1)
    values, *slopes = (column.contiguous().view(torch.float32) for column in rest)
    codes = ActiveCodes(counts.cumsum(0) - counts, counts, features.contiguous(), values)
    errors = []
    for out, of_all in zip(decoded, slopes, strict=True):
        error, squares = (torch.cat(group.alike(part), 1) for part in (out.error, out.squares))
        errors.append(BatchErrors(error.div_(group.size), of_all.div_(group.size), squares))
    return codes, errors


def decode(
    parts: StepParts, target: Float[Tensor, "batch d_out"], weights: Weights, codes: ActiveCodes, group: RankGroup
) -> BatchErrors:
    """As :meth:`~monolex.training.sparse.parts.StepParts.decode`, of reconstructions that every rank has a part of.

    Errors are sums of what each rank decodes, of which the first takes the target off; slopes are each rank's own.
    """
    error = group.sum(parts.decode(target if group.first else torch.zeros_like(target), weights, codes).error)
    # that of a prefix has those of all longer ones in it
    of_prefix = error - torch.cat([error[1:], torch.zeros_like(error[:1])]) if len(error) > 1 else error
    squares = (of_prefix * (target.numel() * len(error) / 2)).square().sum(2)
    return BatchErrors(error, parts.slopes(error, weights, codes), squares)
