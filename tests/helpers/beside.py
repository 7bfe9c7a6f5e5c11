"""Pieces of work that workers do, which find them by the name of this module."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from monolex.errors import UserError
from monolex.interrupt import interruptible
from monolex.lock import writing


def note(folder: Path, name: str, after: tuple[str, ...] = ()) -> tuple[str, int]:
    """Leave a file, once those of ``after`` are there."""
    assert all((folder / earlier).exists() for earlier in after), f"{name} was begun too early"
    (folder / name).write_text("done")
    return name, os.getpid()


def in_turn(folder: Path, name: str, other: str) -> None:
    """Wait for the file that ``other`` leaves when it is begun: two that do so end only if they run together."""
    (folder / name).write_text("begun")
    until = time.monotonic() + 60
    while not (folder / other).exists():
        assert time.monotonic() < until, f"{other} was not begun beside {name}"
        time.sleep(0.01)


def refuse(folder: Path) -> None:
    """Raise what a user can mend, as soon as :func:`stay` stays."""
    while not (folder / "staying").exists():
        time.sleep(0.01)
    raise UserError("alphas is empty; give one")


def stay(folder: Path) -> None:
    """Stay until stopped."""
    (folder / "staying").write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / "stopped").write_text("cleanly")
        raise


def step_by_step(folder: Path) -> None:
    """Do steps until interrupted, the last of them to its end."""
    with interruptible() as interrupted:
        (folder / "staying").write_text(str(os.getpid()))
        while not interrupted.is_set():
            (folder / "cut").write_text("a step is under way")
            time.sleep(0.3)
            (folder / "cut").unlink()
    (folder / "stopped").write_text("cleanly")
    raise KeyboardInterrupt


class Strange(Exception):
    """An error that arrives nowhere."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} beside {second}")


def fail_strangely(first: int) -> None:
    raise Strange(first, 2)


def divide(numerator: int) -> float:
    return numerator / 0


def hold_for_ever(turn: Any) -> None:
    turn.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def end(status: int) -> None:
    os._exit(status)


def write_below(folder: Path) -> None:
    with writing(folder):
        (folder / "written").write_text("")
