"""The one pass: encode every row with every dictionary of a site and bring the active codes into the order of features.

An external sort. Active codes gather row by row until the working memory is full, are turned to feature order by a
counting sort (compressed rows to compressed columns) and, if more follow, written out as one *run*: 8 bytes an active
code. Afterwards any block of features is read from all runs at once. Memory is ``memory_mb`` whatever the width; the
cost grows with the active codes, beside the encoder itself. Codes below zero (of signed kinds, PCA and ICA) are left
out: evidence is read off the positive side, which the heavier tail was made to be.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from numpy.typing import NDArray
from scipy import sparse

from monolex import runtime
from monolex.dictionaries.base import Dictionary
from monolex.features.rows import RowSource

SORTED_BYTES = 32
"""Working memory an active code takes while a run is sorted."""
BLOCK_BYTES = 160
"""Working memory an active code takes while a block of features is summed up."""


class Block(NamedTuple):
    """All active codes of some neighbouring features."""

    first: int
    """The first feature."""
    offsets: Int64[NDArray, "features+1"]
    """Feature ``first + i`` has the entries ``offsets[i]:offsets[i + 1]``."""
    rows: Int32[NDArray, "entries"]
    """Row of every entry, ascending within a feature."""
    values: Float32[NDArray, "entries"]
    """Its activation, above zero."""


class Run(NamedTuple):
    """Active codes of a stretch of rows in the order of features, then rows."""

    offsets: Int64[NDArray, "d_sae+1"]
    """Where each feature's entries begin."""
    rows: Int32[NDArray, "entries"]
    """Row of every entry."""
    values: Float32[NDArray, "entries"]
    """Its activation."""


@final
class Codes:
    """The active codes of one dictionary over all rows, by feature; and those of a sample of rows, by row."""

    def __init__(self, d_sae: int, folder: Path, sampled: NDArray[np.int64], memory: int) -> None:
        self.d_sae, self._folder, self._sampled = d_sae, folder, sampled
        self._memory, self._runs, self._waiting, self._entries = memory, [], [], 0
        self._sample: list[sparse.csr_matrix] = []

    def add(self, start: int, codes: sparse.csr_matrix) -> None:
        """Codes of the rows from ``start`` on."""
        low, high = np.searchsorted(self._sampled, (start, start + len(codes.indptr) - 1))
        self._sample.append(sparse.csr_matrix(codes[self._sampled[low:high] - start]))
        if self._waiting and (self._entries + codes.nnz) * SORTED_BYTES > self._memory:
            self._spill()
        self._waiting.append((start, codes))
        self._entries += codes.nnz

    def finish(self) -> None:
        """Sort what is still waiting; it stays in memory."""
        if self._waiting:
            self._runs.append(self._sorted())
        self.offsets = sum((run.offsets for run in self._runs), np.zeros(self.d_sae + 1, np.int64))

    def sample(self) -> sparse.csr_matrix:
        """Codes of the sampled rows, by row."""
        return sparse.csr_matrix(sparse.vstack(self._sample))

    def blocks(self, memory: int) -> Iterator[Block]:
        """Every feature once, in blocks that fit ``memory`` bytes of work (one feature at least)."""
        limit, first = memory // BLOCK_BYTES, 0
        while first < self.d_sae:
            reach = int(np.searchsorted(self.offsets, self.offsets[first] + limit, side="right")) - 1
            stop = min(max(reach, first + 1), first + 8192)
            yield self._block(first, min(stop, self.d_sae))
            first = stop

    def _block(self, first: int, stop: int) -> Block:
        offsets = self.offsets[first : stop + 1] - self.offsets[first]
        parts = [(run, int(run.offsets[first]), int(run.offsets[stop])) for run in self._runs]
        if len(parts) == 1:
            run, low, high = parts[0]
            return Block(first, offsets, run.rows[low:high], run.values[low:high])
        rows, values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
        free = offsets[:-1].copy()
        for run, low, high in parts:
            counts = np.diff(run.offsets[first : stop + 1])
            shift = free - (run.offsets[first:stop] - low)
            place = np.arange(high - low) + np.repeat(shift, counts)
            rows[place], values[place] = run.rows[low:high], run.values[low:high]
            free += counts
        return Block(first, offsets, rows, values)

    def _sorted(self) -> Run:
        start = self._waiting[0][0]
        columns = sparse.vstack([codes for _, codes in self._waiting], format="csr").tocsc()
        self._waiting, self._entries = [], 0
        return Run(columns.indptr.astype(np.int64), columns.indices.astype(np.int32) + np.int32(start), columns.data)

    def _spill(self) -> None:
        run = self._sorted()
        runtime.require_disk(self._folder, run.rows.nbytes + run.values.nbytes, "a run of active codes")
        path = self._folder / f"{id(self)}-{len(self._runs)}"
        mapped = []
        for name, column in (("rows", run.rows), ("values", run.values)):
            column.tofile(path.with_suffix(f".{name}"))
            mapped.append(np.memmap(path.with_suffix(f".{name}"), column.dtype, "r"))
        self._runs.append(Run(run.offsets, *mapped))


def encode(
    source: RowSource,
    dictionaries: Mapping[str, Dictionary],
    sampled: NDArray[np.int64],
    folder: Path,
    *,
    memory: int,
    device: torch.device | str = "cpu",
) -> dict[str, Codes]:
    """Encode all rows once with every dictionary; ``folder`` holds the runs and may go when the codes are done with.

    ``memory`` (bytes) is shared: half of it goes to chunks of dense codes, half to what waits to be sorted.
    """
    widest = max(dictionary.d_sae for dictionary in dictionaries.values())
    size = int(min(max(memory // 2 // (12 * widest), 16), 4096))
    each = memory // 2 // len(dictionaries)
    codes = {name: Codes(d.d_sae, folder, sampled, each) for name, d in dictionaries.items()}
    start = 0
    with torch.no_grad(), runtime.progress(source.n_rows, f"features {source.site}", "row") as bar:
        for x in source.chunks(size):
            x = x.to(device)
            for name, dictionary in dictionaries.items():
                codes[name].add(start, active(dictionary, x))
            start += len(x)
            bar.update(len(x))
    for one in codes.values():
        one.finish()
    return codes


def active(dictionary: Dictionary, x: torch.Tensor) -> sparse.csr_matrix:
    """Codes above zero of some rows."""
    found = dictionary.encode_sparse(x)
    values, features, offsets = (part.cpu().numpy() for part in (found.values, found.features, found.offsets))
    made = sparse.csr_matrix((values, features.astype(np.int32), offsets), shape=(len(x), dictionary.d_sae))
    if dictionary.signed:
        made.data = np.maximum(made.data, 0)
        made.eliminate_zeros()
    return made


def scratch(folder: Path) -> tempfile.TemporaryDirectory:
    """A folder for runs beside what is being made, which goes with its context."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".runs-", dir=folder)
