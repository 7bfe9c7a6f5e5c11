"""One page of all figures: the paper's claim beside what the run shows; what is missing, and what would make it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monolex.artifact import Manifest, read_json
from monolex.interp.score.comparable import ComparableScores, sources
from monolex.pages import html, svg, tokens
from monolex.pages.eval_charts import entries
from monolex.pages.picture import Diagram, Drawing, Picture
from monolex.pages.sheets import Grid
from monolex.report import run_facts, score_section
from monolex.report.page import PAGE, evaluation_notice, finished, measured_folders, warnings_of
from monolex.report.paper.catalog import CATALOG
from monolex.report.paper.figure import VERDICTS, Facts, PaperFigure, ReadOff
from monolex.report.section import notice

MISSING = "not drawn"
NARROW = 420
"""Width of panels of which three stand beside each other."""
TOLD = {"cannot say": "without a verdict", "no claim": "without a claim"}
"""Verdicts as the first sentence counts them."""
LONG = 44
"""Letters of a cell that may break."""


def page(
    run: Path,
    folder: Path,
    contents: Mapping[str, Facts],
    readings: Mapping[str, ReadOff],
    missing: Mapping[str, str],
) -> str:
    """The page of the figures in ``folder``: their numbers, what those say, and why others are missing, by name."""
    manifests = dict(finished(run, damaged=False))
    activations = manifests.get("activations")
    shown = []
    for row in CATALOG:
        if row.name in contents:
            content, reading = contents[row.name], readings[row.name]
            shown.append(_drawn(row, content, reading) | {"notices": _notices(run, content, manifests)})
        else:
            shown.append(_missing(row, missing[row.name]))
    home = f"../{PAGE}" if folder.parent == run and (run / PAGE).exists() else ""
    counts = {TOLD.get(name, name): sum(r.verdict == name for r in readings.values()) for name in VERDICTS}
    return html.page(
        "figures.html",
        run=run.resolve().name,
        model=run_facts.subject(activations, ())["model"],
        home=home,
        figures=shown,
        counts=[(word, count) for word, count in counts.items() if count],
        drawn=len(contents),
        facts=run_facts.facts(activations),
        warnings=warnings_of(manifests),
    )


def _drawn(row: PaperFigure, content: Facts, reading: ReadOff) -> dict[str, Any]:
    """A section of a figure that could be drawn."""
    tables = [_table(f"{row.name}-table-{i}", grid) for i, grid in enumerate(row.tables(content), 1)]
    pictures = row.pictures(content)
    files = [f"{row.name}.json", *(f"{p.name}{ending}" for p in pictures for ending in (".svg", ".png"))]
    return {
        **_head(row),
        "verdict": VERDICTS[reading.verdict],
        "kind": reading.verdict.replace(" ", "-"),
        "said": reading.said,
        "here": reading.setting,
        "pictures": [] if tables else [_picture(picture) for picture in pictures],
        "tables": tables,
        "grids": [_table(f"{row.name}-read-{i}", grid) for i, grid in enumerate(reading.grids, 1)],
        "files": files,
    }


def _missing(row: PaperFigure, reason: str) -> dict[str, Any]:
    """A section of a figure that could not."""
    head = {
        **_head(row),
        "verdict": MISSING,
        "kind": "missing",
        "said": [f"This run cannot say: {reason}."],
        "here": "",
    }
    return head | {"pictures": [], "tables": [], "grids": [], "files": [], "notices": []}


def _head(row: PaperFigure) -> dict[str, Any]:
    names = ("number", "title", "claim", "tested", "setting", "needs", "way")
    return {"key": row.name, **{name: getattr(row, name) for name in names}}


def _picture(picture: Drawing) -> dict[str, Any]:
    """A picture as the report shows one: charts and a legend, or a diagram that may be scrolled."""
    if isinstance(picture, Picture):
        legend = svg.legend(curve for panel in picture.panels for curve in panel.series)
        charts = [(panel.title, panel.chart()) for panel in picture.panels]
        wide = "pair" if picture.panels[0].width > NARROW else "panels"
        return {"title": picture.title, "charts": charts, "legend": legend, "diagram": "", "class": wide}
    assert isinstance(picture, Diagram)
    return {"title": picture.title, "charts": [], "legend": "", "diagram": picture.chart(), "class": ""}


def _table(key: str, grid: Grid) -> dict[str, Any]:
    """A table whose cells show every character."""
    cells = [[(_lines(cell), any(len(line) > LONG for line in cell.split("\n"))) for cell in row] for row in grid.rows]
    heads = [_lines(head) for head in grid.heads]
    return {"key": key, "caption": grid.caption, "heads": heads, "rows": cells, "notes": grid.notes}


def _lines(cell: str) -> Markup:
    return Markup("<br>").join(tokens.line(line) for line in cell.split("\n"))


def _notices(run: Path, content: Facts, manifests: Mapping[str, Manifest]) -> list[str]:
    """What the artefacts of a figure do not agree with any more, a sentence each."""
    said: list[str] = []
    for path in content["made_of"]:
        kind, _, name = path.partition("/")
        if kind == "score":
            said += score_section.notices(run, ComparableScores(tuple(sources(run, [name]))), ())
        elif kind in ("patch", "ablate", "tree"):
            said.append(notice(run, manifests[path], manifests))
        elif path == "eval":
            said.append(_evaluation(run, manifests))
    return [sentence for sentence in dict.fromkeys(said) if sentence]


def _evaluation(run: Path, manifests: Mapping[str, Manifest]) -> str:
    measured = measured_folders(entries(read_json(run / "eval" / "metrics.json")))
    return evaluation_notice(manifests["eval"], measured, manifests, None)
