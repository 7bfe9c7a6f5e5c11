"""Small, plausible artefacts of the stages patch, ablate and tree, in their layouts."""

import math
from pathlib import Path
from typing import Any

from monolex.artifact import Manifest, finish, write_json

SITES = ("resid_post.1", "resid_post.2")
HOSTILE = "<script>alert(1)</script>"
TOKENS = (
    " self",
    "\n    ",
    HOSTILE,
    "中",
    "\U0001f600",
    "$x$",
    "",
    "\x00",
    "\u202eabc",
    "a" * 60,
    "&amp;",
    " the",
    "s",
)
LOST = "never gets there: its floor is above"
NO_CONTROL = "no other feature was active with it"


def estimate(value: float | None, spread: float = 0.1, over: str = "prompts", reason: str = "") -> dict[str, Any]:
    """An estimate; with a reason the interval is missing."""
    if value is None or reason:
        return {"value": value, "low": None, "high": None, "n": 24, "over": over, "reason": reason}
    half = spread * abs(value)
    return {"value": value, "low": value - half, "high": value + half, "n": 24, "over": over, "reason": ""}


def artifact(folder: Path, kind: str, content: Any, parents: dict[str, str] | None = None) -> Manifest:
    """Write ``KIND.json`` and its manifest."""
    files = {f"{kind}.json": write_json(folder / f"{kind}.json", content)}
    return finish(folder, kind, {"seed": 0}, parents or {}, files, {})


def patch(*, able: bool = True, sites: tuple[str, ...] = SITES, table: bool = True) -> dict[str, Any]:
    """A patch of two sites with trained dictionaries, baselines and controls; searches at the first site."""
    accuracy = estimate(0.96 if able else 0.45, 0.03)
    verdict = "the model does this task on 96 % of prompts" if able else "this model cannot do the task: accuracy 0.45"
    behaviour = {
        "accuracy": accuracy,
        "logit_difference": estimate(3.2),
        "donor_accuracy": estimate(None, reason="no donor has a right answer of its own"),
        "probability": estimate(0.81),
        "kl": estimate(4.1),
        "n": 24,
        "able": able,
        "verdict": verdict,
    }
    wordings = [
        {"by": by, "value": value, "accuracy": estimate(0.9), "logit_difference": estimate(2.5)}
        for by, value in (("wording", "0"), ("wording", "1"), ("order", "ABBA"), ("order", "BABA"))
    ]
    cells = [(w, n) for w in ("practised", "held-out", "standard") for n in ("practised", "held-out")]
    rows = [
        {
            "wordings": w,
            "names": n,
            "accuracy": estimate(0.97 if w == "practised" else 0.35, 0.05),
            "logit_difference": estimate(4.0 if w == "practised" else -0.8),
            "able": w == "practised",
            "verdict": "",
        }
        for w, n in cells
    ]
    return {
        "task": "ioi",
        "corruption": "io_swap",
        "pairs": 24,
        "chosen_on": 12,
        "measured_on": 12,
        "left_out": ["Zacharias"],
        "examples": [
            ["When Anna and Bob met, Bob gave a ball to", f"When Carl and Bob met {HOSTILE}, Bob gave a ball to"]
        ],
        "behaviour": behaviour,
        "by_wording": wordings,
        "table": rows if table else [],
        "curves": [one for i, site in enumerate(sites) for one in _curves(site, exact=not i)],
        "claims": [one for site in sites for one in _claims(site)],
    }


RECIPES = (
    ("subject", "tied-a0-r4-s0", "tied", 0.0, 0.05),
    ("subject", "tied-a3e-3-r4-s0", "tied", 0.003, 0.8),
    ("subject", "tied-a3e-3-r4-s1", "tied", 0.003, 0.8),
    ("subject", "batchtopk-k32-r4-s0", "batchtopk", None, 1.2),
    ("subject", "pca", "pca", None, 0.0),
    ("subject", "pca-topk-k32", "pca-topk", None, 1.9),
    ("subject", "ica-topk-k32", "ica-topk", None, 1.5),
    ("subject", "neurons", "neurons", None, 0.0),
    ("subject", "random", "random", None, 2.5),
    ("random", "batchtopk-k32-r4-s0", "batchtopk", None, 0.9),
    ("shuffled", "batchtopk-k32-r4-s0", "batchtopk", None, 2.1),
)


