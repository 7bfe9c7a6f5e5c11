"""Pictures as PNG files, drawn by matplotlib at the places at which the SVG has everything."""

import functools
import io
from collections.abc import Sequence
from typing import Any

from monolex.pages import html
from monolex.pages.axis import Frame
from monolex.pages.heat import opacity
from monolex.pages.picture import EDGE, HEAD, SWATCH, Diagram, Drawing, Sheet, bezier, layout, written
from monolex.pages.svg import BAR, BLOCK, NO_DATA, NONE, SQUARE, Point, Series, block, rod

DPI, SHARP = 100, 2
"""A pixel of a picture is a hundredth of an inch; the file has so many in its place, both ways."""
POINT = 72 / DPI
"""Of a pixel, in the unit of line widths and type sizes."""
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "hexagon": "H", "cross": "X"}
SIZES = {"tick": 11, "label": 12, "head": 12, "title": 15}
"""Of type, as in static/chart.css."""
DASHES: dict[str, Any] = {"dashed": (0, (5 * POINT, 4 * POINT)), "dotted": (0, (1.5 * POINT, 3 * POINT))}


def png(picture: Drawing) -> bytes:
    """The picture as a PNG file on a light ground; letters that the type has not are written as escapes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = layout(picture)
    width, height = round(places.width), round(places.height)
    with rc_context({"text.parse_math": False, "font.family": "DejaVu Sans", "lines.scale_dashes": False}):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * SHARP, facecolor=_colour("paper"))
        canvas = FigureCanvasAgg(figure)
        sheet = _Sheet(figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0)))
        sheet.text(EDGE, 22, picture.title, "start", "title")
        if isinstance(picture, Diagram):
            _diagram(sheet, picture)
        if isinstance(picture, Sheet):
            _sheet(sheet.at(0, HEAD), picture)
        for placed in places.panels:
            sheet.text(placed.x, placed.y - 6, placed.panel.title, "start", "head")
            _panel(sheet.at(placed.x, placed.y), placed.panel.series, placed.frame())
        for x, y, series in places.legend:
            _swatch(sheet.at(x, y), series)
            sheet.text(x + SWATCH - 5, y + 11, series.label, "start", "label")
        file = io.BytesIO()
        canvas.print_png(file, metadata={"Software": "monolex"})
    return file.getvalue()


class _Sheet:
    """A plane of pixels, its origin in the upper left."""

    def __init__(self, axes: Any, x: float = 0, y: float = 0) -> None:
        self.axes, self.x, self.y = axes, x, y
        axes.axis("off")

    def at(self, x: float, y: float) -> "_Sheet":
        """The same plane with its origin elsewhere."""
        return _Sheet(self.axes, self.x + x, self.y + y)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float, **look: Any) -> None:
        """Straight lines from point to point, or marks at them; ``width`` in pixels."""
        xs, ys = zip(*((self.x + x, self.y + y) for x, y in points), strict=True)
        self.axes.plot(xs, ys, color=colour, linewidth=width * POINT, **look)

    def patch(self, outline: Any, **look: Any) -> None:
        """An outline of matplotlib, in coordinates of the whole plane."""
        self.axes.add_patch(outline(**look))

    def text(self, x: float, y: float, content: str, anchor: str, style: str = "tick", turned: bool = False) -> None:
        """Text as :func:`monolex.pages.svg.text` sets it."""
        self.axes.text(
            self.x + x,
            self.y + y,
            legible(content),
            fontsize=SIZES[style] * POINT,
            fontweight="bold" if style in ("head", "title") else "normal",
            color=_colour("soft" if style == "tick" else "ink"),
            ha={"start": "left", "middle": "center", "end": "right"}[anchor],
            va="baseline",
            rotation=90 if turned else 0,
            rotation_mode="anchor",
        )


def legible(text: str) -> str:
    """Text in which a letter that the type has not is an escape, as Python writes it.

    >>> legible("a中")
    'a\\\\u4e2d'
    """
    known = _letters()
    return "".join(c if ord(c) in known else c.encode("ascii", "backslashreplace").decode() for c in text)


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight))) for weight in ("normal", "bold")]
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))


def _panel(sheet: _Sheet, series: Sequence[Series], frame: Frame) -> None:
    for value, name in frame.y.ticks():
        level = frame.at(frame.x.low, value)[1]
        if not frame.y.names:
            sheet.line([(frame.left, level), (frame.right, level)], _colour("grid"), 1)
        sheet.text(frame.left - 7, level + 4, name, "end")
    for value, name in frame.x.ticks():
        across = frame.at(value, frame.y.low)[0]
        sheet.line([(across, frame.bottom), (across, frame.bottom + 4)], _colour("soft"), 1)
        sheet.text(across, frame.bottom + 17, name, "middle")
    sheet.line([(frame.left, frame.bottom), (frame.right, frame.bottom)], _colour("soft"), 1)
    middle = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
    sheet.text(middle[0], frame.bottom + 36, frame.x.label, "middle", "label")
    sheet.text(13, middle[1], frame.y.label, "middle", "label", turned=True)
    if not any(each.points for each in series):
        sheet.text(*middle, NO_DATA, "middle")
    for each in series:
        if each.joined and len(each.points) > 1:
            sheet.line([frame.at(p.x, p.y) for p in each.points], _shade(each), _width(each), **_dashes(each))
        for point in each.points:
            _point(sheet, frame, point, each)


def _point(sheet: _Sheet, frame: Frame, point: Point, series: Series) -> None:
    across, level = frame.at(point.x, point.y)
    colour, beyond = _shade(series), not frame.y.holds(point.y)
    if series.marker in (BAR, BLOCK):
        from matplotlib.patches import Rectangle

        left, top, wide, tall = (rod if series.marker == BAR else block)(frame, point)
        look: dict[str, Any] = {"linewidth": 0, "alpha": 0.5 if series.marker == BAR else _opacity(series), "zorder": 2}
        at = (sheet.x + left, sheet.y + top)
        sheet.patch(Rectangle, xy=at, width=wide, height=tall, facecolor=colour, **look)
    if series.marker == BLOCK:
        return
    if point.y_interval and not beyond:
        ends = [frame.at(point.x, value) for value in point.y_interval]
        sheet.line(ends, colour, 1.3, alpha=0.75)
    if point.x_interval:
        ends = [frame.at(value, point.y) for value in point.x_interval]
        sheet.line(ends, colour, 1.3, alpha=0.75)
    if series.marker not in (BAR, NONE):
        arrow = "v" if point.y < frame.y.low else "^"
        _mark(sheet, (across, level), series, arrow if beyond else MARKERS[series.marker])


def _mark(sheet: _Sheet, at: tuple[float, float], series: Series, marker: str) -> None:
    ground = {"open": "none", "dashed": _colour("paper"), "dotted": _colour("paper")}.get(series.variant)
    edge = _colour("paper") if ground is None else _shade(series)
    face = _shade(series) if ground is None else ground
    look = {"markersize": 8 * POINT, "markeredgewidth": 1 * POINT, "zorder": 3, "alpha": _opacity(series)}
    sheet.line([at], _shade(series), 0, marker=marker, markerfacecolor=face, markeredgecolor=edge, **look)


def _swatch(sheet: _Sheet, series: Series) -> None:
    if series.joined:
        sheet.line([(1, 7), (25, 7)], _shade(series), _width(series), **_dashes(series))
    if series.marker != NONE:
        _mark(sheet, (13, 7), series, MARKERS[SQUARE if series.marker in (BAR, BLOCK) else series.marker])


def _diagram(sheet: _Sheet, diagram: Diagram) -> None:
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path

    sheet = sheet.at(0, HEAD)
    for x, name in diagram.heads:
        sheet.text(x, 14, name, "start", "head")
    for edge in diagram.edges:
        curve = Path(
            [(x + sheet.x, y + sheet.y) for x, y in bezier(edge)],
            [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
        )
        look: dict[str, Any] = {"linestyle": (0, (6 * POINT, 4 * POINT))} if edge.broken else {}
        colour = _colour("soft" if edge.colour == "ink" else edge.colour)
        look |= {"edgecolor": colour, "linewidth": edge.thickness * POINT, "capstyle": "butt"}
        sheet.patch(PathPatch, path=curve, facecolor="none", alpha=0.35 if edge.faint else 0.8, **look)
    grounds = {
        "quiet": ("paper", "paper"),
        "token": ("paper", "rule"),
        "root": ("raised", "ink"),
        "": ("raised", "rule"),
    }
    for box in diagram.boxes:
        face, rim = (_colour(name) for name in grounds[box.style])
        at = (box.x + sheet.x, box.y + sheet.y)
        shape = {"boxstyle": "round,pad=0,rounding_size=4", "linewidth": (1.6 if box.style == "root" else 1) * POINT}
        sheet.patch(
            FancyBboxPatch, xy=at, width=box.width, height=box.height, facecolor=face, edgecolor=rim, zorder=2, **shape
        )
        for line, y, style in written(box):
            sheet.text(box.x + 8, y, line, "start", style)


def _sheet(sheet: _Sheet, table: Sheet) -> None:
    for left, right, y in table.rules:
        sheet.line([(left, y), (right, y)], _colour("grid"), 1)
    for line in table.writings:
        sheet.text(line.x, line.y, line.text, "start", line.style)


def _colour(name: str) -> str:
    return html.palette()[name]


def _shade(series: Series) -> str:
    return _colour("soft" if series.colour == "ink" else series.colour)


def _opacity(series: Series) -> float:
    """As in static/chart.css."""
    return opacity(int(series.variant[-1])) if series.variant.startswith("shade") else 1.0


def _width(series: Series) -> float:
    return {"dashed": 1.3, "dotted": 1.5}.get(series.variant, 1.8)


def _dashes(series: Series) -> dict[str, Any]:
    return {"linestyle": DASHES[series.variant]} if series.variant in DASHES else {}
