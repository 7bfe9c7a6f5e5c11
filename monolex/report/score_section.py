"""The report's section on automatic interpretation: scores over layers, tables of them, differences and examples.

Only scores that can be compared share a part of it: one simulator, one mode and one protocol.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monolex import stages
from monolex.artifact import MANIFEST, SUBJECT
from monolex.interp.config import FigureConfig
from monolex.interp.explain import saved
from monolex.interp.records import dictionary_of
from monolex.interp.score import curves, figures
from monolex.interp.score import tables as paper_tables
from monolex.interp.score.comparable import ComparableScores, Facts, explainers_of, joined, sources
from monolex.pages import card_explanations, html, score_charts, svg
from monolex.pages.eval_charts import title
from monolex.pages.html import estimate, number
from monolex.pages.tables import Column, Table, bare, table
from monolex.report.features_section import GALLERY
from monolex.report.section import INTERPRETATION, Artefacts, Section

EXAMPLES = 5
"""Features whose explanations are shown."""
FOLDED = 2
"""Sites with tables in sight; of more, all are folded."""
HEADLINE = "top_and_random"
SCORES = (
    Column(HEADLINE, "Score", "correlation of simulated with real activations on top and random fragments"),
    Column("top", "Top alone", "the same on the fragments with the strongest activations"),
    Column("random", "Random alone", "the same on fragments drawn at random"),
    Column("chance", "Chance", "the score that explanations of other features of the dictionary have"),
    Column("detection", "Detection", "telling fragments with the feature from silent ones: balanced accuracy"),
    Column("fuzz", "Fuzzing", "telling the right tokens marked from wrong ones: balanced accuracy"),
)
COUNTS = (
    Column("explained", "Explained", "features that were explained", whole=True, noted=True),
    Column("skipped", "Skipped", "features that were asked for and not explained", whole=True, noted=True),
    Column("missing", "No score", "explained features without a score", whole=True, noted=True),
    Column("failures", "Failed", "predictions that did not come", whole=True, noted=True),
)
VERDICTS = {
    "above": "above",
    "below": "below",
    "no clear difference": "no clear difference",
    "without an interval": "no interval",
}


def section(run: Path, artefacts: Artefacts, listed: Collection[str] | None) -> Section:
    """A part for all scores that can be compared, of the artefacts of a run."""
    names = [path.partition("/")[2] for path, manifest in artefacts.items() if manifest.kind == "score"]
    groups = joined(sources(run, names)) if names else []
    apart = [path for path, manifest in artefacts.items() if stages.shown_apart(manifest.kind)]
    others = set() if listed is None else set(apart) - set(listed)
    described = [describe(f"interpretation-{i}", run, others, group) for i, group in enumerate(groups, 1)]
    return Section(INTERPRETATION, [Markup(html.page("score.html", **facts)) for facts in described])


def describe(key: str, run: Path, others: Collection[str], group: ComparableScores) -> dict[str, Any]:
    """Everything of the scores of a group; ``others`` are artefacts that run.toml does not list."""
    head = group.head
    charts = _charts(group)
    sites = dict.fromkeys(one["site"] for one in group.dictionaries())
    failures = _failures(group)
    tables = [_scores(f"{key}-site-{i}", site, group, failures, len(sites)) for i, site in enumerate(sites, 1)]
    compared = [_differences(f"{key}-against-{i}", site, group) for i, site in enumerate(sites, 1)]
    return {
        "key": key,
        "name": ", ".join(head["scores"]),
        "said": _said(head),
        "notices": notices(run, group, others),
        "panels": [(panel.title, panel.chart()) for panel in charts],
        "legend": svg.legend(one for panel in charts for one in panel.series),
        "tally": _tally(f"{key}-tally", group),
        "level": f"{head['level']:.0%}",
        "tables": tables,
        "compared": [one for one in compared if one],
        "examples": _examples(run, group),
    }


def notices(run: Path, group: ComparableScores, others: Collection[str]) -> list[str]:
    """What to know of a group of scores before reading them, a sentence each.

    ``others`` are the explanations and scores of the run, by their path in it, that its run.toml does not list.
    """
    found: list[str] = []
    used: dict[str, None] = {}
    for source in group.sources:
        name, given = f"score/{source.name}", source.content["explanations"]
        folder = (source.folder / given).resolve()
        place = Path(os.path.relpath(folder, run.resolve())).as_posix()
        used |= dict.fromkeys((place, name))
        if not (folder / MANIFEST).exists():
            found.append(f"{name} is of explanations that are no longer in {place}: explain and score again.")
        elif not saved.unchanged(source.folder, given):
            found.append(f"{name} is of explanations that were made anew since, in {place}: score again.")
    apart = [name for name in used if name in others]
    return [*found, f"Made apart from run.toml, which does not list it: {', '.join(apart)}."] if apart else found


def _said(head: Facts) -> str:
    """How the numbers came about, in plain words."""
    if head["simulator"] == "rules":
        how = "A program applied every explanation as a rule to text that it was not made from; no language model was"
        how += " asked."
    else:
        how = "From every explanation a simulator predicted the activations on text that it was not made from; the"
        how += f" simulator: {head['simulator']}."
    return f"{how} Protocol: {head['mode']}. Scores of other simulators or protocols cannot be compared with these."


def _charts(group: ComparableScores) -> list[Any]:
    """Scores over layers, a chart a kind of site and explainer."""
    found = []
    for explainers in explainers_of(group, FigureConfig()):
        chosen = curves.scored_by(group.dictionaries(), explainers, HEADLINE)
        for panel in figures.over_layers(chosen, HEADLINE):
            found.append({**panel, "title": f"{panel['place']}, explainer {explainers[0]}"})
    return score_charts.panels(found, 530, 360)


def _scores(
    key: str, site: str, group: ComparableScores, failures: Mapping[tuple[str, ...], Counter[str]], sites: int
) -> Table:
    """Means of every dictionary of a site by explainer."""
    here = [one for one in group.dictionaries() if one["site"] == site]
    asked = {metric for one in here for some in one["explainers"].values() for metric in some}
    columns = [column for column in SCORES if column.metric in asked]
    groups, means = [], []
    for explainer in dict.fromkeys(name for one in here for name in one["explainers"]):
        own = [one for one in here if explainer in one["explainers"]]
        groups.append(
            (f"Explainer {explainer}", [(title(one), partial(_look_up, one, explainer, failures)) for one in own])
        )
        means += [one["explainers"][explainer] for one in own]
    caption = f"Scores at {site}, means over features (n where they are of more or fewer features than the score)"
    shown = table(key, caption, "Dictionary", [*columns, *COUNTS], groups, folded=sites > FOLDED)
    for line, some in zip(shown.lines, means, strict=True):
        for i, column in enumerate(columns):
            known = some.get(column.metric)
            if known and known["value"] is not None and known["n"] != some[HEADLINE]["n"]:
                line.cells[i] = line.cells[i]._replace(text=f"{line.cells[i].text} (n {known['n']:,})")
    return shown


def _look_up(one: Facts, explainer: str, failures: Mapping[tuple[str, ...], Counter[str]], metric: str) -> Any:
    """An estimate of score.json, or a count with its reasons."""
    means = one["explainers"][explainer]
    if metric == "explained":
        return _count({"": one["explained"]})
    if metric == "skipped":
        return _count(one["skipped"])
    if metric == "missing":
        main = means.get(HEADLINE, {})
        silent = {"predictions are constant, 0 in the mean": main["constant"]} if main.get("constant") else {}
        return _count({**main.get("missing", {}), **silent})
    if metric == "failures":
        return _count(failures.get((*dictionary_of(one), explainer), {}))
    return means.get(metric)


def _count(found: Mapping[str, int]) -> dict[str, Any]:
    """A count, and what is counted where that is no one thing."""
    known = {reason: n for reason, n in found.items() if reason}
    said = ", ".join(known) if len(known) == 1 else ", ".join(f"{reason}: {n:,}" for reason, n in known.items())
    return bare(sum(found.values())) | {"reason": said}


def _failures(group: ComparableScores) -> dict[tuple[str, ...], Counter[str]]:
    """Failed predictions by reason, of every dictionary and explainer."""
    found: dict[tuple[str, ...], Counter[str]] = {}
    for row in (row for source in group.sources for row in source.lines()):
        found.setdefault((*dictionary_of(row), row["explainer"]), Counter()).update(row["failures"])
    return found


def _tally(key: str, group: ComparableScores) -> Table | None:
    """How often trained dictionaries are above the others of their site, by what they are compared with."""
    methods = {dictionary_of(one): one["method"] for one in group.dictionaries()}
    found: dict[str, dict[str, list[Facts]]] = {}
    for one in _compared(group):
        against = methods.get((one["against_model"], one["site"], one["against"]), one["against"])
        found.setdefault(one["explainer"], {}).setdefault(against, []).append(one)
    columns = [
        Column(name, label.capitalize(), "pairs of dictionaries", whole=True) for name, label in VERDICTS.items()
    ]
    groups = [
        (f"Explainer {explainer}", [(against, _counts(some).get) for against, some in by.items()])
        for explainer, by in found.items()
    ]
    caption = "Trained dictionaries beside others of their site, in how many pairs"
    return table(key, caption, "Compared with", columns, groups) if found else None


def _counts(some: Sequence[Facts]) -> dict[str, Any]:
    return {name: _count({"": n}) for name, n in score_charts.tally(some).items()}


def _differences(key: str, site: str, group: ComparableScores) -> Table | None:
    """Every trained dictionary of a site less every other, in words."""
    found: dict[str, dict[str, dict[str, Facts]]] = {}
    for one in _compared(group, site):
        against = title({"model": one["against_model"], "name": one["against"]})
        found.setdefault(one["explainer"], {}).setdefault(one["name"], {})[against] = one
    if not found:
        return None
    names = dict.fromkeys(name for by in found.values() for row in by.values() for name in row)
    columns = [Column(name, f"than {name}") for name in names]
    groups = [
        (f"Explainer {explainer}", [(name, row.get) for name, row in by.items()]) for explainer, by in found.items()
    ]
    shown = table(key, f"Differences of the score at {site}", "Dictionary", columns, groups, folded=True)
    rows = [row for by in found.values() for row in by.values()]
    for line, row in zip(shown.lines, rows, strict=True):
        for i, name in enumerate(names):
            if name in row:
                text, span = score_charts.words(row[name])
                line.cells[i] = line.cells[i]._replace(text=text, interval=span)
    return shown


def _compared(group: ComparableScores, site: str = "") -> list[Facts]:
    """Differences of the first score, all or those of a site."""
    found: Iterable[Facts] = (one for source in group.sources for one in source.content["differences"])
    return [one for one in found if one["metric"] == HEADLINE and site in ("", one["site"])]


def _examples(run: Path, group: ComparableScores) -> list[dict[str, Any]]:
    """The first features of the first trained dictionary with their explanations, an explainer each."""
    found = []
    for one in paper_tables.examples(group, HEADLINE, FigureConfig(rows=EXAMPLES)):
        page = f"{GALLERY}/{one['site']}/{one['name']}.html"
        there = one["model"] == SUBJECT and (run / page).exists()
        rows = [
            {
                "feature": row["feature"],
                "page": f"{page}#feature-{row['feature']}" if there else None,
                "text": card_explanations.said(row["text"]),
                "score": estimate(row["score"]),
                "chance": "" if row["chance"]["value"] is None else number(row["chance"]["value"]),
            }
            for row in one["rows"]
        ]
        head = f"{one['site']}/{one['name']}, explainer {' and '.join(one['explainers'])}"
        skipped = f"{one['explained']:,} of {one['asked']:,} features explained"
        skipped += f", skipped {score_charts.counted(one['skipped'])}"
        found.append({"head": head, "skipped": skipped, "rows": rows})
    return found
