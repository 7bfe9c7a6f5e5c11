"""Which of some pieces of work is begun next, where some wait for others."""

from collections.abc import Sequence
from heapq import heappop, heappush


class Schedule:
    """The order of pieces of work, of which piece *i* waits for all of ``needs[i]``.

    Of those that could begin, the one on which the longest chain of others waits does: of a few workers none is left
    without work at the end. Among equals the first.
    """

    def __init__(self, needs: Sequence[Sequence[int]]) -> None:
        self.needs = [frozenset(numbers) for numbers in needs]
        self._chains = _chains(self.needs)
        self._left = set(range(len(needs)))
        self._ended: set[int] = set()

    @property
    def over(self) -> bool:
        """Whether all has ended."""
        return len(self._ended) == len(self.needs)

    def begin(self) -> int | None:
        """The piece to be begun now; None while all that is left waits, and when nothing is left."""
        ready = [number for number in self._left if self.needs[number] <= self._ended]
        if not ready:
            return None
        number = min(ready, key=lambda piece: (-self._chains[piece], piece))
        self._left.remove(number)
        return number

    def end(self, number: int) -> None:
        """A piece that was begun has ended."""
        self._ended.add(number)


def alone(needs: Sequence[Sequence[int]]) -> list[bool]:
    """Whether nothing can ever be done beside a piece: all others come before it or after it."""
    before: list[frozenset[int]] = []
    for numbers in needs:  # of earlier pieces only
        before.append(frozenset(numbers).union(*(before[number] for number in numbers)))
    after = [sum(number in earlier for earlier in before) for number in range(len(needs))]
    return [len(earlier) + later == len(needs) - 1 for earlier, later in zip(before, after, strict=True)]


def span(needs: Sequence[Sequence[int]], seconds: Sequence[float], jobs: int) -> float:
    """How long all takes with ``jobs`` at a time, if piece *i* takes ``seconds[i]``."""
    schedule, now = Schedule(needs), 0.0
    running: list[tuple[float, int]] = []
    while not schedule.over:
        while len(running) < jobs and (number := schedule.begin()) is not None:
            heappush(running, (now + seconds[number], number))
        now, number = heappop(running)
        schedule.end(number)
    return now


def _chains(needs: Sequence[frozenset[int]]) -> list[int]:
    """How many pieces wait for each, one after the other."""
    chains = [0] * len(needs)
    for number in reversed(range(len(needs))):
        for earlier in needs[number]:
            assert earlier < number, "a piece waits for earlier ones only"
            chains[earlier] = max(chains[earlier], chains[number] + 1)
    return chains
