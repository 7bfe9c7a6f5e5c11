"""Work in processes beside each other: what waits, what is raised, what is stopped, what is left of a dead parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from helpers import beside

from monolex import bars, workers
from monolex.errors import UserError
from monolex.lock import writing
from monolex.runtime import progress
from monolex.schedule import Schedule
from monolex.workers import cores, done, each

PARENT = """
import sys
from functools import partial
from pathlib import Path
from helpers import beside
from monolex.cli import stoppable
from monolex.runtime import progress
from monolex.schedule import Schedule
from monolex.workers import done
if __name__ == "__main__":
    work = [partial(getattr(beside, sys.argv[2]), Path(sys.argv[1])), partial(beside.note, Path(sys.argv[1]), "short")]
    with stoppable():
        list(done(work, Schedule([(), ()]), 2))
"""


def test_every_piece_is_done_once_and_after_those_it_waits_for(tmp_path):
    needs = [(), (), (0,), (2,), (1, 3)]
    work = [partial(beside.note, tmp_path, str(i), tuple(map(str, before))) for i, before in enumerate(needs)]
    together = dict(done(work, Schedule(needs), 2))
    alone = dict(done(work, Schedule(needs), 1))
    assert {i: name for i, (name, _) in together.items()} == {i: name for i, (name, _) in alone.items()}
    assert {name for name, _ in together.values()} == set("01234")
    assert os.getpid() not in {pid for _, pid in together.values()}
    assert {pid for _, pid in alone.values()} == {os.getpid()}


def test_two_are_done_at_a_time(tmp_path):
    list(each(beside.in_turn, [(tmp_path, "a", "b"), (tmp_path, "b", "a")], 2))


def test_a_refusal_stops_what_is_done_beside_it(tmp_path):
    work = [partial(beside.stay, tmp_path), partial(beside.refuse, tmp_path), partial(beside.note, tmp_path, "later")]
    with pytest.raises(UserError, match="^alphas is empty; give one$"):
        list(done(work, Schedule([(), (), (1,)]), 2))
    assert (tmp_path / "stopped").read_text() == "cleanly"
    assert not (tmp_path / "later").exists()


def test_a_fault_brings_the_lines_of_the_worker(tmp_path):
    with pytest.raises(ZeroDivisionError) as fault:
        list(each(beside.divide, [(1,), (2,)], 2))
    assert "return numerator / 0" in fault.value.__notes__[0]


def test_a_worker_that_was_killed_is_one_sentence():
    with pytest.raises(UserError, match=r"^a worker process ended with status 9 .* --jobs 1 in less memory$"):
        list(each(beside.end, [(9,), (9,)], 2))


def test_workers_write_where_their_parent_holds_the_folder(tmp_path):
    with writing(tmp_path):
        list(each(beside.write_below, [(tmp_path / "a",), (tmp_path / "b",)], 2))
    assert (tmp_path / "a" / "written").exists() and (tmp_path / "b" / "written").exists()


Parent = Callable[..., tuple[subprocess.Popen, int]]


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    """Starts a process with a worker that does some work of ``beside``; gives it and that worker's number."""
    numbers: list[int] = []

    def start(work: str = "stay") -> tuple[subprocess.Popen, int]:
        script = tmp_path / "parent.py"
        script.write_text(PARENT)
        paths = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, str(script), str(tmp_path), work]
        # in a group of its own, which somebody outside of it waits for: the system stops no other at Ctrl-Z
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, process_group=0)
        numbers.append(process.pid)
        until = time.monotonic() + 60
        while not (tmp_path / "short").exists() or not (tmp_path / "staying").exists():
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.01)
        numbers.append(int((tmp_path / "staying").read_text()))
        return process, numbers[-1]

    yield start
    for number in reversed(numbers):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def test_workers_end_with_a_parent_that_is_killed(parent, tmp_path):
    process, worker = parent()
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < until, "the worker goes on"
        time.sleep(0.01)
    assert not (tmp_path / "stopped").exists()


def test_ctrl_c_is_passed_on_and_waited_for(parent, tmp_path):
    process, _ = parent()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert (tmp_path / "stopped").read_text() == "cleanly"


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_a_signal_that_reaches_all_processes_lets_a_step_end(seconds, parent, tmp_path):
    process, worker = parent("step_by_step")
    os.kill(worker, signal.SIGTERM)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) != 0
    assert (tmp_path / "stopped").read_text() == "cleanly" and not (tmp_path / "cut").exists()


def test_ctrl_z_suspends_workers_too(parent, tmp_path):
    process, worker = parent("step_by_step")

    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    for number, stopped in ((signal.SIGTSTP, True), (signal.SIGCONT, False)):
        process.send_signal(number)
        until = time.monotonic() + 30
        while any((state(pid) == "T") != stopped for pid in (process.pid, worker)):
            assert time.monotonic() < until
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert (tmp_path / "stopped").read_text() == "cleanly"


def test_a_fault_that_cannot_be_sent_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="1 beside 2"):
        list(each(beside.fail_strangely, [(1,), (1,)], 2))


def test_a_worker_that_is_killed_while_it_writes_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    context = multiprocessing.get_context("spawn")
    turn = workers._Writing(context.RLock())
    process = context.Process(target=beside.hold_for_ever, args=(turn,))
    process.start()
    process.join()
    began = time.monotonic()
    with turn:
        assert 0.1 < time.monotonic() - began < 5


def test_cores_are_those_that_openmp_is_given(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() >= 1


def test_bars_of_workers_have_lines_of_their_own(monkeypatch):
    monkeypatch.setattr(bars, "_place", (0, 1))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert bars.next_line() is None and not bars.shared()
    bars.beside(1, 2)
    with progress(3, "outer") as outer:
        assert outer.pos == -1 and bars.next_line() == 3
        with progress(2, "inner"):
            assert bars.next_line() == 5
        assert bars.next_line() == 3
    assert bars.next_line() == 1
