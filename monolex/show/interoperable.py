"""What is said of files for other tools and from them: what was published, what was taken in, a batch of features."""

import itertools
import json
from pathlib import Path

from monolex.artifact import Manifest, read_json
from monolex.interp.explain.saved import read_lines
from monolex.show.text import cell, columns
from monolex.text.characters import json_quoted

SHOWN, LETTERS = 12, 100
"""Rows that are shown of what was taken in, and letters of a text."""


def published(_path: Path, manifest: Manifest) -> list[str]:
    """What was written of every dictionary."""
    rows = [
        [folder, ", ".join(f"{count:,} {what}" for what, count in facts.items())]
        for folder, facts in manifest.data["dictionaries"].items()
    ]
    return [f"format {manifest.config['format']}; README.md says what is empty", columns([["folder", "holds"], *rows])]


def imported(path: Path, manifest: Manifest) -> list[str]:
    """Of which dictionary it is, by what that is known, and some explanations."""
    facts, proof = manifest.data, manifest.data["proof"]
    title = f"{facts['site']}/{facts['name']}"
    known = f"known by the {proof['by']} of {proof['features']:,} features" if proof else "not proved"
    shown = [["feature", "explainer", "score", "explanation"]]
    said = (row for row in read_lines(path / "rows.jsonl") if row["text"] is not None)
    for row in itertools.islice(said, SHOWN):
        texts = row["explainer"] or "–", cell(row["score"]), row["text"][:LETTERS]
        shown.append([f"{title}:{row['feature']}", *texts])
    head = f"{facts['explanations']:,} explanations in {facts['rows']:,} rows of {title}, {known}"
    if proof and proof["chance"] is not None:
        head += f": {proof['agreement']:.0%} of tokens agree, {proof['chance']:.0%} with another feature's"
    return [head, columns(shown)]


def show_json(path: Path) -> str:
    """A batch of features, a line each; any other JSON as it is.

    Raises:
        UserError: damaged, or a batch that is not valid.
    """
    if path.suffix == ".gz":
        return _batch(path)
    value = read_json(path)
    from monolex.publish.read_batch import is_batch

    return _batch(path) if is_batch(value) else json.dumps(value, indent=1, ensure_ascii=False)


def _batch(path: Path) -> str:
    from monolex.publish.read_batch import read_batch

    batch = read_batch(path)
    rows = [["feature", "active", "density", "max", "contexts", "promotes"]]
    for number in batch.features:
        evidence = batch.evidence(number)
        summary, contexts = evidence.summary, sum(map(len, evidence.examples.values()))
        promoted = " ".join(json_quoted(token.text) for token in evidence.promoted[:5])
        numbers = [cell(value) for value in (summary.n_active, summary.density, summary.max, contexts)]
        rows.append([str(number), *numbers, promoted])
    return f"{path}: {batch.title}, {len(batch.features):,} features; --feature N shows one\n{columns(rows)}"
