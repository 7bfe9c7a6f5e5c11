"""What figures on an evaluation share: its rows, one dictionary of every recipe, and panels over layers."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import MANIFEST, SUBJECT, open_artifact, read_json
from monolex.pages.eval_charts import EvaluatedDictionary, entries, title
from monolex.report.paper.figure import Facts, Missing

MADE_OF = ["eval"]


def evaluated(run: Path) -> list[EvaluatedDictionary]:
    """Everything that the evaluation of a run measured.

    Raises:
        Missing: there is none.
        UserError: it is damaged.
    """
    folder = run / "eval"
    if not (folder / MANIFEST).exists():
        raise Missing("its dictionaries were not evaluated")
    open_artifact(folder, "eval")
    return entries(read_json(folder / "metrics.json"))


def recipes(everything: Iterable[EvaluatedDictionary], *, controls: bool = False) -> list[EvaluatedDictionary]:
    """One trained dictionary of every recipe and site: further seeds, and sweeps that train it again, are left out."""
    first: dict[tuple[str, str, str], EvaluatedDictionary] = {}
    for entry in everything:
        if entry.trained and not entry.target and (controls or entry.model == SUBJECT):
            first.setdefault((entry.model, entry.site, _recipe(entry)), entry)
    return list(first.values())


def place(entry: EvaluatedDictionary) -> str:
    """The kind of its site."""
    return entry.site.partition(".")[0]


def layer(entry: EvaluatedDictionary) -> int:
    """The block of its site."""
    return int(entry.site.rpartition(".")[2])


def over_layers(shown: Sequence[EvaluatedDictionary], metric: str, name: str) -> list[dict[str, Any]]:
    """A panel a kind of site: a measurement at every layer, a series a recipe."""
    panels = []
    for where in dict.fromkeys(place(e) for e in shown):
        at = [e for e in shown if place(e) == where and metric in e.rows]
        if at:
            panels.append(panel(where, "layer", name, _series(at, metric, "layer")))
    return panels


def over_sizes(shown: Sequence[EvaluatedDictionary], metric: str, name: str) -> list[dict[str, Any]]:
    """A panel a site with a recipe of several sizes: the measurement over d_sae / d_in."""
    panels = []
    for site in dict.fromkeys(e.site for e in shown):
        at = [e for e in shown if e.site == site and metric in e.rows]
        sizes: dict[str, set[Any]] = {}
        for e in at:
            sizes.setdefault(_sizeless(e), set()).add(e.head["ratio"])
        several = [e for e in at if len(sizes[_sizeless(e)]) > 1]
        if several:
            panels.append(panel(site, "ratio", name, _series(several, metric, "ratio")))
    return panels


def panel(title: str, x: str, y: str, series: Sequence[Facts], **more: Any) -> dict[str, Any]:
    """The numbers of a panel of :mod:`monolex.pages.metric_charts`; ``more`` are ``log``, ``high`` and ``levels``."""
    return {"title": title, "x": x, "y": y, "log": False, "high": None, "series": list(series), "levels": [], **more}


def series(label: str, entry: EvaluatedDictionary, points: Sequence[Facts]) -> dict[str, Any]:
    """The numbers of one series, in the look of ``entry``'s kind and model."""
    return {"label": label, "kind": entry.kind, "trained": entry.trained, "model": entry.model, "points": list(points)}


def point(entry: EvaluatedDictionary, metric: str, x: float) -> dict[str, Any]:
    """A measurement of one dictionary as a point."""
    row = entry.rows[metric]
    kept = {name: row[name] for name in ("value", "low", "high", "n", "over", "reason")}
    return {"x": x, "site": entry.site, "name": entry.name, "alpha": entry.head["alpha"], **kept}


def _series(at: Sequence[EvaluatedDictionary], metric: str, across: str) -> list[dict[str, Any]]:
    alike: dict[str, list[EvaluatedDictionary]] = {}
    for e in at:
        name = _sizeless(e) if across == "ratio" else _recipe(e)
        alike.setdefault(title({"model": e.model, "name": name}), []).append(e)
    drawn = []
    for label, group in alike.items():
        points = [point(e, metric, float(layer(e) if across == "layer" else e.head["ratio"])) for e in group]
        drawn.append(series(label, group[0], sorted(points, key=lambda p: p["x"])))
    return drawn


def _recipe(entry: EvaluatedDictionary) -> str:
    """Its name without its sweep and its seed."""
    return re.sub(r"-s\d+$", "", entry.name.rpartition("/")[2])


def _sizeless(entry: EvaluatedDictionary) -> str:
    return re.sub(r"-r[\d.]+(e-?\d+)?(?=-|$)", "", _recipe(entry))
