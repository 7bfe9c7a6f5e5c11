"""Small, plausible score artefacts in their layout, with all that may be missing, and what a simulator said of them."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from monolex.artifact import finish, write_bytes, write_json
from monolex.config import identity
from monolex.interp.config import ExplainConfig
from monolex.interp.records import Overlay, Scored

HOSTILE = "<script>alert(1)</script>"
EXPLAINERS = ("token", "pattern")
EXACT = "exact 0-10 of demo"
REASON = "the predictions are constant"
SKIPPED = "fewer than 20 fragments"
UNSAID = "no explanation: the reply is empty"
FAILED = "the reply is no JSON"
TEXTS = (" def", "\n    ", HOSTILE, "中", "\u202eabc", "", "\x00", " the", "&amp;", "e\u0301")
D_IN, FEATURES, SEED = 64, 8, 7
METHODS = (
    ("subject", "tied-a1e-3-r2-s0", "tied", 1e-3, None, 2.0, 0.45),
    ("subject", "batchtopk-k24-r2-s0", "batchtopk", None, 24, 2.0, 0.4),
    ("subject", "neurons", "neurons", None, None, 1.0, 0.1),
    ("subject", "random", "random", None, None, 2.0, 0.08),
    ("subject", "pca", "pca", None, None, 1.0, 0.15),
    ("subject", "ica", "ica", None, None, 1.0, 0.25),
    ("subject", "pca-topk-k24", "pca-topk", None, 24, 2.0, 0.22),
    ("subject", "pca-topk-k60", "pca-topk", None, 60, 2.0, 0.18),
    ("subject", "ica-topk-k24", "ica-topk", None, 24, 2.0, 0.3),
    ("random", "batchtopk-k24-r2-s0", "batchtopk", None, 24, 2.0, 0.3),
    ("shuffled", "batchtopk-k24-r2-s0", "batchtopk", None, 24, 2.0, 0.2),
)
TRAINED = ("tied", "batchtopk")


def cell(value: float | None, reason: str = "") -> dict[str, Any]:
    """A score of one feature."""
    if value is None:
        return {"value": None, "low": None, "high": None, "reason": reason}
    return {"value": value, "low": value - 0.05, "high": value + 0.06, "reason": reason}


def estimate(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over features; without any, none."""
    known = [score["value"] for score in cells if score["value"] is not None]
    missing = dict(Counter(score["reason"] for score in cells if score["value"] is None))
    counts = {"n": len(known), "over": "features and documents", "missing": missing}
    if not known:
        return {"value": None, "low": None, "high": None, "reason": "no feature has a score", **counts}
    mean = sum(known) / len(known)
    return {"value": mean, "low": mean - 0.03, "high": mean + 0.04, "reason": "", **counts}


def dictionary(
    model: str, site: str, name: str, kind: str, alpha: float | None, k: int | None, ratio: float, *, step: int | None
) -> dict[str, Any]:
    """What score.json says of one, without its scores."""
    trained = kind in TRAINED
    method = name if trained else kind
    return {
        "model": model,
        "site": site,
        "name": name if step is None else f"{name}@{step}",
        "kind": kind,
        "method": method if model == "subject" else f"{model} model: {method}",
        "layer": int(site.rpartition(".")[2]),
        "d_in": D_IN,
        "d_sae": round(ratio * D_IN),
        "ratio": ratio,
        "alpha": alpha,
        "k": k,
        "step": step,
        "l0": float(k or 55.0),
        "trained": trained,
        "asked": FEATURES + 2,
        "explained": FEATURES,
        "skipped": {SKIPPED: 2},
    }


METRICS = ("top_and_random", "top", "random", "chance", "chance_top", "chance_random")


def line(facts: dict[str, Any], feature: int, explainer: str, simulator: str, level: float) -> dict[str, Any]:
    """A line of scores.jsonl; one feature has no explanation, one no score."""
    drawn = np.random.default_rng([feature, facts["layer"], len(facts["name"]), EXPLAINERS.index(explainer), SEED])
    value = None if feature % 8 in (5, 6) else float(np.clip(level + 0.15 * drawn.normal(), -1, 1))
    lost = cell(None, UNSAID if feature == 6 else REASON)
    scores = {
        "top_and_random": lost if value is None else cell(value),
        "top": lost if value is None else cell(value * 0.9, "" if feature else "one document: no interval"),
        "random": lost if value is None else cell(value * 0.5),
        **{chance: cell(0.02 + 0.01 * facts["layer"]) for chance in ("chance", "chance_top", "chance_random")},
    }
    moments = {
        "mean": abs(float(drawn.normal())),
        "variance": abs(float(drawn.normal())),
        "skew": None if feature == 0 else 10 * (value or 0) + float(drawn.normal()),
        "kurtosis": float(drawn.gamma(2)) * 100,
    }
    said = f"the token{'s' if feature % 2 else ''} {TEXTS[feature % len(TEXTS)]!r} of {explainer}"
    judged = (
        {"balanced_accuracy": cell(0.7), "auc": cell(0.75), "chance_auc": cell(0.51)} if explainer == "token" else {}
    )
    return {
        **{name: facts[name] for name in ("model", "site", "name", "kind", "method", "layer")},
        "feature": feature,
        "explainer": explainer,
        "simulator": simulator,
        "text": None if feature == 6 else f"{said}, {HOSTILE}" if feature == 2 else said,
        "scores": scores,
        "detection": judged,
        "fuzz": judged,
        "failures": {FAILED: 2} if feature == 3 else {UNSAID: 10} if feature == 6 else {},
        "moments": moments,
        "output": {"promoted": [" self", HOSTILE], "suppressed": ["中"], "reason": ""},
    }


