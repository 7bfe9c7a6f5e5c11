"""What stops monolex: Ctrl-C, ``kill``, a terminal that is closed. The first time cleanly, the second time at once."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""The last but one exists on POSIX only, the last on Windows only."""
FORCED = b"monolex: stopped at once; the same command goes on from what is on disk\n"


class Interrupted:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.number: int | None = None

    def is_set(self) -> bool:
        return self.number is not None


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn a signal into a KeyboardInterrupt that holds its number, and a second one into the end of the process.

    Ctrl-C counts where the shell had it ignored too, as it does for the commands of a script that it puts into the
    background: what is sent with ``kill -INT`` is meant. A closed terminal does not where it is ignored (``nohup``).
    """
    numbers = [
        number for number in _signals() if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
    ]
    first = Interrupted()

    def stop(number: int, _frame: Any) -> None:
        if first.is_set():
            try:
                os.write(2, FORCED)
            finally:
                os._exit(128 + number)
        first.number = number
        raise KeyboardInterrupt(number)

    with _handled(numbers, stop):
        yield


@contextmanager
def interruptible(*, again: bool = True) -> Iterator[Interrupted]:
    """Keep the first signal for the end of a step, so that no step is cut in two; a second one interrupts at once.

    Without ``again`` all of them wait for it: torchrun sends its own after the Ctrl-C that reached everybody.

    It is about the signals that somebody handles, and Ctrl-C, where the shell had it ignored too.
    """
    before = {number: handler for number in _signals() if callable(handler := signal.getsignal(number))}
    before = {signal.SIGINT: signal.default_int_handler, **before}
    interrupted = Interrupted()

    def note(number: int, _frame: Any) -> None:
        interrupted.number = number
        for each, handler in before.items() if again else ():
            signal.signal(each, handler)

    with _handled(before, note):
        yield interrupted


def _signals() -> list[int]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


@contextmanager
def _handled(numbers: Iterable[int], handler: Any) -> Iterator[None]:
    """Only the main thread can have signals handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            # what was not installed from Python cannot be put back from Python
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
