"""Sparsity against reconstruction as α changes (Fig. 6), and the same at several points of training (Fig. 7)."""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from monolex.artifact import MANIFEST, SUBJECT, open_artifact
from monolex.errors import UserError
from monolex.interp.config import FigureConfig
from monolex.kinds import KINDS
from monolex.pages.axis import axis
from monolex.pages.eval_charts import EvaluatedDictionary, Looks, axes, curves, entries
from monolex.pages.html import estimate, number
from monolex.pages.picture import Panel, Picture
from monolex.pages.svg import Point, Series
from monolex.report.paper.evaluated import MADE_OF, evaluated
from monolex.report.paper.figure import Facts, Missing, ReadOff, counted
from monolex.verdicts import Verdict, agreed, below

FVU, L0 = "FVU, variance unexplained", "L0, active features an activation"
ENOUGH = 3
"""Values of α between which a knee could be seen."""
MOMENTS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the steps at which training is looked at."""
SHADES = ("sky", "green", "orange", "vermilion")
"""Of those."""
MARKERS = ("circle", "square", "triangle", "hexagon")


def frontier_numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """L0 and FVU of everything that an evaluation measured at sites with two values of α or more.

    Raises:
        Missing: no evaluation, or no recipe of two values of α in it.
    """
    everything = [e for e in evaluated(run) if e.single and not e.target and {"l0", "fvu"} <= e.rows.keys()]
    sites = {group[0].site for group in _sweeps(everything)}
    if not sites:
        raise Missing("no site has dictionaries of one recipe at two values of α")
    rows = [e.rows[metric] for e in everything if e.site in sites for metric in ("l0", "fvu")]
    return {"title": "Sparsity against reconstruction as α changes", "made_of": MADE_OF, "rows": rows}


def frontier_pictures(content: Facts) -> list[Picture]:
    """A panel a site, all on the same axes."""
    everything = entries(content["rows"])
    looks = Looks(everything)
    by_site = {
        site: curves(_at(everything, site), "fvu", FVU, looks) for site in dict.fromkeys(e.site for e in everything)
    }
    scales = axes([curve for drawn in by_site.values() for curve in drawn], FVU)
    panels = tuple(Panel(site, tuple(drawn), *scales, 530, 360) for site, drawn in by_site.items())
    return [Picture("fig6", content["title"], panels, min(3 if len(panels) > 4 else 2, len(panels)))]


def frontier_reading(content: Facts) -> ReadOff:
    """Whether every step of α trades sparsity for reconstruction, without one that costs nothing."""
    everything = entries(content["rows"])
    verdicts: list[Verdict] = []
    said = []
    fewest = 0
    for group in _sweeps(everything):
        fewest = max(fewest, len(group))
        first, last = group[0], group[-1]
        verdicts.extend(_step(a, b) for a, b in pairwise(group))
        told = f"{first.kind} at {first.site}: α = {first.head['alpha']:g} to {last.head['alpha']:g} takes L0 from"
        told += (
            f" {number(first.value('l0'))} to {number(last.value('l0'))} and FVU from {estimate(first.rows['fvu'])} to"
        )
        said.append(f"{told} {estimate(last.rows['fvu'])}.")
    certain = (
        f"{verdicts.count('confirmed')} of {counted(len(verdicts), 'step')} from one α to the next lower L0 and raise"
    )
    certain += f" FVU with intervals apart, {verdicts.count('contradicted')} do the opposite."
    kinds = sorted({e.kind for group in _sweeps(everything) for e in group})
    told = f"Here: {' and '.join(kinds)}, {fewest} values of α at most."
    if fewest < ENOUGH:
        why = f"This run cannot say whether there is a knee: it has {fewest} values of α, and {ENOUGH} are the fewest."
        return ReadOff("cannot say", (why, certain, *said), told)
    eye = f"That is what the verdict is of; whether {fewest} values of α hide a knee is for the eye."
    return ReadOff(agreed(verdicts), (certain, eye, *said), told)


def training_numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """L0 and FVU of training batches at some steps, of every sweep with two values of α or more.

    Raises:
        Missing: there is none.
        UserError: a log is damaged.
    """
    panels, made_of = [], []
    for path in sorted(run.glob(f"train/*/{MANIFEST}")):
        data = open_artifact(path.parent, "sweep").data
        members = {(m["site"], m["name"]): m for m in data["members"] if KINDS[m["kind"]].sparsity == "alpha"}
        several = [group for group in _recipes(members.values()) if len(group) > 1]
        logged = _logged(path.parent / "metrics.jsonl", members) if several else {}
        for group in several:
            drawn = _moments(group, logged, data["steps"])
            if drawn:
                head = {name: group[0][name] for name in ("site", "kind", "ratio")}
                panels.append({"sweep": path.parent.name, **head, "series": drawn})
                made_of.append(path.parent.relative_to(run).as_posix())
    if not panels:
        raise Missing("no sweep whose training was logged has one recipe at two values of α")
    title = "Sparsity against reconstruction as α changes, along training"
    return {"title": title, "made_of": list(dict.fromkeys(made_of)), "panels": panels}


def training_pictures(content: Facts) -> list[Picture]:
    """A panel a site and recipe: a line a moment of training, a mark a value of α."""
    points = [point for panel in content["panels"] for each in panel["series"] for point in each["points"]]
    across, up = axis(L0, [p["l0"] for p in points], log=True), axis(FVU, [0.0, *(min(p["fvu"], 1.25) for p in points)])
    panels = []
    for panel in content["panels"]:
        drawn = []
        for each in panel["series"]:
            name = f"at about {100 * MOMENTS[each['moment']]:g} % of the steps"
            shade, marker = SHADES[each["moment"]], MARKERS[each["moment"]]
            marks = [
                Point(
                    p["l0"],
                    p["fvu"],
                    f"α = {p['alpha']:g}, step {each['step']:,}\nL0 {number(p['l0'])}\nFVU {number(p['fvu'])}",
                )
                for p in each["points"]
            ]
            drawn.append(Series(name, tuple(marks), shade, marker))
        panels.append(
            Panel(f"{panel['kind']} at {panel['site']} ({panel['sweep']})", tuple(drawn), across, up, 400, 320)
        )
    return [Picture("fig7", content["title"], tuple(panels), min(3, len(panels)))]


def training_reading(content: Facts) -> ReadOff:
    """Whether at every moment a larger α gives fewer features and more unexplained variance."""
    curves_seen = [(panel, each) for panel in content["panels"] for each in panel["series"]]
    falls = sum(
        all(a["l0"] >= b["l0"] and a["fvu"] <= b["fvu"] for a, b in pairwise(each["points"])) for _, each in curves_seen
    )
    said = [
        f"At {falls} of {counted(len(curves_seen), 'moment')} a larger α has fewer active features and a larger FVU."
    ]
    for panel in content["panels"]:
        first, last = panel["series"][0], panel["series"][-1]
        ends = " and ".join(f"{number(s['points'][-1]['fvu'])} at step {s['step']:,}" for s in (first, last))
        alpha = last["points"][-1]["alpha"]
        said.append(f"{panel['kind']} at {panel['site']}, α = {alpha:g}: FVU {ends}.")
    said.insert(1, "These are numbers of single training batches, without intervals, so they decide nothing.")
    return ReadOff(
        "undecided",
        tuple(said),
        "Here: batches of training at " + ", ".join(f"{100 * m:g} %" for m in MOMENTS) + " of the steps.",
    )


def _at(everything: Sequence[EvaluatedDictionary], site: str) -> list[EvaluatedDictionary]:
    return [e for e in everything if e.site == site]


def _sweeps(everything: Iterable[EvaluatedDictionary]) -> list[list[EvaluatedDictionary]]:
    """The subject's dictionaries that differ in α alone, by rising α; two or more each."""
    grouped: dict[tuple[Any, ...], list[EvaluatedDictionary]] = {}
    for e in everything:
        if e.trained and e.model == SUBJECT and e.head["alpha"] is not None and e.value("fvu") is not None:
            grouped.setdefault(e.curve, []).append(e)
    return [sorted(group, key=lambda e: e.head["alpha"]) for group in grouped.values() if len(group) > 1]


