"""The chart of a stability artefact: how many features come back in how many of the other seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from monolex.kinds import colour
from monolex.pages.axis import Axis
from monolex.pages.picture import Panel, Picture
from monolex.pages.svg import Point, Series

Facts = Mapping[str, Any]
MARKERS = ("circle", "square", "triangle", "hexagon", "cross", "diamond")


def panel(dictionaries: Sequence[Facts], width: int = 530, height: int = 320) -> Panel:
    """Share of the features over the share of the other seeds in which they come back, a line a dictionary."""
    series = []
    for number, dictionary in enumerate(dictionaries):
        total, seeds = sum(dictionary["times"]) or 1, len(dictionary["times"]) - 1
        points = [
            Point(times / seeds, count / total, f"{dictionary['name']}\nback in {times} of {seeds}: {count:,} features")
            for times, count in enumerate(dictionary["times"])
        ]
        label = f"{dictionary['name']} at {dictionary['site']}"
        series.append(Series(label, tuple(points), colour(dictionary["kind"]), MARKERS[number % len(MARKERS)]))
    most = max((point.y for each in series for point in each.points), default=1.0)
    across, up = Axis("share of the other seeds in which it comes back", 0, 1), Axis("share of the features", 0, most)
    return Panel("How often features come back", tuple(series), across, up, width, height)


def pictures(artefact: Facts) -> list[Picture]:
    """What is drawn of an artefact, a file each."""
    caption = "features by how often a like one appears in dictionaries of other seeds"
    return [Picture("seeds", caption, (panel(artefact["dictionaries"]),))]
