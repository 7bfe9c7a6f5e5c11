"""Ranks that work on the same thing, and what they tell each other: sums, parts laid end to end, plain values.

A group of one rank does nothing: whoever is handed a group need not ask whether there are others. Nothing is pickled:
tensors go as they are, and plain values as JSON.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from monolex.errors import UserError

Diagnosis = Callable[[], str]
"""Says which ranks seem to be gone, where one did not answer."""


class LostRankError(UserError):
    """A rank has ended or does not answer."""


@final
class RankGroup:
    """Some ranks of a job; every method is called by all of them, in the same order.

    Raises:
        LostRankError: from every method: a rank of the group has ended, or did not answer within the group's patience.
    """

    def __init__(
        self, ranks: Sequence[int], mine: int, process_group: dist.ProcessGroup | None, diagnosis: Diagnosis = str
    ) -> None:
        self.ranks, self.size, self.index = tuple(ranks), len(ranks), ranks.index(mine)
        self._process_group, self._diagnosis = process_group, diagnosis

    def __repr__(self) -> str:
        return f"RankGroup({', '.join(map(str, self.ranks))})"

    @property
    def first(self) -> bool:
        """Whether this is the rank that acts for all."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor``, which becomes the sum of everybody's, the same bits for all."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def greatest(self, tensor: Tensor) -> Tensor:
        """``tensor``, which becomes the largest of everybody's, entry by entry."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def least(self, tensor: Tensor) -> Tensor:
        """``tensor``, which becomes the smallest of everybody's, entry by entry."""
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def parts(self, part: Tensor) -> list[Tensor]:
        """Everybody's ``part``, in the order of the ranks; parts may differ in length alone."""
        if self.size == 1:
            return [part]
        mine = torch.tensor([len(part)], device=part.device)
        lengths = [int(length) for length in torch.cat(self._gathered(mine)).tolist()]
        longest = max(lengths)
        if longest == 0:
            return [part] * self.size
        padded = part.contiguous()
        if len(part) < longest:
            padded = part.new_zeros(longest, *part.shape[1:])
            padded[: len(part)] = part
        return [whole[:length] for whole, length in zip(self._gathered(padded), lengths, strict=True)]

    def alike(self, part: Tensor) -> list[Tensor]:
        """As :meth:`parts`, of parts of one length, which nobody asks for then."""
        return [part] if self.size == 1 else self._gathered(part.contiguous())

    def handed(self, pieces: Iterator[Tensor], shapes: Sequence[Sequence[torch.Size]]) -> Iterator[Tensor]:
        """To the first rank the ``pieces`` of all, rank by rank; the others hand theirs over and get nothing.

        ``shapes`` are those of every rank's pieces, which are float32 on the CPU.
        """
        if self.first:
            yield from pieces
        for number in range(1, self.size):
            for shape in shapes[number] if self.first or self.index == number else ():
                with self._answering():
                    if self.first:
                        piece = torch.empty(shape)
                        dist.recv(piece, self.ranks[number], self._process_group)
                    else:
                        dist.send(next(pieces), self.ranks[0], self._process_group)
                        continue
                yield piece

    def told(self, value: Any) -> list[Any]:
        """Everybody's ``value``, of plain values as JSON has them."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.numpy())) for part in self.parts(content)]

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        if self.size > 1:
            with self._answering():
                dist.all_reduce(tensor, operation, group=self._process_group)
        return tensor

    def _gathered(self, part: Tensor) -> list[Tensor]:
        every = [torch.empty_like(part) for _ in range(self.size)]
        with self._answering():
            dist.all_gather(every, part, group=self._process_group)
        return every

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LostRankError(
                f"{self._diagnosis() or 'a rank'} has ended or does not answer ({reason}); what was saved last is "
                "whole, and the same command goes on from there"
            ) from error


ALONE = RankGroup((0,), 0, None)
"""Of one process."""
