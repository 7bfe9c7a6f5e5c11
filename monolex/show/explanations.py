"""What is said of explanations and their scores."""

import itertools
from pathlib import Path
from typing import Any

from monolex.artifact import Manifest, read_json
from monolex.interp.llm.meter import METER
from monolex.interp.simulate.batch import PredictedTokens, added, missing_said
from monolex.runtime import read_jsonl
from monolex.show.text import columns, counts, estimate

EXAMPLES, LETTERS = 12, 100
"""Explanations that are shown of an artefact, and how much of each."""


def explain(path: Path, manifest: Manifest) -> list[str]:
    """What was asked, skipped and failed, dictionary by dictionary, and some explanations."""
    facts = read_json(path / "explain.json")
    kept = [["model", "site", "dictionary", "asked", "explained", "skipped and failed"]]
    for dictionary in facts["dictionaries"]:
        failed = [f"{name}: {counts(by_reason)}" for name, by_reason in dictionary["failures"].items() if by_reason]
        said = "; ".join([counts(dictionary["skipped"]), *failed]).strip("; ")
        names = [dictionary[key] for key in ("model", "site", "name")]
        kept.append([*names, str(dictionary["asked"]), str(dictionary["explained"]), said or "–"])
    fragments = ", ".join(f"{model} {count:,}" for model, count in facts["fragments"].items())
    shown = [["feature", "explainer", "explanation"]]
    for row in _first(path):
        text = row["text"] if row["failure"] is None else f"failed: {row['failure']}"
        shown.append([f"{row['site']}/{row['name']}:{row['feature']}", row["explainer"], text[:LETTERS]])
    left = [f"{model}: {counts(by_reason)}" for model, by_reason in facts["left_out"].items() if by_reason]
    return [
        f"mode {facts['mode']}, explainers {', '.join(facts['explainers'])}",
        f"fragments: {fragments}; left out: {'; '.join(left) or 'none'}",
        *_drawn(manifest),
        columns(kept),
        f"\n{columns(shown)}",
    ]


def explain_data(path: Path) -> dict[str, Any]:
    """Of explanations the first few, beside ``explain.json``."""
    return {"explanations": _first(path)}


def _first(path: Path) -> list[dict[str, Any]]:
    """The first explanations, failures among them; what directions write stands among the lines too, and is none."""
    rows = (row for row in read_jsonl(path / "explanations.jsonl") if row["explainer"] != "output")
    return list(itertools.islice(rows, EXAMPLES))


def score(path: Path, manifest: Manifest) -> list[str]:
    """Mean scores by dictionary and explainer, with intervals and how many features have none; what was missing."""
    facts = read_json(path / "score.json")
    heads = ["top and random", "random", "chance", "detection", "fuzz", "features", "without a score"]
    kept = [["model", "site", "dictionary", "explainer", *heads]]
    names = ("top_and_random", "random", "chance", "detection", "fuzz")
    for dictionary in facts["dictionaries"]:
        for explainer, means in dictionary["explainers"].items():
            main = means["top_and_random"]
            cells = [_mean(means[name], main["n"]) if name in means else "–" for name in names]
            tallies = [str(main["n"]), counts({**dictionary["skipped"], **main["missing"]}) or "–"]
            kept.append([dictionary["model"], dictionary["site"], dictionary["name"], explainer, *cells, *tallies])
    missing = missing_said(
        added(PredictedTokens(**tokens) for d in facts["dictionaries"] for tokens in d["tokens"].values())
    )
    notes = [note for note in (missing, *_drawn(manifest)) if note]
    return [f"simulator {facts['simulator']}, fragments of mode {facts['mode']}", *notes, columns(kept)]


def _drawn(manifest: Manifest) -> list[str]:
    """Whether replies were drawn at another temperature than was wanted."""
    count = manifest.data.get(METER, {}).get("own_temperature", 0)
    said = f"{count:,} replies were drawn at the model's own temperature: its endpoint takes no other"
    return [said] if count else []


def _mean(mean: dict[str, Any], features: int) -> str:
    """A mean, and over how many features where it is not over ``features`` of them."""
    return estimate(mean) + (f" (n {mean['n']})" if mean["n"] not in (0, features) else "")
