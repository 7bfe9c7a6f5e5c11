"""A page and its twin: the same values, once drawn and once as JSON."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monolex.explorer.links import Links


class Page(NamedTuple):
    """What a view says."""

    template: str
    """Which draws it, under ``explorer/``."""
    title: str
    """Of the browser's window."""
    data: Mapping[str, Any]
    """All of it; :func:`plain` makes the twin of it."""
    draw: Callable[[Links], Mapping[str, Any]] = lambda _links: {}
    """What the template needs beside ``data``: charts and other markup."""


def plain(value: Any) -> Any:
    """A value as JSON holds it: records are objects, arrays lists, and a number that is none is null."""
    if hasattr(value, "_asdict"):
        return {name: plain(inner) for name, inner in value._asdict().items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
