"""One process a folder: whoever writes into a run or an artefact keeps all others out of it until it is done.

The holder keeps the operating system's lock on ``FOLDER/.monolex.lock``, which ends with the process however that ends,
so that nothing is left to clear away after a kill or a reboot. What the file says (process, its start, host, time) is
for the message, and decides where a file system has no such locks, or has them on every host for itself. A folder also
counts as taken while a folder above it is (``monolex run`` has all of its run) or an artefact in it; artefacts beside
each other are made at the same time as one likes.
"""

import contextvars
import errno
import functools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from monolex.artifact import require_folder
from monolex.errors import UserError
from monolex.ranks.here import rank

LOCK = ".monolex.lock"
ABOVE = 4
"""Folders of a run above one of its artefacts, at most: ``RUN/controls/NAME/train/NAME``."""
WITHIN = ("*", "*/*", "controls/*/*", "controls/*/*/*")
"""Where the artefacts of a run lie."""
TRIES, WAIT = 5, 0.05
"""A lock is also taken for an instant by whoever looks at it: times that are tried, and seconds between."""
BEYOND = 2**30
"""Byte that Windows locks: what is locked there cannot be read, so it lies behind what the file says."""
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

P = ParamSpec("P")
R = TypeVar("R")

_held: contextvars.ContextVar[frozenset[Path]] = contextvars.ContextVar("held", default=frozenset())


def alone(stage: Callable[P, R]) -> Callable[P, R]:
    """A stage, ``(folder, …)``, that holds its folder while it runs."""

    @functools.wraps(stage)
    def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        folder: Any = args[0] if args else kwargs["folder"]
        with writing(Path(folder)):
            return stage(*args, **kwargs)

    return locked


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is made if need be; a holder may hold it again, or what is in it.

    Where nothing can be written no lock is needed: whoever finds all done may go on.

    Raises:
        UserError: another process (or thread) is writing into it, above it or below it; or a file is in the way, or the
            disk is full.
    """
    require_folder(folder)
    place = folder.resolve()
    if place in _held.get():
        yield
        return
    if rank() > 0:  # rank 0 holds it for all
        token = _held.set(_held.get() | {place})
        try:
            yield
        finally:
            _held.reset(token)
        return
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(place / LOCK, folder)
    except OSError as error:
        if error.errno not in READ_ONLY:
            said = f"cannot write {folder / LOCK}: {error.strerror}; free some space or choose another folder"
            raise UserError(said) from error
        handle = None
    token = _held.set(_held.get() | {place})
    try:
        if handle is not None:
            _require_free_around(folder, place)
        yield
    finally:
        _held.reset(token)
        if handle is not None:
            _release(handle, place / LOCK)
        for path in fresh:
            # of a stage that refused before it wrote anything
            with suppress(OSError):
                path.rmdir()


def held() -> frozenset[Path]:
    """The folders that are held here."""
    return _held.get()


def hold_too(places: frozenset[Path]) -> None:
    """Work for the process that holds ``places``, until it ends."""
    _held.set(_held.get() | places)


def being_written(folder: Path) -> str:
    """Who else is writing into a folder or below it, for those who read it all the same; empty if nobody is."""
    for path in (folder / LOCK, *(path for pattern in WITHIN for path in sorted(folder.glob(f"{pattern}/{LOCK}")))):
        if path.parent.resolve() not in _held.get() and (holder := _holder(path)) is not None:
            return str(_refusal(path.parent, holder)).partition("; wait")[0]
    return ""


def _require_free_around(folder: Path, place: Path) -> None:
    """Refuse what is being written above a folder or below it. Both sides take their own lock before they look."""
    above = {path.resolve() for path in (*folder.absolute().parents[:ABOVE], *place.parents[:ABOVE])}
    below = {path.parent.resolve() for pattern in WITHIN for path in folder.glob(f"{pattern}/{LOCK}")}
    for other in sorted((above | below) - _held.get()):
        if (holder := _holder(other / LOCK)) is not None:
            raise _refusal(other, holder)


def _acquire(path: Path, folder: Path) -> int:
    """The open file of a lock that is now held.

    Raises:
        UserError: another process holds it.
    """
    said: dict[str, Any] = {}
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked, said = _lock(handle), _read(handle)
            # whoever held it before may have taken the file away after it was opened
            gone = not path.exists() or not os.path.samestat(os.fstat(handle), path.stat())
            if not gone and not _alive(said, locked):
                mine = _record()
                _write(handle, json.dumps(mine).encode())
                if locked is None:
                    time.sleep(WAIT)
                if locked or _read(handle) == mine:
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise _refusal(folder, said)


def _release(handle: int, path: Path) -> None:
    with suppress(OSError):
        _write(handle, b"")
    if sys.platform == "win32":
        # an open file cannot be deleted there, and whoever has opened it since may keep it
        os.close(handle)
        with suppress(OSError):
            path.unlink()
        return
    path.unlink(missing_ok=True)
    os.close(handle)


def _holder(path: Path) -> dict[str, Any] | None:
    """What is said of the process that holds a lock; None if nobody does."""
    said: dict[str, Any] = {}
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT)
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:
            return None
        try:
            said = _read(handle)
            if not _alive(said, _lock(handle)):
                return None
        finally:
            os.close(handle)
    return said


def _refusal(folder: Path, holder: dict[str, Any]) -> UserError:
    if "pid" not in holder:
        return UserError(f"{folder} is being written by another process; wait until it is done, or stop it")
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"
    away = f"; if that process is gone, delete {folder / LOCK}" if holder["host"] != platform.node() else ""
    return UserError(f"{folder} is being written by {who}; wait until it is done, or stop it{away}")


def _record() -> dict[str, Any]:
    """What a lock says of this process."""
    return {
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join([_program(Path(sys.argv[0])), *sys.argv[1:]]),
    }


def _program(path: Path) -> str:
    """``monolex`` for ``python -m monolex`` too."""
    return path.parent.name if path.stem == "__main__" else path.name


def _alive(said: dict[str, Any], locked: bool | None) -> bool:
    """Whether the process that a lock speaks of may still write; ``locked`` as of :func:`_lock`."""
    if locked is False:
        return True
    if "pid" not in said:
        return False
    if said["host"] != platform.node():
        return True
    if not said["started"]:
        return locked is None and _exists(said["pid"])
    # a number is given to another process some day, and to others after a reboot
    return _started(said["pid"]) == said["started"]


def _started(pid: int) -> str:
    """Which boot, and how long after it, a process began; empty where there is none, or nobody says."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return ""
    return f"{boot} {after_name.split()[19]}"


def _exists(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # signal 0 would be Ctrl-C
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(handle: int) -> dict[str, Any]:
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        said = json.loads(os.read(handle, 2**16))
    except (ValueError, OSError):
        return {}
    return said if isinstance(said, dict) and {"pid", "started", "host", "since", "command"} <= said.keys() else {}


def _write(handle: int, content: bytes) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, content)
    os.fsync(handle)


def _lock(handle: int) -> bool | None:
    """Try the operating system's lock: True if it is ours now, False if another's, None where there is none."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, BEYOND, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return None
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK) else None
    return True
