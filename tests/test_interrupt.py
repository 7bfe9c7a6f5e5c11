"""What stops monolex, in whatever way it was started."""

import os
import signal
import subprocess
import sys

import pytest

from monolex import cli
from monolex.artifact import write_bytes
from monolex.cli import main
from monolex.interrupt import interruptible, stoppable

STUCK = """
import sys, time
from monolex import cli
def stuck() -> None:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleaning", flush=True)
        time.sleep(60)
cli.verbs = lambda: {"stuck": stuck, "other": stuck}
sys.exit(cli.main(["stuck"]))
"""


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """Signals as a terminal hands them over, whatever the tests were started by (nohup ignores one); and back."""
    outside = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before = {**outside, signal.SIGHUP: signal.SIG_DFL}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in outside.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def verb(monkeypatch):
    """Runs the command line with one verb, which raises a signal; its exit code."""

    def run(number: int) -> int:
        def raised() -> None:
            signal.raise_signal(number)

        monkeypatch.setattr(cli, "verbs", lambda: {"raised": raised, "other": raised})
        return main(["raised"])

    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_exit_code_says_which_signal_stopped_it(verb, capsys, number, code):
    assert verb(number) == code
    assert capsys.readouterr().err == "monolex: stopped; the same command goes on from here\n"


def test_a_run_in_the_background_of_a_script_stops_at_ctrl_c_and_at_kill(verb):
    """Shells start such commands with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert (verb(signal.SIGINT), verb(signal.SIGTERM)) == (130, 143)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_under_nohup_outlives_the_terminal_and_stops_at_kill(verb):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert (verb(signal.SIGHUP), verb(signal.SIGTERM)) == (0, 143)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("started", ["", "trap '' INT; "], ids=["foreground", "background"])
def test_a_second_ctrl_c_stops_at_once(started):
    command = ["sh", "-c", f'{started}exec "$@"', "sh", sys.executable, "-c", STUCK]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for said in ("ready\n", "cleaning\n"):
        assert process.stdout.readline() == said
        os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "monolex: stopped at once; the same command goes on from what is on disk\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_any_signal_that_stops_waits_for_the_end_of_a_step(number):
    with pytest.raises(KeyboardInterrupt) as stop, stoppable(), interruptible() as interrupted:
        signal.raise_signal(number)
        assert interrupted.is_set() and interrupted.number == number
        signal.raise_signal(number)
    assert stop.value.args == (number,)


def test_an_ignored_ctrl_c_is_noted_once_and_then_interrupts():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert interrupted.is_set()
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_file_that_is_cut_short_leaves_nothing(tmp_path, monkeypatch):
    def stopped(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "state.safetensors", b"0" * 100)
    assert list(tmp_path.iterdir()) == []
