"""What is said of patches, ablations, trees and stability."""

from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT, Manifest, read_json
from monolex.show.text import cell, columns, estimate
from monolex.text.characters import json_quoted

FIRST = 8
"""Features of an order that are named."""


def patch(path: Path, _manifest: Manifest) -> list[str]:
    """Behaviour first, then the KL of every dictionary at some sizes, and what became of the paper's claims."""
    from monolex.report.patch_section import SIZES, nearest

    patch = read_json(path / "patch.json")
    behaviour, corruption = patch["behaviour"], patch["corruption"]
    rows = [["prompts", "names", "accuracy", "logit difference"]]
    rows += [[patch["task"], "–", estimate(behaviour["accuracy"]), estimate(behaviour["logit_difference"])]]
    for row in patch["table"]:
        rows.append([row["wordings"], row["names"], estimate(row["accuracy"]), estimate(row["logit_difference"])])
    heads = ["model", "site", "dictionary", "features", "KL none", "KL all", *(f"KL near {size}" for size in SIZES)]
    kept = [heads]
    for dictionary in patch["curves"]:
        near = [nearest(dictionary["curves"].get("ranking", ()), size) for size in SIZES]
        ends = [estimate(dictionary["floors"][name]["kl"]) for name in ("none", "all")]
        kls = [cell(point and point["kl"]["value"]) for point in near]
        names = [dictionary[key] for key in ("model", "site", "name")]
        kept.append([*names, str(dictionary["candidates"]), *ends, *kls])
    claims = [["statement", "dictionary", "against", "at", "ratio or floor", "verdict"]]
    for claim in patch["claims"]:
        names = [claim["statement"], claim["dictionary"], claim["against"] or "–", cell(claim["level"])]
        claims.append([*names, estimate(claim["estimate"]), claim["verdict"]])
    return [
        f"task {patch['task']}{', corruption ' + corruption if corruption else ''}, {patch['pairs']} pairs of prompts, "
        f"sets chosen on {patch['chosen_on']} and measured on {patch['measured_on']} of them",
        f"{'able' if behaviour['able'] else 'NOT ABLE'}: {behaviour['verdict']}",
        columns(rows),
        f"\nKL to the donor in nats, by the ranking of integrated gradients\n{columns(kept)}",
        *_first_features(patch["curves"]),
        f"\n{columns(claims)}",
    ]


def _first_features(curves: list[dict[str, Any]]) -> list[str]:
    """A line for every search of every dictionary; none where a patch was made before searches kept their order."""
    lines = [
        f"{curve['site']}/{curve['name']}, by {search}: {' '.join(map(str, features[:FIRST]))}"
        for curve in curves
        if curve["model"] == SUBJECT
        for search, features in curve.get("order", {}).items()
    ]
    return ["\nthe features that come first", *lines] if lines else []


def stability(path: Path, _manifest: Manifest) -> list[str]:
    """Of every dictionary how often its features come back, and both groups beside each other."""
    from monolex.report.stability_section import said

    lines = []
    for dictionary in read_json(path / "stability.json")["dictionaries"]:
        rows = [["of a feature", "stable", "unstable", "difference"]]
        for name, values in dictionary["compared"].items():
            rows.append([name, *(estimate(values[group]) for group in ("stable", "unstable", "difference"))])
        lines += [f"\n{said(dictionary)}", columns(rows)]
    return lines


def ablate(path: Path, _manifest: Manifest) -> list[str]:
    """Of every feature how much predictions change beside its controls, and the tokens that lose most."""
    lines = []
    for ablation in read_json(path / "ablate.json")["ablations"]:
        kl = ablation["kl"]
        effects = [["ablated", "KL, nats", "p"], ["the feature", estimate(kl["feature"]), "–"]]
        effects.append(["a matched feature", estimate(kl["control_feature"]), cell(kl["p_feature"])])
        effects.append(["a random direction", estimate(kl["control_direction"]), cell(kl["p_direction"])])
        rows = [["token", "change of probability", "direct", "control", "p, corrected"]]
        for token in ablation["measures"]["probability"]["suppressed"][:10]:
            change = estimate({**token, "value": token["change"], "reason": ""})
            rest = [cell(token[key]) for key in ("direct", "control", "p")]
            rows.append([json_quoted(token["text"]), change, *rest])
        where = f"{ablation['site']}/{ablation['name']} {ablation['words']}"
        extent = f"{ablation['occurrences']} tokens of {ablation['documents']} documents"
        lines += [f"\nfeature {ablation['feature']} of {where}, {extent}", columns(effects), columns(rows)]
        if ablation["rescue"]:
            rescue = [["added back at", "undone", "by a random direction"]]
            rescue += [[at["site"], estimate(at["own"]), estimate(at["control"])] for at in ablation["rescue"]]
            lines += [
                f"added back at {len(ablation['rescue']) - 1} of {ablation['later']} later layers",
                columns(rescue),
            ]
    return lines


def tree(path: Path, _manifest: Manifest) -> list[str]:
    """Every tree as indented text, strongest first, with effects ± standard errors and shares."""
    from monolex.pages.tree_diagram import called, effect, ordered, spans

    lines = []

    def grow(nodes: list[dict[str, Any]], parent: int | None, depth: int) -> None:
        for node in ordered(nodes, parent):
            words = f" {node['label']}" if node["kind"] == "feature" and node["label"] else ""
            lines.append(f"{'  ' * depth}{called(node)}{words}  {effect(node)}")
            grow(nodes, node["id"], depth + 1)

    for grown in read_json(path / "tree.json")["trees"]:
        lines.append(f"\n{grown['root']}")
        grow(grown["nodes"], None, 0)
        lines += [between] if (between := spans(grown)) else []
        falls = [f"{json_quoted(t['text'])} {estimate(t['effect'])}" for t in grown["logits"]]
        lines.append(f"without it tokens lose, in nats: {', '.join(falls)}" if falls else "no token loses without it")
    return lines
