"""Pictures as plain values, for pages and for files of their own: charts under one legend, diagrams, and tables.

A picture says what is drawn and where, in pixels; this module writes it as an SVG file that needs no style sheet
beside it, :mod:`monolex.pages.png` as a PNG file with the same places.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from monolex.pages import html, svg
from monolex.pages.axis import Axis, Frame
from monolex.pages.svg import COLOURS, Series

FONT = '"DejaVu Sans", Verdana, Helvetica, Arial, sans-serif'
HEAD, CAPTION, ROW, GAP, EDGE = 34.0, 22.0, 20.0, 12.0, 14.0
"""Heights of a title, of a panel's title and of a row of the legend; what is between panels, and around a picture."""
LETTER, SWATCH = 6.5, 36.0
"""Width of a letter of the legend, about, and of what stands before it."""


class Panel(NamedTuple):
    """One chart."""

    title: str
    """What stands above it."""
    series: tuple[Series, ...]
    """What is drawn."""
    x: Axis
    """Horizontal scale."""
    y: Axis
    """Vertical scale."""
    width: int = 530
    """Of the whole chart, in pixels."""
    height: int = 360
    """Likewise."""

    def chart(self) -> Markup:
        """The chart for a page, without its title."""
        return svg.plot(self.series, self.x, self.y, self.title, self.width, self.height)


@dataclass(frozen=True)
class Picture:
    """Charts in rows under a title, over one legend."""

    name: str
    """Of its file, without the ending."""
    title: str
    """What stands above it, and is read out in its place."""
    panels: tuple[Panel, ...]
    """Its charts."""
    columns: int = 2
    """Charts in a row."""
    legend: bool = True
    """Whether series are named."""


class Box(NamedTuple):
    """A rectangle with text."""

    x: float
    """Left edge."""
    y: float
    """Upper edge."""
    width: float
    """To the right."""
    height: float
    """Downwards."""
    lines: tuple[str, ...]
    """What stands in it; the first is the stronger."""
    style: str = ""
    """`root`, `quiet`, `token`, or empty."""
    title: str = ""
    """What a pointer resting on it shows."""
    address: str = ""
    """Where it leads on a page; empty for nowhere."""


class Edge(NamedTuple):
    """A curve from the right edge of one box to the left edge of another."""

    start: tuple[float, float]
    """Where it leaves."""
    stop: tuple[float, float]
    """Where it arrives."""
    thickness: float
    """In pixels."""
    colour: str
    """One of :data:`~monolex.pages.svg.COLOURS`."""
    broken: bool = False
    """Whether it is dashed."""
    faint: bool = False
    """Whether it stands back."""
    title: str = ""
    """What a pointer resting on it shows."""


@dataclass(frozen=True)
class Diagram:
    """Boxes and what joins them."""

    name: str
    """Of its file, without the ending."""
    title: str
    """What stands above it, and is read out in its place."""
    boxes: tuple[Box, ...]
    """In front."""
    edges: tuple[Edge, ...]
    """Behind the boxes."""
    heads: tuple[tuple[float, str], ...]
    """Left edge and name of every column."""
    width: float
    """In pixels."""
    height: float
    """Likewise."""

    def chart(self) -> Markup:
        """The diagram for a page, without its title."""
        label = escape(self.title)
        return Markup(
            f'<svg class="chart diagram" viewBox="0 0 {self.width:.0f} {self.height:.0f}" width="{self.width:.0f}" '
            f'height="{self.height:.0f}" role="img" aria-label="{label}">{"".join(_diagram(self))}</svg>'
        )


class Writing(NamedTuple):
    """A line of text of a sheet."""

    x: float
    """Left edge."""
    y: float
    """Base line."""
    text: str
    """What it says."""
    style: str
    """`tick`, `label` or `head`."""


@dataclass(frozen=True)
class Sheet:
    """Text in places, and level lines: a table."""

    name: str
    """Of its file, without the ending."""
    title: str
    """What stands above it, and is read out in its place."""
    writings: tuple[Writing, ...]
    """Lines of text."""
    rules: tuple[tuple[float, float, float], ...]
    """Left end, right end and height of every line."""
    width: float
    """In pixels."""
    height: float
    """Likewise."""


class LegendEntry(NamedTuple):
    """An entry of a legend and where it stands."""

    x: float
    """Left edge of what it looks like."""
    y: float
    """Upper edge."""
    series: Series
    """What it names."""


class PlacedPanel(NamedTuple):
    """A panel and where it stands."""

    panel: Panel
    """The chart."""
    x: float
    """Left edge."""
    y: float
    """Upper edge of the chart; its title is above."""

    def frame(self) -> Frame:
        """Its scales, from the chart's own corner."""
        return Frame(self.panel.x, self.panel.y, self.panel.width, self.panel.height)


class Layout(NamedTuple):
    """Where everything stands, in pixels from the upper left."""

    width: float
    """Of the picture."""
    height: float
    """Likewise."""
    panels: list[PlacedPanel]
    """Charts."""
    legend: list[LegendEntry]
    """Entries."""


Drawing = Picture | Diagram | Sheet
"""Whatever can be a file of its own."""


