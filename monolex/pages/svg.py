"""Small charts as strings of SVG: axes with round ticks, lines with points and error bars, histograms, legends.

Colours are CSS classes (``c-blue``, …) that the page's style sheet defines once for light and once for dark, so a
chart follows the reader's theme and prints. Every mark carries a ``<title>`` and every chart an ``aria-label``.
:mod:`monolex.pages.picture` puts charts in files of their own, and :mod:`monolex.pages.png` draws the same series.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup, escape

COLOURS = ("blue", "sky", "vermilion", "orange", "green", "purple", "olive", "ink")
"""Class suffixes of the palette of Okabe and Ito (its yellow darkened to olive, its black the text colour)."""
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 12.0, 46.0
APART = 36.0
NO_DATA = "no data"
NONE, BAR, SQUARE = "none", "bar", "square"
WIDE = 6.6
"""Of a letter, about, at the size of ticks."""
ROD = 0.62
"""Height of a bar across, of a row."""


class Point(NamedTuple):
    """A mark of a chart, with the interval of either coordinate where there is one."""

    x: float
    """Horizontal value."""
    y: float
    """Vertical value."""
    title: str = ""
    """What a pointer resting on the mark shows."""
    x_interval: tuple[float, float] | None = None
    """Horizontal error bar."""
    y_interval: tuple[float, float] | None = None
    """Vertical error bar."""


def span(estimate: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval of an estimate as a :class:`Point` takes it."""
    low, high = estimate["low"], estimate["high"]
    return None if low is None or high is None else (low, high)


@dataclass(frozen=True)
class Series:
    """Points that share a look and one entry of the legend."""

    label: str
    """Its name in the legend."""
    points: tuple[Point, ...]
    """In the order in which they are joined."""
    colour: str = "ink"
    """One of :data:`COLOURS`."""
    marker: str = "circle"
    """Key of :data:`MARKERS`, `none`, or `bar`: a bar across from 0 to the point."""
    joined: bool = True
    """Whether a line runs through the points."""
    variant: str = ""
    """A class of the style sheet: `open` (hollow markers), `dashed` or `dotted` (and a broken line)."""


class Layer(NamedTuple):
    """One colour of a stacked histogram."""

    label: str
    """Its name in titles and in the legend."""
    colour: str
    """One of :data:`COLOURS`."""
    counts: Sequence[int]
    """One a bin."""


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale."""

    label: str
    """What it measures, with its unit."""
    low: float
    """Value at its start."""
    high: float
    """Value at its end."""
    log: bool = False
    """Whether equal ratios take equal lengths."""
    names: tuple[tuple[float, str], ...] = ()
    """Values with their names, in place of round values as ticks."""

    def place(self, value: float) -> float:
        """Where ``value`` lies, from 0 (start) to 1 (end); values beyond an end lie on it."""
        low, high, value = (_log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies between the ends."""
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= value <= self.high + slack

    def ticks(self) -> list[tuple[float, str]]:
        """Round values with their labels, or the names of an axis that has them."""
        if self.names:
            return list(self.names)
        values = _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)
        return [(value, _tick_label(value, self.log)) for value in values if self.holds(value)]


def axis(
    label: str, values: Iterable[float], *, log: bool = False, low: float | None = None, high: float | None = None
) -> Axis:
    """An axis that shows all finite ``values`` (for ``log`` the positive ones), widened to round ends.

    ``low`` and ``high`` fix an end; a chart draws what lies beyond on the border, as an arrow.
    """
    shown = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    start = low if low is not None else min(shown, default=1.0 if log else 0.0)
    end = high if high is not None else max(shown, default=10.0 if log else 1.0)
    if log:
        start, end = (start / 1.25 if low is None else start), (end * 1.25 if high is None else end)
        return Axis(label, start, end if end > start else start * 10, log=True)
    end = end if end > start else start + (abs(start) or 1.0)
    step = _step(start, end)
    start = start if low is not None else math.floor(start / step + 1e-9) * step
    return Axis(label, start, end if high is not None else math.ceil(end / step - 1e-9) * step)


