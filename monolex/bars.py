"""Which lines of a terminal the progress bars of a process have where several processes write on it."""

import sys
from weakref import WeakSet

from tqdm import tqdm

CLEAR_BELOW = "\r\x1b[J"
"""Ends what is drawn from here on; whoever drew it draws it again."""

_place = (0, 1)
_shown = WeakSet[tqdm]()


def beside(number: int, count: int) -> None:
    """Say that this process is the worker ``number`` of ``count``, each of which has every ``count``-th line."""
    global _place
    _place = (number, count)


def shared() -> bool:
    """Whether other processes have bars on this terminal."""
    return _place[1] > 1 and sys.stderr.isatty()


def next_line() -> int | None:
    """The line of the next bar; None lets tqdm choose."""
    number, count = _place
    return number + count * sum(not bar.disable for bar in _shown) if shared() else None


def add(bar: tqdm) -> None:
    """A bar is shown, until it is closed."""
    _shown.add(bar)
