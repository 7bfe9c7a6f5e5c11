"""The numbers of the paper's figures on explanations, out of a run's score artefacts, as plain JSON values.

Scores that cannot be compared (:mod:`monolex.interp.score.comparable`) get panels of their own, and so does every
explainer unless they are asked for together. A dictionary whose score is missing stays, with its reason.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolex.artifact import MANIFEST, SUBJECT, model_home, open_artifact
from monolex.interp.config import FigureConfig
from monolex.interp.records import dictionary_of
from monolex.interp.score.comparable import Facts, NoScores, explainers_of, joined, require_known, sources

RESIDUAL, MLP = ("resid_pre", "resid_mid", "resid_post"), ("mlp_in", "mlp_act", "mlp_out")
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
TITLES = {
    "fig2": "Automatic interpretation over the layers of the residual stream",
    "fig9": "Automatic interpretation over the layers of the residual stream, random fragments alone",
    "fig10": "Automatic interpretation at MLP sites",
    "fig8": "Automatic interpretation over the size of the dictionary",
    "training": "Automatic interpretation along training",
}
WAYS = {
    "fig2": "explain and score dictionaries at resid_post sites",
    "fig9": "explain and score dictionaries at resid_post sites",
    "fig10": "explain and score dictionaries at mlp_act sites",
    "fig8": "train one recipe with several ratios, such as ratios = [0.5, 1, 2, 4], then explain and score them",
    "training": "train with keep_checkpoints, then run `monolex explain RUN --checkpoints` and `monolex score RUN`",
}
"""What makes the data that a figure lacks."""


def figure(run: Path, which: str, config: FigureConfig) -> dict[str, Any]:
    """The numbers of one figure.

    Raises:
        NoScores: the run has none for this figure.
        UserError: the run has no scores at all; a name in ``config`` is of nothing that was scored.
    """
    groups = joined(sources(run, config.scores))
    require_known(groups, config)
    metric = config.metric if config.metric != "auto" else "random" if which == "fig9" else "top_and_random"
    panels = []
    for group in groups:
        for explainers in explainers_of(group, config):
            chosen = scored_by(group.dictionaries(config.dictionaries), explainers, metric)
            head = {**group.head, "explainers": explainers}
            panels += [head | panel for panel in MAKERS[which](chosen, metric, run)]
    if not panels:
        score = metric.replace("_", " ")
        raise NoScores(f"{which}: none of the {score} scores that were asked for in {run} is for it; {WAYS[which]}")
    return {"figure": which, "title": TITLES[which], "metric": metric, "panels": _titled(panels)}


class Score(NamedTuple):
    """A dictionary's score by one explainer."""

    one: Facts
    """The dictionary."""
    explainer: str
    """Who explained it."""
    estimate: Facts
    """Its mean over features."""
    suffix: str
    """The explainer's name in a legend, where a panel has several."""
    metric: str
    """Which score."""

    def point(self, x: float | None) -> dict[str, Any]:
        """It as a point of a curve."""
        counts = {name: self.one[name] for name in ("site", "name", "asked", "explained", "skipped")}
        chance = self.one["explainers"][self.explainer].get(CHANCE.get(self.metric, ""))
        return {"x": x, "explainer": self.explainer, **self.estimate, **counts, "chance": chance}


def scored_by(dictionaries: Sequence[Facts], explainers: Sequence[str], metric: str) -> list[Score]:
    """Every dictionary's score by every explainer that was asked for it."""
    return [
        Score(one, name, one["explainers"][name][metric], f", {name}" if len(explainers) > 1 else "", metric)
        for name in explainers
        for one in dictionaries
        if metric in one["explainers"].get(name, {})
    ]