def _step(less: EvaluatedDictionary, more: EvaluatedDictionary) -> Verdict:
    """Whether from one α to the next L0 falls and FVU rises, with intervals apart."""
    return agreed((below(more.rows["l0"], less.rows["l0"]), below(less.rows["fvu"], more.rows["fvu"])))


def _recipes(members: Iterable[Facts]) -> list[list[Facts]]:
    grouped: dict[tuple[Any, ...], list[Facts]] = {}
    for member in members:
        grouped.setdefault(tuple(member[f] for f in ("site", "kind", "ratio", "seed", "lr")), []).append(member)
    return [sorted(group, key=lambda m: m["alpha"]) for group in grouped.values()]


def _logged(path: Path, members: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[int, Facts]]:
    """The lines of a log by site and name, and by step."""
    by_member: dict[tuple[str, str], dict[int, Facts]] = {key: {} for key in members}
    if not path.exists():
        return by_member
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if (row["site"], row["member"]) in by_member:
                by_member[row["site"], row["member"]][row["step"]] = row
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); train again") from error
    return by_member


def _moments(
    group: Sequence[Facts], logged: dict[tuple[str, str], dict[int, Facts]], steps: int
) -> list[dict[str, Any]]:
    """At every moment the line of each member that was logged nearest to it; none where one lacks numbers."""
    lines = [
        {s: row for s, row in logged[m["site"], m["name"]].items() if row["l0"] and row["fvu"] is not None}
        for m in group
    ]
    common = sorted(set.intersection(*(set(each) for each in lines)))
    drawn: dict[int, dict[str, Any]] = {}
    for share in MOMENTS if common else ():
        step = min(common, key=lambda s: abs(s - share * steps))
        points = [
            {"alpha": m["alpha"], "l0": each[step]["l0"], "fvu": each[step]["fvu"]}
            for m, each in zip(group, lines, strict=True)
        ]
        moment = min(range(len(MOMENTS)), key=lambda i, s=step: abs(MOMENTS[i] - s / steps))
        drawn[step] = {"moment": moment, "step": step, "points": points}
    return list(drawn.values())
