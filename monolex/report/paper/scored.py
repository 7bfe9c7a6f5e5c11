"""Figures on scores of explanations: their numbers; what Fig. 8, both tables and scores along training say."""

from itertools import combinations
from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT
from monolex.interp.config import FigureConfig
from monolex.interp.score import figures, tables
from monolex.kinds import KINDS
from monolex.pages.html import estimate
from monolex.pages.score_charts import picture
from monolex.pages.sheets import sheet
from monolex.report.paper.differences import comparisons
from monolex.report.paper.figure import Facts, ReadOff, counted
from monolex.stats import Estimate, widened
from monolex.verdicts import Verdict, agreed, below, beyond


def numbers(which: str, run: Path, config: FigureConfig) -> dict[str, Any]:
    """The numbers of a figure with the paired differences that its verdict is read off, or of a table."""
    if which in tables.TITLES:
        content = tables.table(run, which, config)
        names = [name for table in content["tables"] for name in table["scores"]]
    else:
        content = figures.figure(run, which, config)
        names = [name for panel in content["panels"] for name in panel["scores"]]
        content["comparisons"] = comparisons(run, content, config)
    return content | {"made_of": [f"score/{name}" for name in dict.fromkeys(names)]}


def drawn(content: Facts) -> list[Any]:
    """The one picture of a figure or table."""
    return [sheet(content) if "tables" in content else picture(content)]


def across_sizes(content: Facts) -> ReadOff:
    """Whether scores of a recipe stay the same over the size of its dictionaries."""
    said, curves = [], []
    trained = ((p, s) for p in content["panels"] for s in p["series"] if s["trained"] and s["model"] == SUBJECT)
    for panel, series in trained:
        known = [p for p in series["points"] if p["value"] is not None and p["low"] is not None]
        if len({point["x"] for point in known}) < 2:
            continue
        curves.append([(a, b) for a, b in combinations(known, 2) if a["x"] != b["x"]])
        ends = ", ".join(f"{estimate(point)} at R = {point['x']:g}" for point in known)
        said.append(f"{series['label']}, {panel['place']}, {' and '.join(panel['explainers'])}: {ends}.")
    if not said:
        return ReadOff("cannot say", ("This run cannot say: no recipe has scores at two sizes.",), setting(content))
    pairs = sum(map(len, curves))
    apart = sum(any(_apart(a, b, pairs) for a, b in curve) for curve in curves)
    verdict: Verdict = "contradicted" if apart else "undecided"
    differ = f"{apart} of {counted(len(curves), 'curve')} have two sizes whose intervals are apart, widened for"
    differ += f" {counted(pairs, 'comparison')}."
    differ += "" if apart else " Intervals that overlap do not show that scores are the same."
    return ReadOff(verdict, (*said, differ), setting(content))


def _apart(a: Facts, b: Facts, comparisons: int) -> bool:
    wide = (widened(Estimate(p["value"], p["low"], p["high"]), comparisons) for p in (a, b))
    return below(*wide) != "undecided"


def along_training(content: Facts) -> ReadOff:
    """Scores of the first and the last checkpoint."""
    said = []
    for panel, series in ((p, s) for p in content["panels"] for s in p["series"]):
        known = [point for point in series["points"] if point["value"] is not None and point["x"] is not None]
        if len(known) > 1:
            first, last = (f"{estimate(p)} at step {p['x']:,}" for p in (known[0], known[-1]))
            said.append(f"{series['label']}, {panel['place']}, {' and '.join(panel['explainers'])}: {first}, {last}.")
    return ReadOff("no claim", tuple(said), setting(content))


def examples(content: Facts) -> ReadOff:
    """How many of the explanations in sight predict better than other features' explanations do."""
    rows = [row for table in content["tables"] for row in table["rows"] if row["score"]["value"] is not None]
    levels = [(row["score"]["low"], row["chance"]["value"]) for row in rows]
    above = sum(low is not None and chance is not None and low > chance for low, chance in levels)
    said = f"{above} of {counted(len(rows), 'explanation')} with a score predict better than explanations of other"
    return ReadOff("no claim", (f"{said} features, with the whole interval.",), setting(content))


def moments(content: Facts) -> ReadOff:
    """Whether scores rise with skew and kurtosis."""
    said, verdicts = [], []
    for table in content["tables"]:
        pooled = {row["method"] for row in table["rows"] if row["name"] is None}
        for row in table["rows"]:
            if row["model"] != SUBJECT or not _trained(row) or (row["name"] is not None and row["method"] in pooled):
                continue
            pair = [row["moments"][name]["pearson"] for name in ("skew", "kurtosis")]
            verdicts += [beyond(each) for each in pair if each["low"] is not None]
            who = f"{row['method']} at {row['site']}, {' and '.join(table['explainers'])}"
            said.append(f"{who}: skew {estimate(pair[0])}, kurtosis {estimate(pair[1])}.")
    return ReadOff(agreed(verdicts), tuple(said), setting(content))


def setting(content: Facts) -> str:
    """Who explained and simulated, and how many features."""
    shown = content.get("panels") or content.get("tables") or []
    explainers = dict.fromkeys(name for each in shown for name in each["explainers"])
    simulators, modes = (dict.fromkeys(each[name] for each in shown) for name in ("simulator", "mode"))
    said = f"Here: explainer {' and '.join(explainers)}, simulator {' and '.join(simulators)}"
    said += f", {' and '.join(modes)} protocol"
    points = [point for panel in content.get("panels", ()) for series in panel["series"] for point in series["points"]]
    if not points:
        return f"{said}."
    counts = sorted({point["explained"] for point in points})
    explained = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{said}; of {max(p['asked'] for p in points):,} features of a dictionary {explained} could be explained."


def _trained(row: Facts) -> bool:
    return any(row["method"].startswith(f"{kind}-") for kind in KINDS)
