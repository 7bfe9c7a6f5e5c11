"""Experiments of a run as an agent reads them: their content without histograms, lists cut short."""

from collections.abc import Mapping
from typing import Any

from monolex.answers import as_json
from monolex.explorer.agent.sources import Said, cut, source
from monolex.explorer.explorer import Explorer
from monolex.explorer.views.causes import causes, experiment
from monolex.report.patch_section import SIZES, nearest

MEASURES = ("probability", "logprob")
"""Of an ablation, the measures of change that are said."""


def listed(explorer: Explorer, slug: str) -> list[Said]:
    """The finished experiments of a run with their hashes, and of each how many features it names.

    Raises:
        NotThere: no such run.
    """
    run = explorer.run(slug)
    rows = causes(explorer, slug).data["experiments"]
    return [
        {"kind": row["kind"], "path": row["path"], "features": len(row["features"]), **source(run, row["path"])}
        for row in rows
    ]


def one_experiment(explorer: Explorer, slug: str, path: str, limit: int) -> Said:
    """The result of an experiment, and the features that it names; lists of at most ``limit`` entries.

    Raises:
        NotThere: no such run or experiment.
    """
    data = as_json(experiment(explorer, slug, path).data)
    result = SHORTENED.get(data["kind"], dict)(data["result"])
    short, whole = cut({"result": result, "features": data["features"]}, limit)
    return {
        "source": source(explorer.run(slug), path),
        "kind": data["kind"],
        **short,
        "lists_before_they_were_cut": whole,
    }


def _ablate(result: Mapping[str, Any]) -> Said:
    return {"ablations": [_ablation(ablation) for ablation in result["ablations"]]}


def _ablation(ablation: Mapping[str, Any]) -> Said:
    kept = {name: ablation["measures"][name] for name in MEASURES if name in ablation["measures"]}
    return {**ablation, "measures": kept, "contexts": len(ablation["contexts"])}


def _patch(result: Mapping[str, Any]) -> Said:
    names = ("task", "corruption", "pairs", "chosen_on", "measured_on", "behaviour", "table", "claims", "examples")
    return {name: result[name] for name in names} | {"curves": [_curve(curve) for curve in result["curves"]]}


def _curve(curve: Mapping[str, Any]) -> Said:
    """Of a dictionary's curve some sizes, as ``show`` prints them."""
    names = ("model", "site", "name", "kind", "d_sae", "candidates", "donor_metric", "areas")
    ends = {end: floor["kl"] for end, floor in curve["floors"].items()}
    near = [nearest(curve["curves"].get("ranking", ()), size) for size in SIZES]
    points = [{"size": point["size"], "kl": point["kl"]} for point in near if point]
    return {name: curve[name] for name in names} | {"kl_at_the_ends": ends, "kl_by_ranking": points}


SHORTENED = {"ablate": _ablate, "patch": _patch}
"""What is kept of the result of a kind, before lists are cut; all of it of others."""
