"""Queries of pages as parameters of their addresses, and back: one frozen dataclass a page, whose fields they are."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from monolex.config import require
from monolex.errors import UserError, nearest

Query = TypeVar("Query")


def written(query: Any) -> dict[str, Any]:
    """Parameters of the address of a query, defaults left out."""
    values = {field.name: getattr(query, field.name) for field in fields(query)}
    kept = {field.name: values[field.name] for field in fields(query) if values[field.name] != field.default}
    return {name: _text(value) for name, value in kept.items()}


def parsed(kind: type[Query], parameters: Mapping[str, str]) -> Query:
    """The query of an address's parameters; an empty one is the default, but of a switch, which it turns off.

    Raises:
        UserError: one of them is unknown, or says what it cannot.
    """
    defaults = {field.name: field.default for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for name, text in parameters.items():
        require(name in defaults, f"{name!r} is no parameter of this page; {nearest(name, list(defaults))}")
        default = defaults[name]
        if isinstance(default, bool):
            values[name] = text not in ("", "0", "false")
        elif text:
            values[name] = _value(name, text, default)
    return kind(**values)


def _text(value: Any) -> Any:
    return ",".join(value) if isinstance(value, tuple) else int(value) if isinstance(value, bool) else value


def _value(name: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        return tuple(filter(None, text.split(",")))
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{name} = {text!r} is no number; give one")
    return value