def over_layers(chosen: Sequence[Score], metric: str, places: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A panel for every kind of site (of ``places``; left out: all): the score at every layer, a series a method."""
    final = [one for one in chosen if one.one["step"] is None]
    found = dict.fromkeys(place(one) for one in final)
    panels = []
    for kind in found:
        if not places or kind in places:
            here = [one for one in final if place(one) == kind]
            series = _series(here, labels([one.one for one in here]), lambda one: one["layer"])
            panels.append({"place": kind, "x": "layer", **_drawn(series, metric)})
    return panels


def place(score: Score) -> str:
    """The kind of its site: a site without its layer."""
    return score.one["site"].partition(".")[0]


def labels(dictionaries: Sequence[Facts]) -> dict[tuple[str, ...], str]:
    """What every dictionary is followed by across layers, by model, site and name.

    Its method; where a method has several dictionaries at a site (top-k baselines as sparse as several trained ones),
    with the trained dictionary that has the nearest L0, or with its own name.
    """
    unique = {dictionary_of(one): one for one in dictionaries}
    counts = Counter((one["method"], one["site"]) for one in unique.values())
    crowded = {method for (method, _), n in counts.items() if n > 1}
    found = {}
    for key, one in unique.items():
        alike = [o for o in unique.values() if o["trained"] and (o["model"], o["site"]) == (one["model"], one["site"])]
        if one["method"] not in crowded:
            found[key] = one["method"]
        elif one["k"] is not None and not one["trained"] and alike:
            near = min(alike, key=lambda other, own=one: abs(other["l0"] - own["l0"]))
            found[key] = f"{one['method']}, as sparse as {near['method']}"
        else:
            found[key] = f"{one['method']} {one['name']}"
    taken = Counter((label, key[1]) for key, label in found.items())
    return {key: label if taken[label, key[1]] == 1 else f"{label} ({key[2]})" for key, label in found.items()}


def over_sizes(chosen: Sequence[Score], metric: str) -> list[dict[str, Any]]:
    """A panel a site with a recipe of several sizes: the score over d_sae / d_in; baselines are single marks."""
    final = [one for one in chosen if one.one["step"] is None]
    panels = []
    for site in dict.fromkeys(one.one["site"] for one in final):
        here = [one for one in final if one.one["site"] == site]
        recipes: dict[tuple[str, ...], str] = {dictionary_of(s.one): _recipe(s.one) for s in here if s.one["trained"]}
        sizes = {(recipes[dictionary_of(s.one)], s.one["ratio"]) for s in here if dictionary_of(s.one) in recipes}
        several = {recipe for recipe, n in Counter(recipe for recipe, _ in sizes).items() if n > 1}
        if several:
            names = labels([s.one for s in here]) | recipes
            kept = [s for s in here if not s.one["trained"] or recipes[dictionary_of(s.one)] in several]
            series = _series(kept, names, lambda one: one["ratio"])
            panels.append({"place": site, "x": "ratio", **_drawn(series, metric)})
    return panels


def over_steps(chosen: Sequence[Score], metric: str, run: Path) -> list[dict[str, Any]]:
    """A panel a site with checkpoints: the score over the steps of training; the last point is the dictionary."""
    kept = {(s.one["model"], s.one["site"], s.one["method"]) for s in chosen if s.one["step"] is not None}
    at = {dictionary_of(s.one): final_step(run, s.one) if s.one["step"] is None else s.one["step"] for s in chosen}
    panels = []
    for site in dict.fromkeys(s.one["site"] for s in chosen):
        here = [s for s in chosen if s.one["site"] == site and (s.one["model"], site, s.one["method"]) in kept]
        if here:
            names = {dictionary_of(s.one): s.one["method"] for s in here}
            series = _series(here, names, lambda one: at[dictionary_of(one)])
            panels.append({"place": site, "x": "step", **_drawn(series, metric)})
    return panels


def final_step(run: Path, one: Facts) -> int | None:
    """Steps that a dictionary was trained for, as its sweep says; None where the run has no such sweep, or several."""
    sweep, _, bare = one["name"].rpartition("/")
    found = set()
    for path in model_home(run, one["model"]).glob(f"train/{sweep or '*'}/{MANIFEST}"):
        data = open_artifact(path.parent).data
        if "steps" in data and any((m["site"], m["name"]) == (one["site"], bare) for m in data["members"]):
            found.add(data["steps"])
    return found.pop() if len(found) == 1 else None


MAKERS: dict[str, Callable[[Sequence[Score], str, Path], list[dict[str, Any]]]] = {
    "fig2": lambda chosen, metric, _: over_layers(chosen, metric, RESIDUAL),
    "fig9": lambda chosen, metric, _: over_layers(chosen, metric, RESIDUAL),
    "fig10": lambda chosen, metric, _: over_layers(chosen, metric, MLP),
    "fig8": lambda chosen, metric, _: over_sizes(chosen, metric),
    "training": over_steps,
}


def _series(
    chosen: Sequence[Score], names: Mapping[tuple[str, ...], str], across: Callable[[Facts], float | None]
) -> list[dict[str, Any]]:
    """Points by label in rising order, trained dictionaries first and control models' last."""
    found: dict[str, dict[str, Any]] = {}
    order = sorted(chosen, key=lambda one: (one.one["model"] != SUBJECT, not one.one["trained"]))
    for one in order:
        label = names[dictionary_of(one.one)] + one.suffix
        head = {name: one.one[name] for name in ("model", "method", "kind", "trained")}
        series = found.setdefault(label, {"label": label, **head, "points": []})
        series["points"].append(one.point(across(one.one)))
    for series in found.values():
        series["points"].sort(key=lambda point: (point["x"] is None, point["x"] or 0))
    return list(found.values())


def _drawn(series: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return {"metric": metric, "series": series, "chance": _chance(series, metric)}


def _chance(series: Iterable[Facts], metric: str) -> list[dict[str, Any]]:
    """The level of chance at every x: its mean over the dictionaries, and the smallest and largest."""
    found: dict[float, list[float]] = {}
    for point in (point for one in series for point in one["points"] if point["x"] is not None):
        level = (point["chance"] or {}).get("value") if metric in CHANCE else EVEN
        if level is not None:
            found.setdefault(point["x"], []).append(level)
    return [
        {"x": x, "value": sum(some) / len(some), "low": min(some), "high": max(some), "n": len(some)}
        for x, some in sorted(found.items())
    ]


def _titled(panels: Sequence[Facts]) -> list[dict[str, Any]]:
    """Panels with titles that tell them apart."""
    said = []
    for panel in panels:
        who = " and ".join(panel["explainers"])
        said.append(f"{panel['place']}: explainer {who}, simulator {panel['simulator']}, {panel['mode']} protocol")
    twice = Counter(said)
    return [
        {"title": title if twice[title] == 1 else f"{title} ({', '.join(panel['scores'])})", **panel}
        for title, panel in zip(said, panels, strict=True)
    ]


def _recipe(one: Facts) -> str:
    """A trained dictionary without its size."""
    return re.sub(r"-r[\d.]+(e-?\d+)?(?=-|$)", "", one["method"])
