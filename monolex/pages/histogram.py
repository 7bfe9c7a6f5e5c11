"""Histograms as SVG: bars of equal width, plain or in layers, with a title each."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from monolex.pages.axis import LEFT, Axis, Frame, axis
from monolex.pages.svg import APART, axes, picture, text


class Layer(NamedTuple):
    """One colour of a stacked histogram."""

    label: str
    """Its name in titles and in the legend."""
    colour: str
    """One of :data:`~monolex.pages.svg.COLOURS`."""
    counts: Sequence[int]
    """One a bin."""


def histogram(
    counts: Sequence[int],
    x: Axis,
    label: str,
    apart: tuple[int, str, str] = (0, "", ""),
    colour: str = "blue",
    width: int = 250,
    height: int = 150,
) -> Markup:
    """Bars of equal width over ``x`` (on paper); ``apart`` (count, tick, title) is drawn left of the axis."""
    count, tick, title = apart
    y = axis("", [max([*counts, count, 1])], low=0)
    frame = Frame(x, y, width, height, left=LEFT + APART, bottom=40.0)
    wide = (frame.right - frame.left) / max(len(counts), 1)
    edges = [_edge(x, i / max(len(counts), 1)) for i in range(len(counts) + 1)]
    bars = [
        _bar(frame, frame.left + i * wide, wide, n, f"c-{colour}", f"{n:,} from {edges[i]:.3g} to {edges[i + 1]:.3g}")
        for i, n in enumerate(counts)
    ]
    if count:
        left = frame.left - APART + 3
        bars += [_bar(frame, left, 12, count, "c-ink", f"{count:,} {title}")]
        bars += [text(left + 6, frame.bottom + 17, tick, "middle")]
    return picture(width, height, label, [*axes(frame, APART), *bars])


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
    edges = [_edge(x, i / bins) for i in range(bins + 1)]
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
        parts = [f"{layer.label}: {layer.counts[i]:,}" for layer in layers if layer.counts[i] and len(layers) > 1]
        title = "\n".join([f"{total:,} from {edges[i]:.3g} to {edges[i + 1]:.3g}", *parts])
        hovers += [_hover(frame, (i + 0.5) * wide, title)] if total else []
    return picture(
        width, height, label, [*axes(frame), *paths, f'<g class="hover" stroke-width="{wide:.1f}">', *hovers, "</g>"]
    )


def swatches(layers: Iterable[tuple[Markup, str]]) -> Markup:
    """A legend of squares: names, that may hold markup, and colours."""
    head = '<svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">'
    box = head + '<path class="layer c-{}" d="M0 0h12v12H0z"/></svg>'
    entries = [f"<li>{box.format(colour)}{name}</li>" for name, colour in layers]
    return Markup('<ul class="legend">' + "".join(entries) + "</ul>")


def _edge(x: Axis, part: float) -> float:
    """The value at a part of an axis, from 0 (start) to 1 (end)."""
    return x.low * (x.high / x.low) ** part if x.log else x.low + (x.high - x.low) * part


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


def _hover(frame: Frame, middle: float, title: str) -> str:
    """The whole height of a bin, invisible, to rest a pointer on: a line as wide as the bin."""
    path = f"M{frame.left + middle:.1f} {frame.top:.0f}V{frame.bottom:.0f}"
    return f'<path d="{path}"><title>{escape(title)}</title></path>'
