"""The page and the pictures of a toy artefact, beside its numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import WARNINGS, Manifest, open_artifact, read_json, write_bytes
from monolex.pages import html, svg, toy_charts
from monolex.pages.html import number, short
from monolex.pages.picture import Picture, svg_file
from monolex.pages.png import png
from monolex.pages.tables import Column, Row, Table, bare, table

PAGE = "toy.html"
GUIDES = {
    "grid": (
        "L1 and size",
        "The grid of the work that the paper grew out of. Every cell is one dictionary: across, the coefficient of L1 "
        "in that work's convention (MSE + l1 · Σ|c| / n); up, learned over known features. A known feature counts as "
        "recovered where a learned one has a cosine above .9 with it.",
    ),
    "kinds": (
        "Kinds at one L0",
        "Every learned feature says that a known one is present where its code is not 0. F1 of a known feature is that "
        "of the learned one that does best on one half of the rows, on the other half; the mean is over the known ones "
        "within reach, the most frequent ones, as many as are learned. Kinds that take an L1 coefficient have the one "
        "that leads to the L0 of the others, as near as a search found it: look at their L0. “known” is handed the "
        "features and only has to tell which are present, as a TopK; that is no ceiling, for an encoder of its own can "
        "learn to look past what other features add to a direction.",
    ),
    "superposition": (
        "As features outnumber dimensions",
        "As many features are learned as are known, all equally frequent; a row holds the same number of them however "
        "many there are.",
    ),
}
COLUMNS = (
    Column("f1", "F1", "of the best detector of every known feature"),
    Column("f1_nearest", "F1, nearest", "of the learned feature with the largest cosine"),
    Column("mmcs", "MMCS", "mean over known features of the largest cosine"),
    Column("recovered", "recovered", "share of known features with a cosine above .9"),
    Column("l0", "L0", "active features of a row"),
    Column("fvu", "FVU", "unexplained variance"),
    Column("dead", "dead", "share of learned features that are never active"),
    Column("splitting", "splitting", "share of learned features beyond one a nearest known feature"),
)
TREES = (
    Column("absorption", "absorption", "how much more often a parent is missed where a child is present"),
    Column("leaning", "leaning", "mean cosine of a child's learned row with its parent's direction"),
)
CELLS = ("mmcs", "recovered", "dead", "mse", "l0", "larger")


def draw(folder: Path) -> list[Path]:
    """Write ``toy.html`` and the pictures as SVG and PNG beside ``toy.json``; their paths, the page first."""
    folder = Path(folder)
    manifest, content = open_artifact(folder, "toy"), read_json(folder / "toy.json")
    pictures, paths = toy_charts.pictures(content), [folder / PAGE]
    for picture in pictures:
        for ending, write in ((".svg", svg_file), (".png", png)):
            paths.append(folder / f"toy-{picture.name}{ending}")
            write_bytes(paths[-1], write(picture))
    for stale in {*folder.glob("toy-*.svg"), *folder.glob("toy-*.png")} - set(paths):
        stale.unlink()
    write_bytes(paths[0], page(content, pictures, manifest).encode())
    return paths


def page(content: Mapping[str, Any], pictures: Sequence[Picture], manifest: Manifest) -> str:
    """One self-contained page."""
    tables = {"grid": _cells, "kinds": _compared, "superposition": _compared}
    parts = [
        {
            "key": key,
            "heading": heading,
            "guide": guide,
            "pictures": [_picture(picture) for picture in pictures if picture.name.startswith(key)],
            "tables": tables[key](key, content[key]),
        }
        for key, (heading, guide) in GUIDES.items()
        if content[key]
    ]
    worlds = [{"data": world["data"], "said": _said(world)} for world in content["worlds"]]
    warnings = [("kinds", sentence) for sentence in manifest.data[WARNINGS]]
    return html.page("toy.html", preset=manifest.config["preset"], worlds=worlds, parts=parts, warnings=warnings)


def _said(world: Mapping[str, Any]) -> str:
    family = f", {world['children']:,} of them with a parent" if world["children"] else ""
    return (
        f"{world['features']:,} features{family} in {world['d_in']} dimensions; {number(world['present'])} are present "
        f"in a row, the most frequent one in {number(world['most'])} of all rows, the rarest in "
        f"{number(world['least'])}; hash {short(world['hash'])}"
    )


def _picture(picture: Picture) -> dict[str, Any]:
    legend = svg.legend(line for panel in picture.panels for line in panel.series) if picture.legend else ""
    return {
        "title": picture.title,
        "charts": [(panel.title, panel.chart()) for panel in picture.panels],
        "legend": legend,
    }


def _compared(key: str, rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    trees = any(row["metrics"]["absorption"]["value"] is not None for row in rows)
    groups: dict[str, list[tuple[str, Callable[[str], Row | None]]]] = {}
    for row in rows:
        label = row["data"] if row["crowding"] is None else f"{row['crowding']:g} features a dimension"
        groups.setdefault(label, []).append((row["name"], row["metrics"].get))
    return [table(key, "All numbers", "dictionary", (*COLUMNS, *(TREES if trees else ())), groups.items())]


def _cells(key: str, cells: Sequence[Mapping[str, Any]]) -> list[Table]:
    groups: dict[str, list[tuple[str, Callable[[str], Row | None]]]] = {}
    for cell in cells:
        label = f"{cell['data']}, {cell['kind']}, {cell['size']:g} learned a known feature"
        groups.setdefault(label, []).append((f"l1 {cell['l1']:.3g}", _of_cell(cell)))
    columns = [Column(name, name, whole=name == "dead") for name in CELLS]
    return [table(key, "All cells", "dictionary", columns, groups.items())]


def _of_cell(cell: Mapping[str, Any]) -> Callable[[str], Row | None]:
    return lambda name: bare(cell[name], "there is no larger one")
