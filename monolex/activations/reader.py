"""Activations in document order (`Reader`), as shuffled training batches from disk (`Stream`) or from the model itself.

Shards are memory-mapped, so that reading costs no more memory than what is asked for. `Stream` mixes in windows: an
epoch permutes small blocks of neighbouring rows over the whole split (long reads, all documents), a window gathers some
of them and is then permuted row by row. `ModelStream` fills a window by forward passes over random packed rows, and
lets each of them contribute evenly to every batch. Every batch is a pure function of the seed and its number, so a
killed training run resumes exactly without any saved state of the data.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, final

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from monolex import artifact, runtime
from monolex.activations import shuffle
from monolex.activations.shuffle import Loaded, Loader, Mixing, Window
from monolex.config import require
from monolex.errors import UserError
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel
from monolex.model.sites import expand, select
from monolex.text.corpus import Rows, rows_digest, separator

KIND = "activations"
BLOCK = 16
"""Neighbouring rows that a shuffled epoch keeps together in one window, at most."""

Split = Literal["train", "held_out"]


def shard_name(site: str, split: str, number: int) -> str:
    """Path of a shard inside the artefact; the site ``rows`` holds token, document, position and context."""
    return f"{site}/{split}-{number:05d}.safetensors"


def stored_sites(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The sites of an activations artefact that ``names`` mean: all for none, `resid_post.*` for those of a kind.

    Raises:
        UserError: not a finished artefact, or a name that matches no stored site.
    """
    return select(names, tuple(artifact.open_artifact(folder, KIND).data["sites"]), str(folder))


class Source(Protocol):
    """What a :class:`Stream` needs of one site: a :class:`Reader`, or anything that looks like one."""

    @property
    def n_rows(self) -> int: ...

    def gather(self, index: Int[Tensor, "rows"], *, raw: bool = False) -> Float[Tensor, "rows d_in"]: ...

    def docs(self, start: int, stop: int) -> Int[Tensor, "rows"]: ...


