"""Histograms as panels: activations of a feature by size and token (paper, Fig. 4), and densities of features."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monolex.features.evidence import Evidence
from monolex.pages.ablate_charts import label
from monolex.pages.axis import Axis
from monolex.pages.card import percent
from monolex.pages.html import number
from monolex.pages.picture import Panel
from monolex.pages.svg import BLOCK, NONE, Point, Series

Facts = Mapping[str, Any]
TOKEN_COLOURS = ("sky", "orange", "green", "purple", "brown")
"""Of a feature's first tokens; an ablation's own are others, so that one legend serves both."""
AXIS_COLOURS = ("blue", "vermilion", "olive", "rose", "teal")
"""Of the tokens of a feature that stands beside another."""
OTHERS = "all other tokens"
FOOT = 0.7
"""Foot of the logarithmic axis of counts: a single one still has a height."""
BINS_A_DECADE = 4
"""Of a histogram of densities."""


def counted(evidence: Evidence) -> dict[str, Any]:
    """The numbers of a token histogram: counts by bin from 0 to ``maximum`` of the first tokens and of all others."""
    shown = evidence.tokens[: len(TOKEN_COLOURS)]
    rest = evidence.token_histogram - sum((share.histogram for share in shown), 0 * evidence.token_histogram)
    summary = evidence.summary
    return {
        "n_active": summary.n_active,
        "density": summary.density,
        "maximum": summary.max,
        "distinct_tokens": summary.distinct_tokens,
        "tokens": [{"text": s.text, "share": s.share, "counts": s.histogram.tolist()} for s in shown],
        "others": rest.tolist(),
    }


def panel(
    title: str, counts: Facts, colours: Sequence[str] = TOKEN_COLOURS, prefix: str = "", width: int = 400
) -> Panel:
    """Counts by size, a block a token.

    A bar's height is the logarithm of its whole count and its blocks share that height in proportion, as on cards.
    """
    layers = [
        (f"{prefix}{label(each['text'])} {percent(each['share'])}", shade, each["counts"])
        for each, shade in zip(counts["tokens"], colours, strict=False)
    ]
    layers += [(prefix + OTHERS, "slate" if colours is TOKEN_COLOURS else "ink", counts["others"])]
    totals = [sum(column) for column in zip(*(layer[2] for layer in layers), strict=True)]
    below, series, wide = [0] * len(totals), [], counts["maximum"] / len(totals) or 1.0
    for name, shade, numbers in layers:
        points = []
        for i, count in enumerate(numbers):
            if count:
                foot, head = (_shared(totals[i], part) for part in (below[i], below[i] + count))
                said = f"{name}\n{count:,} of {totals[i]:,} from {number(i * wide)} to {number((i + 1) * wide)}"
                points.append(Point((i + 0.5) * wide, head, said, (i * wide, (i + 1) * wide), (foot, head)))
            below[i] += count
        series += [Series(name, tuple(points), shade, BLOCK, joined=False)] if points else []
    scales = Axis("activation", 0, counts["maximum"] or 1), Axis("tokens", FOOT, max([1, *totals]) * 1.3, log=True)
    return Panel(title, tuple(series), *scales, width, 380)


def binned(counts: Sequence[int], rows: int, lowest: int) -> dict[str, Any]:
    """Features by log10 of the share of ``rows`` in which they are active, from ``lowest`` to 0; the silent ones apart.

    ``counts`` are rows, a feature each.
    """
    bins = [0] * (-lowest * BINS_A_DECADE)
    for count in counts:
        if count:
            at = math.floor((math.log10(count / rows) - lowest) * BINS_A_DECADE)
            bins[min(len(bins) - 1, max(0, at))] += 1
    return {"counts": bins, "silent": sum(1 for count in counts if not count), "features": len(counts)}


def densities(title: str, shown: Sequence[Facts], rows: int, lowest: int, width: int = 530) -> Panel:
    """Outlines of :func:`binned` histograms, each as a share of its dictionary's features, in the look it says."""
    series, highest = [], 0.0
    for each in shown:
        shares = [count / each["features"] for count in each["counts"]]
        highest = max([highest, *shares])
        points = [Point(float(lowest), 0.0)]
        for i, share in enumerate(shares):
            ends = (lowest + i / BINS_A_DECADE, lowest + (i + 1) / BINS_A_DECADE)
            said = f"{each['label']}\n{each['counts'][i]:,} of {each['features']:,} features"
            points += [Point(end, share, said) for end in ends]
        silent = f" ({each['silent']:,} of {each['features']:,} never active)" if each["silent"] else ""
        look = (each["colour"], NONE, True, each["variant"])
        series.append(Series(each["label"] + silent, (*points, Point(0.0, 0.0)), *look))
    bar = math.log10(10 / rows)
    if lowest < bar < 0:
        mark = (Point(bar, 0.0), Point(bar, highest))
        series.append(Series(f"active 10 times in {rows:,} rows", mark, "ink", NONE, variant="dotted"))
    scales = Axis("log₁₀ of the density", lowest, 0), Axis("share of the features", 0, (highest or 1) * 1.1)
    return Panel(title, tuple(series), *scales, width, 340)


def _shared(total: int, part: int) -> float:
    """Where the part of a bar that is so many of ``total`` ends, on a logarithmic axis."""
    return FOOT * (total / FOOT) ** (part / total)
