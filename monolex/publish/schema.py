"""JSON Schemas of other tools' formats, and what is wrong with a value by them, in one sentence.

The schemas lie in ``schemas/`` and are ordinary JSON Schema, of which this reads the keywords below: a library would
visit every number of every list by itself, some 4,000 a feature, where this looks through a list of numbers at once.
Beside ``required`` stands ``x-written``: fields that are also there in all that is written here, but that older files
of others lack. A NaN, which only Python writes into JSON, counts as ``null``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from monolex.errors import UserError

Schema = Mapping[str, Any]

TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
KEYWORDS: Final = frozenset(
    ("$schema", "title", "description", "type", "required", "x-written", "properties", "items")
    + ("minItems", "minimum", "minLength", "maxLength", "enum", "anyOf")
)
"""What a schema may say; a test reads all of them."""
SHOWN = 40
"""Letters of a value in a sentence."""


@cache
def schema(name: str) -> Schema:
    """The schema ``schemas/NAME.json``."""
    path = Path(__file__).parent / "schemas" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def problem(value: Any, wanted: Schema, *, written: bool = False, path: str = "") -> str:
    """What is wrong with ``value``: where, what is there, what is needed; empty if nothing is.

    ``written``: by what is written here, not by the least that is read.
    """
    if "anyOf" in wanted:
        faults = [problem(value, choice, written=written, path=path) for choice in wanted["anyOf"]]
        # of several choices the one that fits furthest down says most
        return "" if "" in faults else max(faults, key=lambda fault: fault.partition(" ")[0].count("."))
    if not _fits(value, wanted):
        return _said(value, wanted, path)
    if isinstance(value, dict):
        return _of_object(value, wanted, written, path)
    if isinstance(value, list) and "items" in wanted:
        return _of_items(value, wanted["items"], written, path)
    return ""


def require_valid(value: Any, name: str, where: object, *, path: str = "") -> None:
    """Refuse what is read where it does not fit the schema ``name``; ``where`` is the file.

    Raises:
        UserError: with the place in the JSON, what is there and what is needed.
    """
    if fault := problem(value, schema(name), path=path):
        raise UserError(f"{where}: {fault}; mend it there, or leave the file out")


def require_parallel(value: Mapping[str, Any], names: Sequence[str], where: object, path: str) -> None:
    """Refuse lists that should be as long as each other; those that are missing or empty do not count.

    Raises:
        UserError: with their lengths.
    """
    lengths = {name: len(value[name]) for name in names if value.get(name)}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise UserError(f"{where}: the lists of {path} differ in length ({said}); mend it there, or leave the file out")


def _fits(value: Any, wanted: Schema) -> bool:
    """Whether a value by itself, without what is in it, is what is wanted."""
    allowed = _types(wanted)
    if "type" in wanted and type(value) not in allowed:
        return False
    if isinstance(value, int | float) and not _finite(value) and type(None) not in allowed:
        return False
    if "enum" in wanted and value not in wanted["enum"]:
        return False
    if isinstance(value, int | float) and value < wanted.get("minimum", -math.inf):
        return False
    if isinstance(value, str):
        return wanted.get("minLength", 0) <= len(value) <= wanted.get("maxLength", math.inf)
    return not isinstance(value, list) or len(value) >= wanted.get("minItems", 0)


def _of_object(value: Mapping[str, Any], wanted: Schema, written: bool, path: str) -> str:
    needed = (*wanted.get("required", ()), *(wanted.get("x-written", ()) if written else ()))
    for name in needed:
        if name not in value:
            return f"{_join(path, name)} is missing"
    for name, inner in wanted.get("properties", {}).items():
        if name in value and (fault := problem(value[name], inner, written=written, path=_join(path, name))):
            return fault
    return ""


def _of_items(values: Sequence[Any], wanted: Schema, written: bool, path: str) -> str:
    if set(wanted) == {"type"} and _all_fit(values, _types(wanted)):
        return ""
    for i, each in enumerate(values):
        if fault := problem(each, wanted, written=written, path=f"{path}[{i}]"):
            return fault
    return ""


def _all_fit(values: Sequence[Any], allowed: tuple[type, ...]) -> bool:
    """Whether a list is what nearly all are: nothing but texts, or finite numbers."""
    if dict in allowed or list in allowed or not all(type(each) in allowed for each in values):
        return False
    return float not in allowed or type(None) in allowed or all(map(_finite, values))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _types(wanted: Schema) -> tuple[type, ...]:
    names = wanted.get("type", ())
    return tuple(kind for name in ([names] if isinstance(names, str) else names) for kind in TYPES[name])


def _said(value: Any, wanted: Schema, path: str) -> str:
    shown = json.dumps(value, ensure_ascii=False) if not isinstance(value, dict | list) else f"of type {_name(value)}"
    shown = shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"
    names = wanted.get("type", ())
    parts = ["a value" if not names else " or ".join([names] if isinstance(names, str) else names)]
    limits = {
        "enum": "of {}",
        "minimum": "at least {}",
        "minLength": "of {} letters or more",
        "maxLength": "of {} letters or fewer",
    }
    limits["minItems"] = "with {} or more entries"
    parts += [text.format(wanted[name]) for name, text in limits.items() if name in wanted]
    return f"{path or 'the whole'} is {shown} where {' '.join(parts)} is needed"


def _name(value: Any) -> str:
    return next(name for name, kinds in TYPES.items() if type(value) in kinds)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
