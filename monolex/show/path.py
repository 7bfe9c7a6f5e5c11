"""``monolex show PATH``: anything monolex wrote, as text a person reads."""

from collections.abc import Iterator
from pathlib import Path

from monolex import stages
from monolex.artifact import MANIFEST, WARNINGS, Manifest, artefact_folders, open_artifact, verify
from monolex.errors import UserError
from monolex.pieces import FILES, PARTIAL, UNANSWERED
from monolex.runtime import size
from monolex.show.files import show_dictionary, show_metrics, show_store, show_tensors
from monolex.show.interoperable import show_json
from monolex.show.text import counts

UNFINISHED = {"progress.json": "harvest", "state": "sweep", PARTIAL: ""}
"""What lies in a folder of unfinished work, and what that is; pieces say it themselves."""


def show(path: Path) -> str:
    """What lies at ``path``.

    Raises:
        UserError: nothing there, or nothing monolex wrote.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run, an artefact, a dictionary or a file of one")
    if path.suffix == ".safetensors":
        return show_tensors(path)
    if path.suffix == ".sqlite":
        return show_store(path)
    if path.suffix == ".jsonl":
        return show_metrics(path)
    if path.name.endswith((".json", ".json.gz")):
        return show_json(path)
    if (path / MANIFEST).exists():
        manifest = open_artifact(path)
        left = manifest.data.get(UNANSWERED)
        again = [f"calls went unanswered: {counts(left)}; the command that made this tries them again"] if left else []
        warnings = [f"WARNING  {sentence}" for sentence in manifest.data.get(WARNINGS, ())]
        return "\n".join([_head(path, manifest), *again, *warnings, *_of_stage(path, manifest)])
    if (path / "weights.safetensors").exists():
        return show_dictionary(path)
    for name, what in UNFINISHED.items():
        if (path / name).exists():
            what = what or _unfinished(path / name)
            raise UserError(f"{path} is an unfinished {what} ({name}); repeat its command and it goes on from there")
    inner = _artifacts(path)
    if not inner:
        raise UserError(f"{path} is nothing monolex wrote; give a run, an artefact, a dictionary or a shard")
    return "\n\n".join(show(folder) for folder in inner)


def check(path: Path) -> Iterator[str]:
    """Recompute every hash of the artefact at ``path``, or of all below it; a line for each that is whole.

    Raises:
        UserError: the first that is not, after the lines of the others, or no artefact there.
    """
    folders, broken = _artifacts(path), []
    if not folders:
        raise UserError(f"{path} holds no finished artefact to verify; give an artefact or a run")
    for folder in folders:
        try:
            yield f"{_head(folder, verify(folder))}, whole"
        except UserError as error:
            broken.append(error)
    if broken:
        raise broken[0]


def _artifacts(path: Path) -> list[Path]:
    """The finished artefacts at or below a path."""
    # of a stage that was killed while it put its files in place
    return [folder for folder in artefact_folders(path) if not folder.match(f"{PARTIAL}/*/{FILES}")]


def _unfinished(partial: Path) -> str:
    """What the pieces in a folder are to become."""
    return next((path.name.rpartition("-")[0] for path in partial.iterdir()), "artefact")


def _head(path: Path, manifest: Manifest) -> str:
    total = sum(entry.bytes for entry in manifest.files.values())
    files = len(manifest.files)
    return f"{path}: {manifest.kind}, {files} files, {size(total)}, content {manifest.content[:12]}"


def _of_stage(path: Path, manifest: Manifest) -> list[str]:
    """What whoever made an artefact says of it."""
    made_by = stages.of_kind(manifest.kind) or stages.BESIDE.get(manifest.kind)
    return stages.loaded(made_by.show)(path, manifest) if made_by and made_by.show else []
