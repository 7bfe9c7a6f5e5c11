"""Tables as pictures: the paper's tables on explanations, set in columns as wide as what stands in them."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from monolex.interp.score.comparable import Facts
from monolex.interp.score.tables import MOMENTS
from monolex.pages.html import estimate
from monolex.pages.picture import EDGE, Sheet, Writing
from monolex.pages.png import legible
from monolex.pages.score_charts import METRICS, counted
from monolex.pages.tokens import plain

LETTER, LINE, PAD, BETWEEN = 7.1, 16.0, 18.0, 26.0
"""Width of a letter, about; height of a line; room between columns and between tables."""
LONGEST = 62
"""Letters in a line of a cell."""


class Grid(NamedTuple):
    """One table."""

    caption: str
    """What stands above it."""
    heads: tuple[str, ...]
    """Names of its columns."""
    rows: tuple[tuple[str, ...], ...]
    """A text a cell."""
    notes: tuple[str, ...] = ()
    """What stands below it."""


def sheet(tables: Facts) -> Sheet:
    """The picture of :func:`monolex.interp.score.tables.table`."""
    return drawn(tables["figure"], tables["title"], grids(tables))


def grids(tables: Facts) -> list[Grid]:
    """The cells of :func:`monolex.interp.score.tables.table`."""
    make = _examples if tables["figure"] == "table1" else _moments
    return [make(each, tables["metric"]) for each in tables["tables"]]


def drawn(name: str, title: str, grids: Sequence[Grid]) -> Sheet:
    """Tables below each other."""
    writings: list[Writing] = []
    rules: list[tuple[float, float, float]] = []
    y, right = 8.0, EDGE + LETTER * len(title) * 1.3
    for grid in grids:
        y, wide = _set(grid, y, writings, rules)
        right = max(right, wide)
    return Sheet(name, title, tuple(writings), tuple(rules), right + EDGE, y)


def _set(grid: Grid, y: float, writings: list[Writing], rules: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Set one table from ``y`` down; its lower and its right end."""
    cells = [[_wrapped(text) for text in row] for row in (grid.heads, *grid.rows)]
    widths = [LETTER * max(len(line) for row in cells for line in row[i]) + PAD for i in range(len(grid.heads))]
    starts = [EDGE + sum(widths[:i]) for i in range(len(widths))]
    right = EDGE + sum(widths)
    for line in textwrap.wrap(legible(grid.caption), max(LONGEST, int((right - EDGE) / LETTER / 1.1))):
        writings.append(Writing(EDGE, y + 12, line, "head"))
        y += LINE
    for i, row in enumerate(cells):
        tall = LINE * max(len(lines) for lines in row)
        for x, lines in zip(starts, row, strict=True):
            at = [(line, y + 18 + LINE * j) for j, line in enumerate(lines)]
            writings += [Writing(x, below, line, "label" if i else "tick") for line, below in at]
        y += tall + 8
        rules.append((EDGE, right - PAD, y))
    for note in grid.notes:
        for line in textwrap.wrap(legible(note), max(LONGEST, int((right - EDGE) / LETTER))):
            writings.append(Writing(EDGE, y + 15, line, "tick"))
            y += 14
    return y + BETWEEN, max([right, *(EDGE + LETTER * 1.1 * len(w.text) for w in writings if w.style == "head")])


def _wrapped(text: str) -> list[str]:
    """Lines of a cell: nothing in it is invisible, and letters that the type of PNGs has not are escapes."""
    lines = [line for part in text.split("\n") for line in textwrap.wrap(legible(plain(part)), LONGEST)]
    return lines or [""]


def _examples(shown: Facts, metric: str) -> Grid:
    several = len(shown["explainers"]) > 1
    heads = ("Feature", *["Explainer"] * several, "Explanation", METRICS[metric].capitalize(), "Chance")
    rows = [
        (
            str(row["feature"]),
            *[row["explainer"]] * several,
            _line(row["text"]),
            *map(estimate, (row["score"], row["chance"])),
        )
        for row in shown["rows"]
    ]
    skipped = f"{shown['explained']:,} of {shown['asked']:,} features explained; skipped: {counted(shown['skipped'])}."
    caption = f"{shown['site']}/{shown['name']}, the first features that were explained: {_scored_by(shown)}"
    return Grid(caption, heads, tuple(rows), (skipped, "Intervals resample documents."))


def _moments(shown: Facts, metric: str) -> Grid:
    heads = ("Dictionary", "Features", *(f"{moment.capitalize()}:\nPearson, Spearman" for moment in MOMENTS))
    pooled = {(row["method"], row["site"]) for row in shown["rows"] if row["name"] is None}
    rows = []
    for row in shown["rows"]:
        place = row["site"].partition(".")[0]
        if row["name"] is not None and (row["method"], f"{place}.*") in pooled:
            continue
        name = f"{row['method']}, {f'all of {place}' if row['name'] is None else row['site']}"
        missing = sum(row["missing"].values())
        cells = ["\n".join(estimate(row["moments"][m][kind]) for kind in ("pearson", "spearman")) for m in MOMENTS]
        counts = f"{row['features']:,}" + (f", {missing:,} without a score" if missing else "")
        rows.append((name, counts, *cells))
    level, resamples, seed = (shown["bootstrap"][name] for name in ("level", "resamples", "seed"))
    note = f"Intervals of {level:.0%}: {resamples:,} bootstrap resamples of features, seed {seed}."
    said = "Skew and kurtosis are about zero. Rows of several sites lay their features beside each other"
    said += "; the rows of their dictionaries are in the JSON file." if pooled else "."
    return Grid(f"{METRICS[metric].capitalize()}: {_scored_by(shown)}", heads, tuple(rows), (f"{note} {said}",))


def _scored_by(shown: Facts) -> str:
    who = " and ".join(shown["explainers"])
    return f"explainer {who}, simulator {shown['simulator']}, {shown['mode']} protocol ({', '.join(shown['scores'])})"


def _line(text: str | None) -> str:
    """An explanation in one piece, its own line breaks seen."""
    return "(no explanation)" if text is None else plain(text) or "(no words: no line of its rule is strong)"
