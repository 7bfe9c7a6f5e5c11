"""What the model loses when it runs on reconstructions (section 6.2), and how alike dictionaries are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT
from monolex.interp.config import FigureConfig
from monolex.pages import metric_charts
from monolex.pages.eval_charts import EvaluatedDictionary
from monolex.pages.html import estimate, number
from monolex.pages.picture import Picture
from monolex.report.paper.evaluated import MADE_OF, evaluated, layer, panel, place, point, recipes, series
from monolex.report.paper.figure import Facts, Missing, ReadOff, counted
from monolex.verdicts import Verdict, agreed, beyond

CLEAN, ABLATED = "clean", "mean-ablation"
LEVELS = {CLEAN: "the model as it is", ABLATED: "the mean in place of the activations"}
"""References, as charts call them."""
ROOM = 2.0
"""Perplexity in sight, over that of the mean; what lies beyond is an arrow."""
RANDOM = "random directions"
RELATIONS = {
    "kind": "another kind",
    "ratio": "another size",
    "alpha": "another α",
    "k": "another k",
    "lr": "another learning rate",
    "seed": "another seed",
}
"""What sets two dictionaries apart, the first that does."""


def perplexity_numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """Perplexity with the residual stream replaced by reconstructions, over L0, beside baselines.

    Raises:
        Missing: no evaluation, or none of a residual site.
    """
    everything = [e for e in evaluated(run) if e.model == SUBJECT and not e.target and place(e).startswith("resid")]
    trained = [e for e in recipes(everything) if _measured(e)]
    if not trained:
        raise Missing("the model was not run on reconstructions of the residual stream")
    panels, facts = [], []
    for site in dict.fromkeys(e.site for e in trained):
        clean, ablated = (_reference(everything, site, name) for name in (CLEAN, ABLATED))
        shown = [e for e in trained if e.site == site] + [
            e for e in everything if e.site == site and e.baseline and _measured(e)
        ]
        by_kind: dict[str, list[EvaluatedDictionary]] = {}
        for e in shown:
            by_kind.setdefault(e.kind, []).append(e)
        drawn = [
            series(
                kind,
                group[0],
                sorted((point(e, "perplexity", e.value("l0") or 0.0) for e in group), key=lambda p: p["x"]),
            )
            for kind, group in by_kind.items()
        ]
        levels = [{"label": LEVELS[n], "value": v} for n, v in ((CLEAN, clean), (ABLATED, ablated)) if v is not None]
        high = None if ablated is None else ROOM * ablated
        panels.append(panel(site, "l0", "perplexity", drawn, log=True, high=high, levels=levels))
        facts += [
            {"site": site, "name": e.name, "clean": clean, "l0": e.value("l0")}
            | {metric: e.rows[metric] for metric in ("perplexity", "ce_added")}
            for e in trained
            if e.site == site
        ]
    title = "Perplexity of the model on reconstructions"
    return {"title": title, "made_of": MADE_OF, "panels": panels, "dictionaries": facts}


def perplexity_pictures(content: Facts) -> list[Picture]:
    """A panel a site."""
    return [metric_charts.picture("perplexity", content["title"], content["panels"])]


def perplexity_reading(content: Facts) -> ReadOff:
    """Whether every reconstruction costs the model something, and how much at least and most."""
    rows = content["dictionaries"]
    verdicts: list[Verdict] = [beyond(d["ce_added"]) for d in rows]
    said = []
    for site in dict.fromkeys(d["site"] for d in rows):
        at = [d for d in rows if d["site"] == site]
        least, most = (end(at, key=lambda d: d["perplexity"]["value"]) for end in (min, max))
        shown = (f"{estimate(d['perplexity'])} ({d['name']}, L0 {number(d['l0'])})" for d in (least, most))
        said.append(f"{site}: {number(at[0]['clean'])} becomes {' to '.join(dict.fromkeys(shown))}.")
    certain = (
        f"{verdicts.count('confirmed')} of {len(verdicts)} reconstructions add to the cross-entropy with the whole"
    )
    said.insert(0, f"{certain} interval.")
    return ReadOff(
        agreed(verdicts), tuple(said), "Here: all layers of the run; of baselines those of the same evaluation."
    )


def similarity_numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """Mean largest cosines between dictionaries: other seeds, neighbours in sparsity or size, random directions.

    Raises:
        Missing: no evaluation, or no pair in it.
    """
    everything = evaluated(run)
    heads = {(e.site, e.head["name"]): e.head for e in everything if e.single and e.model == SUBJECT}
    pairs = [e for e in everything if e.head["other"] and e.model == SUBJECT and e.value("mmcs") is not None]
    if not pairs:
        raise Missing("no two dictionaries were compared")
    panels = []
    told = [e for e in pairs if e.head["other"] != RANDOM]
    if not told:
        raise Missing("dictionaries were compared with random directions alone")
    for where in dict.fromkeys(place(e) for e in told):
        groups: dict[str, list[EvaluatedDictionary]] = {}
        for e in pairs:
            if place(e) == where:
                groups.setdefault(_relation(e.head, heads), []).append(e)
        drawn = [
            series(label, group[0], sorted((point(e, "mmcs", float(layer(e))) for e in group), key=lambda p: p["x"]))
            | ({"kind": "", "trained": False} if label == RANDOM else {})
            for label, group in groups.items()
        ]
        panels.append(panel(where, "layer", "mean over features of the largest cosine", drawn))
    return {"title": "How alike dictionaries are", "made_of": MADE_OF, "panels": panels}


def similarity_pictures(content: Facts) -> list[Picture]:
    """A panel a kind of site."""
    return [metric_charts.picture("similarity", content["title"], content["panels"])]


def similarity_reading(content: Facts) -> ReadOff:
    """The range of cosines by what is compared."""
    said = []
    for shown in content["panels"]:
        for each in shown["series"]:
            least, most = (end(each["points"], key=lambda p: p["value"]) for end in (min, max))
            told = f"{shown['title']}, {each['label']}: {estimate(least)}"
            told += f" to {estimate(most)}" if most is not least else ""
            said.append(f"{told} ({counted(len(each['points']), 'pair')}).")
    return ReadOff(
        "no claim", tuple(said), "Random directions are what dictionaries of this size would share by chance."
    )


def _reference(everything: Sequence[EvaluatedDictionary], site: str, name: str) -> float | None:
    known = (e for e in everything if (e.site, e.kind, e.name) == (site, "reference", name))
    return next((e.value("perplexity") for e in known), None)


def _measured(entry: EvaluatedDictionary) -> bool:
    return bool(entry.value("l0")) and entry.value("perplexity") is not None


def _relation(head: Facts, heads: dict[tuple[str, str], Any]) -> str:
    """What sets the two dictionaries of a pair apart."""
    other = heads.get((head["site"], head["other"]))
    if other is None:
        return RANDOM if head["other"] == RANDOM else f"{head['kind']}, another dictionary"
    what = next((said for name, said in RELATIONS.items() if head[name] != other[name]), "the same trained again")
    return f"{head['kind']}, {what}"
