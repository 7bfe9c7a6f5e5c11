"""Artefacts made piece by piece: a piece is kept as it is done, so that a killed stage loses one of them at most.

A piece for which calls of a language model went unanswered is done with failures: the artefact is finished and its
manifest counts them, but all pieces stay, and the same request does those pieces again.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monolex import artifact, runtime
from monolex.artifact import MANIFEST, FileEntry, Manifest, read_json, write_json

PARTIAL = "partial"
UNANSWERED = "unanswered"
"""In a manifest's data: how many calls of a language model failed that may be answered later, by reason."""

Piece = Callable[[Path], Any]
"""Does a part of an artefact and gives its entry in the JSON; may write files of its own beside the given path."""


def done(folder: Path, kind: str, config: Mapping[str, Any], request: Mapping[str, str]) -> Manifest | None:
    """The finished artefact, if ``folder`` holds the answer to this request, and no call went unanswered."""
    if not artifact.is_done(folder, kind, config, request):
        return None
    manifest = artifact.open_artifact(folder, kind)
    if failed := manifest.data.get(UNANSWERED):
        runtime.log.info("%s: %s is done but for unanswered calls (%s), tried again", kind, folder, _counts(failed))
        return None
    runtime.log.info("%s: %s is done", kind, folder)
    return manifest


def make(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    request: Mapping[str, str],
    pieces: Mapping[str, Piece],
    unanswered: Callable[[], Counter[str]] = Counter,
) -> tuple[Path, list[Any]]:
    """Do the pieces that are not done yet, or not without unanswered calls; where their files lie, and their entries.

    ``unanswered`` says how many calls of a language model went unanswered so far, by reason.
    """
    if not artifact.is_done(folder, kind, config, request):
        artifact.warn_replacing(folder, kind)
    partial = room(folder, artifact.request_hash(kind, config, request))
    made = []
    with runtime.progress(len(pieces), kind, "piece") as bar:
        for key, work in pieces.items():
            path = place(partial, key)
            note = path.with_suffix(f".{UNANSWERED}")
            if not path.exists() or note.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                before = Counter(unanswered())
                entry = work(path)
                failed = unanswered() - before
                # first, so that no piece is ever taken for one without
                if failed:
                    write_json(note, failed)
                write_json(path, entry)
                if not failed:
                    note.unlink(missing_ok=True)
            made.append(read_json(path))
            bar.update(1)
    return partial, made


def room(folder: Path, request: str) -> Path:
    """Where the finished pieces of a request lie; those of other requests are dropped."""
    partial = folder / PARTIAL / request[:16]
    for stale in set((folder / PARTIAL).glob("*")) - {partial}:
        shutil.rmtree(stale)
    return partial


def place(partial: Path, key: str) -> Path:
    """Where the entry of a piece lies."""
    return partial / f"{artifact.digest(key)[:16]}.json"


def finish(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    request: Mapping[str, str],
    write: Callable[[], Mapping[str, FileEntry]],
    facts: Mapping[str, Any],
) -> Manifest:
    """Write the files of the artefact and, last, its manifest; the pieces go, unless some are to be done again."""
    # until here an older answer stayed whole
    (folder / MANIFEST).unlink(missing_ok=True)
    failed: Counter[str] = Counter()
    for note in (folder / PARTIAL).glob(f"*/*.{UNANSWERED}"):
        failed.update(read_json(note))
    if not failed:
        manifest = artifact.finish(folder, kind, config, request, write(), facts)
        shutil.rmtree(folder / PARTIAL)
        return manifest
    counted = dict(sorted(failed.items()))
    runtime.log.warning("%s: calls went unanswered (%s); the same command tries them again", kind, _counts(counted))
    return artifact.finish(folder, kind, config, request, write(), {**facts, UNANSWERED: counted})


def _counts(some: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in some.items())
