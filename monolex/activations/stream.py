"""Activations as shuffled training batches, from disk (`Stream`) or from the model itself (`ModelStream`).

`Stream` mixes in windows: an epoch permutes small blocks of neighbouring rows over the whole split (long reads, all
documents), a window gathers some of them and is then permuted row by row. `ModelStream` fills a window by forward
passes over random packed rows, and lets each of them contribute evenly to every batch. Every batch is a pure function
of the seed and its number, so a killed training run resumes exactly without any saved state of the data.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex import artifact, runtime
from monolex.activations import shuffle
from monolex.activations.forward import forward, kept
from monolex.activations.norms import SAMPLE_ROWS, Usual, row_norms, usual
from monolex.activations.rule import USUAL, RowFilter
from monolex.activations.shuffle import Loaded, Loader, Mixing, Window
from monolex.config import require
from monolex.model.language_model import LanguageModel
from monolex.model.sites import expand
from monolex.ranks import here
from monolex.ranks.shares import share
from monolex.ranks.world import world
from monolex.text.rows import Rows, rows_digest

BLOCK = 16
"""Neighbouring rows that a shuffled epoch keeps together in one window, at most."""


class RowReader(Protocol):
    """What a :class:`Stream` needs of one site: a ``Reader``, or anything that looks like one."""

    @property
    def n_rows(self) -> int: ...

    def gather(self, index: Int[Tensor, "rows"], *, raw: bool = False) -> Float[Tensor, "rows d_in"]: ...

    def docs(self, start: int, stop: int) -> Int[Tensor, "rows"]: ...


@final
class Stream:
    """Shuffled batches of one or several sites in step, from disk.

    Holds two windows in memory, the current one and the next, in the stored precision. If the rows fit into one
    window, each epoch is an exactly uniform permutation.

    Raises:
        UserError: the sites have different numbers of rows, or fewer than one batch.
    """

    def __init__(self, readers: Mapping[str, RowReader], batch_size: int, seed: int, window_rows: int) -> None:
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
    evenly, because a window holds far fewer of them than it holds tokens. Resuming recomputes one window.

    A row whose norm exceeds at any site ``row_filter.max_norm`` times the median norm of a sample of rows is replaced,
    at all sites, by the next of its window that does not: how many rows a window has must be known before the model
    runs. 0 replaces none.

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
        row_filter: RowFilter = USUAL,
    ) -> None:
        self._lm, self._rows, self._batch, self._seed, self._batch_rows = lm, rows, batch_size, seed, batch_rows
        self._max_norm = row_filter.max_norm
        self.sites = tuple(map(str, expand(sites, lm.n_layers)))
        require(len(self.sites) > 0, "sites is empty: a stream from the model needs at least one, such as resid_post.3")
        self._keep = kept(lm, rows, row_filter.drop_bos)
        self._counts = self._keep.sum(1)
        self._n = int(self._counts.sum())
        self.steps_per_epoch = shuffle.steps(self._n, batch_size, window_rows)
        self._n_windows = -(-self._n // window_rows)

    @property
    def content(self) -> str:
        """Hash of all that the batches follow from: weights, tokens that are kept, sites, seed and sizes."""
        served = rows_digest(dataclasses.replace(self._rows, keep=self._keep))
        facts = [self._lm.fingerprint, served, self.sites, self._batch, self._seed, self._n_windows, self._max_norm]
        return artifact.digest(facts)

    @cached_property
    def usual(self) -> dict[str, Usual]:
        """Median norm and centre of every site, of a sample, which runs the model; whoever knows more may set it."""
        return {site: usual(x) for site, x in self.sample().items()}

    def sample(self) -> dict[str, Float[Tensor, "rows d_in"]]:
        """Some thousand rows of every site, of packed rows spread over all, float32; runs the model."""
        numbers = self._keep.any(1).nonzero()[:, 0]
        count = min(len(numbers), -(-SAMPLE_ROWS // self._rows.context_length))
        spread = self._values(numbers[torch.arange(count) * len(numbers) // count])
        return {site: x.float() for site, x in spread.items()}

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Float[Tensor, "batch d_in"]]]:
        """Endless batches by site, float32; an epoch serves each token once and drops its last partial batch.

        On an accelerator the next window is computed while the current one is served; where both are the CPU's work,
        that costs more than it gains (docs/log.md).
        """
        loaded = self._loaded(start_step, self._load)
        if self._lm.device.type != "cpu" and here.size() == 1:  # ranks take their turns in one order
            loaded = shuffle.ahead(loaded)
        return shuffle.floats(shuffle.cut(loaded, self._batch))

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
        window = self._values(numbers)
        limits = {site: self._max_norm * self.usual[site].norm for site in window} if self._max_norm > 0 else {}
        # at all sites, which are served in step; a site whose rows are mostly zero has no usual norm
        each = [row_norms(window[site]) > limit for site, limit in limits.items() if limit > 0]
        beyond = torch.stack(each).any(0) if each else torch.zeros(1, dtype=torch.bool)
        if bool(beyond.any()) and not bool(beyond.all()):
            served = _next_not(beyond)
            window = {site: x[served] for site, x in window.items()}
        return window

    def _values(self, numbers: Int[Tensor, "contexts"]) -> dict[str, Tensor]:
        """Kept activations of packed rows, in their order, by site; every rank runs the model on some and has all."""
        batches = [part for part in numbers.split(self._batch_rows) if bool(self._keep[part].any())]
        ranks = world()
        mine = [batches[number] for number in share(len(batches), ranks.size, ranks.index)]
        size = sum(int(self._counts[part].sum()) for part in mine)
        window: dict[str, Tensor] = {}
        start = 0
        for part in mine:
            values = forward(self._lm, self._rows, self._keep, part, self.sites).values
            for site, x in values.items():
                if site not in window:
                    window[site] = torch.empty(size, x.shape[1], dtype=x.dtype)
                window[site][start : start + len(x)] = x
            start += len(next(iter(values.values())))
        assert start == size, (start, size)
        return self._of_all_ranks(window) if ranks.size > 1 else window

    def _of_all_ranks(self, window: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Everybody's rows, laid end to end; a rank had none where there are few."""
        ranks = world()
        known = [names for names in ranks.told({site: str(x.dtype) for site, x in window.items()}) if names][0]
        rows = {}
        for site in self.sites:
            none = torch.empty(0, self._lm.width(site), dtype=getattr(torch, known[site].removeprefix("torch.")))
            rows[site] = torch.cat(ranks.parts(window.get(site, none)))
        return rows


def _next_not(beyond: Bool[Tensor, "rows"]) -> Int[Tensor, "rows"]:
    """Every row's own number; where it is ``beyond``, that of the next that is not (after the last the first)."""
    others = (~beyond).nonzero()[:, 0]
    place = torch.bucketize(torch.arange(len(beyond)), others)
    return others[place % len(others)]
