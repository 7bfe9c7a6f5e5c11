"""Work beside each other in processes of this machine, each of which has its share of the cores.

A process is started anew for it, since one in which torch has run cannot be forked, and kept for all that follows. Its
process group is its own where there are such, so that Ctrl-C reaches the process that gives the work alone: that one
passes it on, once, and waits until each has come to the end of a step. A worker ends when that process does, however it
ends.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monolex import bars, lock, runtime
from monolex.errors import UserError
from monolex.interrupt import stoppable
from monolex.schedule import Schedule

Work = Callable[[], Any]
"""Something to be done: a function of a module, with its arguments in a ``functools.partial``, as pickling asks."""


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    doing: int | None = field(default=None)
    """Number of what it does."""

    def stop(self) -> None:
        """Ask what it does to end, cleanly where the system has signals."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGTERM)


def done(work: Sequence[Work], schedule: Schedule, jobs: int) -> Iterator[tuple[int, Any]]:
    """The number and the result of every piece of ``work``, as it is done; up to ``jobs`` at a time.

    With one job all is done here, one after the other.

    Raises:
        UserError: a piece of work raised it (those beside it are stopped as by Ctrl-C), or a worker was killed.
    """
    if jobs == 1:
        while (number := schedule.begin()) is not None:
            yield number, work[number]()
            schedule.end(number)
        return
    with _workers(jobs) as workers:
        while not schedule.over:
            for worker in workers:
                if worker.doing is None and (number := schedule.begin()) is not None:
                    worker.doing = number
                    worker.pipe.send(work[number])
            for worker in _answering(workers):
                number, result = worker.doing, _received(worker)
                assert number is not None
                schedule.end(number)
                yield number, result


@contextmanager
def _workers(count: int) -> Iterator[list[_Worker]]:
    context = multiprocessing.get_context("spawn")
    writing = context.RLock()
    tqdm.set_lock(writing)  # bars of several processes share the terminal
    workers = []
    try:
        for number in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, lock.held(), bool(runtime.log.handlers), (number, count), writing)
            process = context.Process(target=_serve, args=arguments, name=f"monolex worker {number}")
            process.start()
            theirs.close()
            workers.append(_Worker(process, ours))
        yield workers
    except BaseException as error:
        # on Windows Ctrl-C has reached all that share the console already
        if sys.platform != "win32" or not isinstance(error, KeyboardInterrupt):
            for worker in workers:
                if worker.doing is not None:
                    worker.stop()
        for worker in workers:
            with suppress(EOFError, OSError):
                if worker.doing is not None:
                    worker.pipe.recv()
        raise
    finally:
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.process.join()


def _answering(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have something to say; waits for one. A pipe is ready too where its process is gone."""
    busy = {worker.pipe: worker for worker in workers if worker.doing is not None}
    return [busy[pipe] for pipe in wait(list(busy)) if isinstance(pipe, Connection)]


def _received(worker: _Worker) -> Any:
    """What a worker's work gave, and raised."""
    try:
        raised, result = worker.pipe.recv()
    except EOFError as error:
        worker.doing = None
        worker.process.join()
        code = worker.process.exitcode
        raise UserError(
            f"a worker process ended with status {code} (killed for want of memory, perhaps); the same command goes on "
            "from here, with --jobs 1 in less memory"
        ) from error
    worker.doing = None
    if raised is not None:
        raise raised
    return result


def _serve(
    pipe: Connection, held: frozenset[Path], logs: bool, row: tuple[int, int], writing: Any
) -> None:  # pragma: no cover (another process)
    """Do what comes through the pipe until it is closed."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock.hold_too(held)
    tqdm.set_lock(writing)
    bars.beside(*row)
    if logs:
        runtime.setup_logging()
    # between pieces of work there is nothing to be stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        try:
            with stoppable():
                answer = (None, work())
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, UserError | KeyboardInterrupt):
                error.add_note(traceback.format_exc())
            answer = (error, None)
        pipe.send(answer)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def each(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """What ``function`` gives for each of ``arguments``, in any order."""
    work = [partial(function, *each_time) for each_time in arguments]
    for _, result in done(work, Schedule([()] * len(work)), max(1, min(jobs, len(work)))):
        yield result


def cores() -> int:
    """Cores that this process may use, or as many threads as ``OMP_NUM_THREADS`` gives it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(most)) if most.isdecimal() and int(most) else allowed
