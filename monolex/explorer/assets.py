"""The explorer's scripts and styles: files of the package by name, nothing else is served."""

import hashlib
from typing import NamedTuple

from monolex.pages.html import asset

MEDIA = {"css": "text/css", "js": "text/javascript"}


class Asset(NamedTuple):
    """A file as it is sent."""

    content: bytes
    """All of it."""
    media: str
    """Its type."""


STYLES = ("palette.css", "chart.css", "card.css", "report.css", "explorer.css")
"""In the order in which they apply, as one style sheet."""
SCRIPTS = ("explorer.js", "live.js", "tables.js")


def _assets() -> dict[str, Asset]:
    # charts' classes are short names, which apply inside class="monolex" only
    parts = [f":where(.monolex) {{\n{asset(n)}}}\n" if n == "chart.css" else str(asset(n)) for n in STYLES]
    files = {"explorer.css": "".join(parts), **{name: str(asset(name)) for name in SCRIPTS}}
    return {name: Asset(text.encode(), MEDIA[name.rpartition(".")[2]]) for name, text in files.items()}


ASSETS = _assets()
"""By name."""
VERSION = hashlib.sha256(b"".join(each.content for each in ASSETS.values())).hexdigest()[:12]
"""Changes when any of them does, so that a browser may keep them for ever."""
