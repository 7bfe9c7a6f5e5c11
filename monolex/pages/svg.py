"""Small charts as strings of SVG: lines with points and error bars on two axes, and their legends.

Colours are CSS classes (``c-blue``, …) that the page's style sheet defines once for light and once for dark, so a
chart follows the reader's theme and prints. Every mark carries a ``<title>`` and every chart an ``aria-label``.
:mod:`monolex.pages.picture` puts charts in files of their own, and :mod:`monolex.pages.png` draws the same series.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from monolex.pages.axis import Axis, Frame

COLOURS = (
    "blue", "sky", "vermilion", "orange", "green", "purple", "olive", "teal", "rose", "brown", "slate", "ink"
)  # fmt: skip
"""Class suffixes of the palette of Okabe and Ito (its yellow darkened to olive, its black the text colour)."""
APART = 36.0
NO_DATA = "no data"
NONE, BAR, BLOCK, SQUARE = "none", "bar", "block", "square"
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
    """Key of :data:`MARKERS`, `none`, `bar`: a bar across from 0 to the point, or `block`: all that both intervals
    of the point span."""
    joined: bool = True
    """Whether a line runs through the points."""
    variant: str = ""
    """A class of the style sheet: `open` (hollow markers), `dashed` or `dotted` (and a broken line), `shade0` to
    `shade9` (fainter or stronger: :mod:`monolex.pages.heat`)."""


def plot(series: Sequence[Series], x: Axis, y: Axis, label: str, width: int = 520, height: int = 340) -> Markup:
    """Lines and markers with error bars; ``label`` is read out in place of the picture."""
    return picture(width, height, label, [*plotted(series, Frame(x, y, width, height))])


def plotted(series: Sequence[Series], frame: Frame) -> list[str]:
    """What :func:`plot` puts into its picture."""
    marks = [_series(frame, each) for each in series]
    if not any(each.points for each in series):
        marks = [text((frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2, NO_DATA, "middle")]
    return [*axes(frame), *marks]


def unique(series: Iterable[Series]) -> list[Series]:
    """The first of every label."""
    by_label: dict[str, Series] = {}
    for each in series:
        by_label.setdefault(each.label, each)
    return list(by_label.values())


def legend(series: Iterable[Series]) -> Markup:
    """One entry a label, in order of first appearance, as an HTML list that wraps on narrow screens."""
    entries = []
    for each in unique(series):
        shown = f'<svg viewBox="0 0 26 14" width="26" height="14" aria-hidden="true">{swatch(each)}</svg>'
        entries.append(f"<li>{shown}{escape(each.label)}</li>")
    return Markup('<ul class="legend">' + "".join(entries) + "</ul>") if entries else Markup("")


def swatch(series: Series) -> str:
    """What a series looks like, 26 wide and 14 high."""
    style = _style(series)
    line = f'<path class="line {style}" d="M1 7H25"/>' if series.joined else ""
    marker = SQUARE if series.marker in (BAR, BLOCK) else series.marker
    return f'{line}<g class="mark {style}">{_marker(marker, 13, 7)}</g>'


def axes(frame: Frame, shift: float = 0) -> list[str]:
    """Both axes with ticks and names, the vertical one ``shift`` to the left of the frame."""
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
    title = f"<title>{escape(point.title)}</title>" if point.title else ""
    if marker == BLOCK:
        return f'<g class="mark {style}">{title}<path class="block" d="{_outline(block(frame, point))}"/></g>'
    bars = ""
    if point.y_interval and frame.y.holds(point.y):
        low, high = (frame.at(point.x, v)[1] for v in point.y_interval)
        bars += f'<path class="bar" d="M{across} {low}V{high}"/>'
    if point.x_interval:
        low, high = (frame.at(v, point.y)[0] for v in point.x_interval)
        bars += f'<path class="bar" d="M{low} {level}H{high}"/>'
    if not frame.y.holds(point.y) and marker != NONE:
        marker = "down" if point.y < frame.y.low else "up"
    if marker == BAR:
        return f'<g class="mark {style}">{title}<path class="rod" d="{_outline(rod(frame, point))}"/>{bars}</g>'
    return f'<g class="mark {style}">{title}{bars}{_marker(marker, across, level)}</g>'


def rod(frame: Frame, point: Point) -> tuple[float, float, float, float]:
    """Left, top, width and height of the bar from 0 across to a point."""
    (start, level), (stop, _) = frame.at(0, point.y), frame.at(point.x, point.y)
    tall = ROD * (frame.bottom - frame.top) / (frame.y.high - frame.y.low)
    return min(start, stop), level - tall / 2, abs(stop - start), tall


def block(frame: Frame, point: Point) -> tuple[float, float, float, float]:
    """Left, top, width and height of all that the intervals of a point span."""
    (left, right), (foot, head) = point.x_interval or (point.x, point.x), point.y_interval or (point.y, point.y)
    (start, top), (stop, bottom) = frame.at(left, head), frame.at(right, foot)
    return start, top, stop - start, bottom - top


def _outline(box: tuple[float, float, float, float]) -> str:
    left, top, wide, tall = box
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


def text(x: float, y: float, content: str, anchor: str, style: str = "tick") -> str:
    """Escaped text at a place; ``anchor`` is `start`, `middle` or `end`."""
    return f'<text class="{style}" x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(content)}</text>'


def picture(width: int, height: int, label: str, parts: Iterable[str]) -> Markup:
    """The parts as one chart; ``label`` is read out in its place."""
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    return Markup(f'{head} aria-label="{escape(label)}">' + "".join(parts) + "</svg>")
