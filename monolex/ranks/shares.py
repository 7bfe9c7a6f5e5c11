"""How work is shared out."""

from collections.abc import Sequence


def share(count: int, parts: int, index: int) -> range:
    """The ``index``-th of ``parts`` even parts of ``range(count)``."""
    return range(count * index // parts, count * (index + 1) // parts)


def dealt(sizes: Sequence[int], parts: int) -> list[int]:
    """Which of ``parts`` takes each piece of work of these ``sizes``: the largest first, to whoever has least.

    >>> dealt([3, 1, 2, 2], 2)
    [0, 0, 1, 1]
    """
    load, where = [0] * parts, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        where[number] = load.index(min(load))
        load[where[number]] += sizes[number]
    return where