def layout(picture: Drawing) -> Layout:
    """Places of the panels and of the legend below them; others have neither, but the room for their title."""
    if not isinstance(picture, Picture):
        return Layout(picture.width, picture.height + HEAD, [], [])
    rows = [picture.panels[i : i + picture.columns] for i in range(0, len(picture.panels), picture.columns)]
    width = 2 * EDGE + max(sum(panel.width for panel in row) + GAP * (len(row) - 1) for row in rows)
    placed, y = [], HEAD
    for row in rows:
        x = EDGE
        for panel in row:
            placed.append(PlacedPanel(panel, x, y + CAPTION))
            x += panel.width + GAP
        y += CAPTION + max(panel.height for panel in row)
    named: list[LegendEntry] = []
    x = EDGE
    for series in svg.unique(line for panel in picture.panels for line in panel.series) if picture.legend else ():
        wide = SWATCH + LETTER * len(series.label) + GAP
        if x > EDGE and x + wide > width:
            x, y = EDGE, y + ROW
        named.append(LegendEntry(x, y, series))
        x += wide
    return Layout(width, y + (ROW if named else 0) + EDGE / 2, placed, named)


def svg_file(picture: Drawing) -> bytes:
    """The picture as an SVG file on a light ground."""
    places = layout(picture)
    if isinstance(picture, Picture):
        parts = _charts(places)
    else:
        parts = _raised(_diagram(picture) if isinstance(picture, Diagram) else _sheet(picture), HEAD)
    label = escape(picture.title)
    width, height = f"{places.width:.0f}", f"{places.height:.0f}"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size} role="img" aria-label="{label}">'
    ground = f'<rect width="100%" height="100%" fill="{html.palette()["paper"]}"/>'
    title = svg.text(EDGE, 22, picture.title, "start", "title")
    return "".join([head, f"<style>{_style()}</style>", ground, title, *parts, "</svg>\n"]).encode()


def _charts(places: Layout) -> list[str]:
    parts = []
    for placed in places.panels:
        parts.append(svg.text(placed.x, placed.y - 6, placed.panel.title, "start", "head"))
        parts += _raised(svg.plotted(placed.panel.series, placed.frame()), placed.y, placed.x)
    for entry in places.legend:
        parts += _raised([svg.swatch(entry.series)], entry.y, entry.x)
        parts.append(svg.text(entry.x + SWATCH - 5, entry.y + 11, entry.series.label, "start", "label"))
    return parts


def _raised(parts: Iterable[str], down: float, across: float = 0) -> list[str]:
    return [f'<g transform="translate({across:g} {down:g})">', *parts, "</g>"]


def _diagram(diagram: Diagram) -> list[str]:
    parts = [svg.text(x, 14, name, "start", "head") for x, name in diagram.heads]
    for edge in diagram.edges:
        style = f"edge c-{edge.colour}" + " dashed" * edge.broken + " faint" * edge.faint
        curve = "M{} {}C{} {} {} {} {} {}".format(*(round(v, 1) for point in bezier(edge) for v in point))
        title = f"<title>{escape(edge.title)}</title>" if edge.title else ""
        parts.append(f'<path class="{style}" stroke-width="{edge.thickness:.2f}" d="{curve}">{title}</path>')
    for box in diagram.boxes:
        title = f"<title>{escape(box.title)}</title>" if box.title else ""
        shape = f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="4"/>'
        lines = [svg.text(box.x + 8, y, line, "start", style) for line, y, style in written(box)]
        group = f'<g class="box {box.style}">{title}{shape}{"".join(lines)}</g>'
        parts.append(f'<a href="{escape(box.address)}">{group}</a>' if box.address else group)
    return parts


def _sheet(sheet: Sheet) -> list[str]:
    rules = [f'<path class="grid" d="M{left:g} {y:g}H{right:g}"/>' for left, right, y in sheet.rules]
    return rules + [svg.text(line.x, line.y, line.text, "start", line.style) for line in sheet.writings]


def bezier(edge: Edge) -> tuple[tuple[float, float], ...]:
    """Its four points: it leaves and arrives level."""
    (x, y), (right, below) = edge.start, edge.stop
    middle = (x + right) / 2
    return (x, y), (middle, y), (middle, below), (right, below)


def written(box: Box) -> list[tuple[str, float, str]]:
    """The lines of a box with their base lines and styles."""
    top = box.y + box.height / 2 - 7.5 * (len(box.lines) - 1) + 4
    styles = ("label", *("tick",) * len(box.lines)) if box.style != "quiet" else ("tick",) * len(box.lines)
    return [(line, top + 15 * i, style) for i, (line, style) in enumerate(zip(box.lines, styles, strict=False))]


def _style() -> str:
    """The rules of charts with colours in the place of variables, which not every program that shows SVG knows."""
    colours = html.palette()
    rules = [f"text {{ font-family: {FONT}; }}"]
    for selectors, body in re.findall(r"^([.\w][^{}]*) \{([^{}]*)\}", html.asset("chart.css"), re.MULTILINE):
        if selectors.startswith((".legend", ".c-")) or ":hover" in selectors:
            continue
        # one rule a colour where the rule is of a series
        for colour in COLOURS if "var(--series)" in body else ("",):
            names = [re.sub(r"^(\S+)", rf"\1.c-{colour}" if colour else r"\1", name) for name in selectors.split(", ")]
            series = colours["soft" if colour == "ink" else colour] if colour else ""
            shown = re.sub(r"var\(--(\w+)\)", lambda m, s=series: s if m[1] == "series" else colours[m[1]], body)
            rules.append(f"{', '.join(names)} {{{shown}}}")
    return "\n".join(rules)
