"""The numbers of the paper's tables on explanations: features with their explanations, and scores beside moments."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex import stats
from monolex.artifact import SUBJECT
from monolex.interp.config import FigureConfig
from monolex.interp.records import dictionary_of
from monolex.interp.score.comparable import (
    ComparableScores,
    Facts,
    NoScores,
    explainers_of,
    joined,
    require_known,
    sources,
)

TITLES = {
    "table1": "Features and their explanations",
    "table2": "How scores go with the moments of a feature's activations",
}
MOMENTS = ("mean", "variance", "skew", "kurtosis")
CELLS = {
    "detection": ("detection", "balanced_accuracy"),
    "detection_auc": ("detection", "auc"),
    "fuzz": ("fuzz", "balanced_accuracy"),
    "fuzz_auc": ("fuzz", "auc"),
}
"""Where a line of scores.jsonl has a score that is not a correlation."""
NOT_ASKED = {"value": None, "low": None, "high": None, "reason": "not asked for"}


def table(run: Path, which: str, config: FigureConfig) -> dict[str, Any]:
    """The numbers of ``table1`` or ``table2``.

    Raises:
        NoScores: none of the features that were asked for has scores.
        UserError: the run has no scores at all; a name in ``config`` is of nothing that was scored.
    """
    groups = joined(sources(run, config.scores))
    require_known(groups, config)
    metric = "top_and_random" if config.metric == "auto" else config.metric
    make = examples if which == "table1" else moments
    tables = [rows for group in groups for rows in make(group, metric, config)]
    if not tables:
        raise NoScores(
            f"{which}: no feature was scored in {run}; run `monolex explain {run}` and `monolex score {run}`"
        )
    return {"figure": which, "title": TITLES[which], "metric": metric, "tables": tables}


def examples(group: ComparableScores, metric: str, config: FigureConfig) -> list[dict[str, Any]]:
    """The first features that were explained, of every dictionary asked for or of the first trained one.

    Which those are does not depend on how well they did.
    """
    dictionaries = _finished(group, config)
    if not config.dictionaries:
        trained = [facts for facts in dictionaries if facts["trained"] and facts["model"] == SUBJECT]
        dictionaries = (trained or dictionaries)[:1]
    panels = explainers_of(group, config)
    everything = sorted(lines(group, dictionaries, sum(panels, [])), key=lambda row: row["feature"])
    tables = []
    for explainers in panels:
        rows = [row for row in everything if row["explainer"] in explainers]
        for facts in dictionaries:
            explained = [row for row in rows if dictionary_of(row) == dictionary_of(facts)]
            first = list(dict.fromkeys(row["feature"] for row in explained))[: config.rows]
            if first:
                counts = {name: facts[name] for name in ("model", "site", "name", "asked", "explained", "skipped")}
                shown = [_example(row, metric) for row in explained if row["feature"] in first]
                tables.append({**group.head, "explainers": explainers, **counts, "rows": shown})
    return tables


def moments(group: ComparableScores, metric: str, config: FigureConfig) -> list[dict[str, Any]]:
    """How the score goes with every moment over features: a row a dictionary, and one a method over its layers."""
    dictionaries = _finished(group, config)
    explainers = sum(explainers_of(group, config), [])
    everything = lines(group, dictionaries, explainers)
    tables = []
    for name in explainers:
        of_explainer = [row for row in everything if row["explainer"] == name]
        rows = []
        for facts in dictionaries:
            scored = [row for row in of_explainer if dictionary_of(row) == dictionary_of(facts)]
            head = {key: facts[key] for key in ("model", "site", "name", "method")}
            rows += [head | _correlations(scored, metric, config)] if scored else []
        for method, place in dict.fromkeys((row["method"], _place(row)) for row in rows):
            alike = {dictionary_of(row) for row in rows if (row["method"], _place(row)) == (method, place)}
            scored = [row for row in of_explainer if dictionary_of(row) in alike]
            head = {"model": scored[0]["model"], "site": f"{place}.*", "name": None, "method": method}
            rows += [head | _correlations(scored, metric, config)] if len(alike) > 1 else []
        if rows:
            drawn = {"resamples": config.resamples, "level": config.level, "seed": config.figure_seed}
            tables.append({**group.head, "explainers": [name], "bootstrap": drawn, "rows": rows})
    return tables


def _finished(group: ComparableScores, config: FigureConfig) -> list[Facts]:
    """Dictionaries that are no checkpoints."""
    return [facts for facts in group.dictionaries(config.dictionaries) if facts["step"] is None]


def lines(group: ComparableScores, dictionaries: Iterable[Facts], explainers: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of scores.jsonl of some dictionaries and explainers."""
    chosen = {dictionary_of(facts) for facts in dictionaries}
    listed = []
    for source in group.sources:
        listed += [row for row in source.lines() if dictionary_of(row) in chosen and row["explainer"] in explainers]
    return listed


def cell(row: Facts, metric: str) -> Mapping[str, Any]:
    """A score of one feature."""
    kind, name = CELLS.get(metric, ("scores", metric))
    return row[kind].get(name, NOT_ASKED)


def _example(row: Facts, metric: str) -> dict[str, Any]:
    shown = {name: row[name] for name in ("feature", "explainer", "text", "failures", "output")}
    return {**shown, "score": cell(row, metric), "chance": row["scores"].get("chance", NOT_ASKED)}


def _correlations(rows: Sequence[Facts], metric: str, config: FigureConfig) -> dict[str, Any]:
    """Pearson's and Spearman's of every moment, over the features that have both numbers."""
    missing: dict[str, int] = {}
    for row in rows:
        score = cell(row, metric)
        if score["value"] is None:
            missing[score["reason"]] = missing.get(score["reason"], 0) + 1
    drawn = {"resamples": config.resamples, "level": config.level, "seed": config.figure_seed}
    by_moment: dict[str, Any] = {}
    for moment in MOMENTS:
        known = [(row["moments"].get(moment), cell(row, metric)["value"]) for row in rows]
        pairs = [pair for pair in known if pair[0] is not None and pair[1] is not None]
        x, y = ([pair[i] for pair in pairs] for i in (0, 1))
        by_moment[moment] = {
            name: stats.correlate(x, y, "features", ranks=ranks, **drawn)._asdict()
            for name, ranks in (("pearson", False), ("spearman", True))
        }
    return {"features": len(rows), "missing": missing, "moments": by_moment}


def _place(row: Facts) -> str:
    """The kind of its site."""
    return row["site"].partition(".")[0]
