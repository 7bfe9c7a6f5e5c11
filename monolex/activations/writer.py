"""Writing an activations artefact shard by shard, so that a kill at any moment loses one shard of work.

Under torchrun every rank writes whole shards, those whose number says so, and keeps a progress file of its own.
`progress.json` lists what is whole and what was decided on the way (precision, peaks); files that it does not list
are deleted on resuming. One thread hashes and writes a shard while the next one is filled: two shards are in memory.
A shard with a value that its site's precision cannot hold is widened to float32 as a whole.
"""

import dataclasses
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, final

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from monolex import artifact
from monolex.activations.norms import row_norms
from monolex.activations.reader import Split, shard_name, stamp
from monolex.artifact import FileEntry
from monolex.errors import UserError
from monolex.model.language_model import DTYPES
from monolex.ranks import here, world
from monolex.runtime import log

PROGRESS: Final = "progress.json"
CORPUS: Final = "corpus.safetensors"
STREAMED: Final = "streamed"
"""Packed rows of the corpus whose activations are not stored, beside its splits."""
SPLITS: Final[tuple[Split, ...]] = ("train", "held_out")
ROW_FIELDS: Final = ("tokens", "docs", "positions", "contexts")
ROUNDING: Final = 1e-4
ROUNDING_ROWS: Final = 64
LEAST_ROWS: Final = 8
"""Rows below which their distance from their median says nothing."""
_SHARD: Final = re.compile(r"\.?(train|held_out)-\d{5}\.safetensors(\.\w+\.tmp)?")
_TEMPORARY: Final = re.compile(r"\.((corpus|outliers)\.safetensors|progress(-\d+)?\.json|manifest\.json)\.\w+\.tmp")


@final
@dataclass
class HarvestProgress:
    """What lies on disk of an unfinished harvest."""

    request: str
    """Hash of what was asked for (:func:`monolex.artifact.request_hash`)."""
    batch_rows: int
    """Packed rows in a forward pass; kept on resuming, since it decides where shards end."""
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By site: `d_in`, stored `dtype`, `peak` (the largest absolute value so far) and `widened` (names of the shards in
    float32 for a value that did not fit); empty before the first batch."""
    shards: dict[str, dict[int, int]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    """Rows of every written shard, by split and number."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Every written file."""
    seconds: float = 0.0
    """Time spent so far."""

    def save(self, folder: Path) -> None:
        """Write this rank's progress, atomically."""
        artifact.write_json(folder / _progress_name(here.rank()), dataclasses.asdict(self))

    def add(self, other: "HarvestProgress") -> None:
        """What another rank has done too."""
        for site, facts in other.sites.items():
            known = self.sites.setdefault(site, facts)
            known["peak"] = max(known["peak"], facts["peak"])
            known["widened"] = sorted({*known["widened"], *facts["widened"]}, key=_written_order)
        for split, shards in other.shards.items():
            self.shards[split] |= shards
        self.files |= other.files
        self.seconds = max(self.seconds, other.seconds)

    def rows(self, split: str) -> list[int]:
        """Rows of every shard of a split, in order; all of them are there."""
        assert sorted(self.shards[split]) == list(range(len(self.shards[split]))), self.shards[split]
        return [self.shards[split][number] for number in range(len(self.shards[split]))]


def _progress_name(rank: int) -> str:
    return PROGRESS if rank == 0 else f"progress-{rank}.json"


def _written_order(shard: str) -> tuple[int, str]:
    """In which order one process writes shards: those of the first split first."""
    split = Path(shard).name.rpartition("-")[0]
    return SPLITS.index(split), shard  # pyright: ignore[reportArgumentType]


def recorded_progress(folder: Path, request: str) -> HarvestProgress | None:
    """What all ranks together have done of a request; None where nothing is recorded of it."""
    merged = None
    for path in sorted(folder.glob("progress*.json")):
        if (progress := _recorded(folder, path, request)) is not None:
            if merged is None:
                merged = progress
            else:
                merged.add(progress)
    return merged


def forget_progress(folder: Path) -> None:
    """Delete what all ranks recorded; rank 0 does."""
    for path in folder.glob("progress*.json") if here.rank() == 0 else ():
        path.unlink()


def resume(folder: Path, request: str, batch_rows: int) -> HarvestProgress:
    """The progress recorded in ``folder`` if it answers ``request`` and its files are whole, else a new one.

    Whatever else an earlier harvest left in the folder is deleted; files of other names are not touched.
    """
    artifact.warn_replacing(folder, "activations")
    recorded = recorded_progress(folder, request)
    progress = recorded or HarvestProgress(request, batch_rows)
    world.wait()  # until all have read what there is
    if here.rank() == 0:
        _clear(folder, progress, resumed=recorded is not None)
    world.wait()
    return progress


def _clear(folder: Path, progress: HarvestProgress, *, resumed: bool) -> None:
    """Delete whatever else an earlier harvest left."""
    (folder / artifact.MANIFEST).unlink(missing_ok=True)
    if resumed:
        progress.save(folder)
        rows = sum(sum(shards.values()) for shards in progress.shards.values())
        log.info("harvest: resuming in %s after %d rows", folder, rows)
    for path in folder.glob("progress*.json"):
        # Before any file is replaced: no progress.json may ever list files of another request.
        if not resumed or path.name != PROGRESS:
            path.unlink()
    ours = [path for path in folder.glob("*") if path.name == CORPUS or _TEMPORARY.fullmatch(path.name)]
    ours += [path for path in folder.glob("*/*") if _SHARD.fullmatch(path.name)]
    for path in ours:
        if path.relative_to(folder).as_posix() not in progress.files:
            path.unlink()
    for part in {path.parent for path in ours} - {folder}:
        if not any(part.iterdir()):
            part.rmdir()


