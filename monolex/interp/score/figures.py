"""The numbers of the paper's figures on explanations, out of a run's score artefacts, as plain JSON values.

Scores that cannot be compared (:mod:`monolex.interp.score.comparable`) get panels of their own, and so does every
explainer unless they are asked for together. A dictionary whose score is missing stays, with its reason.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monolex.artifact import MANIFEST, model_home, open_artifact
from monolex.interp.config import FigureConfig
from monolex.interp.score.comparable import Facts, NoScores, explainers_of, joined, require_known, sources
from monolex.interp.score.curves import Score, chance_level, curves, labels, scored_by
from monolex.kinds import BASELINES, FAMILIES, TOPK

RESIDUAL, MLP = ("resid_pre", "resid_mid", "resid_post"), ("mlp_in", "mlp_act", "mlp_out")
TITLES = {
    "fig2": "Automatic interpretation over the layers of the residual stream",
    "fig9": "Automatic interpretation over the layers of the residual stream, random fragments alone",
    "fig10": "Automatic interpretation at MLP sites",
    "fig8": "Automatic interpretation over the size of the dictionary",
    "fig18": "Automatic interpretation beside baselines as sparse as the dictionaries",
    "training": "Automatic interpretation along training",
}
WAYS = {
    "fig2": "explain and score dictionaries at resid_post sites",
    "fig9": "explain and score dictionaries at resid_post sites",
    "fig10": "explain and score dictionaries at mlp_act sites",
    "fig8": "train one recipe with several ratios, such as ratios = [0.5, 1, 2, 4], then explain and score them",
    "fig18": "fit pca-topk and ica-topk baselines at resid_post sites (`match` gives them the L0 of sweeps), then "
    "explain and score them",
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


def over_layers(chosen: Sequence[Score], metric: str, places: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A panel for every kind of site (of ``places``; left out: all): the score at every layer, a series a method."""
    final = [score for score in chosen if score.dictionary["step"] is None]
    panels = []
    for place in dict.fromkeys(score.place for score in final):
        if not places or place in places:
            scores = [score for score in final if score.place == place]
            series = curves(scores, labels([score.dictionary for score in scores]), lambda facts: facts["layer"])
            panels.append(_panel(place, "layer", series, metric))
    return panels


def over_sizes(chosen: Sequence[Score], metric: str) -> list[dict[str, Any]]:
    """A panel a site with a recipe of several sizes: the score over d_sae / d_in; baselines are single marks."""
    final = [score for score in chosen if score.dictionary["step"] is None]
    panels = []
    for site in dict.fromkeys(score.site for score in final):
        scores = [score for score in final if score.site == site]
        recipes = {score.key: _recipe(score.dictionary) for score in scores if score.dictionary["trained"]}
        sizes = {(recipes[score.key], score.dictionary["ratio"]) for score in scores if score.key in recipes}
        several = {recipe for recipe, n in Counter(recipe for recipe, _ in sizes).items() if n > 1}
        if several:
            names = labels([score.dictionary for score in scores]) | recipes
            kept = [score for score in scores if score.key not in recipes or recipes[score.key] in several]
            panels.append(_panel(site, "ratio", curves(kept, names, lambda facts: facts["ratio"]), metric))
    return panels


def over_steps(chosen: Sequence[Score], metric: str, run: Path) -> list[dict[str, Any]]:
    """A panel a site with checkpoints: the score over the steps of training; the last point is the dictionary."""
    followed = {_course(score) for score in chosen if score.dictionary["step"] is not None}
    panels = []
    for site in dict.fromkeys(score.site for score in chosen):
        scores = [score for score in chosen if score.site == site and _course(score) in followed]
        if scores:
            names = {score.key: score.dictionary["method"] for score in scores}
            panels.append(_panel(site, "step", curves(scores, names, partial(_step, run)), metric))
    return panels


def beside_topk(chosen: Sequence[Score], metric: str) -> list[dict[str, Any]]:
    """:func:`over_layers` of the residual stream, of the families of baselines with a top-k form and what is trained.

    Nothing where no top-k baseline was scored.
    """
    scored = {score.dictionary["kind"] for score in chosen}
    families = {BASELINES[kind].name for kind in scored & BASELINES.keys() if kind.endswith(TOPK)}
    kinds = {family + form for family in families for form in FAMILIES[family].forms}
    kept = [score for score in chosen if score.dictionary["trained"] or score.dictionary["kind"] in kinds]
    return [panel for panel in over_layers(kept, metric, RESIDUAL) if any(_topk(each) for each in panel["series"])]


def _topk(series: Facts) -> bool:
    return series["kind"].endswith(TOPK)


def _course(score: Score) -> tuple[str, str, str]:
    """What checkpoints of one dictionary have in common."""
    return score.dictionary["model"], score.site, score.dictionary["method"]


def _step(run: Path, dictionary: Facts) -> int | None:
    return final_step(run, dictionary) if dictionary["step"] is None else dictionary["step"]


def final_step(run: Path, dictionary: Facts) -> int | None:
    """Steps that a dictionary was trained for, as its sweep says; None where the run has no such sweep, or several."""
    sweep, _, bare = dictionary["name"].rpartition("/")
    counts = set()
    for path in model_home(run, dictionary["model"]).glob(f"train/{sweep or '*'}/{MANIFEST}"):
        data = open_artifact(path.parent).data
        if "steps" in data and any((m["site"], m["name"]) == (dictionary["site"], bare) for m in data["members"]):
            counts.add(data["steps"])
    return counts.pop() if len(counts) == 1 else None


MAKERS: dict[str, Callable[[Sequence[Score], str, Path], list[dict[str, Any]]]] = {
    "fig2": lambda chosen, metric, _: over_layers(chosen, metric, RESIDUAL),
    "fig9": lambda chosen, metric, _: over_layers(chosen, metric, RESIDUAL),
    "fig10": lambda chosen, metric, _: over_layers(chosen, metric, MLP),
    "fig8": lambda chosen, metric, _: over_sizes(chosen, metric),
    "fig18": lambda chosen, metric, _: beside_topk(chosen, metric),
    "training": over_steps,
}


def _panel(place: str, across: str, series: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    level = chance_level(series, metric)
    return {"place": place, "x": across, "metric": metric, "series": series, "chance": level}


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


def _recipe(dictionary: Facts) -> str:
    """A trained dictionary without its size."""
    return re.sub(r"-r[\d.]+(e-?\d+)?(?=-|$)", "", dictionary["method"])
