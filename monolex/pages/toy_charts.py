"""Pictures of a toy artefact: the four heat-maps, kinds beside each other, and curves of superposition."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monolex.kinds import colour
from monolex.pages.axis import Axis, axis
from monolex.pages.heat import heat
from monolex.pages.html import number
from monolex.pages.picture import Panel, Picture
from monolex.pages.svg import Point, Series, span

Facts = Mapping[str, Any]
DEAD_MOST = 100
"""Dead features from which on the heat-map has one shade."""
MAPS = {
    "mmcs": "MMCS of the known features to the learned ones",
    "dead": f"Dead features, counted up to {DEAD_MOST}",
    "mse": "Mean squared error",
    "larger": "MMCS with larger dictionaries of the same l1",
}
"""The four heat-maps, by what a cell calls them."""
SCORES = {"f1": "F1", "mmcs": "MMCS", "recovered": "share recovered (cosine > .9)", "fvu": "FVU"}
"""What kinds are compared by."""
TREES = {"absorption": "absorption", "leaning": "leaning on the parent", "splitting": "splitting"}
"""What they are compared by where features have parents."""
MARKERS = ("circle", "square", "triangle", "hexagon", "cross", "diamond")


def pictures(artefact: Facts) -> list[Picture]:
    """What is drawn of an artefact, a file each."""
    drawn = [*_maps(artefact["grid"])] if artefact["grid"] else []
    for data in dict.fromkeys(row["data"] for row in artefact["kinds"]):
        rows = [row for row in artefact["kinds"] if row["data"] == data]
        shown = {**SCORES, **(TREES if any(row["metrics"]["absorption"]["value"] is not None for row in rows) else {})}
        panels = tuple(bars(rows, metric, label) for metric, label in shown.items())
        drawn.append(Picture(f"kinds-{data}", f"Kinds on {data} data, with intervals over seeds", panels, legend=False))
    if artefact["superposition"]:
        panels = tuple(curve(artefact["superposition"], metric, SCORES[metric]) for metric in ("recovered", "f1"))
        drawn.append(Picture("superposition", "What comes back as features outnumber dimensions", panels))
    return drawn


def _maps(cells: Sequence[Facts]) -> Iterator[Picture]:
    """A picture a heat-map, a panel for every sort of data and kind."""
    groups = dict.fromkeys((cell["data"], cell["kind"]) for cell in cells)
    for metric, title in MAPS.items():
        values = [cell[metric] for cell in cells if cell[metric] is not None]
        ends = {"dead": (0.0, float(DEAD_MOST)), "mse": (0.0, max(values, default=1.0) or 1.0)}.get(metric, (0.0, 1.0))
        panels = tuple(heat_map(cells, data, kind, metric, ends) for data, kind in groups)
        yield Picture(f"grid-{metric}", title, panels)


def heat_map(cells: Sequence[Facts], data: str, kind: str, metric: str, ends: tuple[float, float]) -> Panel:
    """One metric over l1 and size."""
    mine = {(cell["size"], cell["l1"]): cell[metric] for cell in cells if (cell["data"], cell["kind"]) == (data, kind)}
    sizes, coefficients = (sorted({key[place] for key in mine}) for place in (0, 1))
    values = [[mine.get((size, l1)) for l1 in coefficients] for size in sizes]
    every = 1 if len(coefficients) < 10 else 2
    names = ["" if place % every else f"{l1:.3g}" for place, l1 in enumerate(coefficients)]
    across, up = ("l1", names), ("learned over known features", [f"{size:g}" for size in sizes])
    return heat(f"{data}, {kind}", values, across, up, ends, told=_told(metric))


def _told(metric: str) -> Any:
    return (lambda value: f"{value:.0f}") if metric == "dead" else number


def bars(rows: Sequence[Facts], metric: str, label: str) -> Panel:
    """A bar a kind, with its interval."""
    valued = [row for row in rows if row["metrics"][metric]["value"] is not None]
    count = len(valued)
    series = []
    for place, row in enumerate(valued):
        estimate = row["metrics"][metric]
        about = f"{row['name']}\n{label} {number(estimate['value'])}, L0 {number(row['metrics']['l0']['value'])}"
        point = Point(estimate["value"], count - 1 - place, about, span(estimate))
        series.append(Series(row["name"], (point,), colour(row["name"]), "bar", joined=False))
    ends = [end for s in series for p in s.points for end in (p.x, *(p.x_interval or ()))]
    across = Axis(label, 0, 1) if metric in SCORES else axis(label, [0.0, *ends])
    names = tuple((count - 1 - place, row["name"]) for place, row in enumerate(valued))
    up = Axis("", -0.6, max(count, 1) - 0.4, names=names)
    return Panel(label, tuple(series), across, up, 480, 60 + 19 * max(count, 1))


def curve(rows: Sequence[Facts], metric: str, label: str) -> Panel:
    """A line a kind over known features by dimension."""
    series = []
    for place, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        points = []
        for row in (row for row in rows if row["name"] == name and row["metrics"][metric]["value"] is not None):
            estimate = row["metrics"][metric]
            about = f"{name}\n{row['crowding']:g} features a dimension\n{label} {number(estimate['value'])}"
            points.append(Point(row["crowding"], estimate["value"], about, None, span(estimate)))
        variant = {"known": "dashed", "frozen-decoder": "dotted"}.get(name, "")
        series.append(Series(name, tuple(points), colour(name), MARKERS[place % len(MARKERS)], variant=variant))
    across = axis("known features over dimensions", [p.x for s in series for p in s.points], log=True)
    return Panel(label, tuple(series), across, Axis(label, 0, 1))
