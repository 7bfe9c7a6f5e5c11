"""Paired differences of scores that a figure on them is read off: of which pairs, and from the artefacts."""

from pathlib import Path
from typing import Any

from monolex.interp.config import FigureConfig
from monolex.interp.records import dictionary_of
from monolex.interp.score.comparable import ComparableScores, joined, sources
from monolex.report.paper.figure import Facts
from monolex.report.rivals import scored_beside


def comparisons(run: Path, content: Facts, config: FigureConfig) -> list[dict[str, Any]]:
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
            if wanted and scored_beside(facts[trained], facts[other], facts.values()):
                listed.append(_comparison(row, group, facts[trained], facts[other]))
    return listed


def _comparison(row: Facts, group: ComparableScores, trained: Facts, other: Facts) -> dict[str, Any]:
    head = f"Explainer {row['explainer']}, simulator {group.head['simulator']}, {group.head['mode']} protocol"
    kept = {name: row[name] for name in ("site", "layer", "name", "against", "against_model")}
    kept |= {name: row[name] for name in ("value", "low", "high", "n", "over", "reason")}
    return {"group": head, "method": trained["method"], "against_kind": other["kind"], **kept}
