"""Shuffled batches from windows, whatever a window is loaded from.

An epoch is a sequence of windows, a window an order of the rows it loads; a batch is a run of consecutive rows of that
sequence. Everything follows from the seed, the epoch and the number of the window, so batch ``i`` can be made without
the batches before it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex.config import require


class Mixing(NamedTuple):
    """How well shuffled batches mix documents."""

    distinct: float
    """Mean number of distinct documents that a batch draws from."""
    ideal: float
    """Expected number if a batch were a uniform draw from all rows."""
    ratio: float
    """`distinct / ideal`; monolex aims for at least 0.9."""


class Window(NamedTuple):
    """A part of an epoch that is loaded at once."""

    epoch: int
    """Which pass over the rows."""
    source: Int[Tensor, "items"]
    """What to load: numbers of stored rows, or of packed rows of the corpus."""
    order: Int[Tensor, "rows"]
    """Order in which the loaded rows are served; rows already served before a resume are left out."""


Loader = Callable[[Tensor], dict[str, Tensor]]
"""From a window's source to its rows, by site."""
Loaded = tuple[Window, dict[str, Tensor]]
"""A window and its rows."""


def steps(n_rows: int, batch_size: int, window_rows: int) -> int:
    """Batches in an epoch.

    Raises:
        UserError: fewer rows, or a smaller window, than a batch.
    """
    require(window_rows >= batch_size, f"buffer_rows = {window_rows} is below batch_size = {batch_size}; raise it")
    require(n_rows >= batch_size, f"batch_size = {batch_size} is above the {n_rows} rows there are; lower it")
    return n_rows // batch_size


def loaded(
    windows: Callable[[int, int], Iterator[Window]], load: Loader, start_step: int, per_epoch: int, batch_size: int
) -> Iterator[Loaded]:
    """Windows of all epochs from ``start_step`` on with what they load.

    ``windows(epoch, skip)`` gives the windows of an epoch without the first ``skip`` rows.
    """
    epoch, step = divmod(start_step, per_epoch)
    while True:
        for window in windows(epoch, step * batch_size):
            yield window, load(window.source)
        epoch, step = epoch + 1, 0


def ahead(loaded: Iterator[Loaded]) -> Iterator[Loaded]:
    """The same items, each next one made in a thread while the current one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, loaded)
        while True:
            item = coming.result()
            coming = pool.submit(next, loaded)
            yield item


def cut(loaded: Iterator[Loaded], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of consecutive rows in the windows' order; a batch may span windows but not epochs."""
    rest: dict[str, Tensor] = {}
    last = -1
    for window, data in loaded:
        rest, last = (rest if window.epoch == last else {}), window.epoch
        begin, missing = 0, batch_size - len(next(iter(rest.values()), ()))
        for end in range(missing, len(window.order) + 1, batch_size):
            yield _join(rest, data, window.order[begin:end])
            rest, begin = {}, end
        if begin < len(window.order):
            rest = _join(rest, data, window.order[begin:])


def _join(rest: dict[str, Tensor], data: dict[str, Tensor], rows: Int[Tensor, "rows"]) -> dict[str, Tensor]:
    taken = {site: values[rows] for site, values in data.items()}
    return {site: torch.cat([rest[site], values]) for site, values in taken.items()} if rest else taken


def spread(counts: Int[Tensor, "items"], generator: torch.Generator) -> Int[Tensor, "rows"]:
    """A random order of ``counts.sum()`` rows, stored item after item, in which every item is spread evenly.

    Any run of ``n`` rows holds about ``n * counts[i] / counts.sum()`` rows of item ``i``; which of them is random.
    """
    item = torch.repeat_interleave(counts)
    grouped = (item + torch.rand(len(item), generator=generator, dtype=torch.float64)).argsort()
    rank = torch.empty_like(grouped)
    rank[grouped] = torch.arange(len(item)) - (counts.cumsum(0) - counts)[item]
    return ((rank + torch.rand(len(item), generator=generator, dtype=torch.float64)) / counts[item]).argsort()


def floats(batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Float[Tensor, "batch d_in"]]]:
    """The same batches in float32."""
    for batch in batches:
        yield {site: values.float() for site, values in batch.items()}


def mixing(served: Iterator[Tensor], docs: Int[Tensor, "rows"], batch_size: int, batches: int) -> Mixing:
    """Documents in the first ``batches`` of ``served`` (at most an epoch), where all rows' documents are ``docs``."""
    count = min(batches, len(docs) // batch_size)
    distinct = sum(len(next(served).unique()) for _ in range(count)) / count
    # Without replacement: a document of m rows is missed with probability C(n - m, batch) / C(n, batch).
    n, sizes = len(docs), docs.unique(return_counts=True)[1].double()
    others = n - sizes
    left = torch.lgamma(others + 1) - torch.lgamma((others - batch_size).clamp(min=0) + 1)
    every = torch.lgamma(torch.tensor(n + 1.0).double()) - torch.lgamma(torch.tensor(n - batch_size + 1.0).double())
    missed = torch.where(others >= batch_size, (left - every).exp(), 0.0)
    ideal = float((1 - missed).sum())
    return Mixing(distinct, ideal, distinct / ideal)
