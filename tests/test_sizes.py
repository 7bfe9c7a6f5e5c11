"""Files, functions and lists of arguments stay small, and a verb's work near its verb."""

import ast
import inspect
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers.counted_stores import found_run, write_pairs
from helpers.parsed_package import ROOT, agree, arguments, functions, trees

from monolex import cli
from monolex.causal.patch.measure import measure_patch
from monolex.interp.explain.lookup import token_table
from monolex.training.sweep import Trainer
from monolex.verbs import verbs

LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS = 400, 60, 8
"""Lines, lines, and arguments beside ``self``."""
MEDIAN_FILE, MEDIAN_FUNCTION = 120, 7
"""Lines; the first may only fall (aim: 150)."""
LONG_FUNCTIONS, LONG_SIGNATURES = 0, 0
"""Functions over the lengths above; may only fall (aim: none)."""
CALLS = {"train": 5, "explain": 5, "patch": 4}
"""Calls from a verb to a step of the sweep, the explainer, the measuring of a patch; may only fall (aim: 5)."""

LOCKED = str(ROOT / "lock.py")


def length(function: Any) -> int:
    return function.end_lineno - function.lineno + 1


def test_files_stay_small():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in trees()}
    assert [f"{path.name}: {count}" for path, count in lines.items() if count > LONGEST_FILE] == []
    assert statistics.median(lines.values()) <= MEDIAN_FILE


def test_functions_stay_small():
    assert statistics.median(length(function) for _, function in functions()) <= MEDIAN_FUNCTION
    agree("LONG_FUNCTIONS", LONG_FUNCTIONS, [name for name, node in functions() if length(node) > LONGEST_FUNCTION])


def test_signatures_stay_small():
    # kernels of Triton are started with every tensor and number on its own
    taken = {
        name: set(arguments(function)) - {"self", "cls"}
        for name, function in functions()
        if "triton.jit" not in map(ast.unparse, function.decorator_list)
    }
    agree("LONG_SIGNATURES", LONG_SIGNATURES, [name for name, names in taken.items() if len(names) > MOST_ARGUMENTS])


class Reached(BaseException):
    """Thrown where the core begins, past every handler of the verb."""


def calls(verb: Callable, core: Callable, command: list[str]) -> list[str]:
    """The package's functions between a verb and the first call of its core, which is the last of them."""
    first, last = inspect.unwrap(getattr(verb, "answers", verb)).__code__, inspect.unwrap(core).__code__

    def watch(frame: FrameType | None, event: str, _: object) -> None:
        if event != "call" or frame is None or frame.f_code is not last:
            return
        names = []
        while frame is not None and frame.f_code is not first:
            code = frame.f_code
            # neither a comprehension, a lambda nor what the lock puts around every stage is a function to look up
            if code.co_filename.startswith(str(ROOT)) and code.co_name[0] != "<" and code.co_filename != LOCKED:
                names.insert(0, code.co_name)
            frame = frame.f_back
        raise Reached(names)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        cli.main(command)
    except Reached as reached:
        return reached.args[0]
    finally:
        sys.setprofile(before)
    raise AssertionError(f"{core.__name__} is not called")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("verb", CALLS)
def test_a_verb_is_near_its_core(verb, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, *options = {
        "train": (
            run / "activations",
            tmp_path / "out",
            "--kinds",
            "topk",
            "--ks",
            "4",
            "--ratios",
            "2",
            "--batch-size",
            "32",
        ),
        "explain": (run, "--explainers", "token", "--fragment-tokens", "6", "--silent", "4"),
        "patch": (run, "--task", write_pairs(run)),
    }[verb]
    core = {"train": Trainer.step, "explain": token_table, "patch": measure_patch}[verb]
    passed = calls(verbs()[verb], core, [verb, str(source), f"--{verb}-device", "cpu", *map(str, options)])
    agree(f"CALLS[{verb!r}]", CALLS[verb], passed)
