"""A run folder with small, plausible artefacts, written through ``monolex.artifact`` as the stages write them."""

import math
from pathlib import Path
from typing import Any

import torch
from helpers.site_facts import site_facts
from safetensors.torch import save

from monolex.artifact import TIMINGS, finish, write_bytes, write_json
from monolex.config import CorpusConfig, EvalConfig, HarvestConfig, ModelConfig, identity

SITES = ("resid_post.1", "resid_post.2")
ROWS, D_IN = 20_000, 128
AT_CHANCE = "zero-ablation adds 0.0012 nats, below 0.01: the model itself is at chance, or does not need this site"
TRAINED = (
    ("tied", 3e-4, None, 0),
    ("tied", 8.6e-4, None, 0),
    ("tied", 8.6e-4, None, 1),
    ("tied", 3e-3, None, 0),
    ("topk", None, 8, 0),
    ("topk", None, 32, 0),
    ("batchtopk", None, 32, 0),
)
BASELINES = (
    ("neurons", None, 60.0, 0.32),
    ("random", None, 255.0, 0.85),
    ("random-topk", 32, 32.0, 0.93),
    ("pca", None, 128.0, 0.0),
    ("pca-pm", None, 128.0, 0.0),
    ("pca-topk", 32, 32.0, 0.41),
)


def fake_run(folder: Path, *, model: str = "tiny-neox", controls: bool = True, baselines: bool = True) -> Path:
    """Write a run that has been evaluated but not reported."""
    stored = _activations(folder / "activations", model)
    rows, counts = [], {}
    for site in SITES:
        _subject(site, rows, counts, baselines)
        for control in ("random", "shuffled") if controls else ():
            _control(control, site, rows, counts)
    files = {
        "metrics.json": write_json(folder / "eval" / "metrics.json", rows),
        "densities.safetensors": write_bytes(folder / "eval" / "densities.safetensors", save(counts)),
    }
    parents = {"subject.activations": stored}
    sources = ["train/residual"] + ["baselines/plain"] * baselines
    sources += [f"controls/{control}/train/small" for control in ("random", "shuffled")] * controls
    for name in sources:
        kind = "baselines" if name.startswith("baselines") else "sweep"
        parents[name] = finish(folder / name, kind, {}, {"activations": stored}, {}, {"members": []}).content
    finish(folder / "eval", "eval", identity(EvalConfig(rows=ROWS)), parents, files, {"dictionaries": len(counts)})
    write_json(folder / TIMINGS, {"activations": 41.7})
    write_bytes(folder / "run.toml", b'[model]\nmodel = "demo"\n')
    return folder


def _activations(folder: Path, model: str) -> str:
    report: dict[str, Any] = {"documents": 812, "tokens": 215_040, "empty": 3, "bad_lines": 1, "undecodable": 0}
    report["problems"] = ["notes.jsonl:17: not JSON", "<script>alert(1)</script>.txt: no text"]
    data = {
        "model": {
            "name": model,
            "fingerprint": "ab12" * 16,
            "architecture": "GPTNeoXForCausalLM",
            "model_config": {"model_dtype": "fp32"},
        },
        "corpus": {
            "digest": "cd34" * 16,
            "report": report,
            "separator": {"token": 0, "text": "<s>", "reason": "the tokenizer has no other", "losses": {}},
        },
        "sites": {site: site_facts(D_IN) for site in SITES},
        "outlier_tokens": [{"token": 5, "text": "\n", "count": 12}],
        "rows": {"train": 190_000, "held_out": ROWS},
        "dropped": {"train": {"bos": 741, "norm": 12}, "held_out": {"bos": 71, "norm": 0}},
    }
    config = {**identity(ModelConfig()), **identity(CorpusConfig()), **identity(HarvestConfig(sites=SITES))}
    return finish(folder, "activations", config, {"model": "ab12" * 16}, {}, data).content


def _subject(site: str, rows: list, counts: dict, baselines: bool) -> None:
    for kind, alpha, k, seed in TRAINED:
        l0 = float(k or 0.045 / (alpha or 1)) * (1 if site == SITES[0] else 1.2)
        fvu = 0.55 / (1 + l0 / 12) + (0.03 if kind == "tied" else 0) + 0.004 * seed
        _dictionary("subject", site, (kind, alpha, k, seed), l0, fvu, 1 - 0.6 * fvu, rows, counts)
    seeds = _head("subject", site, ("tied", 8.6e-4, None, None)) | {"name": "tied-a8.6e-4-r4-s*", "path": None}
    rows += [_row(seeds, f"seed_overlap_{t}", v, (v, v), "pairs of seeds", 1) for t, v in ((0.7, 0.62), (0.9, 0.41))]
    pair = _head("subject", site, ("tied", 8.6e-4, None, 0)) | {"other": "tied-a8.6e-4-r4-s1"}
    rows += [_row(pair, m, v, (v - 0.01, v + 0.01), "features", 512) for m, v in (("mmcs", 0.71), ("mmcs_back", 0.7))]
    rows.append(_row(pair, "matched_cosine", None, None, "", 0, "Hungarian matching is done up to 8192 features"))
    for kind, k, l0, fvu in BASELINES if baselines else ():
        _dictionary("subject", site, (kind, None, k, None), l0, fvu, 1 - 0.9 * fvu, rows, counts)
    for name, ce in (("clean", 3.21), ("zero-ablation", 7.9), ("mean-ablation", 6.4)):
        _fidelity(_head("subject", site, ("reference", None, None, None)) | {"name": name, "path": None}, ce, rows)