@final
class Reader:
    """One site of an activations artefact, memory-mapped.

    Raises:
        UserError: not a finished artefact, a damaged shard, a site that is not stored, or a split without rows.
    """

    def __init__(self, folder: str | Path, site: str, split: Split = "train") -> None:
        folder = Path(folder)
        require(split in ("train", "held_out"), f"split = {split!r}: choose train or held_out")
        manifest = artifact.open_artifact(folder, KIND)
        stored: dict[str, Any] = manifest.data["sites"]
        require(site in stored, f"{folder} holds no site {site!r}; it holds {', '.join(stored)}")
        self.folder, self.site, self.split = folder, site, split
        self.d_in: int = stored[site]["d_in"]
        self.dtype: str = stored[site]["dtype"]
        self.model: dict[str, Any] = manifest.data["model"]
        self.content: str = manifest.content
        self._bounds = torch.tensor([0, *manifest.data["shards"][split]]).cumsum(0)
        self.n_rows = int(self._bounds[-1])
        require(self.n_rows > 0, f"{folder} holds no {split} rows; harvest more text or raise held_out")
        self._open: dict[tuple[str, int], dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"Reader({self.folder}, {self.site}, {self.split}: {self.n_rows} rows of {self.d_in}, {self.dtype})"

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """Rows ``start`` to ``stop`` in document order, as float32."""
        return self._range(self.site, "activations", start, stop).float()

    def tokens(self, start: int, stop: int) -> Int[Tensor, "rows"]:
        """Token id of each row."""
        return self._range("rows", "tokens", start, stop)

    def docs(self, start: int, stop: int) -> Int[Tensor, "rows"]:
        """Document id of each row."""
        return self._range("rows", "docs", start, stop)

    def positions(self, start: int, stop: int) -> Int[Tensor, "rows"]:
        """Position of each row's token in its packed row."""
        return self._range("rows", "positions", start, stop)

    def contexts(self, start: int, stop: int) -> Int[Tensor, "rows"]:
        """Number of the packed row that each row came from."""
        return self._range("rows", "contexts", start, stop)

    def chunks(self, size: int = 8192, limit: int | None = None) -> Iterator[tuple[int, Float[Tensor, "rows d_in"]]]:
        """All rows, or the first ``limit``, in document order: pairs of the first row's number and the rows."""
        end = self.n_rows if limit is None else min(limit, self.n_rows)
        for start in range(0, end, size):
            yield start, self.read(start, min(start + size, end))

    def gather(self, index: Int[Tensor, "rows"], *, raw: bool = False) -> Float[Tensor, "rows d_in"]:
        """The rows numbered ``index`` in that order, as float32, or with ``raw`` in the stored precision."""
        shards = torch.bucketize(index, self._bounds, right=True) - 1
        used = shards.unique().tolist()
        if len(used) == 1:
            rows = self._shard(self.site, used[0])["activations"][index - self._bounds[used[0]]]
            return rows if raw else rows.float()
        dtype = self._shard(self.site, 0)["activations"].dtype
        out = torch.empty(len(index), self.d_in, dtype=dtype if raw else torch.float32)
        for shard in used:
            where = (shards == shard).nonzero()[:, 0]
            out[where] = self._shard(self.site, shard)["activations"][index[where] - self._bounds[shard]].to(out.dtype)
        return out

    def _range(self, site: str, name: str, start: int, stop: int) -> Tensor:
        assert 0 <= start <= stop <= self.n_rows, (start, stop, self.n_rows)
        first = int(torch.bucketize(start, self._bounds, right=True)) - 1
        parts = []
        for number in range(min(first, len(self._bounds) - 2), len(self._bounds) - 1):
            low = int(self._bounds[number])
            parts.append(self._shard(site, number)[name][max(start - low, 0) : max(stop - low, 0)])
            if stop <= int(self._bounds[number + 1]):
                break
        return torch.cat(parts)

    def _shard(self, site: str, number: int) -> dict[str, Tensor]:
        if (site, number) not in self._open:
            path = self.folder / shard_name(site, self.split, number)
            try:
                self._open[site, number] = load_file(path)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is damaged ({error}); delete its manifest and harvest again") from error
        return self._open[site, number]


@final
class Stream:
    """Shuffled batches of one or several sites in step, from disk.

    Holds two windows in memory, the current one and the next, in the stored precision. If the rows fit into one
    window, each epoch is an exactly uniform permutation.

    Raises:
        UserError: the sites have different numbers of rows, or fewer than one batch.
    """

    def __init__(self, readers: Mapping[str, Source], batch_size: int, seed: int, window_rows: int) -> None:
        counts = {site: reader.n_rows for site, reader in readers.items()}
        require(len(counts) > 0, "no site to stream: name at least one")
        require(len(set(counts.values())) == 1, f"the sites have different numbers of rows {counts}: use one harvest")
        self._readers, self._batch, self._seed = dict(readers), batch_size, seed
        self._n = next(iter(counts.values()))
        self.steps_per_epoch = shuffle.steps(self._n, batch_size, window_rows)
        # A batch's rows fall on few repeated blocks only while a window holds several blocks for each of them.
        self._block = 1 if self._n <= window_rows else min(max(window_rows // (8 * batch_size), 1), BLOCK)
        self._n_windows = -(-self._n // window_rows)
        self._whole: dict[str, Tensor] | None = None

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Float[Tensor, "batch d_in"]]]:
        """Endless batches by site, float32; an epoch serves each row once and drops its last partial batch."""
        return shuffle.floats(shuffle.cut(shuffle.ahead(self._loaded(start_step, self._load)), self._batch))

    def mixing(self, batches: int = 8) -> Mixing:
        """How many distinct documents the first ``batches`` batches draw from, beside the ideal."""
        docs = next(iter(self._readers.values())).docs(0, self._n)
        served = shuffle.cut(self._loaded(0, lambda rows: {"docs": docs[rows]}), self._batch)
        return shuffle.mixing((batch["docs"] for batch in served), docs, self._batch, batches)

    def _loaded(self, start_step: int, load: Loader) -> Iterator[Loaded]:
        return shuffle.loaded(self._windows, load, start_step, self.steps_per_epoch, self._batch)

    def _windows(self, epoch: int, skip: int) -> Iterator[Window]:
        n_blocks = -(-self._n // self._block)
        blocks = torch.randperm(n_blocks, generator=runtime.generator("blocks", self._seed, epoch))
        for number, part in enumerate(blocks.tensor_split(self._n_windows)):
            rows = (part.sort().values[:, None] * self._block + torch.arange(self._block)).flatten()
            rows = rows[rows < self._n]
            if skip < len(rows):
                generator = runtime.generator("rows", self._seed, epoch, number)
                yield Window(epoch, rows, torch.randperm(len(rows), generator=generator)[skip:])
            skip = max(skip - len(rows), 0)

    def _load(self, rows: Int[Tensor, "rows"]) -> dict[str, Tensor]:
        if self._n_windows > 1:
            return {site: reader.gather(rows, raw=True) for site, reader in self._readers.items()}
        if self._whole is None:
            self._whole = {site: reader.gather(rows, raw=True) for site, reader in self._readers.items()}
        return self._whole


@final
class ModelStream:
    """Shuffled batches of one or several sites in step, straight from the model: nothing is stored.

    A window is a forward pass over some packed rows in random order. Batches take from all of a window's packed rows
    evenly, because a window holds far fewer of them than it holds tokens. Resuming recomputes one window. Rows are
    not filtered by norm, as a harvest with ``max_norm`` does: how many there are must be known before the model runs.

    Raises:
        UserError: no site or an unknown one, or fewer kept tokens than one batch.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rows: Rows,
        sites: Sequence[str],
        batch_size: int,
        seed: int,
        window_rows: int,
        batch_rows: int = 16,
        drop_bos: bool = True,
    ) -> None:
        self._lm, self._rows, self._batch, self._seed, self._batch_rows = lm, rows, batch_size, seed, batch_rows
        self.sites = tuple(map(str, expand(sites, lm.n_layers)))
        require(len(self.sites) > 0, "sites is empty: a stream from the model needs at least one, such as resid_post.3")
        self._keep = kept(lm, rows, drop_bos)
        self._counts = self._keep.sum(1)
        self._n = int(self._counts.sum())
        self.steps_per_epoch = shuffle.steps(self._n, batch_size, window_rows)
        self._n_windows = -(-self._n // window_rows)

    @property
    def content(self) -> str:
        """Hash of all that the batches follow from: weights, tokens that are kept, sites, seed and sizes."""
        served = rows_digest(dataclasses.replace(self._rows, keep=self._keep))
        facts = [self._lm.fingerprint, served, self.sites, self._batch, self._seed, self._n_windows]
        return artifact.digest(facts)

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Float[Tensor, "batch d_in"]]]:
        """Endless batches by site, float32; an epoch serves each token once and drops its last partial batch."""
        return shuffle.floats(shuffle.cut(self._loaded(start_step, self._load), self._batch))

    def mixing(self, batches: int = 8) -> Mixing:
        """How many distinct documents the first ``batches`` batches draw from, beside the ideal; runs no model."""

        def load(numbers: Tensor) -> dict[str, Tensor]:
            return {"docs": self._rows.docs[numbers][self._keep[numbers]]}

        served = shuffle.cut(self._loaded(0, load), self._batch)
        return shuffle.mixing((b["docs"] for b in served), self._rows.docs[self._keep], self._batch, batches)

    def _loaded(self, start_step: int, load: Loader) -> Iterator[Loaded]:
        return shuffle.loaded(self._windows, load, start_step, self.steps_per_epoch, self._batch)

    def _windows(self, epoch: int, skip: int) -> Iterator[Window]:
        order = torch.randperm(len(self._rows), generator=runtime.generator("contexts", self._seed, epoch))
        before = self._counts[order].cumsum(0) - self._counts[order]
        window = before * self._n_windows // self._n
        for number in range(self._n_windows):
            source = order[window == number].sort().values
            size = int(self._counts[source].sum())
            if skip < size:
                generator = runtime.generator("tokens", self._seed, epoch, number)
                yield Window(epoch, source, shuffle.spread(self._counts[source], generator)[skip:])
            skip = max(skip - size, 0)

    def _load(self, numbers: Int[Tensor, "contexts"]) -> dict[str, Tensor]:
        size = int(self._counts[numbers].sum())
        window: dict[str, Tensor] = {}
        start = 0
        for part in numbers.split(self._batch_rows):
            if not bool(self._keep[part].any()):
                continue
            values = forward(self._lm, self._rows, self._keep, part, self.sites).values
            for site, x in values.items():
                if site not in window:
                    window[site] = torch.empty(size, x.shape[1], dtype=x.dtype)
                window[site][start : start + len(x)] = x
            start += len(next(iter(values.values())))
        assert start == size, (start, size)
        return window


class Forward(NamedTuple):
    """Kept activations of some packed rows."""

    values: dict[str, Float[Tensor, "kept d_in"]]
    """By site, in document order, in the model's dtype and where the model put them."""
    peaks: dict[str, float]
    """Largest absolute value of each site."""


def kept(lm: LanguageModel, rows: Rows, drop_bos: bool) -> Bool[Tensor, "rows context"]:
    """Which tokens of ``rows`` become activation rows."""
    bos = separator(lm.tokenizer) if drop_bos and lm.tokenizer is not None else None
    return rows.keep if bos is None else rows.keep & (rows.tokens != bos)


def forward(
    lm: LanguageModel, rows: Rows, keep: Bool[Tensor, "rows context"], part: Int[Tensor, "batch"], sites: Sequence[str]
) -> Forward:
    """Activations of the kept tokens of the packed rows numbered ``part``; at least one token must be kept.

    Raises:
        UserError: the model gives NaN or infinity.
    """
    seen = capture(lm, rows.tokens[part].long(), sites).activations
    index = keep[part].flatten().nonzero()[:, 0]
    values, peaks = {}, {}
    for site, x in seen.items():
        values[site] = x.detach().flatten(0, 1)[index.to(x.device)]
        low, high = torch.aminmax(values[site])
        peaks[site] = max(-float(low), float(high))
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            wrong = int((~values[site].isfinite()).any(1).int().argmax())
            row = int(part[index[wrong] // rows.context_length])
            raise UserError(
                f"{lm.name} gives NaN or infinity at {site}, first in packed row {row}: "
                f"its model_dtype is {lm.dtype}, use bf16 or fp32"
            )
    return Forward(values, peaks)