def overlays(feature: int) -> tuple[Overlay, ...]:
    """Fragments with every kind of token; of the second the simulator said nothing."""
    actual = tuple(float(i % 4 == 0) * (feature + i) for i in range(len(TEXTS)))
    predicted = tuple(float(i % 3 == 0) * 5 for i in range(len(TEXTS)))
    return (
        Overlay("top", 4, TEXTS, actual, predicted),
        Overlay("random", 9, TEXTS, tuple(-v for v in actual), None),
    )


def scored(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[int, list[Scored]]]:
    """The lines as ``results.scored`` gives them."""
    by_dictionary: dict[tuple[str, str, str], dict[int, list[Scored]]] = {}
    for row in rows:
        by_feature = by_dictionary.setdefault((row["model"], row["site"], row["name"]), {})
        by_feature.setdefault(row["feature"], []).append(Scored(row, overlays(row["feature"])))
    return by_dictionary


def plan(sites: tuple[str, ...], methods=METHODS) -> list[tuple[dict[str, Any], float]]:
    """Dictionaries at some sites, each with the level of its scores."""
    return [
        (dictionary(*known, step=None), level - 0.04 * int(site.rpartition(".")[2]))
        for site in sites
        for model, name, kind, alpha, k, ratio, level in methods
        for known in [(model, site, name, kind, alpha, k, ratio)]
    ]


def sizes(site: str, ratios=(0.5, 1.0, 4.0)) -> list[tuple[dict[str, Any], float]]:
    """One recipe at several sizes."""
    return [
        (dictionary("subject", site, f"tied-a1e-3-r{r:g}-s0", "tied", 1e-3, None, r, step=None), 0.4) for r in ratios
    ]


def steps(site: str, kept=(10, 100)) -> list[tuple[dict[str, Any], float]]:
    """Checkpoints of a recipe."""
    return [
        (dictionary("subject", site, "tied-a1e-3-r2-s0", "tied", 1e-3, None, 2.0, step=s), 0.1 * math.log10(s))
        for s in kept
    ]


def fake_scores(
    run: Path,
    name: str = "paper",
    planned: list[tuple[dict[str, Any], float]] | None = None,
    *,
    simulator: str = "rules",
    mode: Literal["paper", "modern"] = "paper",
    explainers: tuple[str, ...] = EXPLAINERS,
    features: int = FEATURES,
    lost: bool = False,
    missing: int = 0,
) -> list[dict[str, Any]]:
    """Write RUN/score/NAME, where no feature has a score if they are ``lost``; the lines of its scores.jsonl."""
    planned = plan(("resid_post.0", "resid_post.1", "mlp_act.1")) if planned is None else planned
    rows, listed = [], []
    for facts, level in planned:
        by_explainer: dict[str, Any] = {}
        for explainer in explainers:
            lines = [line(facts, i, explainer, simulator, level) for i in range(features)]
            if lost:
                gone = {score: cell(None, REASON) for score in lines[0]["scores"]} if lines else {}
                lines = [row | {"scores": gone, "detection": {}, "fuzz": {}} for row in lines]
            rows += lines
            values = {m: [row["scores"][m] for row in lines] for m in METRICS}
            if explainer == "token" and not lost:
                values |= {m: [cell(0.7)] * len(lines) for m in ("detection", "detection_auc", "fuzz", "fuzz_auc")}
                values |= {m: [cell(0.51)] * len(lines) for m in ("detection_auc_chance", "fuzz_auc_chance")}
            by_explainer[explainer] = {metric: estimate(cells) for metric, cells in values.items()}
        tokens = {explainer: {"predicted": 640, "missing": missing, "fragments": missing} for explainer in explainers}
        listed.append(facts | {"explainers": by_explainer, "tokens": tokens})
    content = {
        "explanations": f"../../explain/{name}",
        "mode": mode,
        "simulator": simulator,
        "scorers": ["correlation", "detection", "fuzz"],
        "shuffles": 1,
        "level": 0.95,
        "resamples": 1000,
        "most_missing": 0.25,
        "dictionaries": listed,
        "differences": _differences(listed),
    }
    folder = run / "score" / name
    files = {
        "score.json": write_json(folder / "score.json", content),
        "scores.jsonl": write_bytes(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()),
    }
    explained = finish(run / "explain" / name, "explain", identity(ExplainConfig(mode=mode)), {}, {}, {})
    finish(folder, "score", {"simulator": simulator}, {"explanations": explained.content}, files, {})
    return rows


def _differences(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every trained dictionary and every baseline of its site: above, below, not clear, without interval, lost."""
    rows = []
    spans = ((0.12, 0.08, 0.16), (-0.2, -0.3, -0.1), (0.01, -0.04, 0.06), (0.05, None, None), (None, None, None))
    trained = [d for d in listed if d["trained"] and d["model"] == "subject"]
    for facts in trained:
        others = [d for d in listed if d["site"] == facts["site"] and d["step"] is None]
        for i, other in enumerate(o for o in others if not o["trained"] or o["model"] != "subject"):
            for explainer in facts["explainers"]:
                value, low, high = spans[i % len(spans)]
                reason = "" if low is not None else "too few documents" if value is not None else "no feature in common"
                rows.append(
                    {
                        **{name: facts[name] for name in ("site", "layer", "model", "name")},
                        "explainer": explainer,
                        "metric": "top_and_random",
                        "against_model": other["model"],
                        "against": other["name"],
                        **{"value": value, "low": low, "high": high, "n": 40, "over": "documents", "reason": reason},
                    }
                )
    return rows
