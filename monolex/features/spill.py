"""Phase 1: encode all rows once and turn their codes from row by row into feature by feature, on disk if need be.

An external sort. The positive codes of a dictionary fill a buffer; a full buffer is sorted by feature (a counting sort,
so that rows stay ascending) and becomes a run in a temporary file; what is left at the end becomes a run in memory.
Phase 2 reads all runs a block of features at a time.

Memory, with ``memory`` bytes to work with: half of it for the dense codes of a chunk, half for the buffers of all
dictionaries and one run on its way to disk; beside that the row table (20 bytes a row, and 4 for each dictionary of the
site), the dictionaries, and the sampled rows that co-activation is counted over (4 bytes a code, under 12 MB). Nothing
grows with the number of features times that of rows. Temporary disk: 8 bytes an active code.

Codes of either sign (PCA, ICA) are sorted on their positive side: everything below zero counts as silent. Of their
negative side the most negative contexts are kept as the rows go by (:mod:`monolex.features.negative`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from numpy.typing import NDArray
from scipy import sparse as scipy_sparse
from torch import Tensor

from monolex import runtime
from monolex.config import FeaturesConfig
from monolex.dictionaries.base import Dictionary, sparse
from monolex.features.coactivation import Sample
from monolex.features.negative import NegativeSide
from monolex.features.rows import RowSource

CHUNK = 2**20
"""Dense codes of a chunk, at least if memory allows: as many as a processor's cache likes."""
CHUNK_ROWS = 256
"""Rows of a chunk, at least if memory allows, so that a matrix product is worth its weights."""
DENSE_BYTES = 32
"""Bytes that encoding takes for each dense code of a chunk, at most."""
ENTRY_BYTES = 8
"""Bytes of an active code: row and value."""


class Entries(NamedTuple):
    """Active codes of neighbouring features: by feature, then by row."""

    offsets: Int64[NDArray, "features+1"]
    """Feature f's entries are ``offsets[f]:offsets[f + 1]``."""
    rows: Int32[NDArray, "entries"]
    """Row of each."""
    values: Float32[NDArray, "entries"]
    """Its activation, above zero."""


class Positive(NamedTuple):
    """Active codes of some rows: by row, then by feature."""

    counts: Int32[NDArray, "rows"]
    """How many each row has."""
    features: Int32[NDArray, "codes"]
    """Feature of each."""
    values: Float32[NDArray, "codes"]
    """Its activation, above zero."""


@dataclass(frozen=True, eq=False)
class Codes:
    """All active codes of one dictionary, feature by feature."""

    runs: tuple[Entries, ...]
    """Sorted parts; the rows of each come after those of the one before."""
    sample: Sample
    """Those of some random rows, row by row."""
    negative: NegativeSide | None = None
    """The most negative contexts of a signed dictionary."""

    @property
    def counts(self) -> Int64[NDArray, "d_sae"]:
        """Rows in which each feature is active."""
        return np.stack([np.diff(run.offsets) for run in self.runs]).sum(0)

    def block(self, first: int, last: int) -> Entries:
        """The entries of features ``first`` to ``last``."""
        if len(self.runs) == 1:
            run = self.runs[0]
            low, high = run.offsets[first], run.offsets[last]
            return Entries(run.offsets[first : last + 1] - low, run.rows[low:high], run.values[low:high])
        sizes = np.stack([np.diff(run.offsets[first : last + 1]) for run in self.runs])
        offsets = np.concatenate([[0], sizes.sum(0).cumsum()])
        rows, values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
        begins = offsets[:-1].copy()
        for run, counts in zip(self.runs, sizes, strict=True):
            low, high = run.offsets[first], run.offsets[last]
            # where the entries of a feature are in this run, and where they go
            shift = begins - (run.offsets[first:last] - low)
            at = np.repeat(shift, counts) + np.arange(high - low)
            rows[at], values[at] = run.rows[low:high], run.values[low:high]
            begins += counts
        return Entries(offsets, rows, values)


