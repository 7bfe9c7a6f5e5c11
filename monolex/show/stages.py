"""What is said of activations, dictionaries, an evaluation and evidence."""

import json
from pathlib import Path

from monolex.artifact import Manifest, read_json
from monolex.show.text import columns, records

TABLES = (
    ("decomposition", ("fvu", "l0", "alive_paper", "dead", "norm_ratio")),
    ("fidelity", ("ce", "kl", "loss_recovered_zero", "loss_recovered_mean")),
)


def activations(_path: Path, manifest: Manifest) -> list[str]:
    """Sites, rows and what was dropped."""
    data = manifest.data
    sites = [[s, str(v["d_in"]), v["dtype"], f"{v['sampled_max']:.3g}"] for s, v in data["sites"].items()]
    model = data["model"]
    return [
        f"model    {model['name']} ({model['architecture']}), fingerprint {model['fingerprint'][:12]}",
        f"rows     {', '.join(f'{split} {rows:,}' for split, rows in data['rows'].items())}",
        f"dropped  {json.dumps(data['dropped'])}",
        f"corpus   {json.dumps(data['corpus']['report'])[:400]}",
        columns([["site", "d_in", "stored as", "sampled maximum"], *sites]),
    ]


def members(_path: Path, manifest: Manifest) -> list[str]:
    """The dictionaries of a sweep or of a folder of baselines."""
    return [f"{len(manifest.data['members'])} dictionaries", records(manifest.data["members"])]


def evaluation(path: Path, _manifest: Manifest) -> list[str]:
    """The metrics as tables, one row a dictionary."""
    from monolex.evals.table import table

    rows = read_json(path / "metrics.json")
    return [f"\n{title}\n{table(rows, metrics)}" for title, metrics in TABLES]


def stores(_path: Path, manifest: Manifest) -> list[str]:
    """The stores of evidence."""
    return [f"{len(manifest.data['stores'])} stores of evidence", records(manifest.data["stores"])]
