"""The report's section on automatic interpretation: scores over layers, tables of them, differences and examples.

Only scores that can be compared share a part of it: one simulator, one mode and one protocol.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monolex import stages
from monolex.artifact import MANIFEST, SUBJECT, placed, relative_place
from monolex.interp.config import FigureConfig
from monolex.interp.explain import saved
from monolex.interp.records import dictionary_of
from monolex.interp.score import curves, figures
from monolex.interp.score import tables as paper_tables
from monolex.interp.score.comparable import ComparableScores, Facts, explainers_of, joined, sources
from monolex.interp.simulate.batch import PredictedTokens, added, missing_said
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
    sites = dict.fromkeys(dictionary["site"] for dictionary in group.dictionaries())
    failures = _failures(group)
    tables = [_scores(f"{key}-site-{i}", site, group, failures, len(sites)) for i, site in enumerate(sites, 1)]
    compared = [_differences(f"{key}-against-{i}", site, group) for i, site in enumerate(sites, 1)]
    return {
        "key": key,
        "name": ", ".join(head["scores"]),
        "said": f"{_said(head)} {_missing(group)}".strip(),
        "notices": notices(run, group, others),
        "panels": [(panel.title, panel.chart()) for panel in charts],
        "legend": svg.legend(curve for panel in charts for curve in panel.series),
        "tally": _tally(f"{key}-tally", group),
        "level": f"{head['level']:.0%}",
        "tables": tables,
        "compared": [each for each in compared if each],
        "examples": _examples(run, group),
    }


def notices(run: Path, group: ComparableScores, others: Collection[str]) -> list[str]:
    """What to know of a group of scores before reading them, a sentence each.

    ``others`` are the explanations and scores of the run, by their path in it, that its run.toml does not list.
    """
    sentences: list[str] = []
    used: dict[str, None] = {}
    for source in group.sources:
        name, explanations = f"score/{source.name}", source.content["explanations"]
        folder = placed(source.folder, explanations)
        place = relative_place(folder, run)
        used |= dict.fromkeys((place, name))
        if not (folder / MANIFEST).exists():
            sentences.append(f"{name} is of explanations that are no longer in {place}: explain and score again.")
        elif not saved.unchanged(source.folder, explanations):
            sentences.append(f"{name} is of explanations that were made anew since, in {place}: score again.")
    apart = [name for name in used if name in others]
    return sentences + ([f"Made apart from run.toml, which does not list it: {', '.join(apart)}."] if apart else [])


def _said(head: Facts) -> str:
    """How the numbers came about, in plain words."""
    if head["simulator"] == "rules":
        method = "A program applied every explanation as a rule to text that it was not made from; no language"
        method += " model was asked."
    else:
        method = "From every explanation a simulator predicted the activations on text that it was not made from; the"
        method += f" simulator: {head['simulator']}."
    return f"{method} Protocol: {head['mode']}. Scores of other simulators or protocols cannot be compared with these."


def _missing(group: ComparableScores) -> str:
    """How often the simulator named no number."""
    counts = (tokens for dictionary in group.dictionaries() for tokens in dictionary["tokens"].values())
    return missing_said(added(PredictedTokens(**tokens) for tokens in counts))


def _charts(group: ComparableScores) -> list[Any]:
    """Scores over layers, a chart a kind of site and explainer."""
    shown = []
    for explainers in explainers_of(group, FigureConfig()):
        chosen = curves.scored_by(group.dictionaries(), explainers, HEADLINE)
        for panel in figures.over_layers(chosen, HEADLINE):
            shown.append({**panel, "title": f"{panel['place']}, explainer {explainers[0]}"})
    return score_charts.panels(shown, 530, 360)


def _scores(
    key: str, site: str, group: ComparableScores, failures: Mapping[tuple[str, ...], Counter[str]], sites: int
) -> Table:
    """Means of every dictionary of a site by explainer."""
    by_explainer: dict[str, list[Facts]] = {}
    for dictionary in group.dictionaries():
        for explainer in dictionary["explainers"] if dictionary["site"] == site else ():
            by_explainer.setdefault(explainer, []).append(dictionary)
    means = [dictionary["explainers"][name] for name, explained in by_explainer.items() for dictionary in explained]
    metrics = {metric for by_metric in means for metric in by_metric}
    columns = [column for column in SCORES if column.metric in metrics]
    groups = [
        (f"Explainer {explainer}", [(title(each), partial(_look_up, each, explainer, failures)) for each in explained])
        for explainer, explained in by_explainer.items()
    ]
    caption = f"Scores at {site}, means over features (n where they are of more or fewer features than the score)"
    shown = table(key, caption, "Dictionary", [*columns, *COUNTS], groups, folded=sites > FOLDED)
    for line, by_metric in zip(shown.lines, means, strict=True):
        for i, column in enumerate(columns):
            known = by_metric.get(column.metric)
            if known and known["value"] is not None and known["n"] != by_metric[HEADLINE]["n"]:
                line.cells[i] = line.cells[i]._replace(text=f"{line.cells[i].text} (n {known['n']:,})")
    return shown


def _look_up(dictionary: Facts, explainer: str, failures: Mapping[tuple[str, ...], Counter[str]], metric: str) -> Any:
    """An estimate of score.json, or a count with its reasons."""
    means = dictionary["explainers"][explainer]
    if metric == "explained":
        return _count({"": dictionary["explained"]})
    if metric == "skipped":
        return _count(dictionary["skipped"])
    if metric == "missing":
        main = means.get(HEADLINE, {})
        silent = {"predictions are constant, 0 in the mean": main["constant"]} if main.get("constant") else {}
        return _count({**main.get("missing", {}), **silent})
    if metric == "failures":
        return _count(failures.get((*dictionary_of(dictionary), explainer), {}))
    return means.get(metric)


def _count(counts: Mapping[str, int]) -> dict[str, Any]:
    """A count, and what is counted where that is no one thing."""
    known = {reason: n for reason, n in counts.items() if reason}
    said = ", ".join(known) if len(known) == 1 else ", ".join(f"{reason}: {n:,}" for reason, n in known.items())
    return bare(sum(counts.values())) | {"reason": said}


def _failures(group: ComparableScores) -> dict[tuple[str, ...], Counter[str]]:
    """Failed predictions by reason, of every dictionary and explainer."""
    failures: dict[tuple[str, ...], Counter[str]] = {}
    for row in (row for source in group.sources for row in source.lines()):
        failures.setdefault((*dictionary_of(row), row["explainer"]), Counter()).update(row["failures"])
    return failures


def _tally(key: str, group: ComparableScores) -> Table | None:
    """How often trained dictionaries are above the others of their site, by what they are compared with."""
    methods = {dictionary_of(each): each["method"] for each in group.dictionaries()}
    by_explainer: dict[str, dict[str, list[Facts]]] = {}
    for difference in _compared(group):
        other = (difference["against_model"], difference["site"], difference["against"])
        against = methods.get(other, difference["against"])
        by_explainer.setdefault(difference["explainer"], {}).setdefault(against, []).append(difference)
    columns = [
        Column(name, label.capitalize(), "pairs of dictionaries", whole=True) for name, label in VERDICTS.items()
    ]
    groups = [
        (f"Explainer {explainer}", [(against, _counts(differences).get) for against, differences in compared.items()])
        for explainer, compared in by_explainer.items()
    ]
    caption = "Trained dictionaries beside others of their site, in how many pairs"
    return table(key, caption, "Compared with", columns, groups) if by_explainer else None


def _counts(differences: Sequence[Facts]) -> dict[str, Any]:
    return {name: _count({"": n}) for name, n in score_charts.tally(differences).items()}


def _differences(key: str, site: str, group: ComparableScores) -> Table | None:
    """Every trained dictionary of a site less every other, in words."""
    by_explainer: dict[str, dict[str, dict[str, Facts]]] = {}
    for difference in _compared(group, site):
        against = title({"model": difference["against_model"], "name": difference["against"]})
        by_explainer.setdefault(difference["explainer"], {}).setdefault(difference["name"], {})[against] = difference
    if not by_explainer:
        return None
    compared = [row for by in by_explainer.values() for row in by.values()]
    names = dict.fromkeys(name for row in compared for name in row)
    columns = [Column(name, f"than {name}") for name in names]
    groups = [
        (f"Explainer {explainer}", [(name, row.get) for name, row in by.items()])
        for explainer, by in by_explainer.items()
    ]
    shown = table(key, f"Differences of the score at {site}", "Dictionary", columns, groups, folded=True)
    for line, row in zip(shown.lines, compared, strict=True):
        for i, name in enumerate(names):
            if name in row:
                text, span = score_charts.words(row[name])
                line.cells[i] = line.cells[i]._replace(text=text, interval=span)
    return shown


def _compared(group: ComparableScores, site: str = "") -> list[Facts]:
    """Differences of the first score, all or those of a site."""
    differences: Iterable[Facts] = (each for source in group.sources for each in source.content["differences"])
    return [each for each in differences if each["metric"] == HEADLINE and site in ("", each["site"])]


def _examples(run: Path, group: ComparableScores) -> list[dict[str, Any]]:
    """The first features of the first trained dictionary with their explanations, an explainer each."""
    examples = []
    for dictionary in paper_tables.examples(group, HEADLINE, FigureConfig(rows=EXAMPLES)):
        page = f"{GALLERY}/{dictionary['site']}/{dictionary['name']}.html"
        linked = dictionary["model"] == SUBJECT and (run / page).exists()
        rows = [
            {
                "feature": row["feature"],
                "page": f"{page}#feature-{row['feature']}" if linked else None,
                "text": card_explanations.said(row["text"]),
                "score": estimate(row["score"]),
                "chance": "" if row["chance"]["value"] is None else number(row["chance"]["value"]),
            }
            for row in dictionary["rows"]
        ]
        head = f"{dictionary['site']}/{dictionary['name']}, explainer {' and '.join(dictionary['explainers'])}"
        skipped = f"{dictionary['explained']:,} of {dictionary['asked']:,} features explained"
        skipped += f", skipped {score_charts.counted(dictionary['skipped'])}"
        examples.append({"head": head, "skipped": skipped, "rows": rows})
    return examples
