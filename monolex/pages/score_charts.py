"""Pictures of the paper's figures on explanations: scores with intervals over layers, sizes or steps, and chance."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from monolex.artifact import SUBJECT
from monolex.interp.config import FigureConfig
from monolex.interp.score import curves, figures
from monolex.interp.score.comparable import ComparableScores, Facts, ScoreSource, explainers_of
from monolex.kinds import TOPK, colour
from monolex.pages.axis import Axis, axis
from monolex.pages.eval_charts import CONTROL_VARIANTS
from monolex.pages.html import estimate, interval, number
from monolex.pages.picture import Panel, Picture
from monolex.pages.svg import COLOURS, NONE, Point, Series, span

TRAINED_MARKERS = ("circle", "square", "triangle", "hexagon", "cross", "diamond")
BASELINE_MARKERS = ("diamond", "cross", "square", "triangle", "hexagon", "circle")
SPREAD = 0.5
"""Width that the marks of one layer share, of the distance of two layers: their bars would cover each other."""
TICKS = 16
"""Layers that are named on an axis, at most."""
METRICS = {
    "top_and_random": "score on top and random fragments",
    "top": "score on top fragments",
    "random": "score on random fragments",
    "detection": "detection, balanced accuracy",
    "detection_auc": "detection, area under the curve",
    "fuzz": "fuzzing, balanced accuracy",
    "fuzz_auc": "fuzzing, area under the curve",
}
"""What a score is called on an axis; those of fragments are correlations."""
CHANCE = "chance: other features' explanations, range over dictionaries"
EVEN = "chance, by definition"
ACROSS = {"layer": "layer", "ratio": "size of the dictionary, d_sae / d_in", "step": "step of training"}


class Look(NamedTuple):
    """How a series is drawn."""

    colour: str
    """One of the palette."""
    marker: str
    """Its marks."""
    variant: str
    """Whether it is hollow or broken."""


def picture(figure: Facts) -> Picture:
    """The picture of a figure: a panel each, all on the same scale, and one legend."""
    shown = panels(figure["panels"])
    columns = min(2, len(shown)) if figure["figure"] in ("fig2", "fig9", "fig10", "fig18") else min(3, len(shown))
    return Picture(figure["figure"], figure["title"], tuple(shown), columns)


def pictures(content: Facts) -> list[Picture]:
    """What is drawn of one score artefact: a file for every kind of site, scores on all and on random fragments."""
    group = ComparableScores((ScoreSource("", Path(), content),))
    by_place: dict[str, list[Facts]] = {}
    for explainers, metric in product(explainers_of(group, FigureConfig()), ("top_and_random", "random")):
        chosen = curves.scored_by(group.dictionaries(), explainers, metric)
        for panel in figures.over_layers(chosen, metric):
            method = f"explainer {explainers[0]}, simulator {content['simulator']}, {content['mode']} protocol"
            by_place.setdefault(panel["place"], []).append({"title": method, **panel})
    title = "Automatic interpretation over layers"
    return [Picture(place, f"{title}, {place}", tuple(panels(planned))) for place, planned in by_place.items()]


def panels(planned: Iterable[Facts], width: int = 560, height: int = 380) -> list[Panel]:
    """Charts of panels of :mod:`monolex.interp.score.figures`, on one vertical scale and with the same looks."""
    planned = list(planned)
    look_of = looks(series for panel in planned for series in panel["series"])
    points = [point for panel in planned for series in panel["series"] for point in series["points"]]
    measured = [point for point in points if point["value"] is not None]
    ends = [end for point in measured for end in (point["value"], point["low"], point["high"]) if end is not None]
    ends += [level["value"] for panel in planned for level in panel["chance"]]
    scale = axis("", [0.0, *ends])
    drawn = []
    for panel in planned:
        x, y = _scale(panel), dataclasses.replace(scale, label=METRICS[panel["metric"]])
        series = _chance(panel, x)
        for i, each in enumerate(panel["series"]):
            series += _curves(panel, i, look_of[each["label"]])
        drawn.append(Panel(panel["title"], tuple(series), x, y, width, height))
    return drawn


def looks(listed: Iterable[Facts]) -> dict[str, Look]:
    """A look for every label, no two alike while there are enough: colour is the kind, a broken line another model."""
    chosen: dict[str, Look] = {}
    for series in listed:
        if series["label"] in chosen:
            continue
        kind, shade = series["kind"], colour(series["kind"])
        markers = list(TRAINED_MARKERS if series["trained"] else BASELINE_MARKERS)
        if kind.endswith(TOPK):
            markers = ["cross", *(marker for marker in markers if marker != "cross")]
        control = series["model"] != SUBJECT
        variant = CONTROL_VARIANTS.get(series["model"], "dashed") if control else "open" if kind.endswith("-pm") else ""
        first = Look(shade, markers[0], variant)
        # the kind's own colour with every marker comes first: another colour would say another kind
        others = (Look(c, m, variant) for c, m in product((shade, *COLOURS), markers))
        chosen[series["label"]] = next((look for look in others if look not in chosen.values()), first)
    return chosen


def counted(counts: Mapping[str, int]) -> str:
    """Counts with their reasons.

    >>> counted({"too few": 2, "constant": 1}), counted({"too few": 2})
    ('3 (too few: 2, constant: 1)', '2 (too few)')
    """
    said = [f"{reason}: {n:,}" for reason, n in counts.items()] if len(counts) > 1 else list(counts)
    return f"{sum(counts.values()):,} ({', '.join(said)})" if counts else "0"


def _curves(panel: Facts, i: int, look: Look) -> list[Series]:
    """A series, in pieces where a point between two others has no value."""
    series = panel["series"][i]
    shift = 0.0 if panel["x"] != "layer" else SPREAD * ((i + 0.5) / len(panel["series"]) - 0.5)
    pieces: list[list[Point]] = [[]]
    for point in series["points"]:
        if point["value"] is None:
            pieces.append([])
        elif point["x"] is not None:
            pieces[-1].append(Point(point["x"] + shift, point["value"], _said(series, point), y_interval=span(point)))
    joined = panel["x"] != "ratio" or series["trained"]
    return [Series(series["label"], tuple(points), *look[:2], joined, look.variant) for points in pieces if points]


def _said(series: Facts, point: Facts) -> str:
    parts = [series["label"], f"{point['site']}/{point['name']}", f"score {estimate(point)}"]
    parts += [f"chance {estimate(point['chance'])}"] if point["chance"] else []
    parts += [f"{point['n']:,} features scored of {point['explained']:,} explained, {point['asked']:,} asked for"]
    parts += [f"skipped {counted(point['skipped'])}"] if point["skipped"] else []
    parts += [f"without a score {counted(point['missing'])}"] if point["missing"] else []
    parts += [f"{point['constant']:,} of them say nothing: 0 in the mean"] if point.get("constant") else []
    return "\n".join(parts)


def _chance(panel: Facts, x: Axis) -> list[Series]:
    """The level of chance as a line with its range, or from end to end where there is one x alone."""
    levels, metric = panel["chance"], panel["metric"]
    measured = metric in curves.CHANCE
    points = [
        Point(level["x"], level["value"], f"{CHANCE}\n{estimate(level)}", y_interval=(level["low"], level["high"]))
        if measured
        else Point(level["x"], level["value"])
        for level in levels
    ]
    if len(points) == 1:
        points = [Point(end, points[0].y) for end in (x.low, x.high)]
    return [Series(CHANCE if measured else EVEN, tuple(points), "ink", NONE, variant="dotted")] if points else []


def _scale(panel: Facts) -> Axis:
    """The horizontal scale of a panel: layers by number, sizes and steps in the logarithm."""
    known = [point["x"] for series in panel["series"] for point in series["points"] if point["x"] is not None]
    if panel["x"] != "layer":
        return axis(ACROSS[panel["x"]], known, log=True)
    low, high = min(known, default=0), max(known, default=0)
    every = math.ceil((high - low + 1) / TICKS)
    names = tuple((float(layer), str(layer)) for layer in range(low, high + 1, every))
    return Axis(ACROSS["layer"], low - 0.5, high + 0.5, names=names)


def words(difference: Facts) -> tuple[str, str]:
    """What a difference says, and its interval in the same sense: never more than the numbers do.

    >>> words({"value": -0.12, "low": -0.16, "high": -0.08, "reason": ""})
    ('below by 0.120', '[0.0800, 0.160]')
    >>> words({"value": 0.02, "low": -0.01, "high": 0.05, "reason": ""})
    ('no clear difference', '0.0200 [−0.0100, 0.0500]')
    """
    value, low, high = (difference[name] for name in ("value", "low", "high"))
    if value is None:
        return "n/a", ""
    if low is None or high is None:
        return re.sub(r"^(?=\d)", "+", number(value)), ""
    if low > 0:
        return f"above by {number(value)}", interval(low, high)
    if high < 0:
        return f"below by {number(-value)}", interval(-high, -low)
    return "no clear difference", f"{number(value)} {interval(low, high)}"


def tally(differences: Sequence[Facts]) -> dict[str, int]:
    """How many are above, below and neither, and how many have no interval."""
    counts = {"above": 0, "below": 0, "no clear difference": 0, "without an interval": 0}
    for difference in differences:
        said = words(difference)[0]
        known = next((name for name in counts if said.startswith(name)), "without an interval")
        counts[known] += 1
    return counts
