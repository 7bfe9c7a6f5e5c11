"""The report's section on stability: what sets the features that come back under other seeds apart."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monolex.features.seeds import ALIKE
from monolex.pages import stability_charts, svg
from monolex.pages.html import estimate, number
from monolex.pages.tables import Column, Table, bare, table
from monolex.report.section import Artefacts, Chapter, Section, parts_of_kind

Facts = Mapping[str, Any]
STABILITY = Chapter(
    "stability",
    "Other seeds",
    "Which features come back",
    Markup(
        "A dictionary of another seed saw the same text in the same order and began with other weights. A feature "
        f"comes back where that one has a like feature: encoder and decoder rows of cosine {ALIKE} or more, each the "
        "other's nearest."
    ),
)
LABELS = {
    "kl": "Ablated where it is active, KL in nats",
    "size": "Length of what is taken away",
    "density": "Density",
}
GROUPS = (
    Column("stable", "Stable", "mean over the features that come back"),
    Column("unstable", "Unstable", "mean over those that do not"),
    Column("difference", "Difference", "stable less unstable, with its interval over features"),
)


def section(run: Path, artefacts: Artefacts, _listed: Collection[str] | None) -> Section:
    """Everything of the stability of a run's features."""
    return Section(STABILITY, parts_of_kind("stability", run, artefacts, describe))


def describe(key: str, content: Facts) -> dict[str, Any]:
    """The chart of all dictionaries, and a table of each."""
    panel = stability_charts.panel(content["dictionaries"])
    return {
        "panels": [(panel.title, panel.chart())],
        "legend": svg.legend(panel.series),
        "stable": number(100 * content["stable"]),
        "unstable": number(100 * content["unstable"]),
        "dictionaries": [
            {"said": said(facts), "tables": [_table(f"{key}-{i}", facts)]}
            for i, facts in enumerate(content["dictionaries"], 1)
        ],
    }


def said(facts: Facts) -> str:
    """One dictionary in two or three sentences."""
    seeds, chance = len(facts["other_seeds"]), facts["chance"]
    text = (
        f"{facts['name']} at {facts['site']}: a feature comes back under another seed with a probability of "
        f"{estimate(facts['reappears'])} ({seeds} other seeds; random directions {number(chance)})."
    )
    kl, parts = facts["compared"]["kl"]["difference"], facts["reconstruction"]
    text += f" Ablated where it is active, a stable feature changes predictions by {_more(kl)} than an unstable one."
    shares = [f"the {facts['features'][name]:,} {name} ones {estimate(parts[name])}" for name in ("stable", "unstable")]
    return f"{text} Of the variance {' and '.join(shares)} are lost without them."


def _more(difference: Facts) -> str:
    if difference["value"] is None:
        return f"an amount that cannot be compared ({difference['reason']})"
    more = "more" if difference["value"] > 0 else "less"
    certain = difference["low"] is not None and (difference["low"] > 0 or difference["high"] < 0)
    return f"{number(abs(difference['value']))} nats {more}" + ("" if certain else " (which chance alone can do)")


def _table(key: str, facts: Facts) -> Table:
    rows = [(LABELS.get(str(name), str(name).capitalize()), values.get) for name, values in facts["compared"].items()]
    parts = {**facts["reconstruction"], "difference": bare(None, "shares of wholes")}
    rows.append(("Variance lost without all of them", parts.get))
    return table(key, "Features that come back beside those that do not", "Of a feature", GROUPS, [("", rows)])
