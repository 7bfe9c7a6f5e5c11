"""Pages that take time: features, and pairs of dictionaries; processes beside each other draw them.

A page of a feature is what the server draws. Some of them share a shard, and one page shows each by its address.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from monolex.artifact import FileEntry
from monolex.errors import UserError
from monolex.explorer.draw import drawn, tools
from monolex.explorer.explorer import Explorer
from monolex.explorer.export.links import ExportLinks
from monolex.explorer.export.shards import packed, shard_path, write
from monolex.explorer.export.short_marks import shortened
from monolex.explorer.views.compare import compare
from monolex.explorer.views.feature import feature
from monolex.explorer.views.matches import LIKE, matches
from monolex.pages import html

TOGETHER = 8
"""Numbers of features that share a shard: few files, and a page still loads little that it does not show."""


@lru_cache(1)
def opened(run: Path) -> Explorer:
    """The run, opened once a process."""
    return Explorer([run])


def feature_shard(
    run: Path, root: Path, key: str, shard: int, links: ExportLinks, compared: bool
) -> tuple[str, FileEntry]:
    """Write a shard of features; ``compared``: with what is like each elsewhere."""
    explorer, name = opened(run), f"feature/{key}/{shard}"
    numbers = [n for n in range(shard * TOGETHER, (shard + 1) * TOGETHER) if n in links.numbers[key]]
    shown = {str(number): main_part(explorer, key, number, links, compared) for number in numbers}
    return write(root, shard_path(name), packed(name, shown))


def main_part(explorer: Explorer, key: str, number: int, links: ExportLinks, compared: bool) -> dict[str, Any]:
    """Title and content of the page of a feature, and what its short marks are relative to."""
    page = feature(explorer, key, number)
    context: dict[str, Any] = {**page.data, **page.draw(links), "least": LIKE, **tools(links)}
    context["matches"] = _matches(explorer, key, number) if compared else None
    summary = page.data["evidence"].summary
    # colours that a rounded bound would change are written
    bounds = float(f"{summary.max:.4g}"), float(f"{summary.min:.4g}")
    drawn_part = shortened(html.page("explorer/feature_main.html", **context), *bounds)
    return {"title": page.title, "html": drawn_part, "bounds": bounds}


def compare_page(run: Path, root: Path, first: str, second: str, links: ExportLinks) -> tuple[str, FileEntry]:
    """Write the page of two dictionaries."""
    explorer, path = opened(run), f"compare/{first}-{second}.html"
    page = compare(explorer, {"a": first, "b": second})
    return write(root, path, drawn(explorer, page, path, links.seen_from(path)).encode())


def _matches(explorer: Explorer, key: str, number: int) -> list[dict[str, Any]] | None:
    """None where the weights of the dictionary are gone."""
    try:
        return matches(explorer, key, number).data["matches"]
    except UserError:
        return None
