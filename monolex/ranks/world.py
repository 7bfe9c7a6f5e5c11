"""The processes that torchrun started, of which this may be one.

``torchrun --nproc-per-node 4 -m monolex VERB …`` starts the same command four times. What is split among them says so
where it is done; all else is done by rank 0 while the others wait. monolex opens no port of its own: ranks meet at
torchrun's store, and connect to each other as torch.distributed does (docs/scale.md).

Whether the others are alive is known from the store: a thread of every rank counts there, once a second.
"""

import atexit
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

import monolex
from monolex.errors import UserError
from monolex.ranks.group import ALONE, LostRankError, RankGroup
from monolex.ranks.here import local_rank, rank, size

PATIENCE = "MONOLEX_PATIENCE"
"""Of the environment: seconds after which a rank that does not answer ends the job."""
DEFAULT_PATIENCE = 300.0
BEAT = 1.0
"""Seconds between two signs of life."""
SILENT = 4.0
"""Seconds without one after which a rank is named as gone, where something went wrong."""
LOOK = 0.1
"""Seconds between two looks at who else has arrived."""


def patience() -> float:
    """Seconds after which a rank that does not answer ends the job.

    Raises:
        UserError: the environment says something that is no positive number.
    """
    setting = os.environ.get(PATIENCE, str(DEFAULT_PATIENCE))
    with suppress(ValueError):
        if (seconds := float(setting)) > 0:
            return seconds
    raise UserError(f"{PATIENCE} = {setting!r} is no positive number of seconds; give one, or leave it out")


def world() -> RankGroup:
    """All ranks; the first call meets the others.

    Raises:
        LostRankError: they do not come.
    """
    return _joined().group if size() > 1 else ALONE


def group(ranks: Sequence[int]) -> RankGroup | None:
    """Some of the ranks as a group of their own; called by all ranks, in the same order, and None to the others."""
    if len(ranks) == size():
        return world()
    process_group = None if len(ranks) == 1 else dist.new_group(list(ranks), timeout=timedelta(seconds=patience()))
    if rank() not in ranks:
        return None
    return RankGroup(
        ranks, rank(), process_group if isinstance(process_group, dist.ProcessGroup) else None, _joined().silent
    )


def agree(**facts: str) -> None:
    """Refuse ranks that were started with something else than rank 0: other code, or other ``facts``.

    Raises:
        UserError: names the rank and what differs.
    """
    if size() == 1:
        return
    every = world().told({"code": code(), **facts})
    for number, theirs in enumerate(every):
        others = [name.replace("_", " ") for name in every[0] if theirs.get(name) != every[0][name]]
        if others:
            raise UserError(
                f"rank {number} was started with another {' and another '.join(others)} than rank 0; "
                "start all ranks with the same code, data and configuration"
            )


def wait() -> None:
    """Wait for all ranks, however long one of them works, as long as it shows signs of life.

    Raises:
        LostRankError: one does not.
    """
    if size() > 1:
        _joined().wait()


@cache
def code() -> str:
    """Hash of the code of monolex and the version of torch."""
    digest = hashlib.sha256(torch.__version__.encode())
    home = Path(monolex.__file__).parent
    for path in sorted(home.rglob("*.py")):
        digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


class _Sign(NamedTuple):
    """What was last seen of a rank."""

    beats: int
    at: float


class _Joined:
    """This rank among the others."""

    def __init__(self) -> None:
        limit = timedelta(seconds=patience())
        try:
            self._store: Any = None
            self._store, _, _ = next(iter(rendezvous("env://", timeout=limit)))
            on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
            if on_gpu:
                torch.cuda.set_device(local_rank() % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(
                backend, store=PrefixStore("monolex", self._store), rank=rank(), world_size=size(), timeout=limit
            )
        except (RuntimeError, ValueError, StopIteration) as error:
            raise LostRankError(f"rank {rank()} could not meet the others ({error}); start the job again") from error
        self.group = RankGroup(tuple(range(size())), rank(), None, self.silent)
        self._arrivals = 0
        self._over = threading.Event()
        self._life = threading.Thread(target=self._show_life, args=(self._store.clone(),), daemon=True)
        self._life.start()
        atexit.register(self._leave)

    def silent(self) -> str:
        """The ranks that show no sign of life, as a sentence names them; empty if all do."""
        before = self._signs()
        time.sleep(SILENT)
        after = self._signs()
        gone = [number for number in range(size()) if after[number].beats == before[number].beats]
        return f"rank {', '.join(map(str, gone))}" if gone else ""

    def wait(self) -> None:
        self._arrivals += 1
        name = f"monolex/arrived/{self._arrivals}"
        try:
            self._store.add(name, 1)
            signs, looked = self._signs(), time.monotonic()
            while self._store.add(name, 0) < size():
                time.sleep(LOOK)
                if time.monotonic() - looked > BEAT:
                    signs, looked = self._signs(signs), time.monotonic()
                    lost = [number for number, sign in enumerate(signs) if looked - sign.at > patience()]
                    if lost:
                        raise LostRankError(
                            f"rank {', '.join(map(str, lost))} has shown no sign of life for {patience():g} seconds; "
                            "what was saved last is whole, and the same command goes on from there"
                        )
        except RuntimeError as error:
            raise LostRankError(f"torchrun's store is gone ({error}); the same command goes on from here") from error

    def _signs(self, before: Sequence[_Sign] = ()) -> list[_Sign]:
        now = time.monotonic()
        try:
            counts = [self._store.add(_life(number), 0) for number in range(size())]
        except RuntimeError:
            return list(before) or [_Sign(0, now)] * size()
        seen = [_Sign(count, now) for count in counts]
        return [old if old.beats == new.beats else new for old, new in zip(before or seen, seen, strict=True)]

    def _show_life(self, store: Store) -> None:
        with suppress(RuntimeError):  # the job is over
            while not self._over.is_set():
                store.add(_life(rank()), 1)
                self._over.wait(BEAT)

    def _leave(self) -> None:
        """Leave before the interpreter does; the rank that may keep the store is the last to go."""
        self._over.set()
        self._life.join(SILENT)
        with suppress(RuntimeError):
            self._store.add("monolex/left", 1)
            until = time.monotonic() + SILENT
            while rank() == 0 and self._store.add("monolex/left", 0) < size() and time.monotonic() < until:
                time.sleep(LOOK)
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _life(number: int) -> str:
    return f"monolex/life/{number}"


@cache
def _joined() -> _Joined:
    return _Joined()
