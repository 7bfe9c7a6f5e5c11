"""The table of faults does not rot: every fault still fits the tree, and its tests exist."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`mutants.py`, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("mutants_script", HERE / "mutants.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_fault_fits_the_tree(script):
    table = script.mutants()
    assert script.misfits(table) == []
    assert len(table) >= 45
    rooms = {mutant.file.split("/")[0] for mutant in table}
    assert rooms >= {"activations", "training", "evals", "features", "causal", "interp", "pages", "text", "model"}


def test_a_fault_that_no_longer_fits_is_named(script):
    good = script.mutants()[0]
    again = good._replace(old=good.new, new=good.old)
    gone = good._replace(name="gone", tests=("test_nothing.py", good.tests[0].partition("::")[0] + "::test_nothing"))
    said = script.misfits([good, again, gone, good._replace(name="idle", new=good.old)])
    assert said[0] == f"{good.name}: two faults have this name"
    assert said[1] == f"{good.name}: its text stands 0 times in {good.path}"
    assert [line.partition(": ")[2].partition(" tests")[0] for line in said[2:4]] == [
        "there is no test test_nothing.py",
        f"there is no test {gone.tests[1]}",
    ]
    assert said[4:] == ["idle: changes nothing"]
