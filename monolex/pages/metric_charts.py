"""Any measurement over layers or sizes: marks with intervals, a series a method, and levels to compare with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monolex.pages.axis import Axis, axis
from monolex.pages.html import estimate
from monolex.pages.picture import Panel, Picture
from monolex.pages.score_charts import SPREAD, TICKS, Look, looks
from monolex.pages.svg import NONE, Point, Series, span

Facts = Mapping[str, Any]
LEVELS = ("dotted", "dashed")
"""Looks of the levels of a panel, in their order."""
ACROSS = {"layer": "layer", "ratio": "size of the dictionary, d_sae / d_in", "l0": "L0, active features an activation"}


def picture(name: str, title: str, panels: Sequence[Facts]) -> Picture:
    """The picture of panels ``{title, x, y, log, high, series, levels}``, in one look; beyond ``high`` are arrows."""
    look_of = looks(series for panel in panels for series in panel["series"])
    drawn = tuple(_panel(panel, look_of) for panel in panels)
    return Picture(name, title, drawn, min(3 if len(drawn) > 4 else 2, max(1, len(drawn))))


def _panel(panel: Facts, look_of: Mapping[str, Look]) -> Panel:
    known = [point for series in panel["series"] for point in series["points"] if point["value"] is not None]
    levels = [level for level in panel["levels"] if level["value"] is not None]
    ends = [end for point in known for end in (point["value"], point["low"], point["high"]) if end is not None]
    ends += [level["value"] for level in levels]
    x = _across(panel, [point["x"] for point in known])
    values = ends if panel["log"] else [0.0, *ends]
    high = panel["high"] if panel["high"] is not None and max(values, default=0.0) > panel["high"] else None
    y = axis(panel["y"], values, log=panel["log"], high=high)
    series = [
        Series(level["label"], tuple(Point(end, level["value"]) for end in (x.low, x.high)), "ink", NONE, variant=look)
        for level, look in zip(levels, LEVELS, strict=False)
    ]
    for i, each in enumerate(panel["series"]):
        shift = SPREAD * ((i + 0.5) / len(panel["series"]) - 0.5) if panel["x"] == "layer" else 0.0
        series += _curve(each, shift, look_of[each["label"]])
    return Panel(panel["title"], tuple(series), x, y, 560, 380)


def _curve(series: Facts, shift: float, look: Look) -> list[Series]:
    """A series of marks, joined where they are of one method at several places."""
    points = [
        Point(point["x"] + shift, point["value"], _said(series, point), y_interval=span(point))
        for point in series["points"]
        if point["value"] is not None
    ]
    joined = len({point.x for point in points}) == len(points)
    return [Series(series["label"], tuple(points), *look[:2], joined, look.variant)] if points else []


def _said(series: Facts, point: Facts) -> str:
    return f"{series['label']}\n{point['site']}/{point['name']}\n{estimate(point)}"


def _across(panel: Facts, values: Iterable[float]) -> Axis:
    known = list(values)
    if panel["x"] != "layer":
        return axis(ACROSS[panel["x"]], known, log=True)
    low, high = (int(end(known, default=0)) for end in (min, max))
    every = math.ceil((high - low + 1) / TICKS)
    names = tuple((float(layer), str(layer)) for layer in range(low, high + 1, every))
    return Axis(ACROSS["layer"], low - 0.5, high + 0.5, names=names)