def _recorded(folder: Path, path: Path, request: str) -> HarvestProgress | None:
    try:
        raw = artifact.read_json(path)
        files = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        shards = {split: {int(n): rows for n, rows in of.items()} for split, of in raw["shards"].items()}
        progress = HarvestProgress(**{**raw, "files": files, "shards": shards})
    except (UserError, TypeError, KeyError, AttributeError, ValueError):
        return None
    sizes = {name: path.stat().st_size for name in progress.files if (path := folder / name).is_file()}
    whole = sizes == {name: entry.bytes for name, entry in progress.files.items()}
    return progress if whole and progress.request == request else None


@final
class ShardWriter:
    """Collects rows of all sites and writes them as shards; used as a context manager.

    ``capacity`` is the largest number of rows of a shard.

    Raises:
        UserError: the disk is full or not writable (from :meth:`flush` or on leaving the context).
    """

    def __init__(self, folder: Path, progress: HarvestProgress, capacity: int) -> None:
        self._folder, self._progress, self._capacity = folder, progress, capacity
        self._spare = [self._allocate() for _ in range(2)]
        self._rows = 0
        self._peaks = dict.fromkeys(progress.sites, 0.0)
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None and self._pending is not None:
            self._pending.result()

    def add(
        self,
        columns: dict[str, Int[Tensor, "rows"]],
        values: dict[str, Float[Tensor, "rows d_in"]],
        peaks: Mapping[str, float],
    ) -> None:
        """Append rows: a column for each of :data:`ROW_FIELDS`, activations by site and their peaks."""
        buffer, end = self._spare[0], self._rows + len(columns[ROW_FIELDS[0]])
        for site, x in values.items():
            self._peaks[site] = max(self._peaks[site], peaks[site])
            if not self._fits(site, x, peaks[site]):
                buffer[site] = buffer[site].float()
            buffer[norms_of(site)][self._rows : end].copy_(row_norms(x))
        for name, rows in {**columns, **values}.items():
            buffer[name][self._rows : end].copy_(rows)
        self._rows = end

    def flush(self, split: str, number: int) -> None:
        """End the shard of this number: hand it to the writing thread, once that has finished the one before."""
        if self._pending is not None:
            self._pending.result()
        filled = {name: column[: self._rows] for name, column in self._spare[0].items()}
        self._pending = self._pool.submit(self._write, split, number, filled, self._peaks)
        self._spare.reverse()
        for site, facts in self._progress.sites.items():
            if self._spare[0][site].dtype != DTYPES[facts["dtype"]]:
                self._spare[0][site] = self._empty(site)
        self._peaks = dict.fromkeys(self._progress.sites, 0.0)
        self._rows = 0

    def _fits(self, site: str, x: Float[Tensor, "rows d_in"], peak: float) -> bool:
        """Whether the buffer holds what the site's precision was chosen, or ordered, to hold."""
        dtype, chosen = self._spare[0][site].dtype, self._progress.sites[site]["chosen"]
        return keeps(x, peak, dtype) if chosen else peak <= torch.finfo(dtype).max

    def _allocate(self) -> dict[str, Tensor]:
        columns = {name: torch.empty(self._capacity, dtype=torch.int32) for name in ROW_FIELDS}
        for site in self._progress.sites:
            columns[site] = self._empty(site)
            columns[norms_of(site)] = torch.empty(self._capacity)
        return columns

    def _empty(self, site: str) -> Tensor:
        facts = self._progress.sites[site]
        return torch.empty(self._capacity, facts["d_in"], dtype=DTYPES[facts["dtype"]])

    def _write(self, split: str, number: int, filled: dict[str, Tensor], peaks: Mapping[str, float]) -> None:
        progress = self._progress
        parts = {"rows": {name: filled[name] for name in ROW_FIELDS}}
        parts |= {site: {"activations": filled[site], "norms": filled[norms_of(site)]} for site in progress.sites}
        files = {shard_name(part, split, number): tensors for part, tensors in parts.items()}
        entries = {
            name: artifact.write_bytes(self._folder / name, save(tensors, stamp(progress.request, name)))
            for name, tensors in files.items()
        }
        progress.files.update(entries)
        progress.shards[split][number] = len(filled[ROW_FIELDS[0]])
        for site, facts in progress.sites.items():
            facts["peak"] = max(facts["peak"], peaks[site])
            if filled[site].dtype != DTYPES[facts["dtype"]]:
                facts["widened"].append(shard_name(site, split, number))
        progress.save(self._folder)


def norms_of(site: str) -> str:
    """Name of a site's column of norms."""
    return f"{site}.norms"


def keeps(x: Float[Tensor, "rows d_in"], peak: float, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` holds ``x``: nothing overflows, and what rounding takes away is nothing beside what varies.

    ``peak`` is the largest absolute value. Overflow is looked for in all rows; rounding, which underflow is a kind of,
    in some of them: in most of these its squared error is to be at most :data:`ROUNDING` of the squared distance from
    their median.
    """
    if peak > torch.finfo(dtype).max:
        return False
    rows = x[:: max(1, len(x) // ROUNDING_ROWS)].cpu().double()  # Metal has no float64
    error = (rows.to(dtype).double() - rows).square().sum(1)
    spread = (rows - rows.median(0).values).square().sum(1) if len(rows) >= LEAST_ROWS else rows.square().sum(1)
    return bool((error <= ROUNDING * spread).double().mean() >= 0.5)
