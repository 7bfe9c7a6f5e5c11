"""Artefact folders: what a stage leaves on disk and by which the next stage knows that it is whole.

A folder is done when its manifest, written last, answers the request (kind, schema, hashed config, content hashes of
the parents), never because the folder exists. Every file is written to a temporary name and renamed.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from monolex import stages
from monolex.errors import UserError

log = logging.getLogger("monolex")

MANIFEST = "manifest.json"
TIMINGS = "timings.json"
"""Of a run: seconds that each stage took when it last did anything."""
WARNINGS = "warnings"
"""Entry of a manifest's data: sentences that whoever looks at the artefact, or at what is made of it, must read."""
SUBJECT = "subject"
"""The model that a run is about; control models are called as their folders are."""
CONTROLS = "controls"
"""The folder of a run in which every control model has a folder that is laid out as a run."""
PACKAGES = ("monolex", "torch", "transformers", "safetensors", "numpy", "scikit-learn")


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file of an artefact."""

    bytes: int
    """Length of the file."""
    sha256: str
    """Hash of its content."""


@dataclass(frozen=True)
class Manifest:
    """What an artefact is, what it was made of, and what lies in its folder."""

    kind: str
    """Of a stage (:mod:`monolex.stages`)."""
    schema: int
    """Version of the kind's layout."""
    config: dict[str, Any]
    """The hashed fields of the stage's configuration."""
    parents: dict[str, str]
    """Name and content hash of every artefact or model this one was made of."""
    files: dict[str, FileEntry]
    """Every file of the folder but the manifest, by path relative to it."""
    data: dict[str, Any] = field(default_factory=dict)
    """Counts and facts of the kind; not part of the request."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages the artefact was made with; recorded, never compared."""

    @property
    def request(self) -> str:
        """Hash of what was asked for."""
        return request_hash(self.kind, self.config, self.parents)

    @property
    def content(self) -> str:
        """Hash of what was made: the request and every file's hash; children name it as their parent."""
        return digest([self.request, {name: entry.sha256 for name, entry in sorted(self.files.items())}])


def schema(kind: str) -> int:
    """The version of the layout that artefacts of a kind have today; 0 of a kind that nobody makes."""
    made_by = stages.of_kind(kind) or stages.BESIDE.get(kind)
    return 0 if made_by is None else made_by.schema


def digest(value: Any) -> str:
    """SHA-256 of ``value`` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def request_hash(kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Hash of a request: two requests with the same hash are answered by the same artefact."""
    return digest([kind, schema(kind), dict(config), dict(parents)])


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name that takes the place of ``path`` once it is written, and is gone if it is not.

    Raises:
        UserError: the disk is full or not writable.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error


def write_bytes(path: Path, content: bytes) -> FileEntry:
    """Write ``content`` under a temporary name and rename it.

    Raises:
        UserError: the disk is full or not writable.
    """
    with replacing(path) as file:
        file.write(content)
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def write_json(path: Path, value: Any) -> FileEntry:
    """Write ``value`` as :func:`json_bytes`, atomically."""
    return write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """``value`` as indented JSON. NaN is refused: a missing number is ``null`` with a reason."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path, or run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run its stage again") from error


def model_home(run: Path, model: str) -> Path:
    """The folder in a run that holds a model's activations, sweeps and baselines."""
    return run if model == SUBJECT else run / CONTROLS / model


def relative_place(path: Path, folder: Path) -> str:
    """Where ``path`` lies as seen from ``folder``, with slashes; in full where that is another drive."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def placed(folder: Path, place: str) -> Path:
    """What :func:`relative_place` wrote, found again.

    A folder of a run may be a link to another disk: ``..`` then means the folder above the link, as it was written, and
    only where nothing lies there the one above what is linked.
    """
    named = Path(os.path.normpath(folder / place))
    return named if named.exists() else (folder / place).resolve()


def artefact_folders(path: Path) -> list[Path]:
    """The folders of finished artefacts at or below a path, by name; links are followed, each folder is read once."""
    folders, seen = [], set()
    for above, names, files in os.walk(path, followlinks=True):
        real = os.path.realpath(above)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names.sort()
        if MANIFEST in files:
            folders.append(Path(above))
    return sorted(folders)


def finish(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
    files: Mapping[str, FileEntry],
    data: Mapping[str, Any],
) -> Manifest:
    """Write the manifest: the artefact is done. What must be read before its numbers is logged too."""
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    manifest = Manifest(kind, schema(kind), dict(config), dict(parents), dict(files), dict(data), versions)
    write_json(folder / MANIFEST, {**asdict(manifest), "content": manifest.content})
    for sentence in manifest.data.get(WARNINGS, ()):
        log.warning("%s: %s", kind, sentence)
    return manifest


def open_artifact(folder: Path, kind: str | None = None, *, whole: bool = True) -> Manifest:
    """Read and check a finished artefact (presence and size of its files; :func:`verify` checks hashes).

    Without ``whole`` its files are not looked at, for whoever can do with some of them.

    Raises:
        UserError: not finished, of another kind or schema, or a file is missing or truncated.
    """
    path = folder / MANIFEST
    if not path.exists():
        what = f"{kind} artefact" if kind else "artefact"
        raise UserError(f"{folder} holds no finished {what} (no {MANIFEST}); run its stage first")
    raw = read_json(path)
    try:
        entries = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        names = ("kind", "schema", "config", "parents", "data", "versions")
        manifest = Manifest(files=entries, **{name: raw[name] for name in names})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no manifest of monolex ({error}); run its stage again") from error
    if kind is not None and manifest.kind != kind:
        raise UserError(f"{folder} holds {manifest.kind}, and {kind} is needed here")
    if manifest.schema != schema(manifest.kind):
        raise UserError(f"{folder} has schema {manifest.schema} of {manifest.kind!r}; make it again with this version")
    for name, entry in manifest.files.items() if whole else ():
        file = folder / name
        held_bytes = file.stat().st_size if file.exists() else None
        if held_bytes != entry.bytes:
            state = "is missing" if held_bytes is None else f"has {held_bytes} bytes instead of {entry.bytes}"
            raise UserError(f"{file} {state}; delete {path} and run its stage again")
    return manifest


def verify(folder: Path) -> Manifest:
    """Like :func:`open_artifact`, and recompute every hash.

    Raises:
        UserError: a file's content is not what was written.
    """
    manifest = open_artifact(folder)
    for name, entry in manifest.files.items():
        if file_hash(folder / name) != entry.sha256:
            raise UserError(f"{folder / name} has changed since it was written; run its stage again")
    return manifest


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_folder(folder: Path) -> None:
    """Refuse, before any work, a place where no folder can be.

    Raises:
        UserError: there is a file at ``folder`` or above it.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file where a folder is needed; choose another folder or move the file away")


def is_done(folder: Path, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> bool:
    """Whether ``folder`` holds the whole answer to this request.

    Raises:
        UserError: as :func:`require_folder`.
    """
    require_folder(folder)
    try:
        manifest = open_artifact(folder, kind)
    except UserError:
        return False
    return manifest.request == request_hash(kind, config, parents)


def warn_replacing(folder: Path, kind: str) -> None:
    """Say that a finished artefact gives way to another request.

    Raises:
        UserError: the folder holds an artefact of another kind, which is left alone.
    """
    if (folder / MANIFEST).exists():
        held = read_json(folder / MANIFEST).get("kind")
        if held != kind:
            raise UserError(f"{folder} holds an artefact of kind {held!r}; choose another folder for the {kind}")
        log.warning("%s holds the answer to another request, which is replaced", folder)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
