"""The run.tomls in bench/: valid, and every pattern in them fits a dictionary that they make."""

import subprocess
import sys
from pathlib import Path

import pytest

from monolex.demo.subjects import SUBJECTS
from monolex.patterns import require_fitting
from monolex.plan import plan
from monolex.run_toml import read_run

BENCH = Path(__file__).parents[1] / "bench"
TOMLS = sorted([*BENCH.glob("*.toml"), *(subject.toml for subject in SUBJECTS.values())])


@pytest.mark.parametrize("path", TOMLS, ids=lambda path: path.name)
def test_every_run_is_planned_and_every_pattern_fits(path: Path, tmp_path: Path):
    run = read_run(path)
    assert plan(run, tmp_path)
    require_fitting(run)


def script(*arguments: str, python: str = "true") -> subprocess.CompletedProcess[str]:
    command = ["bash", str(BENCH / "pythia.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHON": python})


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_pythia_script_refuses_what_it_does_not_know():
    for arguments, said in (
        ((), "usage"),
        (("1b",), "usage"),
        (("70m", "--foo"), "--foo"),
        (("70m", "--model"), "value"),
    ):
        finished = script(*arguments)
        assert finished.returncode == 2 and said in finished.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize("size", ["70m", "410m"])
def test_the_pythia_script_puts_every_argument_in_its_place(size: str, tmp_path: Path):
    out = tmp_path / 'it\'s a "run"'
    given = ("--model", "a 'model'", "--corpus", 'te"xt', "--tokens", "1234", "--pairs", "6", "--features", "7")
    runner = tmp_path / "python"
    runner.write_text(f'#!/bin/sh\nif [ "$1" = -m ]; then echo "$@"; else exec {sys.executable} "$@"; fi\n')
    runner.chmod(0o755)
    finished = script(size, *given, "--out", str(out), "--dry-run", python=str(runner))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == f"-m monolex run {out}/run.toml --dry-run"
    run = read_run(out / "run.toml")
    assert (run.model.model, run.corpus.corpus, run.corpus.max_tokens) == ("a 'model'", 'te"xt', 1234)
    assert all(config.pairs == 6 for config in run.tables["patch"].values())
    assert all(config.features == 7 for config in run.tables["explain"].values())
    plain = script(size, "--out", str(out), python=str(runner))
    assert plain.stdout.strip() == f"-m monolex run {out}/run.toml"
    assert (out / "run.toml").read_text() == (BENCH / f"pythia-{size}.toml").read_text()
