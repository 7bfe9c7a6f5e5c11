"""What is said of activations, dictionaries, an evaluation and evidence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monolex.artifact import Manifest, read_json
from monolex.model import gguf
from monolex.show.text import columns, records

TABLES = (
    ("decomposition", ("fvu", "l0", "alive_paper", "dead", "norm_ratio")),
    ("fidelity", ("ce", "kl", "loss_recovered_zero", "loss_recovered_mean")),
)


def activations(_path: Path, manifest: Manifest) -> list[str]:
    """Sites, rows, what was dropped, and the norms."""
    data = manifest.data
    model, begins, tokens = data["model"], data["corpus"]["separator"], data["outlier_tokens"]
    losses = "".join(f", {text} {loss:.3f}" for text, loss in begins["losses"].items())
    named = ", ".join(f"{entry['text']!r} {entry['count']:,}" for entry in tokens)
    head = [
        "site",
        "d_in",
        "stored as",
        "peak",
        "median norm",
        "largest",
        "outliers",
        "hold",
        "top 1 % of the rest hold",
    ]
    chosen = model.get("precision")
    return [
        f"model    {model['name']} ({model['architecture']}), fingerprint {model['fingerprint'][:12]}",
        *([f"weights  {gguf.sentence(model['gguf'])}"] if model.get("gguf") else []),
        f"in       {model['model_config']['model_dtype']}" + (f", chosen: {chosen['reason']}" if chosen else ""),
        f"rows     {', '.join(f'{split} {rows:,}' for split, rows in data['rows'].items())}"
        + (f"; training reads {data['streamed']:,} more through the model" if data.get("streamed") else ""),
        f"dropped  {json.dumps(data['dropped'])}",
        *([f"outliers {named}"] if named else []),
        f"begins   {begins['text'] or 'nothing'} before every document and row ({begins['reason']}{losses})",
        f"corpus   {json.dumps(data['corpus']['report'])[:400]}",
        columns([head, *(_site(site, facts) for site, facts in data["sites"].items())]),
    ]


def _site(site: str, facts: Mapping[str, Any]) -> list[str]:
    widened = f", fp32 in {len(facts['widened'])}" if facts["widened"] else ""
    numbers = (facts["peak"], facts["median_norm"], facts["largest_norm"])
    shares = (facts["outliers"]["share"], facts["top_percent_share"])
    outliers = f"{facts['outliers']['rows']:,}"
    values = [f"{number:.4g}" for number in numbers]
    return [
        site,
        str(facts["d_in"]),
        facts["dtype"] + widened,
        *values,
        outliers,
        *(f"{share:.1%}" for share in shares),
    ]


def members(_path: Path, manifest: Manifest) -> list[str]:
    """The dictionaries of a sweep or of a folder of baselines."""
    return [f"{len(manifest.data['members'])} dictionaries", records(manifest.data["members"])]


def evaluation(path: Path, _manifest: Manifest) -> list[str]:
    """The metrics as tables, one row a dictionary."""
    from monolex.evals.table import table

    rows = read_json(path / "metrics.json")
    spared = [f"{r['model']} {r['site']} {r['value']:.2%}" for r in rows if r["metric"] == "spared"]
    left = "fidelity leaves as they are: first positions, and of the others (separators, extreme norms)"
    tables = [f"\n{title}\n{table(rows, metrics)}" for title, metrics in TABLES]
    return [*tables, *([f"\n{left} {', '.join(spared)}"] if spared else [])]


def stores(_path: Path, manifest: Manifest) -> list[str]:
    """The stores of evidence."""
    return [f"{len(manifest.data['stores'])} stores of evidence", records(manifest.data["stores"])]
