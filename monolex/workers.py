"""Work beside each other in processes of this machine, each of which has its share of the cores.

A process is started anew for it, since one in which torch has run cannot be forked, and kept for all that follows.
What stops monolex counts in the process that gives the work alone, whoever else it reaches: that one passes it on,
once, and waits until each has come to the end of a step. Ctrl-Z and what follows it are passed on too. On Windows,
where there are no such signals, a worker that is to stop is ended. A worker ends when the process that gives the work
does, however it ends.
"""

import multiprocessing
import os
import pickle
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

PATIENCE = 2.0
"""Seconds that a process waits for its turn to write on the terminal."""
MOST_JOBS = 4
"""Pieces of work that are done at a time, unless somebody asks for more."""
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
        if hasattr(signal, "SIGUSR1"):
            self.send(signal.SIGUSR1)
        else:
            self.process.terminate()

    def send(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)


def done(work: Sequence[Work], schedule: Schedule, jobs: int) -> Iterator[tuple[int, Any]]:
    """The number and the result of every piece of ``work``, as it is done; up to ``jobs`` at a time.

    With one job all is done here, one after the other.

    Raises:
        UserError: a piece of work raised it (those beside it are stopped as by Ctrl-C), or a worker was killed.
    """
    jobs = min(jobs, len(work))
    if jobs <= 1:
        while (number := schedule.begin()) is not None:
            yield number, work[number]()
            schedule.end(number)
        return
    with _workers(jobs) as workers, _suspending(workers):
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
    writing, before = _Writing(context.RLock()), tqdm.get_lock()
    tqdm.set_lock(writing)
    workers: list[_Worker] = []
    try:
        for number in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, lock.held(), bool(runtime.log.handlers), (number, count), writing)
            process = context.Process(target=_serve, args=arguments, name=f"monolex worker {number}")
            process.start()
            theirs.close()
            workers.append(_Worker(process, ours))
        yield workers
    except BaseException:
        busy = [worker for worker in workers if worker.doing is not None]
        for worker in busy:
            worker.stop()
        for worker in busy:
            with suppress(Exception):  # of what was stopped nothing is wanted, and the first error is the one to tell
                worker.pipe.recv()
        raise
    finally:
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.process.join()
        tqdm.set_lock(before)


class _Writing:
    """Whose turn it is to write on the terminal; one that was killed in its turn keeps the others for a moment only."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def acquire(self, *_args: Any, **_kwargs: Any) -> bool:
        return self._lock.acquire(timeout=PATIENCE)

    def release(self) -> None:
        with suppress(AssertionError, ValueError):  # nobody's turn that was only waited for
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_error: object) -> None:
        self.release()


def _answering(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have something to say; waits for one. A pipe is ready too where its process is gone."""
    busy = [worker for worker in workers if worker.doing is not None]
    ready = wait([worker.pipe for worker in busy])
    return [worker for worker in busy if worker.pipe in ready]


def _received(worker: _Worker) -> Any:
    """What a worker's work gave, and raised."""
    try:
        raised, result = worker.pipe.recv()
    except (EOFError, OSError) as error:
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


def _serve(pipe: Connection, held: frozenset[Path], logs: bool, row: tuple[int, int], writing: Any) -> None:
    """Do what comes through the pipe until it is closed."""
    _leave_signals_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock.hold_too(held)
    tqdm.set_lock(writing)
    bars.beside(*row)
    if logs:
        runtime.setup_logging()
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        try:
            with stoppable():
                answer = (None, work())
        except (Exception, KeyboardInterrupt) as error:
            answer = (_sendable(error), None)
        pipe.send(answer)


def _sendable(error: BaseException) -> BaseException:
    """An error as it arrives at the other end, with the lines of this one."""
    if isinstance(error, UserError | KeyboardInterrupt):
        return error
    lines = traceback.format_exc()
    error.add_note(lines)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(lines)
    return error


def _leave_signals_to_parent() -> None:
    """Be stopped by the parent alone, as by Ctrl-C, and write on its terminal without being in the foreground."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGTTOU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "win32":
        return
    os.setpgid(0, 0)

    def stop(_number: int, frame: Any) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # there is work, and somebody who brings it to an end
            handler(signal.SIGINT, frame)

    signal.signal(signal.SIGUSR1, stop)


@contextmanager
def _suspending(workers: Sequence[_Worker]) -> Iterator[None]:
    """Pass Ctrl-Z on to ``workers``, and what ends it."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def suspend(_number: int, _frame: Any) -> None:
        for worker in workers:
            worker.send(signal.SIGSTOP)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # goes on from here with SIGCONT
        signal.signal(signal.SIGTSTP, suspend)
        for worker in workers:
            worker.send(signal.SIGCONT)

    before = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


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
