"""Artefacts made piece by piece: a piece is kept as it is done, so that a killed stage loses one of them at most.

Under torchrun every rank does some of the pieces, and rank 0 finishes.

All lies in ``partial/`` until every piece is done: an older answer stays whole until then, and a full disk loses
neither. A piece for which calls of a language model went unanswered is done with failures: the artefact is finished and
its manifest counts them, but all pieces stay, and the same request does those pieces again.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from tqdm import tqdm

from monolex import artifact, runtime
from monolex.artifact import MANIFEST, FileEntry, Manifest, read_json, write_bytes, write_json
from monolex.config import identity
from monolex.ranks import here, world
from monolex.ranks.shares import dealt

PARTIAL = "partial"
UNANSWERED = "unanswered"
"""In a manifest's data: how many calls of a language model failed that may be answered later, by reason."""
FILES = "files"
"""In a piece's entry, where it has any: the files of the artefact that it left, path → fields of
:class:`~monolex.artifact.FileEntry`."""

Piece = Callable[[Path], Any]
"""Does a part of an artefact and gives its entry in the JSON. It may leave files beside the given path for the stage to
read, and at :meth:`Work.file` those that go into the artefact as they are, which its entry lists under :data:`FILES`.
"""


@final
class Work:
    """A request and the folder for its ``answer``: whole, or made of pieces that are ``done``, and ``finished``.

    ``config`` is the stage's configuration, ``parents`` names the content of all that it reads.
    """

    def __init__(self, folder: Path, kind: str, config: Any, parents: Mapping[str, str]) -> None:
        self.folder, self.kind, self.config, self.parents = folder, kind, config, dict(parents)
        self._request = identity(config), self.parents
        self._partial = folder / PARTIAL / f"{kind}-{artifact.request_hash(kind, *self._request)[:16]}"
        self._needs: Mapping[str, Mapping[str, str]] = {}
        self._files: dict[str, FileEntry] = {}
        self._bar: tqdm | None = None

    def answer(self) -> Manifest | None:
        """The finished artefact, if the folder holds the answer to this request, and no call went unanswered.

        Raises:
            UserError: a file lies where the folder is to be.
        """
        world.agree(data=artifact.digest(self.parents), configuration=artifact.digest(self._request[0]))
        if not artifact.is_done(self.folder, self.kind, *self._request):
            return None
        manifest = artifact.open_artifact(self.folder, self.kind)
        if failed := manifest.data.get(UNANSWERED):
            said = "%s: %s is done but for unanswered calls (%s), tried again"
            runtime.log.info(said, self.kind, self.folder, _counts(failed))
            return None
        runtime.log.info("%s: %s is done", self.kind, self.folder)
        if here.rank() == 0:  # of a stage that was killed behind its manifest
            shutil.rmtree(self._partial, ignore_errors=True)
        return manifest

    def done(
        self,
        pieces: Mapping[str, Piece],
        unanswered: Callable[[], Counter[str]] = Counter,
        *,
        sizes: Mapping[str, int] | None = None,
        unit: str = "piece",
        needs: Mapping[str, Mapping[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Do the pieces that are not done yet, or not without unanswered calls; the entries of all.

        ``unanswered`` says how many calls of a language model went unanswered so far, by reason. ``sizes`` are those of
        the pieces on the progress bar, in ``unit``. ``needs`` are the contents that a piece is made of beside the
        configuration, by name, where those are not all that the request is made of: such a piece is kept from a request
        that differed in others only. All other pieces of other requests are dropped.

        Raises:
            UserError: the folder holds an artefact of another kind, or the disk is full.
        """
        world.wait()  # until all know that it is not done
        if not artifact.is_done(self.folder, self.kind, *self._request):
            artifact.warn_replacing(self.folder, self.kind)
        self._needs = needs or {}
        for stale in set((self.folder / PARTIAL).glob("*")) - {self._partial} if here.rank() == 0 else ():
            for key in self._needs:
                self._adopt(stale, key)
            shutil.rmtree(stale)
        world.wait()
        sizes = sizes or dict.fromkeys(pieces, 1)
        ranks = dealt([sizes[key] for key in pieces], here.size())
        mine = {key: pieces[key] for key, rank in zip(pieces, ranks, strict=True) if rank == here.rank()}
        until = 0
        with runtime.progress(sum(sizes[key] for key in mine), self.kind, unit) as self._bar:
            for key, piece in mine.items():
                place = self.place(key)
                if not self._kept(key):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    before = Counter(unanswered())
                    self._keep(place, piece(place), unanswered() - before)
                until += sizes[key]
                self._bar.update(until - self._bar.n)
        world.wait()
        entries = {key: read_json(self.place(key)) for key in pieces}
        for entry in entries.values():
            self._files |= _files(entry)
        return entries

    def advance(self, count: int) -> None:
        """Move the progress bar on inside of a piece."""
        assert self._bar is not None, "no piece is under way"
        self._bar.update(count)

    def place(self, key: str) -> Path:
        """Where the entry of a piece lies."""
        made_of = artifact.request_hash(self.kind, self._request[0], self._needs.get(key, self.parents))
        return self._partial / f"{artifact.digest([key, made_of])[:16]}.json"

    def file(self, name: str) -> Path:
        """Where a file of the artefact lies until it is finished."""
        return self._partial / FILES / name

    def finish(self, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Manifest:
        """Put ``files`` and those of the pieces in place and, last, the manifest with ``facts`` as its data.

        The pieces go, unless some are to be done again.

        Raises:
            UserError: the disk is full.
        """
        world.wait()  # until nobody reads pieces any more
        if here.rank() > 0:
            world.wait()
            return artifact.open_artifact(self.folder, self.kind)
        entries = self._files | {name: write_bytes(self.file(name), content) for name, content in files.items()}
        failed: Counter[str] = Counter()
        for note in self._partial.glob(f"*.{UNANSWERED}"):
            failed.update(read_json(note))
        counted = {UNANSWERED: dict(sorted(failed.items()))} if failed else {}
        manifest = artifact.finish(self.file(""), self.kind, *self._request, entries, {**facts, **counted})
        # from here on nothing is written; an older answer must not pass for whole while its files are being replaced
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for name in (name for name in (*entries, MANIFEST) if self.file(name).exists()):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.file(name), self.folder / name)
        if failed:
            said = "%s: calls went unanswered (%s); the same command tries them again"
            runtime.log.warning(said, self.kind, _counts(counted[UNANSWERED]))
        else:
            shutil.rmtree(self.folder / PARTIAL)
        world.wait()
        return manifest

    def forget(self) -> None:
        """Drop all pieces: of none is anything worth keeping. An older answer stays as it is."""
        world.wait()
        if here.rank() == 0:
            shutil.rmtree(self._partial)

    def _adopt(self, stale: Path, key: str) -> None:
        """Take a piece over from another request, its entry last, so that it is whole or not there."""
        place = self.place(key)
        entry = stale / place.name
        if not entry.exists() or place.exists():
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        for name in _files(read_json(entry)):
            if (stale / FILES / name).exists():
                self.file(name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(stale / FILES / name, self.file(name))
        for beside in set(stale.glob(f"{place.stem}.*")) - {entry}:
            os.replace(beside, place.with_name(beside.name))
        os.replace(entry, place)

    def _kept(self, key: str) -> bool:
        place = self.place(key)
        if not place.exists() or place.with_suffix(f".{UNANSWERED}").exists():
            return False
        return all(self._whole(name, entry) for name, entry in _files(read_json(place)).items())

    def _whole(self, name: str, entry: FileEntry) -> bool:
        """Whether a piece's file is what it was; a stage that was killed while it finished has moved some already."""
        if self.file(name).exists():
            return self.file(name).stat().st_size == entry.bytes
        return (self.folder / name).exists() and artifact.file_hash(self.folder / name) == entry.sha256

    def _keep(self, place: Path, entry: Any, failed: Counter[str]) -> None:
        note = place.with_suffix(f".{UNANSWERED}")
        # first, so that no piece is ever taken for one without
        if failed:
            write_json(note, failed)
        write_json(place, entry)
        if not failed:
            note.unlink(missing_ok=True)


def _files(entry: Any) -> dict[str, FileEntry]:
    listed = entry.get(FILES, {}) if isinstance(entry, dict) else {}
    return {name: FileEntry(**fields) for name, fields in listed.items()}


def _counts(failed: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in failed.items())