@final
class Buffer:
    """Collects the codes of one dictionary row by row and gives them back feature by feature."""

    # A feature's contexts are chosen by rank among all of its rows, so its codes must lie together; codes come row by
    # row, and all of them are too many for memory or for a pass a feature. Runs are cut by rows, not by features: a
    # full buffer is sorted and written once, and rows ascend over the runs, so that merging only sets them in a line.

    def __init__(
        self, path: Path, d_sae: int, capacity: int, sample: Sample, negative: NegativeSide | None = None
    ) -> None:
        self._path, self._d_sae, self._sample, self._negative = path, d_sae, sample, negative
        self._features, self._values = np.empty(capacity, np.int32), np.empty(capacity, np.float32)
        self._counts: list[NDArray] = []
        self._used = self._rows = self._first_row = 0
        self._runs: list[Entries] = []

    def add(self, codes: Positive) -> int:
        """Take the codes of the next rows; returns how many there are."""
        n = len(codes.values)
        if self._used + n > len(self._values):
            self._write(self._sorted())
        part = slice(self._used, self._used + n)
        self._features[part], self._values[part] = codes.features, codes.values
        self._sample.add(self._rows, codes.counts, self._features[part])
        self._counts.append(codes.counts)
        self._used, self._rows = self._used + n, self._rows + len(codes.counts)
        return n

    def add_dense(self, codes: Float[Tensor, "rows d_sae"]) -> int:
        """Take the codes of the next rows, both sides of them if they are signed; returns how many are above zero."""
        if self._negative is not None:
            self._negative.add(codes.cpu().numpy())
        return self.add(positive(codes))

    def finish(self) -> Codes:
        """All that was added; the buffer is of no more use."""
        last = self._sorted()
        del self._features, self._values
        if self._negative is not None:
            self._negative.finish()
        return Codes((*self._runs, last), self._sample, self._negative)

    def _sorted(self) -> Entries:
        counts = np.concatenate(self._counts) if self._counts else np.zeros(0, np.int32)
        offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
        held = (self._values[: self._used], self._features[: self._used], offsets)
        turned = scipy_sparse.csr_matrix(held, shape=(len(counts), self._d_sae)).tocsc()
        turned.indices += np.int32(self._first_row)
        self._counts, self._used, self._first_row = [], 0, self._rows
        return Entries(turned.indptr.astype(np.int64), turned.indices, turned.data)

    def _write(self, run: Entries) -> None:
        path = self._path.with_name(f"{self._path.name}-{len(self._runs)}")
        try:
            with path.open("wb") as file:
                file.write(run.rows.data)
                file.write(run.values.data)
        except OSError as error:
            raise runtime.unwritable(path, run.rows.nbytes + run.values.nbytes, error.strerror) from error
        n = len(run.rows)
        rows = np.memmap(path, np.int32, "r", shape=(n,))
        values = np.memmap(path, np.float32, "r", offset=4 * n, shape=(n,))
        self._runs.append(Entries(run.offsets, rows, values))


@torch.no_grad()
def spill(
    folder: Path,
    source: RowSource,
    dictionaries: Mapping[str, Dictionary],
    config: FeaturesConfig,
    device: torch.device | str = "cpu",
    advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, Codes]:
    """The codes of every dictionary over all rows of ``source``, in one pass; runs are files in ``folder``.

    ``dictionaries`` lie on ``device``; ``advance`` is told the rows done.

    Raises:
        UserError: the disk is too small for the runs.
    """
    memory, rows = config.memory_mb * 10**6, len(source.table)
    widest = max(d.d_sae for d in dictionaries.values())
    size = max(1, min(memory // 2 // DENSE_BYTES, max(CHUNK, CHUNK_ROWS * widest)) // widest)
    capacity = max(memory // 4 // ENTRY_BYTES // len(dictionaries), size * widest)
    buffers = {}
    for number, (name, d) in enumerate(dictionaries.items()):
        negative = NegativeSide(source.table, d.d_sae, config) if d.signed else None
        held = min(capacity, rows * d.d_sae)
        buffers[name] = Buffer(folder / str(number), d.d_sae, held, Sample(rows, config), negative)
    done, checked = 0, False
    for x in source.chunks(size):
        x, active = x.to(device), 0
        for name, dictionary in dictionaries.items():
            active += buffers[name].add_dense(dictionary.encode(x))
        done += len(x)
        advance(len(x))
        if not checked:
            _require_disk(folder, active * rows // done, capacity * len(buffers))
            checked = True
    return {name: buffer.finish() for name, buffer in buffers.items()}


def positive(codes: Float[Tensor, "rows d_sae"]) -> Positive:
    """The codes above zero; on a device the others become 0."""
    if codes.device.type != "cpu":
        positive_codes = sparse(codes.clamp_min_(0))
        counts, features, values = (
            part.cpu().numpy() for part in (positive_codes.offsets.diff(), *positive_codes[1:3])
        )
        return Positive(counts.astype(np.int32), features.astype(np.int32), values)
    # three times as quick as torch's nonzero, which looks for rows and columns at once
    dense = codes.numpy()
    above = dense > 0
    counts = np.count_nonzero(above, axis=1).astype(np.int32)
    places = np.flatnonzero(above)
    begins = np.arange(len(dense)) * dense.shape[1]
    return Positive(counts, (places - np.repeat(begins, counts)).astype(np.int32), dense.reshape(-1)[places])


def _require_disk(folder: Path, expected: int, held: int) -> None:
    """``expected`` active codes, of which ``held`` stay in memory."""
    if expected > held:
        runtime.require_disk(
            folder,
            ENTRY_BYTES * expected,
            "sorting the codes of all features",
            "lower feature_rows, choose fewer dictionaries or choose another folder",
        )


def blocks(cost: Int64[NDArray, "d_sae"], most: int, widest: int) -> Iterator[tuple[int, int]]:
    """Neighbouring features whose ``cost`` sums to at most ``most`` (or one feature), at most ``widest`` of them."""
    ends = np.concatenate([[0], cost.cumsum()])
    first = 0
    while first < len(cost):
        fits = int(np.searchsorted(ends, ends[first] + most, side="right")) - 1
        last = min(max(fits, first + 1), first + widest)
        yield first, last
        first = last
