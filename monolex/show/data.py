"""What ``monolex show --json`` prints: the values that the text is made of, of anything monolex wrote."""

from pathlib import Path
from typing import Any

from monolex import stages
from monolex.artifact import MANIFEST, Manifest, open_artifact, read_json
from monolex.show.files import dictionary_data, metrics_data, store_data, tensors_data
from monolex.show.interoperable import batch_data, imported_data
from monolex.show.path import artefacts, checked, ending, require_shown

READERS = {
    ".safetensors": tensors_data,
    ".sqlite": store_data,
    ".jsonl": metrics_data,
    ".json": read_json,
    ".json.gz": batch_data,
}


def data(path: Path) -> Any:
    """What lies at ``path``, as :func:`monolex.show.path.show` takes it.

    Raises:
        UserError: nothing there, or nothing monolex wrote.
    """
    require_shown(path)
    if name := ending(path):
        return READERS[name](path)
    if (path / MANIFEST).exists():
        return artefact_data(path, open_artifact(path))
    if (path / "weights.safetensors").exists():
        return dictionary_data(path)
    return {"path": str(path), "artefacts": [artefact_data(inner, open_artifact(inner)) for inner in artefacts(path)]}


def artefact_data(path: Path, manifest: Manifest) -> dict[str, Any]:
    """An artefact: its manifest but for its list of files, and its content, where that is JSON."""
    facts = head_data(path, manifest)
    facts |= {name: getattr(manifest, name) for name in ("schema", "config", "parents", "versions", "data")}
    stage = stages.of_kind(manifest.kind)
    content = path / ("metrics.json" if manifest.kind == "eval" else f"{manifest.kind}.json")
    if content.name in manifest.files:
        facts["result"] = read_json(content)
    if stage and (more := stage.load("show_data")):
        facts |= more(path)
    if manifest.kind == "imported":
        facts |= imported_data(path)
    return facts


def head_data(path: Path, manifest: Manifest) -> dict[str, Any]:
    """What the first line of the text says."""
    total = sum(entry.bytes for entry in manifest.files.values())
    head = {"path": str(path), "kind": manifest.kind, "content": manifest.content}
    return head | {"files": len(manifest.files), "bytes": total}


def verified_data(path: Path) -> list[dict[str, Any]]:
    """Every artefact at or below a path whose hashes are right.

    Raises:
        UserError: the first that is not, or no artefact there.
    """
    return [{**head_data(folder, manifest), "whole": True} for folder, manifest in checked(path)]
