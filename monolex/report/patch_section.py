"""The report's section on patches."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT
from monolex.kinds import heading
from monolex.pages import patch_charts, svg
from monolex.pages.eval_charts import control_label, title
from monolex.pages.html import estimate
from monolex.pages.tables import Column, Table, bare, table
from monolex.report.section import CAUSES, Artefacts, Section, parts_of_kind

Facts = Mapping[str, Any]
VERDICTS = {"confirmed": "✓ confirmed", "contradicted": "✗ contradicted", "undecided": "? undecided"}
"""A sign and a word for what numbers say of a claim."""
SIZES = (1, 4, 16, 64, 256)
"""Numbers of patched features in the table of KLs; of a curve the nearest measured one."""
BEHAVIOUR = (
    Column(
        "accuracy", "Accuracy", "share of prompts on which the right answer is likelier than the foil; 0.5 is chance"
    ),
    Column("logit_difference", "Logit difference", "of the right answer over the foil, mean over prompts"),
    Column("donor_accuracy", "Donor accuracy", "the same share of the donor prompts, for their own answers"),
    Column("probability", "Probability", "of the right answer, of the whole vocabulary"),
    Column("kl", "KL to donor", "KL(base ‖ donor) in nats: what a patch has to bridge"),
)
FLOORS = (
    Column("candidates", "Candidates", "features whose activations differ between base and donor", whole=True),
    Column("all", "KL", "nats, with every feature patched: the floor that the reconstruction error leaves"),
    Column("share", "of the KL with none", "KL with all features patched, over the KL with none"),
    Column("metric", "Logit difference", "of the base's answer over its foil"),
    Column("edit", "Edit", "mean over tokens of the length of the edit"),
)
NOT_ASKED = "asked of the model's own trained dictionaries and of the baseline they are compared with"


def section(run: Path, artefacts: Artefacts, _listed: Collection[str] | None) -> Section:
    """Everything of the patches of a run."""
    return Section(CAUSES, parts_of_kind("patch", run, artefacts, describe))


def describe(key: str, patch: Facts) -> dict[str, Any]:
    """A patch: the behaviour first, then what the paper says beside what came out, then every site."""
    corruption = f", corruption {patch['corruption']}" if patch["corruption"] else ""
    left_out = patch["left_out"]
    apart = patch["chosen_on"] < patch["pairs"]
    said = f"Task {patch['task']}{corruption}, {patch['pairs']:,} pairs of prompts"
    said += (
        f": sets of features are chosen on {patch['chosen_on']:,} of them and measured on the others." if apart else "."
    )
    said += f" Not one token, so left out: {', '.join(left_out)}." if left_out else ""
    return {
        "said": said,
        "apart": apart,
        "able": patch["behaviour"]["able"],
        "verdict": patch["behaviour"]["verdict"],
        "examples": patch["examples"],
        "behaviour": _behaviour(f"{key}-behaviour", patch),
        "wordings": _wordings(f"{key}-wordings", patch["by_wording"]),
        "summary": _summary(f"{key}-summary", patch["claims"]),
        "sites": [
            _site(f"{key}-site-{i}", site, dictionaries, patch["claims"])
            for i, (site, dictionaries) in enumerate(patch_charts.sites(patch).items(), 1)
        ],
    }


def _behaviour(key: str, patch: Facts) -> Table:
    """What the model does on these prompts, and on those that tell practice from skill."""
    groups = [("These prompts", [("all", patch["behaviour"].get)])]
    for row in patch["table"]:
        label = f"IOI in {row['wordings']} wordings"
        if groups[-1][0] != label:
            groups.append((label, []))
        groups[-1][1].append((f"{row['names']} names", row.get))
    return table(key, "What the model does before anything is patched", "Prompts", BEHAVIOUR, groups)


def _wordings(key: str, rows: Sequence[Facts]) -> Table | None:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(f"By {row['by']}", []).append((row["value"], row.get))
    caption = "Behaviour by wording and order"
    return table(key, caption, "Prompts", BEHAVIOUR[:2], groups.items(), folded=True) if rows else None


def _summary(key: str, claims: Sequence[Facts]) -> Table | None:
    """How often each statement was confirmed."""
    counts: dict[str, dict[str, int]] = {}
    for claim in claims:
        counts.setdefault(claim["statement"], dict.fromkeys(VERDICTS, 0))[claim["verdict"]] += 1
    columns = [Column(verdict, word, "comparisons", whole=True) for verdict, word in VERDICTS.items()]
    rows = [(statement, {v: bare(n) for v, n in verdicts.items()}.get) for statement, verdicts in counts.items()]
    caption = "What the paper says, and what these numbers say"
    return table(key, caption, "Statement", columns, [("", rows)]) if rows else None


def _site(key: str, site: str, dictionaries: Sequence[Facts], claims: Sequence[Facts]) -> dict[str, Any]:
    """Charts and tables of one site."""
    panels = patch_charts.panels(site, dictionaries)
    searches = patch_charts.search_panels(dictionaries)
    claimed = [claim for claim in claims if claim["dictionary"].startswith(f"{site}/")]
    tables = [_claims(f"{key}-claims", claimed), _floors(f"{key}-floors", dictionaries, claimed)]
    tables += [_sizes(f"{key}-sizes", dictionaries), _areas(f"{key}-areas", dictionaries)]
    shown = {title(each) for each in patch_charts.shown(dictionaries)}
    return {
        "name": site,
        "ends": _ends(dictionaries[0]),
        "charts": [(panel.title, panel.chart()) for panel in panels],
        "legend": svg.legend(curve for panel in panels for curve in panel.series),
        "hidden": [title(each) for each in dictionaries if title(each) not in shown],
        "searches": [(panel.title, panel.chart()) for panel in searches],
        "searches_legend": svg.legend(curve for panel in searches for curve in panel.series),
        "tables": [each for each in tables if each],
    }


def _ends(dictionary: Facts) -> str:
    """What holds for every dictionary of a site: nothing patched, and the donor's whole activation."""
    none, whole = dictionary["floors"]["none"], dictionary["floors"]["whole"]
    said = f"With nothing patched the KL is {estimate(none['kl'])} nats, with the donor's whole activation in its"
    said += f" place {estimate(whole['kl'])}, by an edit of {estimate(whole['edit'])}. The logit difference is"
    said += f" {estimate(none['metric'])} after the base prompt"
    return f"{said} and {estimate(dictionary['donor_metric'])} after the donor's."


