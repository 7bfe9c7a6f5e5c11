"""The package's source, parsed once, for the tests of its own shape."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import monolex

ROOT = Path(monolex.__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    """Every file of the package."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def functions() -> Iterator[tuple[str, Function]]:
    """Every function that has a name, and where it is."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def arguments(function: Function | ast.Lambda) -> list[str]:
    """Names of all arguments, in order."""
    spec = function.args
    starred = [argument for argument in (spec.vararg, spec.kwarg) if argument]
    return [argument.arg for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *starred)]


def agree(name: str, number: int, listed: list[str]) -> None:
    """A count that may only fall: fail above its number, and below it, so that the number is lowered."""
    assert len(listed) <= number, f"{name} rises from {number} to {len(listed)}: {'; '.join(listed)}"
    assert len(listed) >= number, f"well done: now lower {name} from {number} to {len(listed)}"
