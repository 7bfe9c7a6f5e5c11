"""A run with an artefact of every kind that a figure of the paper is made of, small and plausible."""

import json
from pathlib import Path
from typing import Any

from helpers import causal_json, fake_scores
from helpers.fake_run import SITES, fake_run
from helpers.fake_store import fake_features

from monolex.artifact import finish, write_bytes

ALPHAS = (0.001, 0.002, 0.004)
LOGGED = (50, 100, 150, 200, 400)


def paper_run(folder: Path) -> Path:
    """Write it; Figs. 2 to 18, both tables and all measurements can be made of it."""
    fake_run(folder)
    logged_sweep(folder)
    planned = fake_scores.plan((*SITES, "mlp_act.1")) + fake_scores.sizes(SITES[0]) + fake_scores.steps(SITES[0])
    fake_scores.fake_scores(folder, "paper", planned)
    causal_json.artifact(folder / "patch" / "ioi", "patch", causal_json.patch())
    ablation = causal_json.ablate()
    ablation["ablations"][0] |= {"feature": 5}
    causal_json.artifact(folder / "ablate" / "self", "ablate", ablation)
    causal_json.artifact(folder / "tree" / "self", "tree", causal_json.tree())
    fake_features(folder, {f"{SITES[0]}/tied-a3e-3-r4-s0": "tied", f"{SITES[0]}/neurons": "neurons"})
    return folder


def logged_sweep(run: Path, name: str = "alphas", **changed: Any) -> None:
    """RUN/train/NAME with a log: L0 falls as 100 α₀ / α, FVU rises with α and falls with the steps."""
    recipe = {"site": SITES[0], "kind": "tied", "ratio": 4.0, "seed": 0, "lr": 3e-4}
    members = [{**recipe, "name": f"tied-a{alpha}-r4-s0", "alpha": alpha} for alpha in ALPHAS]
    lines = [
        {
            "step": step,
            "site": m["site"],
            "member": m["name"],
            "l0": 0.1 / m["alpha"],
            "fvu": m["alpha"] * 100 + 10 / step,
        }
        | changed
        for step in LOGGED
        for m in members
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    folder = run / "train" / name
    files = {"metrics.jsonl": write_bytes(folder / "metrics.jsonl", text.encode())}
    finish(folder, "sweep", {}, {}, files, {"members": members, "steps": LOGGED[-1]})