def _claims(key: str, claims: Sequence[Facts]) -> Table | None:
    """Ratios at equal KL, a row a dictionary and a column a level, each with its verdict."""
    compared = [claim for claim in claims if claim["level"] is not None]
    levels = sorted({claim["level"] for claim in compared}, reverse=True)
    groups: dict[str, dict[str, dict[str, Facts]]] = {}
    for claim in compared:
        label = f"{claim['statement']}: ratio to {_short(claim['against'])}"
        groups.setdefault(label, {}).setdefault(_short(claim["dictionary"]), {})[str(claim["level"])] = claim
    about = "share of the KL with nothing patched to which both get down; below 1 the statement holds"
    columns = [Column(str(level), f"at {100 * level:g} % of the KL", about) for level in levels]
    shown = [(label, [(n, _estimates(by_level).get) for n, by_level in rows.items()]) for label, rows in groups.items()]
    words = [
        [VERDICTS[by_level[column.metric]["verdict"]] if column.metric in by_level else "" for column in columns]
        for rows in groups.values()
        for by_level in rows.values()
    ]
    return with_words(table(key, "At equal KL", "Dictionary", columns, shown), words) if compared else None


def _floors(key: str, dictionaries: Sequence[Facts], claims: Sequence[Facts]) -> Table:
    """What no search can go below, a row a dictionary."""
    shares = {_short(claim["dictionary"]): claim for claim in claims if claim["level"] is None}
    words, groups = [], []
    for label, members in _groups(dictionaries):
        rows = []
        for dictionary in members:
            claim = shares.get(dictionary["name"]) if dictionary["model"] == SUBJECT else None
            rows.append((title(dictionary), _floor_row(dictionary, claim).get))
            words.append([VERDICTS[claim["verdict"]] if claim and c.metric == "share" else "" for c in FLOORS])
        groups.append((label, rows))
    return with_words(table(key, "Floors: every feature patched", "Dictionary", FLOORS, groups), words)


