"""Scores as series of points: what is one curve, what it is called, and the level of chance beside it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from monolex.artifact import SUBJECT
from monolex.interp.records import Key, dictionary_of
from monolex.interp.score.comparable import Facts

CHANCE = {
    "top_and_random": "chance",
    "top": "chance_top",
    "random": "chance_random",
    "detection_auc": "detection_auc_chance",
    "fuzz_auc": "fuzz_auc_chance",
}
"""What explanations of other features reach, by score; of balanced accuracies it is even."""
EVEN = 0.5
"""Chance of a balanced accuracy and of an area under a curve."""


class Score(NamedTuple):
    """A dictionary's score by one explainer."""

    dictionary: Facts
    """Whose."""
    explainer: str
    """Who explained it."""
    estimate: Facts
    """Its mean over features."""
    suffix: str
    """The explainer's name in a legend, where a panel has several."""
    metric: str
    """Which score."""

    @property
    def key(self) -> Key:
        """Its dictionary's model, site and name."""
        return dictionary_of(self.dictionary)

    @property
    def site(self) -> str:
        """Its dictionary's site."""
        return self.dictionary["site"]

    @property
    def place(self) -> str:
        """The kind of its site: a site without its layer."""
        return self.site.partition(".")[0]

    def point(self, x: float | None) -> dict[str, Any]:
        """It as a point of a curve."""
        counts = {name: self.dictionary[name] for name in ("site", "name", "asked", "explained", "skipped")}
        chance = self.dictionary["explainers"][self.explainer].get(CHANCE.get(self.metric, ""))
        return {"x": x, "explainer": self.explainer, **self.estimate, **counts, "chance": chance}


def scored_by(dictionaries: Sequence[Facts], explainers: Sequence[str], metric: str) -> list[Score]:
    """Every dictionary's score by every explainer that was asked for it."""
    return [
        Score(facts, name, facts["explainers"][name][metric], f", {name}" if len(explainers) > 1 else "", metric)
        for name in explainers
        for facts in dictionaries
        if metric in facts["explainers"].get(name, {})
    ]


def labels(dictionaries: Sequence[Facts]) -> dict[Key, str]:
    """What every dictionary is followed by across layers, by model, site and name.

    Its method; where a method has several dictionaries at a site (top-k baselines as sparse as several trained ones),
    with the trained dictionary that has the nearest L0, or with its own name.
    """
    unique = {dictionary_of(facts): facts for facts in dictionaries}
    counts = Counter((facts["method"], facts["site"]) for facts in unique.values())
    crowded = {method for (method, _), n in counts.items() if n > 1}
    labelled = {}
    for key, facts in unique.items():
        trained = [other for other in unique.values() if other["trained"]]
        alike = [other for other in trained if (other["model"], other["site"]) == (facts["model"], facts["site"])]
        if facts["method"] not in crowded:
            labelled[key] = facts["method"]
        elif facts["k"] is not None and not facts["trained"] and alike:
            near = min(alike, key=lambda other, l0=facts["l0"]: abs(other["l0"] - l0))
            labelled[key] = f"{facts['method']}, as sparse as {near['method']}"
        else:
            labelled[key] = f"{facts['method']} {facts['name']}"
    taken = Counter((label, key[1]) for key, label in labelled.items())
    return {key: label if taken[label, key[1]] == 1 else f"{label} ({key[2]})" for key, label in labelled.items()}


def curves(
    chosen: Sequence[Score], names: Mapping[Key, str], across: Callable[[Facts], float | None]
) -> list[dict[str, Any]]:
    """Points of every score by label in rising order, trained dictionaries first and control models' last."""
    by_label: dict[str, dict[str, Any]] = {}
    for score in sorted(chosen, key=lambda score: (score.key[0] != SUBJECT, not score.dictionary["trained"])):
        label = names[score.key] + score.suffix
        head = {name: score.dictionary[name] for name in ("model", "method", "kind", "trained")}
        curve = by_label.setdefault(label, {"label": label, **head, "points": []})
        curve["points"].append(score.point(across(score.dictionary)))
    for curve in by_label.values():
        curve["points"].sort(key=lambda point: (point["x"] is None, point["x"] or 0))
    return list(by_label.values())


def chance_level(series: Iterable[Facts], metric: str) -> list[dict[str, Any]]:
    """The level of chance at every x: its mean over the dictionaries, and the smallest and largest."""
    by_x: dict[float, list[float]] = {}
    for point in (point for curve in series for point in curve["points"] if point["x"] is not None):
        level = (point["chance"] or {}).get("value") if metric in CHANCE else EVEN
        if level is not None:
            by_x.setdefault(point["x"], []).append(level)
    return [
        {"x": x, "value": sum(levels) / len(levels), "low": min(levels), "high": max(levels), "n": len(levels)}
        for x, levels in sorted(by_x.items())
    ]
