"""Features beside the axes of the activations, by the tokens that they are active on (App. D.1, Figs. 11 to 15)."""

from contextlib import closing
from pathlib import Path
from typing import Any

from monolex import stats
from monolex.artifact import placed
from monolex.dictionaries import base
from monolex.features.store import FeatureStore
from monolex.interp.config import FigureConfig
from monolex.kinds import KINDS
from monolex.pages import token_charts
from monolex.pages.html import MISSING
from monolex.pages.interest import ranked
from monolex.pages.picture import Picture
from monolex.report.features_section import AXES
from monolex.report.paper.figure import MOST, Facts, Missing, ReadOff, file_name, stores
from monolex.verdicts import agreed, below

ENOUGH = 20
"""Times that a feature must be active for the share of its first token to count."""


def numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """At every site with evidence of both, features beside axes: shares of the first token, and one pair in full.

    The pair is the most interesting feature of the site's first trained dictionary, and the axis that it reads most.

    Raises:
        Missing: no site has evidence of a trained dictionary and of neurons.
    """
    entries = stores(run).values()
    shown = []
    for site in dict.fromkeys(entry["site"] for entry in entries):
        at = [entry for entry in entries if entry["site"] == site]
        trained = next((run / entry["path"] for entry in at if entry["kind"] in KINDS), None)
        axes = next((run / entry["path"] for entry in at if entry["kind"] == AXES), None)
        if trained and axes and (pair := _pair(site, trained, axes)):
            shown.append(pair)
    if not shown:
        raise Missing("no site has the evidence of a trained dictionary and of neurons")
    return {"title": "Features beside the axes of the activations", "made_of": ["features"], "sites": shown}


def pictures(content: Facts) -> list[Picture]:
    """A picture a site: the feature and the axis that it reads most."""
    drawn = []
    for i, each in enumerate(content["sites"][:MOST], 1):
        left = f"Feature {each['feature']} of {each['dictionary']}"
        right = f"Axis {each['axis']}, which it reads most"
        panels = (
            token_charts.panel(left, each["feature_tokens"], prefix="feature: ", width=530),
            token_charts.panel(right, each["axis_tokens"], token_charts.AXIS_COLOURS, "axis: ", 530),
        )
        drawn.append(Picture(file_name("fig11", i), f"A feature and an axis at {each['site']}", panels))
    return drawn


def reading(content: Facts) -> ReadOff:
    """Whether the first token has a larger share of features' activation than of axes'."""
    said, verdicts = [], []
    for each in content["sites"]:
        feature, axis = each["feature_shares"], each["axis_shares"]
        verdicts.append(below(axis, feature))
        told = f"{each['site']}: the first token has {_share(feature)} of the activation of a feature of"
        said.append(f"{told} {each['dictionary']}, and {_share(axis)} of an axis's.")
    told = (
        f"Here: means over all features active {ENOUGH} times or more, with intervals over features. Drawn is the most"
    )
    told += " interesting feature of the site's first trained dictionary, which was chosen and so is no sample."
    told += f" The first {MOST} sites are drawn." if len(content["sites"]) > MOST else ""
    return ReadOff(agreed(verdicts), tuple(said), told)


def _pair(site: str, trained: Path, axes: Path) -> dict[str, Any] | None:
    """A feature and an axis; None where nothing is alive or the dictionary is gone."""
    with closing(FeatureStore(trained)) as store, closing(FeatureStore(axes)) as neurons:
        first = next((feature.id for feature in ranked(store) if feature.interest > 0), None)
        folder = placed(store.path.parent, store.meta["dictionary"])
        if first is None or not folder.exists():
            return None
        # stores hold the positive side of an axis, so it is the largest weight, not the largest absolute one
        axis = int(base.load(folder).W_enc[first].argmax())
        names = {"site": site, "dictionary": store.meta["name"], "feature": first, "axis": axis}
        tokens = {"feature_tokens": store.feature(first), "axis_tokens": neurons.feature(axis)}
        shares = {"feature_shares": _first_shares(store), "axis_shares": _first_shares(neurons)}
        return {**names, **{key: token_charts.counted(evidence) for key, evidence in tokens.items()}, **shares}


def _first_shares(store: FeatureStore) -> dict[str, Any]:
    """The mean share of the first token over the features of a store that are active often enough."""
    known = [s.top_share for s in store.summaries(f"n_active >= {ENOUGH}") if s.top_share is not None]
    if len(known) < 2:
        return stats.not_applicable(f"fewer than 2 features are active {ENOUGH} times")._asdict()
    return stats.mean(known, "features")._asdict()


def _share(row: Facts) -> str:
    if row["value"] is None:
        return f"{MISSING} ({row['reason']})"
    return f"{100 * row['value']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