def _floor_row(dictionary: Facts, claim: Facts | None) -> dict[str, Facts]:
    everything = dictionary["floors"]["all"]
    share = claim["estimate"] if claim else bare(None, NOT_ASKED)
    row = {"candidates": bare(dictionary["candidates"]), "all": everything["kl"], "share": share}
    return row | {"metric": everything["metric"], "edit": everything["edit"]}


def _sizes(key: str, dictionaries: Sequence[Facts]) -> Table:
    """KL of the ranking at some numbers of features."""
    columns = [Column(str(size), f"{size} feature{'s' if size > 1 else ''}") for size in SIZES]
    words, groups = [], []
    for label, members in _groups(dictionaries):
        rows = []
        for dictionary in members:
            near = [nearest(dictionary["curves"].get("ranking", ()), size) for size in SIZES]
            kls = [point["kl"] if point else bare(None, "no set of about that size") for point in near]
            rows.append((title(dictionary), dict(zip((c.metric for c in columns), kls, strict=True)).get))
            sizes = [point["size"] if point else size for point, size in zip(near, SIZES, strict=True)]
            words.append([f"at {n}" if n != size else "" for n, size in zip(sizes, SIZES, strict=True)])
        groups.append((label, rows))
    caption = "KL to the donor, nats, by the ranking of integrated gradients"
    return with_words(table(key, caption, "Dictionary", columns, groups, folded=True), words)


def nearest(points: Iterable[Facts], size: int) -> Facts | None:
    """The point of about ``size`` features; None if none has between two thirds and one and a half times as many."""
    known = [(abs(math.log(point["size"] / size)), i, point) for i, point in enumerate(points) if point["size"] > 0]
    best = min(known, default=None)
    return best[2] if best and best[0] <= math.log(1.5) else None


def _areas(key: str, dictionaries: Sequence[Facts]) -> Table | None:
    """How much the searches miss that greedy finds."""
    searched = [dictionary for dictionary in dictionaries if dictionary["areas"]]
    columns = [Column(name, name) for name in dict.fromkeys(name for each in searched for name in each["areas"])]
    rows = [(title(dictionary), dictionary["areas"].get) for dictionary in searched]
    caption = "Area under KL over features, over that of the greedy search: 1 is as good"
    return table(key, caption, "Dictionary", columns, [("", rows)], folded=True) if searched else None


def _groups(dictionaries: Sequence[Facts]) -> list[tuple[str, list[Facts]]]:
    groups: dict[str, list[Facts]] = {"Trained": [], "Baselines": []}
    for dictionary in dictionaries:
        kind, model = dictionary["kind"], dictionary["model"]
        label = heading(kind) if model == SUBJECT else f"Control: {control_label(model)}"
        groups.setdefault(label, []).append(dictionary)
    return [(label, members) for label, members in groups.items() if members]


def with_words(shown: Table, words: Sequence[Sequence[str]]) -> Table:
    """The table with words after the intervals of its cells, row by row."""
    for line, row in zip(shown.lines, words, strict=True):
        line.cells[:] = [
            cell._replace(interval=f"{cell.interval} {word}".strip()) if word else cell
            for cell, word in zip(line.cells, row, strict=True)
        ]
    return shown


def _estimates(claims: Mapping[str, Facts]) -> dict[str, Facts]:
    return {level: claim["estimate"] for level, claim in claims.items()}


def _short(name: str) -> str:
    """A dictionary without its site."""
    return name.partition("/")[2]
