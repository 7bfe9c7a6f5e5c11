"""A run as the explorer reads it: its index, its dictionaries by hash, their stores, and what its artefacts say."""

import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, final

from monolex import stages
from monolex.artifact import MANIFEST, SUBJECT, Manifest, open_artifact, read_json
from monolex.dictionaries.listing import RunDictionary, run_dictionaries
from monolex.errors import UserError
from monolex.explorer import labels
from monolex.explorer.fill import fill, hashes
from monolex.explorer.index import Index, index_path
from monolex.explorer.labels import Label
from monolex.features.known import open_store
from monolex.features.store import FeatureStore
from monolex.interp.records import Scored
from monolex.interp.score import cards

SHORT = 12
"""Digits of a hash in an address."""
STORES = 128
"""Stores, and files of the run, that are kept open."""
LOOK_AGAIN = 2.0
"""Seconds after which the run's manifests are looked at anew."""


class NotThere(UserError):
    """What an address names does not exist."""


class IndexedDictionary(NamedTuple):
    """A row of the table ``dictionary``."""

    id: int
    """Its number in the index."""
    hash: str
    """Of its weights and of what it is."""
    site: str
    """Where it reads."""
    layer: int
    """Of the site."""
    name: str
    """Unique at its site."""
    kind: str
    """Of dictionary."""
    trained: bool
    """Whether it is of a sweep, not a baseline."""
    d_sae: int
    """Features that it has."""
    alive: int | None
    """Features that were active; None where no evidence was gathered."""
    rows: int | None
    """Activations that evidence was gathered on."""

    @property
    def key(self) -> str:
        """What it is called in addresses."""
        return self.hash[:SHORT]

    @property
    def title(self) -> str:
        """``SITE/NAME``."""
        return f"{self.site}/{self.name}"

    @property
    def gathered(self) -> bool:
        """Whether evidence of its features was gathered."""
        return self.alive is not None


@final
class ExploredRun:
    """One run, opened; safe to use from several threads. With ``writable`` false nothing is ever written into it.

    Raises:
        UserError: no run, or an artefact or the index of it is damaged.
    """

    def __init__(self, folder: Path, slug: str = "", *, writable: bool = True) -> None:
        self.folder = folder
        self.slug = slug or slugs([folder])[0]
        path, self.keeps_labels = index_path(folder, writable=writable)
        self.index = Index(path)
        self._lock = threading.Lock()
        self._seen: Mapping[Path, tuple[int, int]] = {}
        self._looked = 0.0
        self._records: dict[str, RunDictionary] = {}
        self._remembered: dict[str, Any] = {}
        self.store = lru_cache(STORES)(self._store)
        """The evidence of the features of a dictionary, by its hash; :class:`UserError` if none was gathered."""
        self.scored = lru_cache(STORES)(self._scored)
        """Explanations with their scores by feature, of a dictionary by its hash."""
        self.content = lru_cache(STORES)(self._content)
        """The JSON of a file of the run, by its path in it; :class:`NotThere` if there is none."""
        self.manifest = lru_cache(STORES)(self._manifest)
        """What an artefact of the run is, by its path in it; :class:`UserError` if there is none."""
        self.dictionaries: dict[str, IndexedDictionary] = {}
        self.refresh(0.0)

    def refresh(self, after: float = LOOK_AGAIN) -> None:
        """Read anew what another process has made since; looked for once in ``after`` seconds."""
        if time.monotonic() - self._looked < after:
            return
        with self._lock:
            if time.monotonic() - self._looked < after:
                return
            if not self.folder.is_dir():
                raise NotThere(f"{self.folder} is gone; start the explorer on another run")
            seen = {path: _stamp(path) for path in _manifests(self.folder)}
            if seen != self._seen:
                self._read()
                self._seen = seen
            self._looked = time.monotonic()

    def _read(self) -> None:
        listed = hashes(run_dictionaries(self.folder))
        fill(self.index, self.folder, listed)
        names = ", ".join(IndexedDictionary._fields)
        rows = self.index.rows(f"SELECT {names} FROM dictionary ORDER BY layer, site, id")
        known = [IndexedDictionary(*row)._replace(trained=bool(row[6])) for row in rows]
        self._records = {d.hash[:SHORT]: listed[d.hash] for d in known}
        self.dictionaries = {d.key: d for d in known}
        for cached in (self.store, self.scored, self.content, self.manifest):
            cached.cache_clear()
        self._remembered = {}

    def dictionary(self, key: str) -> IndexedDictionary:
        """The dictionary of a hash, or of the beginning of one.

        Raises:
            NotThere: there is none.
        """
        known = self.dictionaries.get(key[:SHORT])
        if known is None or not known.hash.startswith(key):
            raise NotThere(f"{key!r} is the hash of no dictionary here; it may have been made again since")
        return known

    def record(self, key: str) -> RunDictionary:
        """The same as the run lists it, with its weights."""
        return self._records[self.dictionary(key).key]

    def _store(self, key: str) -> FeatureStore:
        return open_store(self.record(key))

    def _scored(self, key: str) -> Mapping[int, list[Scored]]:
        dictionary = self.dictionary(key)
        where = SUBJECT, dictionary.site, dictionary.name
        return cards.scored(self.folder, only=where).get(where, {})

    def _content(self, path: str) -> Any:
        file = self.folder / path
        if not file.is_file():
            raise NotThere(f"{path} is not in {self.folder}; run its stage, or look at what there is")
        return read_json(file)

    def _manifest(self, path: str) -> Manifest:
        return open_artifact(self.folder / path)

    def remembered(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, kept under a name until an artefact of the run changes."""
        if name not in self._remembered:
            self._remembered[name] = make()
        return self._remembered[name]

    def experiments(self, kind: str) -> list[str]:
        """Paths in the run of its finished artefacts of a kind, such as ``patch/ioi``."""
        stage = stages.of_kind(kind)
        home = kind if stage is None else stage.home
        return [p.parent.relative_to(self.folder).as_posix() for p in sorted(self.folder.glob(f"{home}/*/{MANIFEST}"))]

    def label(self, key: str, number: int) -> Label | None:
        """What a person wrote of a feature."""
        return labels.read(self.index, self.dictionary(key).hash, number)


def slugs(folders: list[Path]) -> list[str]:
    """What runs are called in addresses: the names of their folders, numbered where two are the same."""
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "run" for folder in folders]
    return [f"{slug}-{plain[:i].count(slug) + 1}" if slug in plain[:i] else slug for i, slug in enumerate(plain)]


def _manifests(run: Path) -> list[Path]:
    """Manifests whose change changes what the explorer shows."""
    kinds = ("explain", "score", "ablate", "tree", "patch", "stability", "train", "baselines")
    named = [path for kind in kinds for path in run.glob(f"{kind}/*/{MANIFEST}")]
    single = [run / name / MANIFEST for name in ("activations", "eval", "features")]
    return sorted([*named, *(path for path in single if path.exists())])


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size
