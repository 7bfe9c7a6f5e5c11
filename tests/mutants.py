"""Puts faults into a copy of the tree, one at a time, and names those that no test notices.

Run by hand: ``python tests/mutants.py [--only PATTERN] [--jobs 2]``. The faults are the table ``mutants.toml`` beside
this file: where, what stands there, what takes its place, and the tests that should notice. Each is run against those
tests alone, after all of them have passed on the tree as it is. The exit code is 1 if a fault survives, if the text
that it replaces does not stand there exactly once, or if a test that should notice it is not there.
"""

import argparse
import ast
import itertools
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from queue import Queue
from typing import NamedTuple

TREE = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")
COPIED = ("monolex", "tests", "docs", "bench", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
LONGEST = 600
"""Seconds that the tests of a fault may take; beyond, nothing can be said of it."""
FAILED, INTERRUPTED = 1, 2
"""Exit codes of pytest: a test failed, or a file could not even be imported."""
TIMEOUT = 124
STAMPS = itertools.count(10**9)
"""Times of modification, in seconds."""
LOADED = ("torch", "transformers", "scipy.stats", "sklearn.decomposition", "matplotlib.pyplot", "tyro")
MODELS = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma3", "olmo2")
if not Path("/dev/nvidiactl").exists():  # as conftest.py says, which here comes after the first import of torch
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Every fault takes a new process, and most of that process would be the import of what no fault changes.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*LOADED, *(f"transformers.models.{name}.modeling_{name}" for name in MODELS)])


class Mutant(NamedTuple):
    """A fault and who should notice."""

    name: str
    """What is wrong under it."""
    file: str
    """Where, below ``monolex``."""
    old: str
    """What stands there."""
    new: str
    """What takes its place."""
    tests: tuple[str, ...]
    """Files of tests, or tests in them, ``FILE::NAME``, below ``tests``."""

    @property
    def path(self) -> str:
        """The file, in the tree."""
        return f"monolex/{self.file}"

    def selected(self) -> list[str]:
        """The tests as pytest takes them."""
        return [f"tests/{test}" for test in self.tests]


class Verdict(NamedTuple):
    """What became of a fault."""

    mutant: Mutant
    noticed: str
    """The test that noticed; empty if none did."""
    trouble: str
    """Why nothing can be said; empty if something can."""
    seconds: float


def mutants() -> list[Mutant]:
    """The table."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["fault"]
    return [Mutant(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def misfits(table: Sequence[Mutant], tree: Path = TREE) -> list[str]:
    """What no longer fits the tree: texts that do not stand there exactly once, tests that are gone, names twice."""
    names = [mutant.name for mutant in table]
    wrong = [f"{name}: two faults have this name" for name in sorted({n for n in names if names.count(n) > 1})]
    for mutant in table:
        path = tree / mutant.path
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1:
            wrong.append(f"{mutant.name}: its text stands {count} times in {mutant.path}")
        if mutant.old == mutant.new:
            wrong.append(f"{mutant.name}: changes nothing")
        wrong += [f"{mutant.name}: there is no test {test}" for test in mutant.tests if not _exists(tree, test)]
    return wrong


def _exists(tree: Path, test: str) -> bool:
    file, _, name = test.partition("::")
    path = tree / "tests" / file
    if not path.is_file():
        return False
    return not name or name in _functions(path)


@cache
def _functions(path: Path) -> frozenset[str]:
    parsed = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in parsed.body if isinstance(node, ast.FunctionDef))


def copied(tree: Path, target: Path) -> None:
    """A copy of what the tests need of ``tree``."""
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        source = tree / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=skipped)
        elif source.exists():
            shutil.copy(source, target / name)


def tested(tree: Path, tests: Sequence[str], limit: float | None = LONGEST) -> tuple[int, str]:
    """Exit code and output of pytest on ``tests`` in ``tree``, for at most ``limit`` seconds."""
    with tempfile.NamedTemporaryFile() as output:
        process = SERVER.Process(target=_run, args=(tree, list(tests), Path(output.name)))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            return TIMEOUT, f"after {limit} s it was stopped"
        return process.exitcode or 0, Path(output.name).read_text(encoding="utf-8", errors="replace")


def _run(tree: Path, tests: list[str], output: Path) -> None:
    import pytest

    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    # most of a fault's time would be compiling what it does not change
    sys.dont_write_bytecode = False
    os.environ |= {"PYTHONPATH": str(tree)}
    # pytest warns of plugins that were imported before it, as those are that the server has loaded
    quiet = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    sys.exit(pytest.main(["-x", "-q", "--tb=line", "-rfE", *quiet, *tests]))


def tried(mutant: Mutant, tree: Path) -> Verdict:
    """Put a fault into ``tree``, run its tests, and take it out again."""
    path, began = tree / mutant.path, time.monotonic()
    whole = path.read_text(encoding="utf-8")
    _write(path, whole.replace(mutant.old, mutant.new))
    try:
        compile(path.read_text(encoding="utf-8"), mutant.path, "exec")
        code, output = tested(tree, mutant.selected())
    except SyntaxError as error:
        return Verdict(mutant, "", f"is no Python: {error}", 0)
    finally:
        _write(path, whole)
    seconds = time.monotonic() - began
    if code == 0:
        return Verdict(mutant, "", "", seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - |$)", output, re.MULTILINE)
    if code == FAILED and failed:
        return Verdict(mutant, failed[1].removeprefix("tests/"), "", seconds)
    if code == INTERRUPTED and failed:
        return Verdict(mutant, "", f"cannot even be imported: {failed[1]}", seconds)
    return Verdict(mutant, "", f"pytest ended with {code}: {output[-400:]}", seconds)


def _write(path: Path, text: str) -> None:
    """Write a module at a time of its own, so that the bytecode kept of it is of no other fault, however quick."""
    path.write_text(text, encoding="utf-8")
    stamp = next(STAMPS)
    os.utime(path, (stamp, stamp))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what becomes of every fault; 0 if all are noticed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern of names or files, as *reader*")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree at work")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    table = [m for m in mutants() if fnmatch(m.name, options.only) or fnmatch(m.file, options.only)]
    wrong = misfits(table)
    print(*(f"does not fit  {line}" for line in wrong), sep="\n", end="\n" if wrong else "", flush=True)
    spoiled = {line.partition(":")[0] for line in wrong}
    table = [mutant for mutant in table if mutant.name not in spoiled]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, ThreadPoolExecutor(options.jobs) as pool:
        free: Queue[Path] = Queue()
        for number in range(options.jobs):
            copied(TREE, Path(scratch) / str(number))
            free.put(Path(scratch) / str(number))
        first = Path(scratch) / "0"
        every = sorted({test for mutant in table for test in mutant.selected()})
        code, output = tested(first, every, None) if every else (0, "")
        if code != 0:
            print(f"the tests do not pass without a fault either:\n{output[-2000:]}")
            return 1

        def work(mutant: Mutant) -> Verdict:
            tree = free.get()
            try:
                return tried(mutant, tree)
            finally:
                free.put(tree)

        verdicts = []
        for verdict in pool.map(work, table):
            verdicts.append(verdict)
            said = verdict.trouble or (f"noticed by {verdict.noticed}" if verdict.noticed else "NOBODY NOTICED")
            print(f"{verdict.seconds:5.1f} s  {verdict.mutant.name}  {said}", flush=True)
    left = [verdict.mutant.name for verdict in verdicts if not verdict.noticed]
    print(
        f"{len(verdicts)} faults, {len(verdicts) - len(left)} noticed", *(f"not noticed: {n}" for n in left), sep="\n"
    )
    return 1 if left or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