def plot(series: Sequence[Series], x: Axis, y: Axis, label: str, width: int = 520, height: int = 340) -> Markup:
    """Lines and markers with error bars; ``label`` is read out in place of the picture."""
    return _svg(width, height, label, [*plotted(series, Frame(x, y, width, height))])


def plotted(series: Sequence[Series], frame: "Frame") -> list[str]:
    """What :func:`plot` puts into its picture."""
    marks = [_series(frame, each) for each in series]
    if not any(each.points for each in series):
        marks = [text((frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2, NO_DATA, "middle")]
    return [*_axes(frame), *marks]


def histogram(
    counts: Sequence[int],
    x: Axis,
    label: str,
    apart: tuple[int, str, str] = (0, "", ""),
    colour: str = "blue",
    width: int = 250,
    height: int = 150,
) -> Markup:
    """Bars of equal width over ``x``; ``apart`` (count, tick, title) is drawn left of the axis."""
    count, tick, title = apart
    y = axis("", [max([*counts, count, 1])], low=0)
    frame = Frame(x, y, width, height, left=LEFT + APART, bottom=40.0)
    wide = (frame.right - frame.left) / max(len(counts), 1)
    edges = [x.low + (x.high - x.low) * i / max(len(counts), 1) for i in range(len(counts) + 1)]
    bars = [
        _bar(frame, frame.left + i * wide, wide, n, f"c-{colour}", f"{n:,} from {edges[i]:.3g} to {edges[i + 1]:.3g}")
        for i, n in enumerate(counts)
    ]
    if count:
        left = frame.left - APART + 3
        bars += [_bar(frame, left, 12, count, "c-ink", f"{count:,} {title}")]
        bars += [text(left + 6, frame.bottom + 17, tick, "middle")]
    return _svg(width, height, label, [*_axes(frame, APART), *bars])


def stacked(
    layers: Sequence[Layer], x: Axis, label: str, *, log: bool = False, width: int = 330, height: int = 170
) -> Markup:
    """Bars of equal width over ``x``, the first layer at the bottom; one title a bin names its parts.

    ``log``: a bar's height is the logarithm of its whole count, and its parts share that height in proportion: a
    single count can be seen beside thousands, but only parts of one bar can be compared by eye.
    """
    totals = [sum(column) for column in zip(*(layer.counts for layer in layers), strict=True)]
    y = Axis("", 0.7 if log else 0, max([*totals, 1]) * (1.15 if log else 1.02), log=log)
    frame = Frame(x, y, width, height, left=40.0, bottom=40.0)
    bins = max(len(totals), 1)
    wide = (frame.right - frame.left) / bins
    edges = [x.low + (x.high - x.low) * i / bins for i in range(bins + 1)]
    paths, hovers, below = [], [], [0] * len(totals)
    for layer in layers:
        path = "".join(
            _block(frame, i * wide, wide, below[i] / totals[i], (below[i] + n) / totals[i], totals[i])
            for i, n in enumerate(layer.counts)
            if n
        )
        paths += [f'<path class="layer c-{layer.colour}" d="{path}"/>'] if path else []
        below = [before + n for before, n in zip(below, layer.counts, strict=True)]
    for i, total in enumerate(totals):
        parts = (
            [f"{layer.label}: {layer.counts[i]:,}" for layer in layers if layer.counts[i]] if len(layers) > 1 else []
        )
        title = "\n".join([f"{total:,} from {edges[i]:.3g} to {edges[i + 1]:.3g}", *parts])
        hovers += [_hover(frame, i * wide, wide, title)] if total else []
    return _svg(width, height, label, [*_axes(frame), *paths, '<g class="hover">', *hovers, "</g>"])


def swatches(layers: Iterable[tuple[Markup, str]]) -> Markup:
    """A legend of squares: names, that may hold markup, and colours."""
    head = '<svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">'
    box = head + '<path class="layer c-{}" d="M0 0h12v12H0z"/></svg>'
    entries = [f"<li>{box.format(colour)}{name}</li>" for name, colour in layers]
    return Markup('<ul class="legend">' + "".join(entries) + "</ul>")


def legend(series: Iterable[Series]) -> Markup:
    """One entry a label, in order of first appearance, as an HTML list that wraps on narrow screens."""
    unique: dict[str, Series] = {}
    for each in series:
        unique.setdefault(each.label, each)
    entries = []
    for each in unique.values():
        shown = f'<svg viewBox="0 0 26 14" width="26" height="14" aria-hidden="true">{swatch(each)}</svg>'
        entries.append(f"<li>{shown}{escape(each.label)}</li>")
    return Markup('<ul class="legend">' + "".join(entries) + "</ul>") if entries else Markup("")


def swatch(series: Series) -> str:
    """What a series looks like, 26 wide and 14 high."""
    style = _style(series)
    line = f'<path class="line {style}" d="M1 7H25"/>' if series.joined else ""
    return f'{line}<g class="mark {style}">{_marker(SQUARE if series.marker == BAR else series.marker, 13, 7)}</g>'


class Frame:
    """Maps values to coordinates; the names of a vertical axis have the room that they need."""

    def __init__(
        self, x: Axis, y: Axis, width: int, height: int, left: float | None = None, bottom: float = BOTTOM
    ) -> None:
        self.x, self.y = x, y
        needed = 16 + WIDE * max((len(name) for _, name in y.names), default=0) + (18 if y.label else 0)
        self.left, self.right = max(LEFT, needed) if left is None else left, width - RIGHT
        self.top, self.bottom = TOP, height - bottom

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = self.left + self.x.place(x) * (self.right - self.left)
        return round(across, 2), round(self.bottom - self.y.place(y) * (self.bottom - self.top), 2)


def _axes(frame: Frame, shift: float = 0) -> list[str]:
    parts = []
    for value, name in frame.y.ticks():
        level = frame.at(frame.x.low, value)[1]
        if not frame.y.names:
            parts.append(f'<path class="grid" d="M{frame.left - shift} {level}H{frame.right}"/>')
        parts.append(text(frame.left - shift - 7, level + 4, name, "end"))
    for value, name in frame.x.ticks():
        across = frame.at(value, frame.y.low)[0]
        parts.append(f'<path class="axis" d="M{across} {frame.bottom}v4"/>')
        parts.append(text(across, frame.bottom + 17, name, "middle"))
    parts.append(f'<path class="axis" d="M{frame.left - shift} {frame.bottom}H{frame.right}"/>')
    middle = (frame.left + frame.right) / 2
    parts.append(text(middle, frame.bottom + 36, frame.x.label, "middle", "label"))
    if frame.y.label:
        middle = (frame.top + frame.bottom) / 2
        turned = f'<g transform="rotate(-90 13 {middle})">{text(13, middle, frame.y.label, "middle", "label")}</g>'
        parts.append(turned)
    return parts


def _series(frame: Frame, series: Series) -> str:
    style = _style(series)
    parts = []
    if series.joined and len(series.points) > 1:
        path = "L".join("{} {}".format(*frame.at(p.x, p.y)) for p in series.points)
        parts.append(f'<path class="line {style}" d="M{path}"/>')
    parts += [_point(frame, point, series.marker, style) for point in series.points]
    return "".join(parts)


def _point(frame: Frame, point: Point, marker: str, style: str) -> str:
    across, level = frame.at(point.x, point.y)
    bars = ""
    if point.y_interval and frame.y.holds(point.y):
        low, high = (frame.at(point.x, v)[1] for v in point.y_interval)
        bars += f'<path class="bar" d="M{across} {low}V{high}"/>'
    if point.x_interval:
        low, high = (frame.at(v, point.y)[0] for v in point.x_interval)
        bars += f'<path class="bar" d="M{low} {level}H{high}"/>'
    if not frame.y.holds(point.y) and marker != NONE:
        marker = "down" if point.y < frame.y.low else "up"
    title = f"<title>{escape(point.title)}</title>" if point.title else ""
    if marker == BAR:
        return f'<g class="mark {style}">{title}<path class="rod" d="{_rod(frame, point)}"/>{bars}</g>'
    return f'<g class="mark {style}">{title}{bars}{_marker(marker, across, level)}</g>'


def rod(frame: Frame, point: Point) -> tuple[float, float, float, float]:
    """Left, top, width and height of the bar from 0 across to a point."""
    (start, level), (stop, _) = frame.at(0, point.y), frame.at(point.x, point.y)
    tall = ROD * (frame.bottom - frame.top) / (frame.y.high - frame.y.low)
    return min(start, stop), level - tall / 2, abs(stop - start), tall


def _rod(frame: Frame, point: Point) -> str:
    left, top, wide, tall = rod(frame, point)
    return f"M{left:.2f} {top:.2f}h{wide:.2f}v{tall:.2f}h-{wide:.2f}z"


def _style(series: Series) -> str:
    assert series.colour in COLOURS, series.colour
    return f"c-{series.colour} {series.variant}".rstrip()


MARKERS = {
    "circle": "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z",
    "square": "M-3.6 -3.6H3.6V3.6H-3.6Z",
    "diamond": "M0 -5L5 0L0 5L-5 0Z",
    "triangle": "M0 -4.8L4.8 3.6H-4.8Z",
    "hexagon": "M-4.4 0L-2.2 -3.9H2.2L4.4 0L2.2 3.9H-2.2Z",
    "cross": "M-4 -2.4L-2.4 -4L0 -1.6L2.4 -4L4 -2.4L1.6 0L4 2.4L2.4 4L0 1.6L-2.4 4L-4 2.4L-1.6 0Z",
    "up": "M0 0L5 9H-5Z",
    "down": "M0 0L5 -9H-5Z",
}
"""Outlines around the point they mark; ``up`` and ``down`` are arrows to a value beyond the border."""


def _marker(marker: str, across: float, level: float) -> str:
    if marker == NONE:
        return ""
    return f'<path transform="translate({across} {level})" d="{MARKERS[marker]}"/>'


def _bar(frame: Frame, left: float, width: float, count: int, style: str, title: str) -> str:
    level = frame.at(frame.x.low, count)[1]
    tall = round(frame.bottom - level, 2)
    shape = f'<rect x="{left + 0.5:.2f}" y="{level}" width="{max(width - 1, 0.5):.2f}" height="{tall}"/>'
    return f'<g class="column {style}"><title>{escape(title)}</title>{shape}</g>' if count else ""


def _block(frame: Frame, left: float, wide: float, start: float, stop: float, total: int) -> str:
    """The part from ``start`` to ``stop`` (of 1) of the bar of ``total``, as a closed path."""
    tall = frame.bottom - frame.at(frame.x.low, total)[1]
    foot, head = (round(frame.bottom - share * tall, 1) for share in (start, stop))
    return f"M{frame.left + left + 0.5:.1f} {foot}V{head}h{max(wide - 1, 0.5):.1f}V{foot}z"


def _hover(frame: Frame, left: float, wide: float, title: str) -> str:
    """The whole height of a bin, invisible, to rest a pointer on."""
    path = f"M{frame.left + left:.1f} {frame.top:.0f}h{wide:.1f}V{frame.bottom:.0f}h-{wide:.1f}z"
    return f'<path d="{path}"><title>{escape(title)}</title></path>'


def text(x: float, y: float, content: str, anchor: str, style: str = "tick") -> str:
    """Escaped text at a place; ``anchor`` is `start`, `middle` or `end`."""
    return f'<text class="{style}" x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(width: int, height: int, label: str, parts: Iterable[str]) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    return Markup(f'{head} aria-label="{escape(label)}">' + "".join(parts) + "</svg>")


def _log(value: float) -> float:
    return math.log10(max(value, 1e-300))


def _step(low: float, high: float) -> float:
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * m for m in (1, 2, 5, 10) if unit * m >= 0.8 * rough)


def _linear_ticks(low: float, high: float) -> list[float]:
    step = _step(low, high)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(_log(low)), math.ceil(_log(high))
    multiples = (1, 2, 5) if _log(high) - _log(low) < 2.5 else (1,)
    every = max(1, math.ceil((last - first) / 8))
    return [m * 10.0**e for e in range(first, last + 1, every) for m in multiples]


def _tick_label(value: float, log: bool) -> str:
    if log and not 1e-2 <= value < 1e5:
        exponent = math.floor(math.log10(value) + 1e-9)
        factor = round(value / 10.0**exponent)
        return ("" if factor == 1 else f"{factor}·") + "10" + str(exponent).translate(SUPERSCRIPT)
    return f"{round(value, 12) + 0.0:.6g}".replace("-", "−")
