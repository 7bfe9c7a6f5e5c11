"""The report's charts: which dictionary gets which colour and marker, frontiers over L0, density histograms.

The look is decided once a page over all its dictionaries, so that a colour means the same at every site. Colour is
the kind (a family of baselines shares one), the marker tells kinds and widths apart without colour, and a broken line
means that a control model lies underneath.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from markupsafe import Markup

from monolex.artifact import SUBJECT
from monolex.kinds import BASELINES, KINDS, TOPK, colour
from monolex.pages.axis import Axis, axis
from monolex.pages.histogram import histogram
from monolex.pages.html import estimate
from monolex.pages.svg import Point, Series, plot, span
from monolex.pages.tables import Row

TRAINED_MARKERS = ("circle", "square", "triangle", "hexagon")
CONTROL_VARIANTS = {"random": "dashed", "shuffled": "dotted"}
CONTROL_LABELS = {"random": "randomly initialised model", "shuffled": "model with shuffled weights"}
ARROW_ROOM = 0.25
UNKNOWN = " (a kind unknown here)"
"""What follows the name of a kind that this version does not know."""


def control_label(model: str) -> str:
    """What a control model is called in words."""
    return CONTROL_LABELS.get(model, model)


def title(dictionary: Mapping[str, Any]) -> str:
    """What a dictionary is called beside others of its site, by its ``model`` and ``name``."""
    name, model = dictionary["name"], dictionary["model"]
    return name if model == SUBJECT else f"{name} of the {control_label(model)}"


@dataclass(frozen=True)
class EvaluatedDictionary:
    """One evaluated dictionary (or reference, pair or group of seeds) with its rows of metrics.json by metric."""

    head: Row
    """What identifies it, as any of its rows does."""
    rows: dict[str, Row] = field(default_factory=dict)
    """By flat metric name."""

    @property
    def model(self) -> str:
        """`subject`, or the control model it was trained on."""
        return self.head["model"]

    @property
    def site(self) -> str:
        """Where its activations were read."""
        return self.head["site"]

    @property
    def name(self) -> str:
        """Unique within model and site; of a pair, both names."""
        return f"{self.head['name']} and {self.head['other']}" if self.head["other"] else self.head["name"]

    @property
    def kind(self) -> str:
        """Of the dictionary."""
        return self.head["kind"]

    @property
    def target(self) -> str:
        """The site that a transcoder reconstructs; nothing of any other."""
        return self.head.get("target") or ""

    @property
    def key(self) -> str:
        """Its name in densities.safetensors."""
        return f"{self.model}/{self.site}/{self.name}"

    @property
    def single(self) -> bool:
        """Whether it is one dictionary."""
        return bool(self.head["path"]) and not self.head["other"]

    @property
    def trained(self) -> bool:
        """Whether it is one dictionary trained by gradient descent."""
        return self.single and self.kind in KINDS

    @property
    def baseline(self) -> bool:
        """Whether it is one baseline."""
        return self.single and self.kind in BASELINES

    @property
    def curve(self) -> tuple[Any, ...]:
        """Dictionaries that differ only in their sparsity share a curve."""
        source = str(PurePosixPath(self.head["path"]).parent)
        return (self.model, self.site, self.target, source, *(self.head[f] for f in ("kind", "ratio", "seed", "lr")))

    def value(self, metric: str) -> float | None:
        """The number, if there is one."""
        row = self.rows.get(metric)
        return row["value"] if row else None


def entries(rows: Iterable[Row]) -> list[EvaluatedDictionary]:
    """Rows of metrics.json gathered by what they are about, in order of first appearance."""
    dictionaries: dict[tuple[Any, ...], EvaluatedDictionary] = {}
    for row in rows:
        key = tuple(row[f] for f in ("model", "site", "path", "name", "other"))
        dictionaries.setdefault(key, EvaluatedDictionary(row)).rows[row["metric"]] = row
    return list(dictionaries.values())


class Looks:
    """Label, colour and marker of every curve of a page."""

    def __init__(self, shown: Sequence[EvaluatedDictionary]) -> None:
        widths = {(e.kind, e.head["ratio"]) for e in shown if e.trained}
        order = sorted(widths, key=lambda kind_ratio: (list(KINDS).index(kind_ratio[0]), kind_ratio[1] or 0))
        self._markers = {width: TRAINED_MARKERS[i % len(TRAINED_MARKERS)] for i, width in enumerate(order)}
        self._one_width = len({ratio for _, ratio in widths}) <= 1

    def series(self, entry: EvaluatedDictionary, points: Iterable[Point]) -> Series:
        """The series of the curve that ``entry`` belongs to."""
        control = "" if entry.model == SUBJECT else f" on the {control_label(entry.model)}"
        variant = "" if entry.model == SUBJECT else CONTROL_VARIANTS.get(entry.model, "dashed")
        if entry.trained:
            width = "" if self._one_width else f" R={entry.head['ratio']:g}"
            marker = self._markers[entry.kind, entry.head["ratio"]]
            label = entry.kind + width + (f" to {entry.target}" if entry.target else "") + control
            return Series(label, tuple(points), colour(entry.kind), marker, variant=variant)
        family, topk = BASELINES.get(entry.kind), entry.kind.endswith(TOPK)
        label = entry.kind + ("" if family else UNKNOWN) + control
        # a cross has nothing to hollow out, which is what tells a control model's marks apart
        marker = "cross" if topk and not control else family.marker if family else "triangle"
        variant = variant or ("open" if entry.kind.endswith("-pm") else "")
        return Series(label, tuple(points), colour(entry.kind), marker, joined=topk, variant=variant)


def curves(shown: Iterable[EvaluatedDictionary], metric: str, name: str, looks: Looks) -> list[Series]:
    """``metric`` over L0, one series a curve, joined by ascending L0; entries without either number are left out."""
    grouped: dict[tuple[Any, ...], list[EvaluatedDictionary]] = {}
    for entry in shown:
        if entry.single and entry.value("l0") and entry.value(metric) is not None:
            grouped.setdefault(entry.curve, []).append(entry)
    return [looks.series(group[0], sorted(_point(e, metric, name) for e in group)) for group in grouped.values()]


def axes(series: Sequence[Series], name: str) -> tuple[Axis, Axis]:
    """Axes for :func:`curves`: L0 logarithmic; 0 to 1 in sight, and little beyond them."""
    points = [point for curve in series for point in curve.points]
    low = max(-ARROW_ROOM, min([0.0, *(p.y for p in points)]))
    high = min(1 + ARROW_ROOM, max([1.0, *(p.y for p in points)]))
    return axis("L0, active features an activation", [p.x for p in points], log=True), axis(
        name, [], low=low, high=high
    )


def frontier(series: Sequence[Series], scales: tuple[Axis, Axis], label: str, width: int, height: int) -> Markup:
    """The chart of :func:`curves`."""
    return plot(series, *scales, label, width, height)


def density_chart(counts: Sequence[int], rows: int, title: str, colour: str) -> Markup:
    """Histogram of log10 of the fraction of ``rows`` in which each feature fires; the silent ones stand apart."""
    low = -math.ceil(math.log10(max(rows, 10)))
    bins = [0] * (-low * 4)
    for count in counts:
        if count:
            at = (math.log10(count / rows) - low) * 4
            bins[min(len(bins) - 1, max(0, math.floor(at)))] += 1
    silent = sum(1 for count in counts if not count)
    scale = Axis("log₁₀ density", low, 0)
    said = f"{title}: densities of {len(counts)} features, {silent} of them never active"
    return histogram(bins, scale, said, (silent, "−∞", "never active"), colour)


def nearest_l0(candidates: Iterable[EvaluatedDictionary], l0: float) -> EvaluatedDictionary | None:
    """The candidate whose L0 is nearest to ``l0``; None if none is within 10 % (or half a feature)."""
    known = [(abs(value - l0), i, e) for i, e in enumerate(candidates) if (value := e.value("l0"))]
    best = min(known, default=None)
    return best[2] if best and best[0] <= max(0.1 * l0, 0.5) else None


def _point(entry: EvaluatedDictionary, metric: str, name: str) -> Point:
    l0, row = entry.rows["l0"], entry.rows[metric]
    tooltip = f"{entry.name}\nL0 {estimate(l0)}\n{name} {estimate(row)}"
    return Point(l0["value"], row["value"], tooltip, span(l0), span(row))
