"""What the report shows of the norms of a site's activations: a histogram, and what was left out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from monolex.activations.outliers import edges
from monolex.artifact import Manifest
from monolex.pages.axis import Axis
from monolex.pages.histogram import Layer, stacked, swatches

KEPT, LEFT_OUT = "blue", "vermilion"


class Norms(NamedTuple):
    """A histogram and the sentence beside it."""

    chart: Markup
    """SVG."""
    legend: Markup
    """Which colour is what."""
    said: str
    """What was left out, and what the largest rows hold."""


def norms(activations: Manifest | None) -> dict[str, Norms]:
    """Every stored site's norms; nothing without activations."""
    if activations is None:
        return {}
    dropped, rows = activations.data["dropped"]["train"]["norm"], activations.data["rows"]["train"]
    tokens = activations.data["outlier_tokens"]
    return {site: _norms(site, facts, dropped, rows, tokens) for site, facts in activations.data["sites"].items()}


def _norms(site: str, facts: Mapping[str, Any], dropped: int, rows: int, tokens: list[dict[str, Any]]) -> Norms:
    kept, left_out = facts["histogram"]["kept"], facts["histogram"]["left_out"]
    used = [number for number, pair in enumerate(zip(kept, left_out, strict=True)) if any(pair)] or [0]
    part, ends = slice(used[0], used[-1] + 1), edges()
    x = Axis("norm / median norm", ends[part.start], ends[part.stop], log=True)
    layers = [Layer("kept", KEPT, kept[part]), Layer("left out", LEFT_OUT, left_out[part])]
    chart = stacked(layers, x, f"Norms of the rows at {site}", log=True)
    outliers, limit = facts["outliers"], facts["norm_limit"]
    said = f"The median norm is {facts['median_norm']:.4g}, the largest {facts['largest_norm']:.4g}. "
    if limit is None:
        said += "No row was left out for its norm. "
    else:
        said += (
            f"{outliers['rows']:,} rows are beyond {limit:.4g} and hold {outliers['share']:.1%} of the squared norm; "
            f"{dropped:,} of {rows + dropped:,} are left out for their norm at some site. "
        )
    if dropped and tokens:
        said += f"They are {', '.join(_counted(entry) for entry in tokens)}. "
    said += f"Of what is kept, the largest 1 % of the rows hold {facts['top_percent_share']:.1%} of the squared norm."
    return Norms(chart, swatches([(Markup("kept"), KEPT), (Markup("left out"), LEFT_OUT)]), said)


def _counted(entry: Mapping[str, Any]) -> str:
    return f"{entry['text']!r} ({entry['count']:,})"
