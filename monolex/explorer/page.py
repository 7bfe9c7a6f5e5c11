"""A page and its twin: the same values, once drawn and once as JSON."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from monolex.explorer.links import Links


class Page(NamedTuple):
    """What a view says."""

    template: str
    """Which draws it, under ``explorer/``."""
    title: str
    """Of the browser's window."""
    data: Mapping[str, Any]
    """All of it; :func:`~monolex.answers.as_json` makes the twin of it."""
    draw: Callable[[Links], Mapping[str, Any]] = lambda _links: {}
    """What the template needs beside ``data``: charts and other markup."""