def _control(control: str, site: str, rows: list, counts: dict) -> None:
    for alpha, l0 in ((3e-4, 160.0), (8.6e-4, 55.0), (3e-3, 12.0)):
        recipe = ("tied", alpha, None, 0)
        recovered = None if control == "random" else 0.3
        _dictionary(control, site, recipe, l0, 0.9 / (1 + l0 / 60), recovered, rows, counts)


def _dictionary(
    model: str, site: str, recipe: tuple, l0: float, fvu: float, recovered, rows: list, counts: dict
) -> None:
    head = _head(model, site, recipe)
    dead = 0.0 if head["kind"] in {baseline[0] for baseline in BASELINES} else min(0.4, 1 / l0)
    documents = {"fvu": fvu, "l0": l0, "norm_ratio": 1 - fvu / 3, "cosine": math.sqrt(max(0.0, 1 - fvu))}
    rows.append(_row(head, "rows", ROWS, None, "documents", 80, "a count: no interval"))
    rows += [_row(head, m, v, (v * 0.97, v * 1.03), "documents", 80) for m, v in documents.items()]
    features = {"density": l0 / head["d_sae"], "alive": 1 - dead, "alive_paper": 0.98 - dead, "dead": dead}
    features |= {"decoder_cosine": 0.31, "embedding_cosine": 0.22, "unembedding_cosine": 0.19}
    rows += [_row(head, m, v, (v * 0.95, min(1.0, v * 1.05)), "features", head["d_sae"]) for m, v in features.items()]
    rows.append(_row(head, "decoder_cosine_max", 0.87, None, "features", head["d_sae"], "a maximum: no interval"))
    if head["kind"] == "tied":
        rows.append(_row(head, "negative_bias", 0.97, (0.95, 0.98), "features", head["d_sae"]))
    else:
        rows.append(_row(head, "negative_bias", None, None, "", 0, "every encoder bias is zero"))
    _fidelity(head, 7.9 - 4.69 * (0.2 if recovered is None else recovered), rows, recovered)
    spread = torch.randn(head["d_sae"], generator=torch.Generator().manual_seed(7)) * 0.6
    fired = (ROWS * 10 ** (math.log10(l0 / head["d_sae"]) - 0.3 + spread)).clamp(0, ROWS).long()
    fired[: round(dead * len(fired))] = 0
    counts[f"{model}/{site}/{head['name']}"] = fired


def _fidelity(head: dict[str, Any], ce: float, rows: list, recovered: float | None = None) -> None:
    values = {"ce": ce, "ce_added": ce - 3.21, "kl": (ce - 3.21) * 0.9, "perplexity": math.exp(ce)}
    rows += [_row(head, m, v, (v * 0.98, v * 1.02), "documents", 40) for m, v in values.items()]
    reason = "a reference of this scale" if head["kind"] == "reference" else AT_CHANCE
    for metric in ("loss_recovered_zero", "loss_recovered_mean"):
        if recovered is None:
            rows.append(_row(head, metric, None, None, "", 0, reason))
        else:
            rows.append(_row(head, metric, recovered, (recovered - 0.01, recovered + 0.01), "documents", 40))


def _head(model: str, site: str, recipe: tuple) -> dict[str, Any]:
    kind, alpha, k, seed = recipe
    trained = kind in ("tied", "topk", "batchtopk")
    d_sae = {"reference": None, "neurons": D_IN, "pca": D_IN, "pca-pm": 2 * D_IN, "pca-topk": 2 * D_IN}.get(kind, 512)
    sparsity = f"a{alpha:.2g}" if alpha else f"k{k}"
    name = f"{kind}-{sparsity}-r4-s{seed}" if trained else kind + (f"-k{k}" if k else "")
    home = (
        f"../controls/{model}/train/small"
        if model != "subject"
        else "../train/residual"
        if trained
        else "../baselines/plain"
    )
    ratio = 4.0 if trained else None
    known = {"model": model, "site": site, "name": name, "kind": kind, "d_sae": d_sae, "alpha": alpha, "k": k}
    return known | {"ratio": ratio, "seed": seed, "lr": 3e-4, "path": f"{home}/{site}/{name}", "other": ""}


def _row(head: dict, metric: str, value: float | None, span, over: str, n: int, reason: str = "") -> dict[str, Any]:
    low, high = span or (None, None)
    known = {"metric": metric, "value": value, "low": low, "high": high, "n": n, "over": over, "reason": reason}
    return {**head, **known}