def _curves(site: str, *, exact: bool) -> list[dict[str, Any]]:
    found = []
    for i, (model, name, kind, alpha, floor) in enumerate(RECIPES):
        sizes = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 400 + 150 * (i % 3)]
        curves = {
            search: [_point(s, floor, scale) for s in sizes] for search, scale in (("ranking", 20), ("random", 90))
        }
        areas = {}
        if exact and name in ("pca", "tied-a3e-3-r4-s0"):
            curves["greedy"] = [_point(s, floor, 17) for s in range(20)]
            curves["sweep"] = [
                _point(s, floor, 18) | {"threshold": 10.0 ** -(i + 1)} for i, s in enumerate((40, 12, 3))
            ]
            areas = {"ranking over greedy": estimate(1.07, 0.02), "random over greedy": estimate(3.4, 0.1)}
        whole = {"kl": estimate(0.0, reason="exact"), "metric": estimate(-3.1), "edit": estimate(9.0)}
        floors = {"none": _floor(4.1, 0.0), "all": _floor(floor, 8.0), "whole": whole}
        known = {"model": model, "site": site, "name": name, "kind": kind, "alpha": alpha, "d_sae": 512}
        known |= {
            "candidates": sizes[-1],
            "attributed": -3.2,
            "unmoved": 0,
            "floors": floors,
            "donor_metric": estimate(-3.1),
        }
        flattered = [{**point, "kl": estimate(0.9 * point["kl"]["value"])} for point in curves["ranking"]]
        found.append({**known, "curves": curves, "in_sample": {"ranking": flattered}, "areas": areas})
    return found


def _floor(kl: float, edit: float) -> dict[str, Any]:
    return {"kl": estimate(kl), "metric": estimate(1.0), "edit": estimate(edit)}


def _point(size: int, floor: float, scale: float) -> dict[str, Any]:
    left = math.exp(-size / scale)
    kl, edit = floor + (4.1 - floor) * left, 8 * (1 - left)
    names = {
        "kl": kl,
        "reverse": kl * 1.1,
        "metric": 3 * left,
        "edit": edit,
        "edit_changed": edit,
        "edit_relative": 0.1,
    }
    shares = {"recovered": 1 - left, "faithfulness": 1 - left, "completeness": left}
    return {"size": size, **{name: estimate(value) for name, value in (names | shares).items()}}


def _claims(site: str) -> list[dict[str, Any]]:
    found = []
    for statement in ("fewer features than the baseline at equal KL", "smaller edit than the baseline at equal KL"):
        for name, value in (("tied-a0-r4-s0", 1.4), ("tied-a3e-3-r4-s0", 0.6), ("batchtopk-k32-r4-s0", 1.02)):
            for level in (0.5, 0.25, 0.1):
                lost = level == 0.1 and name.startswith("batchtopk")
                ratio = estimate(None, reason=f"{site}/{name} {LOST}") if lost else estimate(value, 0.05)
                verdict = "undecided" if lost or value == 1.02 else "confirmed" if value < 1 else "contradicted"
                found.append(_claim(statement, f"{site}/{name}", f"{site}/pca", level, ratio, verdict))
    floors = (("patching all features of the baseline leaves no KL", "pca"),)
    floors += (("patching all features of an autoencoder leaves a KL", "tied-a3e-3-r4-s0"),)
    return found + [_claim(says, f"{site}/{name}", "", None, estimate(0.2), "confirmed") for says, name in floors]


def _claim(
    statement: str, dictionary: str, against: str, level: float | None, ratio: dict[str, Any], verdict: str
) -> dict[str, Any]:
    known = {"statement": statement, "dictionary": dictionary, "against": against, "level": level}
    return {**known, "estimate": ratio, "verdict": verdict}


def ablate(*, control: bool = True, features: int = 1) -> dict[str, Any]:
    """Ablations; without ``control`` nothing was active beside the feature, and there is no direct effect."""
    return {"ablations": [_ablation(17 + i, control) for i in range(features)]}


