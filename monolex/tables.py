"""Configs from plain data, a TOML table or a JSON object, with what does not fit named; and results as plain data."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

from monolex.config import located, require
from monolex.errors import UserError

T = TypeVar("T")


def from_table(cls: type[T], table: Mapping[str, Any], where: str, others: Collection[str] = ()) -> T:
    """Build a config from a TOML table or JSON object; its paths are those from the current folder.

    ``others`` are keys that are read elsewhere, for the hint.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        if key not in fields:
            known = (*fields, *others)
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
        values[key] = _coerce(value, hints[key], f"{where}.{key}")
    return located(cls(**values))


def to_table(value: Any) -> Any:
    """Named tuples, however deep in lists and tables, as tables: what JSON can hold."""
    if hasattr(value, "_asdict"):
        return {name: to_table(inner) for name, inner in value._asdict().items()}
    if isinstance(value, dict):
        return {name: to_table(inner) for name, inner in value.items()}
    return [to_table(inner) for inner in value] if isinstance(value, list | tuple) else value


def _coerce(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), where)
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{where} = {value!r}: write a list")
        return tuple(_coerce(v, args[0], where) for v in value)
    if origin is Literal:
        require(value in args, f"{where} = {value!r}: choose one of {', '.join(map(str, args))}")
        return value
    if origin is dict:
        require(isinstance(value, dict), f"{where} = {value!r}: write a table")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)
    require(fits, f"{where} = {value!r}: expected {hint.__name__}, got {type(value).__name__}")
    return value
