"""A run as the explorer reads it: its index, its dictionaries by hash, their stores, and what its artefacts say."""

import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, final

from monolex import stages
from monolex.artifact import MANIFEST, SUBJECT, Manifest, open_artifact, read_json
from monolex.dictionaries.listing import RunDictionary, run_dictionaries
from monolex.errors import UserError
from monolex.explorer import labels
from monolex.explorer.current import of_dictionaries
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
        UserError: no run, or its activations, a sweep or the index of it is damaged.
    """

    def __init__(self, folder: Path, slug: str = "", *, writable: bool = True) -> None:
        self.folder = folder
        self.slug = slug or slugs([folder])[0]
        path, self.keeps_labels = index_path(folder, writable=writable)
        self.index = Index(path)
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}
        self._seen: Mapping[Path, tuple[int, int]] = {}
        self._looked = 0.0
        self.problem = ""
        """What keeps the run from being read anew, in one sentence; empty if nothing does."""
        self.damaged: Mapping[str, str] = {}
        """What is wrong with experiments, evidence and evaluation that cannot be read, by their path in the run."""
        self._experiments: Mapping[str, frozenset[str]] = {}
        self._known: tuple[dict[str, IndexedDictionary], dict[str, RunDictionary]] = {}, {}
        self._forget()
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
            self._looked = time.monotonic()
            try:
                seen = {path: _stamp(path) for path in _manifests(self.folder)}
                if seen != self._seen:
                    self._read()
                    self._seen = seen
                self.problem = ""
            except (UserError, FileNotFoundError) as error:
                if not self._seen:
                    raise
                # what is being made anew, or is damaged now, does not take away the pages of what was read before
                self.problem = f"{self.slug} is shown as it was before: {error}"

    def _read(self) -> None:
        damaged: dict[str, str] = {}
        listed = hashes(run_dictionaries(self.folder, damaged=damaged))
        filled = fill(self.index, self.folder, listed, damaged)
        if (self.folder / "eval" / MANIFEST).exists():
            try:
                open_artifact(self.folder / "eval", "eval")
            except UserError as error:
                damaged["eval"] = str(error)
        names = ", ".join(IndexedDictionary._fields)
        rows = self.index.rows(f"SELECT {names} FROM dictionary ORDER BY layer, site, id")
        known = [IndexedDictionary(*row)._replace(trained=bool(row[6])) for row in rows]
        # both at once: whoever asks meanwhile has the ones of before
        self._known = {d.key: d for d in known}, {d.key: listed[d.hash] for d in known}
        self._experiments = of_dictionaries(listed, filled.experiments)
        self.damaged = {path: why.replace(f"{self.folder}/", "") for path, why in sorted(damaged.items())}
        self._forget()

    def _forget(self) -> None:
        """New caches, and not the old ones emptied: what is being read now goes into those of before."""
        self._remembered: dict[str, Any] = {}
        self.store = lru_cache(STORES)(self._store)
        """The evidence of the features of a dictionary, by its hash; :class:`UserError` if none was gathered."""
        self.scored = lru_cache(STORES)(self._scored)
        """Explanations with their scores by feature, of a dictionary by its hash."""
        self.content = lru_cache(STORES)(self._content)
        """The JSON of a file of the run, by its path in it; :class:`NotThere` if there is none."""
        self.manifest = lru_cache(STORES)(self._manifest)
        """What an artefact of the run is, by its path in it; :class:`UserError` if there is none."""

    @property
    def dictionaries(self) -> Mapping[str, IndexedDictionary]:
        """Of the run's model, by key."""
        return self._known[0]

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
        return self._known[1][self.dictionary(key).key]

    def _store(self, key: str) -> FeatureStore:
        return open_store(self.record(key))

    def _scored(self, key: str) -> Mapping[int, list[Scored]]:
        """Of the scores that were made of this very dictionary."""
        dictionary = self.dictionary(key)
        where = SUBJECT, dictionary.site, dictionary.name
        names = [path.partition("/")[2] for path in self.experiments("score", key)]
        return cards.scored(self.folder, names, only=where).get(where, {})

    def _content(self, path: str) -> Any:
        file = self.folder / path
        if not file.is_file():
            raise NotThere(f"{path} is not in {self.folder}; run its stage, or look at what there is")
        return read_json(file)

    def _manifest(self, path: str) -> Manifest:
        return open_artifact(self.folder / path)

    def remembered(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, kept under a name until an artefact of the run changes; several askers wait for one."""
        held = self._remembered
        with self._making.setdefault(name, threading.Lock()):
            if name not in held:
                held[name] = make()
        return held[name]

    def experiments(self, kind: str, key: str = "") -> list[str]:
        """Paths in the run of its artefacts of a kind that are finished and whole, such as ``patch/ioi``; of those made
        of one dictionary alone, where its hash is given."""
        stage = stages.of_kind(kind)
        home = kind if stage is None else stage.home
        paths = [p.parent.relative_to(self.folder).as_posix() for p in sorted(self.folder.glob(f"{home}/*/{MANIFEST}"))]
        of_key = self._experiments[self.dictionary(key).hash] if key else paths
        return [path for path in paths if path in of_key and path not in self.damaged]

    def why_not_gathered(self, key: str) -> str:
        """Why a dictionary has no evidence here, in one sentence."""
        dictionary, evidence = self.dictionary(key), self.record(key).evidence
        place = evidence.relative_to(self.folder).as_posix() if evidence else "features"
        none = f"nothing was gathered of {dictionary.title}; run monolex features for it first"
        return self.damaged.get(place, none)

    def label(self, key: str, number: int) -> Label | None:
        """What a person wrote of a feature."""
        return labels.read(self.index, self.dictionary(key).hash, number)


def slugs(folders: list[Path]) -> list[str]:
    """What runs are called in addresses: the names of their folders, numbered where two are the same."""
    plain = [
        re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.").replace(".json", "-json") or "run"
        for folder in folders
    ]
    named: list[str] = []
    for slug in plain:
        numbered = (f"{slug}-{number}" for number in count(2))
        named.append(slug if slug not in named else next(name for name in numbered if name not in named))
    return named


def _manifests(run: Path) -> list[Path]:
    """Manifests whose change changes what the explorer shows."""
    kinds = ("explain", "score", "ablate", "tree", "patch", "stability", "train", "baselines")
    named = [path for kind in kinds for path in run.glob(f"{kind}/*/{MANIFEST}")]
    single = [run / name / MANIFEST for name in ("activations", "eval", "features")]
    return sorted([*named, *(path for path in single if path.exists())])


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size