def _ablation(feature: int, control: bool) -> dict[str, Any]:
    edges = [round(-4 + 0.15 * i, 3) for i in range(42)]
    kl = {
        "feature": estimate(0.51, over="documents"),
        "control_feature": estimate(0.1 if control else None, over="documents", reason="" if control else NO_CONTROL),
        "control_direction": estimate(0.05, over="documents"),
        "p_feature": 3e-6 if control else None,
        "p_direction": 1e-9,
    }
    measures = {}
    for scale, name in enumerate(("probability", "logprob", "logit", "centred"), 1):
        histograms = {
            "total": _histogram(edges, 0.8 * scale),
            "direct": _histogram(edges, 0.4) if control else None,
            "control_feature": _histogram(edges, 0.3) if control else None,
            "control_direction": _histogram(edges, 0.15),
        }
        down = [_token(text, i, -3.5 / (1 + i), control) for i, text in enumerate(TOKENS)]
        up = [_token(text, 50 + i, 1.5 / (1 + i), control) for i, text in enumerate(TOKENS[:5])]
        measures[name] = {**histograms, "suppressed": down, "promoted": up, "significant": 61, "significant_down": 22}
    contexts = [{"texts": ["if", " x", HOSTILE, ":", "\n    ", " self"], "activation": 5.5 - i} for i in range(3)]
    return {
        "name": "tied-a3e-3-r4-s0",
        "words": f"' self' '{HOSTILE}'",
        "site": "resid_post.1",
        "kind": "tied",
        "feature": feature,
        "to": "zero",
        "positions": "token",
        "occurrences": 200,
        "documents": 143,
        "without_control": 0 if control else 200,
        "unmoved": 0 if control else 3,
        "size_ratio": 0.93 if control else None,
        "size_range": [0.6, 1.7] if control else None,
        "control_within": 2.0,
        "maximum": 5.5,
        "contexts": contexts,
        "kl": kl,
        "measures": measures,
        "rescue": [
            {"site": "resid_post.1", "own": estimate(1.0, 0), "control": estimate(0.01)},
            {"site": "resid_post.2", "own": estimate(0.7), "control": estimate(None, reason="nothing to undo")},
        ]
        if control
        else [],
        "later": 3 if control else 0,
        "interactions": [
            {"feature": 40, "alone": estimate(-0.2), "both": estimate(-1.9), "interaction": estimate(-0.3), "p": 0.02},
            {"feature": 41, "alone": estimate(0.1), "both": estimate(-1.2), "interaction": estimate(0.0), "p": None},
        ]
        if control
        else [],
        "metric_token": " self",
    }


def _histogram(edges: list[float], spread: float) -> dict[str, Any]:
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    return {"edges": edges, "counts": [int(900 * math.exp(-((x / spread) ** 2))) for x in middles]}


def _token(text: str, number: int, change: float, control: bool) -> dict[str, Any]:
    return {
        "token": number,
        "text": text,
        "change": change,
        "low": change - 0.2,
        "high": change + 0.2,
        "direct": change / 2 if control else None,
        "control": change / 10 if control else None,
        "p": 1e-5 * (number + 1) if control else None,
    }


def tree(*, deep: bool = True) -> dict[str, Any]:
    """A tree of three generations, or a bare root."""
    root = _node(0, None, "resid_post.2", 5, None, f"' self' '{HOSTILE}'")
    nodes = [root]
    if deep:
        nodes += [
            _node(1, 0, "resid_post.1", 344, 2.4, "'.' ').' '?'"),
            _node(2, 0, "resid_post.1", 12, -1.1, "'中' '\u202e'"),
            _node(3, 0, "resid_post.1", None, 0.4, "reconstruction error", "error"),
            _node(4, 0, "resid_post.1", None, 3.9, "all features", "rest"),
            _node(5, 1, "resid_post.0", 7, 1.4, "' a' ' b' ' cccccccccccccccccccccccccccccccccccccc'"),
            _node(6, 2, "resid_post.0", 7, 0.3, "' a'") | {"same_as": 5},
        ]
    logits = [
        {
            "token": i,
            "text": text,
            "effect": estimate(2.0 / (1 + i), over="contexts"),
            "standard_error": 0.1,
            "logit": estimate(2.4 / (1 + i), over="contexts"),
            "probability": 0.2,
        }
        for i, text in enumerate(TOKENS[:5])
    ]
    trees = [{"root": "resid_post.2/tied-a3e-3-r4-s0:5", "dictionaries": {}, "nodes": nodes, "logits": logits}]
    for site in ("resid_post.2", "resid_post.1", "resid_post.0"):
        trees[0]["dictionaries"][site] = "tied-a3e-3-r4-s0"
    return {"trees": trees}


def _node(
    number: int,
    parent: int | None,
    site: str,
    feature: int | None,
    effect: float | None,
    label: str,
    kind: str = "feature",
) -> dict[str, Any]:
    measured = None if effect is None else estimate(effect, over="contexts")
    return {
        "id": number,
        "parent": parent,
        "site": site,
        "feature": feature,
        "kind": kind,
        "effect": measured,
        "q": 0.012 if measured and kind == "feature" else None,
        "standard_error": None if effect is None else 0.1,
        "share": None if effect is None else effect / 4.0,
        "pre_effect": measured,
        "activation": 4.0 if kind == "feature" else None,
        "maximum": 6.5 if kind == "feature" else None,
        "contexts": 20 if kind == "feature" else 0,
        "active": 384 if kind == "feature" else 0,
        "confirmed": 64 if kind == "feature" else 0,
        "correlation": 0.97 if parent is None else None,
        "label": label,
        "same_as": None,
    }


def without_values(value: Any) -> Any:
    """Every estimate of a nested value lost, with a reason."""
    if isinstance(value, dict) and set(value) == {"value", "low", "high", "n", "over", "reason"}:
        return {**value, "value": None, "low": None, "high": None, "reason": "lost"}
    if isinstance(value, dict):
        return {key: without_values(part) for key, part in value.items()}
    return [without_values(part) for part in value] if isinstance(value, list) else value
