"""Figures on scores of explanations: Figs. 2, 8, 9, 10 and 18, Tables 1 and 2, and scores along training."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT
from monolex.interp.config import FigureConfig
from monolex.interp.records import dictionary_of
from monolex.interp.score import figures, tables
from monolex.interp.score.comparable import ComparableScores, joined, sources
from monolex.kinds import BASELINES, KINDS, TOPK
from monolex.pages.eval_charts import control_label
from monolex.pages.html import estimate
from monolex.pages.score_charts import picture, words
from monolex.pages.sheets import Grid, sheet
from monolex.report.paper.figure import VERDICTS, Facts, ReadOff, counted
from monolex.verdicts import Verdict, agreed, beyond

NOT_CHANCE = "Every interval stands for itself: of many comparisons some leave out 0 by chance."


def numbers(which: str, run: Path, config: FigureConfig) -> dict[str, Any]:
    """The numbers of a figure with the paired differences that its verdict is read off, or of a table."""
    if which in tables.TITLES:
        content = tables.table(run, which, config)
        names = [name for table in content["tables"] for name in table["scores"]]
    else:
        content = figures.figure(run, which, config)
        names = [name for panel in content["panels"] for name in panel["scores"]]
        content["comparisons"] = _comparisons(run, content, config)
    return content | {"made_of": [f"score/{name}" for name in dict.fromkeys(names)]}


def drawn(content: Facts) -> list[Any]:
    """The one picture of a figure or table."""
    return [sheet(content) if "tables" in content else picture(content)]


def beside_baselines(
    content: Facts, kinds: Callable[[str], bool] = BASELINES.__contains__, named: str = "a baseline"
) -> ReadOff:
    """Whether trained dictionaries score above the baselines of these kinds, ``named`` so, at every site."""
    asked_of = [c for c in content["comparisons"] if c["against_model"] == SUBJECT and kinds(c["against_kind"])]
    controls = [c for c in content["comparisons"] if c["against_model"] != SUBJECT]
    if not asked_of:
        reason = f"no trained dictionary and {named} of its site have scores that were compared"
        return ReadOff("cannot say", (f"This run cannot say: {reason}.",), setting(content))
    grids, verdicts = [], []
    for head, compared in _grouped(asked_of, lambda c: c["group"]).items():
        grid, cells = _grid(head, compared)
        grids.append(grid)
        verdicts += cells
    pairs = counted(len(asked_of), "comparison")
    said = [f"Of {pairs} of a trained dictionary with {named} of its site {_tally(asked_of)}."]
    ends = sorted({c["layer"] for c in asked_of})
    if len(ends) > 1:
        first, last = ([c for c in asked_of if c["layer"] == end] for end in (ends[0], ends[-1]))
        told = (f"layer {at[0]['layer']}, of {len(at)}, {_tally(at)}" for at in (first, last))
        said.append(f"At {'; at '.join(told)}.")
    for model, compared in _grouped(controls, lambda c: c["against_model"]).items():
        said.append(f"Of {len(compared)} with the same dictionary of the {control_label(model)} {_tally(compared)}.")
    return ReadOff(agreed(verdicts), (*said, NOT_CHANCE), setting(content), tuple(grids))


def across_sizes(content: Facts) -> ReadOff:
    """Whether scores of a recipe stay the same over the size of its dictionaries."""
    said, apart = [], []
    trained = ((p, s) for p in content["panels"] for s in p["series"] if s["trained"] and s["model"] == SUBJECT)
    for panel, series in trained:
        known = [p for p in series["points"] if p["value"] is not None and p["low"] is not None]
        if len({point["x"] for point in known}) < 2:
            continue
        low, high = max(p["low"] for p in known), min(p["high"] for p in known)
        apart.append(low > high)
        ends = ", ".join(f"{estimate(point)} at R = {point['x']:g}" for point in known)
        said.append(f"{series['label']}, {panel['place']}, {' and '.join(panel['explainers'])}: {ends}.")
    if not said:
        return ReadOff("cannot say", ("This run cannot say: no recipe has scores at two sizes.",), setting(content))
    verdict: Verdict = "contradicted" if any(apart) else "undecided"
    differ = f"{sum(apart)} of {len(apart)} curves have two sizes whose intervals are apart."
    differ += "" if any(apart) else " Intervals that overlap do not show that scores are the same."
    return ReadOff(verdict, (*said, differ), setting(content))


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


def _comparisons(run: Path, content: Facts, config: FigureConfig) -> list[dict[str, Any]]:
    """Paired differences of trained dictionaries that the figure shows from what they are to be compared with."""
    shown = {
        (s["model"], p["site"], p["name"]) for panel in content["panels"] for s in panel["series"] for p in s["points"]
    }
    known = {name for panel in content["panels"] for name in panel["explainers"]}
    listed = []
    for group in joined(sources(run, config.scores)):
        facts = {dictionary_of(each): each for each in group.dictionaries()}
        for row in (row for source in group.sources for row in source.content["differences"]):
            trained, other = (
                (row["model"], row["site"], row["name"]),
                (row["against_model"], row["site"], row["against"]),
            )
            wanted = row["metric"] == content["metric"] and row["explainer"] in known and {trained, other} <= shown
            if wanted and _compared(facts[trained], facts[other], facts):
                listed.append(_comparison(row, group, facts[trained], facts[other]))
    return listed


def _comparison(row: Facts, group: ComparableScores, trained: Facts, other: Facts) -> dict[str, Any]:
    head = f"Explainer {row['explainer']}, simulator {group.head['simulator']}, {group.head['mode']} protocol"
    kept = {name: row[name] for name in ("site", "layer", "name", "against", "against_model")}
    kept |= {name: row[name] for name in ("value", "low", "high", "n", "over", "reason")}
    return {"group": head, "method": trained["method"], "against_kind": other["kind"], **kept}


def _compared(trained: Facts, other: Facts, facts: Mapping[Any, Facts]) -> bool:
    """Whether they belong beside each other: not an α of 0, which is a control, nor what stayed random in training.

    Of top-k baselines the one whose k is nearest to the dictionary's L0, and of a control model the same dictionary.
    """
    frozen = bool(KINDS[trained["kind"]].frozen) if trained["kind"] in KINDS else False
    if trained["alpha"] == 0 or frozen or trained["step"] is not None:
        return False
    if other["model"] != SUBJECT:
        return other["name"] == trained["name"]
    if not other["kind"].endswith(TOPK):
        return True
    alike = [f for f in facts.values() if (f["model"], f["site"], f["kind"]) == (SUBJECT, other["site"], other["kind"])]
    return other["name"] == min(alike, key=lambda f: abs((f["k"] or 0) - trained["l0"]))["name"]


def _grid(head: str, compared: Sequence[Facts]) -> tuple[Grid, list[Verdict]]:
    """How often every trained method is above and below every kind of baseline."""
    kinds = list(dict.fromkeys(c["against_kind"] for c in compared))
    rows, verdicts = [], []
    for method, of_method in _grouped(compared, lambda c: c["method"]).items():
        cells = [method]
        for kind in kinds:
            pairs = [c for c in of_method if c["against_kind"] == kind]
            if not pairs:
                cells.append("not compared")
                continue
            counts = _counts(pairs)
            above, below = counts["above"], counts["below"]
            verdict: Verdict = (
                "confirmed" if above == len(pairs) else "contradicted" if below == len(pairs) else "undecided"
            )
            verdicts.append(verdict)
            where = "site" if len(pairs) == 1 else "sites"
            cells.append(
                f"{VERDICTS[verdict][0]} above at {above} of {len(pairs)} {where}" + f", below at {below}" * bool(below)
            )
        rows.append(tuple(cells))
    note = "A site counts as above or below where the whole interval of the paired difference is."
    return Grid(head, ("Dictionary", *(f"than {kind}" for kind in kinds)), tuple(rows), (note,)), verdicts


def _counts(compared: Iterable[Facts]) -> Counter[str]:
    return Counter(
        next(w for w in ("above", "below", "other") if w == "other" or words(c)[0].startswith(f"{w} by"))
        for c in compared
    )


def _tally(compared: Sequence[Facts]) -> str:
    counts = _counts(compared)
    return f"{counts['above']} are above with the whole interval, {counts['below']} below"


def _grouped(listed: Iterable[Facts], key: Callable[[Facts], str]) -> dict[str, list[Facts]]:
    groups: dict[str, list[Facts]] = {}
    for each in listed:
        groups.setdefault(key(each), []).append(each)
    return groups


def _trained(row: Facts) -> bool:
    return any(row["method"].startswith(f"{kind}-") for kind in KINDS)


above_neurons = partial(beside_baselines, kinds=lambda kind: kind == "neurons", named="the neurons")
"""The paper's claim on MLPs is about neurons alone."""
above_topk = partial(
    beside_baselines, kinds=lambda kind: kind in BASELINES and kind.endswith(TOPK), named="a top-k baseline"
)
"""Whether baselines that are as sparse still score below."""
