"""Thirty questions that an agent may ask of the small run, with answers that are read naively off its artefacts."""

import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from helpers.explored import NAME, ROOT, SITES, strongest
from safetensors.torch import load_file


class AgentQuestion(NamedTuple):
    """A call of a tool, what is looked at in its answer, and what that has to be."""

    says: str
    tool: str
    arguments: dict[str, Any]
    looks: Callable[[Any], Any]
    answer: Any


def alike(a: Any, b: Any) -> bool:
    """Equal, numbers to six digits."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


def manifest(run: Path, path: str) -> dict[str, Any]:
    return json.loads((run / path / "manifest.json").read_text())


def metrics(run: Path, name: str) -> dict[str, Any]:
    """Rows of the evaluation of a dictionary at the second site, by metric."""
    rows = json.loads((run / "eval" / "metrics.json").read_text())
    of_name = [r for r in rows if (r["site"], r["name"], r["other"]) == (SITES[1], name, "")]
    return {row["metric"]: row for row in of_name}


def table(run: Path, query: str, name: str = NAME) -> list[tuple[Any, ...]]:
    """Rows of the store of a dictionary at the second site."""
    with sqlite3.connect(f"{(run / 'features' / SITES[1] / name).as_uri()}.sqlite?mode=ro", uri=True) as store:
        return store.execute(query).fetchall()


def scores(run: Path) -> list[dict[str, Any]]:
    lines = (run / "score" / "rules" / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if (row["site"], row["name"]) == (SITES[1], NAME)]


def decoder(run: Path, name: str) -> torch.Tensor:
    weights = load_file(run / "train" / "main" / SITES[1] / name / "weights.safetensors")
    matrix = weights.get("W_dec", next(iter(weights.values())))
    return torch.nn.functional.normalize(matrix, dim=1)


def questions(run: Path, keys: dict[str, str]) -> Iterator[AgentQuestion]:
    """``keys`` are hashes of dictionaries by their titles."""
    yield from of_the_run(run, keys)
    yield from of_features(run, keys[ROOT])
    yield from of_two(run, keys)
    yield from of_experiments(run, keys[ROOT])
    yield from of_claims(run, keys)


def of_the_run(run: Path, keys: dict[str, str]) -> Iterator[AgentQuestion]:
    key, ask = keys[ROOT], AgentQuestion
    listed = [
        member for sweep in ("train/main", "baselines/plain") for member in manifest(run, sweep)["data"]["members"]
    ]
    yield ask("which runs are open", "runs", {}, lambda a: [r["run"] for r in a["runs"]], ["run"])
    yield ask("how many dictionaries", "runs", {}, lambda a: a["runs"][0]["dictionaries"], len(listed))
    stores = manifest(run, "features")["data"]["stores"]
    yield ask("how many have evidence", "runs", {}, lambda a: a["runs"][0]["with_evidence"], len(stores))
    content = manifest(run, "activations")["content"]
    yield ask("what it was read off", "runs", {}, lambda a: a["runs"][0]["source"]["content"], content)
    paths = ["ablate/root", "patch/pairs", "score/rules", "tree/root"]
    yield ask("which experiments", "experiments", {"run": "run"},
              lambda a: sorted(e["path"] for e in a["experiments"]), paths)  # fmt: skip
    only = {"run": "run", "site": SITES[1], "trained": True}
    fvu = metrics(run, NAME)["fvu"]
    yield ask("what it misses", "dictionaries", only, of_key(key, "measured", "fvu", "value"), fvu["value"])
    yield ask("and how surely", "dictionaries", only, lambda a: [of_key(key, "measured", "fvu", end)(a) for end in
              ("low", "high")], [fvu["low"], fvu["high"]])  # fmt: skip
    l0 = metrics(run, NAME)["l0"]["value"]
    yield ask("how sparse it is", "dictionaries", only, of_key(key, "measured", "l0", "value"), l0)
    evaluation = manifest(run, "eval")["content"]
    yield ask("by which evaluation", "dictionaries", only, of_key(key, "source", "content"), evaluation)
    width = len(decoder(run, NAME))
    yield ask("how wide it is", "dictionaries", only, of_key(key, "d_sae"), width)


def of_key(key: str, *path: str) -> Callable[[Any], Any]:
    """A place in what is said of a dictionary."""

    def look(answer: Any) -> Any:
        (value,) = [each for each in answer["dictionaries"] if each["dictionary"] == key]
        for name in path:
            value = value[name]
        return value

    return look


def of_features(run: Path, key: str) -> Iterator[AgentQuestion]:
    ask, only = AgentQuestion, {"dictionary": key}
    densest = [
        number
        for (number,) in table(run, "SELECT id FROM feature WHERE n_active > 0 ORDER BY density DESC, id LIMIT 3")
    ]
    yield ask("the densest features", "features", {**only, "sort": "density", "limit": 3},
              lambda a: [f["number"] for f in a["features"]], densest)  # fmt: skip
    ((dead,),) = table(run, "SELECT count(*) FROM feature WHERE n_active = 0")
    yield ask("how many are dead", "features", {**only, "state": "dead"}, lambda a: a["total"], dead)
    number = int(strongest(run).rpartition(":")[2])
    this = {**only, "number": number}
    columns = "density, max, n_active, seeds, reappears, reappears_low, reappears_high"
    ((density, most, active, *back),) = table(run, f"SELECT {columns} FROM feature WHERE id = {number}")
    yield ask("how often it is active", "feature", this, lambda a: [a["density"]["value"], a["density"]["n_active"]],
              [density, active])  # fmt: skip
    yield ask("its maximum", "feature", this, lambda a: a["max"]["value"], most)
    yield ask("whether it comes back", "feature", this, lambda a: [a["comes_back"][name] for name in
              ("n", "value", "low", "high")], back)  # fmt: skip
    ((text,),) = table(
        run, f"SELECT text FROM token JOIN vocabulary USING (token) WHERE feature = {number} AND rank = 0"
    )
    yield ask("the token that it is on", "feature", this, lambda a: a["evidence"]["on"][0]["token"], text)
    best = max((r for r in scores(run) if r["scores"]["top_and_random"]["value"] is not None),
               key=lambda r: r["scores"]["top_and_random"]["value"])  # fmt: skip
    top, chance = best["scores"]["top_and_random"], best["scores"]["chance"]["value"]
    yield ask("the best explained", "features", {**only, "sort": "score", "limit": 1},
              lambda a: a["features"][0]["number"], best["feature"])  # fmt: skip
    yield ask("its score beside chance", "features", {**only, "sort": "score", "limit": 1},
              lambda a: [a["features"][0]["explanation"]["score"][name] for name in ("value", "low", "high", "chance")],
              [top["value"], top["low"], top["high"], chance])  # fmt: skip
    yield ask("where it was scored", "features", {**only, "sort": "score", "limit": 1},
              lambda a: a["features"][0]["explanation"]["source"]["content"],
              manifest(run, "score/rules")["content"])  # fmt: skip
    yield ask("who is named so", "search", {"text": text, "limit": 60},
              lambda a: (key, number) in [(f["dictionary"], f["number"]) for f in a["features"]], True)  # fmt: skip


def of_two(run: Path, keys: dict[str, str]) -> Iterator[AgentQuestion]:
    ask, other = AgentQuestion, f"{SITES[1]}/topk-k4-r2-s1"
    cosines = decoder(run, NAME) @ decoder(run, "topk-k4-r2-s1").T
    both = {"first": keys[ROOT], "second": keys[other]}
    yield ask(
        "how alike two seeds are", "compare", both, lambda a: a["mmcs"]["value"], float(cosines.max(1).values.mean())
    )

    def of_other(answer: Any) -> Any:
        (match,) = [m for m in answer["matches"] if m["dictionary"]["dictionary"] == keys[other]]
        return match["largest"]

    this = {"dictionary": keys[ROOT], "number": 3}
    yield ask("what is like it in another seed", "matches", this, of_other, float(cosines[3].max()))


def of_experiments(run: Path, key: str) -> Iterator[AgentQuestion]:
    ask = AgentQuestion
    (ablation,) = json.loads((run / "ablate" / "root" / "ablate.json").read_text())["ablations"]
    kl, this = ablation["kl"], {"dictionary": key, "number": ablation["feature"]}
    versions = ("feature", "control_feature", "control_direction")
    yield ask("what it does when it is ablated", "feature", this,
              lambda a: [a["ablated"]["kl"][name]["value"] for name in versions],
              [kl[name]["value"] for name in versions])  # fmt: skip
    yield ask("by which artefact", "feature", this, lambda a: a["ablated"]["source"]["content"],
              manifest(run, "ablate/root")["content"])  # fmt: skip
    lost = [row["text"] for row in ablation["measures"]["probability"]["suppressed"][:3]]
    yield ask("which tokens lose most", "experiments", {"run": "run", "path": "ablate/root", "limit": 3},
              lambda a: [r["text"] for r in a["result"]["ablations"][0]["measures"]["probability"]["suppressed"]],
              lost)  # fmt: skip
    (tree,) = json.loads((run / "tree" / "root" / "tree.json").read_text())["trees"]
    yield ask("what a tree is of", "experiments", {"run": "run", "path": "tree/root"},
              lambda a: a["result"]["trees"][0]["root"], tree["root"])  # fmt: skip


def of_claims(run: Path, keys: dict[str, str]) -> Iterator[AgentQuestion]:
    ask, key = AgentQuestion, keys[ROOT]
    mine, pca = metrics(run, NAME)["fvu"], metrics(run, "pca")["fvu"]
    sparse = max(metrics(run, NAME)["l0"]["value"], 1) / max(metrics(run, "pca")["l0"]["value"], 1)
    better = "confirmed" if mine["high"] < pca["low"] else "contradicted" if mine["low"] > pca["high"] else "undecided"
    verdict = better if 1 / 1.1 <= sparse <= 1.1 else "undecided"
    against = {"claim": "reconstructs_better", "dictionary": key, "against": keys[f"{SITES[1]}/pca"]}
    yield ask("whether it is better than PCA", "what_is_known", against, lambda a: a["verdict"], verdict)
    patch = json.loads((run / "patch" / "pairs" / "patch.json").read_text())
    fewer = [c for c in patch["claims"] if c["statement"].startswith("fewer") and c["dictionary"] == ROOT]
    (claim,) = [c for c in fewer if c["level"] == 0.5]
    verdict = claim["verdict"] if patch["behaviour"]["able"] else "undecided"
    patched = {"claim": "patches_with_fewer", "dictionary": key}
    yield ask("whether patches need fewer", "what_is_known", patched, lambda a: a["verdict"], verdict)
    row = next(r for r in scores(run) if r["scores"]["top_and_random"]["low"] is not None)
    said = [r for r in scores(run) if r["feature"] == row["feature"]]
    each = {verdict_of(r["scores"]["top_and_random"], r["scores"]["chance"]["value"]) for r in said}
    explained = {"claim": "explained_beyond_chance", "dictionary": key, "feature": row["feature"]}
    yield ask("whether it is explained", "what_is_known", explained, lambda a: a["verdict"],
              each.pop() if len(each) == 1 else "undecided")  # fmt: skip
    ((high,),) = table(run, f"SELECT reappears_high FROM feature WHERE id = {row['feature']}")
    verdict = "contradicted" if high < 0.1 else "undecided"  # never confirmed: chance was not measured in this run
    back = {"claim": "comes_back", "dictionary": key, "feature": row["feature"], "share": 0.1}
    yield ask("whether it comes back", "what_is_known", back, lambda a: a["verdict"], verdict)


def verdict_of(cell: dict[str, Any], level: float | None) -> str:
    if level is None or cell["low"] is None:
        return "undecided"
    return "confirmed" if cell["low"] > level else "contradicted" if cell["high"] < level else "undecided"
