"""The charts of an ablation: how many tokens change by how much, and the tokens that lose most."""

from collections.abc import Mapping, Sequence
from typing import Any

from monolex.pages.axis import Axis, axis
from monolex.pages.html import number
from monolex.pages.picture import Panel, Picture
from monolex.pages.svg import BAR, NONE, Point, Series, span
from monolex.pages.tokens import plain

Facts = Mapping[str, Any]
HISTOGRAM = "logprob"
"""Measure of the histogram, as in the paper; the table of counts has the others too."""
MEASURE = "probability"
"""Measure of the tokens that are listed: most of a vocabulary is never likely, whatever its logits do."""
LOSERS = 12
"""Tokens with bars."""
LETTERS = 18
"""Of a token in a chart, at most."""
FLOOR = 0.7
"""Foot of the logarithmic axis of counts: a single token still has a height."""
FEATURE, CONTROL, DIRECTION, DIRECT = (
    "this feature",
    "another active feature of that size",
    "a random direction of that size",
    "directly, past the later layers",
)
HISTOGRAMS = (
    ("total", FEATURE, "blue", ""),
    ("control_feature", CONTROL, "vermilion", ""),
    ("control_direction", DIRECTION, "ink", "dashed"),
)
CHANGE = "change of log-probability, nats"
LOSS = "change of probability"


def panels(ablation: Facts, width: int = 530, height: int = 380) -> tuple[Panel, Panel]:
    """The histogram over the vocabulary (paper, Fig. 4), and bars of the tokens that lose most."""
    measure, tokens = ablation["measures"][HISTOGRAM], ablation["measures"][MEASURE]["suppressed"]
    series = [_steps(measure[key], *look) for key, *look in HISTOGRAMS if measure[key]]
    edges = [edge for key, *_ in HISTOGRAMS if measure[key] for edge in measure[key]["edges"]]
    most = max([1, *(point.y for each in series for point in each.points)])
    scales = Axis(CHANGE, min(edges), max(edges)), Axis("tokens", FLOOR, most * 1.3, log=True)
    left = Panel("How many tokens change by how much", tuple(series), *scales, width, height)
    return left, _losers(tokens[:LOSERS], width, height)


def pictures(artifact: Facts) -> list[Picture]:
    """What is drawn of an artefact, a file each."""
    drawn = []
    for ablation in artifact["ablations"]:
        site, name, feature = (ablation[key] for key in ("site", "name", "feature"))
        caption = f"Without feature {feature} of {site}/{name} {plain(ablation['words'])}".rstrip()
        drawn.append(Picture(f"{site}-{name.replace('/', '-')}-{feature}", caption, panels(ablation)))
    return drawn


def label(text: str) -> str:
    """A token in a chart: nothing invisible, and not too long.

    >>> label(" self"), label("x" * 40)
    ('␣self', 'xxxxxxxxxxxxxxxxx…')
    """
    shown = plain(text) or "∅"
    return shown if len(shown) <= LETTERS else shown[: LETTERS - 1] + "…"


def _steps(histogram: Facts, name: str, colour: str, variant: str) -> Series:
    """The outline of a histogram from its first to its last bin that holds any; an empty one lies on the axis."""
    edges, counts = histogram["edges"], histogram["counts"]
    held = [i for i, count in enumerate(counts) if count]
    points = [Point(edges[i], FLOOR) for i in held[:1]]
    for i in range(held[0], held[-1] + 1) if held else ():
        points += [Point(edge, max(counts[i], FLOOR)) for edge in edges[i : i + 2]]
    points += [Point(edges[i + 1], FLOOR) for i in held[-1:]]
    return Series(name, tuple(points), colour, NONE, variant=variant)


def _losers(tokens: Sequence[Facts], width: int, height: int) -> Panel:
    """A row a token: a bar for the whole effect, marks for the direct one and for the control's."""
    rows = list(enumerate(tokens))
    whole = [Point(token["change"], -i, _said(token), span(token)) for i, token in rows]
    direct = [Point(token["direct"], -i, _said(token)) for i, token in rows if token["direct"] is not None]
    control = [Point(token["control"], -i, _said(token)) for i, token in rows if token["control"] is not None]
    series = [Series(FEATURE, tuple(whole), "blue", BAR, joined=False)]
    series += [Series(DIRECT, tuple(direct), "blue", "diamond", joined=False, variant="open")] if direct else []
    series += [Series(CONTROL, tuple(control), "vermilion", "cross", joined=False)] if control else []
    values = [end for each in series for point in each.points for end in (point.x, *(point.x_interval or ()))]
    names = tuple((float(-i), label(token["text"])) for i, token in rows)
    y = Axis("", 0.5 - max(1, len(rows)), 0.5, names=names)
    return Panel("Tokens that lose most", tuple(series), axis(LOSS, [0, *values]), y, width, height)


def _said(token: Facts) -> str:
    parts = [f"{plain(token['text'])}\nchange {number(token['change'])}"]
    parts += [f"{key} {number(token[key])}" for key in ("direct", "control", "p") if token[key] is not None]
    return "\n".join(parts)
