"""One process a folder, whoever else comes and however it ends."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from monolex import lock
from monolex.errors import UserError
from monolex.lock import LOCK, alone, writing
from monolex.stages import STAGES

HOLDER = """
import sys, time
from pathlib import Path
from monolex.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
BESIDE = {"started": "", "host": platform.node(), "since": "2026-01-01 00:00:00+00:00", "command": "monolex run x"}


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds ``folder``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def held(tmp_path):
    process = holder(tmp_path / "run")
    yield process
    process.kill()
    process.communicate()


def enter(folder: Path) -> str:
    """What ``writing`` has against it, if anything."""
    try:
        with writing(folder):
            return ""
    except UserError as error:
        return str(error)


def in_thread(folder: Path) -> str:
    said = []
    thread = threading.Thread(target=lambda: said.append(enter(folder)))
    thread.start()
    thread.join()
    return said[0]


def test_another_process_is_kept_out_of_a_run_and_of_what_is_in_it(held, tmp_path):
    for folder in (tmp_path / "run", tmp_path / "run" / "eval", tmp_path / "run" / "controls" / "a" / "train" / "b"):
        said = enter(folder)
        assert f"{tmp_path / 'run'} is being written by process {held.pid} on {platform.node()} since 2" in said
        assert "(-c" in said and said.endswith("; wait until it is done, or stop it")
    assert not (tmp_path / "run" / "eval").exists() and not (tmp_path / "run" / "controls").exists()
    assert enter(tmp_path / "other") == "" and not (tmp_path / "other").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_dead_process_held_is_taken_over(held, tmp_path, how):
    held.send_signal(how)
    held.wait()
    assert (tmp_path / "run" / LOCK).exists(), "or nothing would be shown here"
    assert enter(tmp_path / "run" / "eval") == "" and enter(tmp_path / "run") == ""
    assert not (tmp_path / "run" / LOCK).exists()


def test_readers_are_told_of_a_writer(held, tmp_path):
    said = f"process {held.pid} on {platform.node()} since"
    assert lock.being_written(tmp_path / "run").startswith(f"{tmp_path / 'run'} is being written by {said}")
    assert lock.being_written(tmp_path / "other") == ""
    with writing(tmp_path / "mine"):
        assert lock.being_written(tmp_path / "mine") == ""


@pytest.mark.parametrize("part", ["train/b", "eval", "controls/a/activations", "controls/a/train/b"])
def test_a_run_waits_for_its_artefacts_and_they_not_for_each_other(tmp_path, part):
    with writing(tmp_path / "run" / part):
        assert str(tmp_path / "run" / part) in in_thread(tmp_path / "run")
        assert in_thread(tmp_path / "run" / "train" / "other") == ""
    assert in_thread(tmp_path / "run") == ""


def test_a_linked_stage_folder_is_the_same_folder_from_both_sides(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "eval").symlink_to(tmp_path / "disk")
    with writing(tmp_path / "run" / "eval"):
        assert "is being written" in in_thread(tmp_path / "disk")
        assert "is being written" in in_thread(tmp_path / "run")
    with writing(tmp_path / "run"):
        assert "is being written" in in_thread(tmp_path / "run" / "eval")


def test_a_holder_holds_again_what_it_holds(tmp_path):
    with writing(tmp_path), writing(tmp_path), writing(tmp_path / "eval"):
        assert (tmp_path / LOCK).exists() and (tmp_path / "eval" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({**BESIDE, "pid": 1, "host": "elsewhere"}, "process 1 on elsewhere since 2026"),
        ({**BESIDE, "pid": 2**22 + 1, "started": "boot 1"}, ""),
        ({**BESIDE, "pid": os.getpid(), "started": "another boot 1"}, ""),
        ({"pid": 1}, ""),
        ("no record", ""),
    ],
)
def test_what_a_lock_says_decides_where_the_system_cannot(tmp_path, monkeypatch, said, refused, locks):
    """On another host a process may be alive; here one is that began when the lock says."""
    if not locks:
        monkeypatch.setattr(lock, "_lock", lambda _handle: None)
    (tmp_path / LOCK).write_text(json.dumps(said))
    answer = enter(tmp_path)
    assert (refused in answer) if refused else answer == ""
    if refused:
        assert answer.endswith(f"; if that process is gone, delete {tmp_path / LOCK}")


def test_without_the_systems_locks_a_living_process_is_known_by_its_start(tmp_path, monkeypatch):
    process = holder(tmp_path)
    monkeypatch.setattr(lock, "_lock", lambda _handle: None)
    try:
        assert f"process {process.pid}" in enter(tmp_path)
        said = json.loads((tmp_path / LOCK).read_text())
        (tmp_path / LOCK).write_text(json.dumps({**said, "started": ""}))
        assert f"process {process.pid}" in enter(tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert enter(tmp_path) == ""


def test_a_holder_that_has_not_said_who_it_is_yet_is_one(tmp_path):
    handle = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    assert lock._lock(handle)
    said = f"{tmp_path} is being written by another process; wait until it is done, or stop it"
    assert enter(tmp_path) == said and enter(tmp_path / "eval") == said
    os.close(handle)
    assert enter(tmp_path) == ""


def test_a_lock_that_was_taken_away_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Between opening and locking it the holder may have finished and deleted it."""
    real, opened = lock._lock, []

    def late(handle):
        if not opened:
            (tmp_path / LOCK).unlink()
        opened.append(handle)
        return real(handle)

    monkeypatch.setattr(lock, "_lock", late)
    with writing(tmp_path):
        assert len(opened) == 2 and "is being written" in in_thread(tmp_path)


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    """All may be done there; what is not fails when it writes."""

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lock.os, "open", refused)
    with writing(tmp_path):
        assert not (tmp_path / LOCK).exists()


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "_write", full)
    said = f"cannot write {tmp_path / LOCK}: No space left on device; free some space or choose another folder"
    assert enter(tmp_path) == said


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.verb)
def test_every_stage_holds_its_folder(tmp_path, stage):
    with writing(tmp_path):
        said = []

        def run() -> None:
            nothing = dict.fromkeys(("model", "corpus", "activations", "sources", "controls", "explanations", "run"))
            try:
                stage.load("run")(tmp_path, config=None, **nothing)
            except UserError as error:
                said.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert said and f"{tmp_path} is being written by process {os.getpid()}" in said[0]


def test_an_error_gives_the_folder_back(tmp_path):
    @alone
    def stage(folder: Path) -> None:
        raise UserError(f"{folder}")

    with pytest.raises(UserError):
        stage(folder=tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
