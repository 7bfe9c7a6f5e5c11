"""How well dictionaries reconstruct held-out activations, how sparsely, and which features ever fire.

All dictionaries of a site share one pass over the rows in document order. What is kept is one sum a document and one
count a feature: enough for every number here and for its bootstrap. The variance needs the mean before it is known, so
each document keeps its sum of rows beside its sum of squares, both relative to the first chunk's mean (no
cancellation where activations have a large common offset).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex.activations.reader import Reader
from monolex.config import EvalConfig
from monolex.dictionaries.base import Dictionary
from monolex.evals.doubts import marked
from monolex.evals.intervals import exact, over_documents, over_features
from monolex.runtime import log
from monolex.stats import Estimate, not_applicable

PAPER_ALIVE = 10
BLOCK = 256
"""Rows that are read together where only some of a split are evaluated."""
CODES_AT_ONCE = 2**25

Advance = Callable[[float], object]


class Reconstruction(NamedTuple):
    """Sums a document and counts a feature over the evaluated rows; :func:`metrics` turns them into numbers."""

    rows: int
    """Evaluated rows."""
    mean: Float[Tensor, "d_out"]
    """Mean activation x̄ of the evaluated rows; of a transcoder, x here and below is what it reconstructs."""
    counts: Int[Tensor, "d_sae"]
    """Rows in which each feature is not zero."""
    doc_rows: Float[Tensor, "docs"]
    """Rows of each document."""
    spread: Float[Tensor, "docs"]
    """Σ‖x − x̄‖² of each document."""
    error: Float[Tensor, "docs"]
    """Σ‖x − x̂‖² of each document."""
    nonzero: Float[Tensor, "docs"]
    """Non-zero codes of each document."""
    measured: Float[Tensor, "docs"]
    """Rows of each document with ‖x‖ > 0, over which the next two are summed."""
    norm_ratio: Float[Tensor, "docs"]
    """Σ‖x̂‖/‖x‖ of each document."""
    cosine: Float[Tensor, "docs"]
    """Σ cos(x, x̂) of each document (0 where x̂ = 0)."""


def reconstruction(dictionary: Dictionary, reader: Reader, rows: int) -> Reconstruction:
    """:func:`reconstructions` of one dictionary."""
    return reconstructions({"": dictionary}, reader, rows)[""]


@torch.no_grad()
def reconstructions(
    dictionaries: Mapping[str, Dictionary],
    reader: Reader,
    rows: int,
    *,
    target: Reader | None = None,
    device: torch.device | str = "cpu",
    chunk: int = 8192,
    advance: Advance = lambda _: None,
) -> dict[str, Reconstruction]:
    """Statistics of every dictionary over ``rows`` rows of ``reader``, each read once.

    The rows are blocks of neighbours spread evenly over the split, so that they come from as many documents as they
    can. ``dictionaries`` lie on ``device``; transcoders reconstruct the same rows of ``target``; ``advance`` is told
    the share of the rows done.
    """
    if rows > reader.n_rows:
        log.warning(
            "rows = %d asked for, but %s holds %d held-out rows: all are used", rows, reader.site, reader.n_rows
        )
    rows = min(rows, reader.n_rows)
    assert rows > 0, f"no rows to evaluate at {reader.site}"
    blocks = list(spread_blocks(rows, reader.n_rows, BLOCK if rows < reader.n_rows else chunk))
    ids = torch.cat([reader.docs(start, stop) for start, stop in blocks])
    documents, index = ids.long().unique(return_inverse=True)
    spread = _Spread(len(documents), (target or reader).d_in)
    sums = {name: torch.zeros(5, len(documents), dtype=torch.float64) for name in dictionaries}
    counts = {name: torch.zeros(d.d_sae, dtype=torch.int64, device=device) for name, d in dictionaries.items()}
    for (start, stop), docs in zip(blocks, index.split([stop - start for start, stop in blocks]), strict=True):
        x = reader.read(start, stop)
        y = target.read(start, stop) if target else x
        spread.add(y, docs)
        x, y = x.to(device), y.to(device)
        for name, dictionary in dictionaries.items():
            sums[name].index_add_(1, docs, _row_sums(dictionary, x, y, counts[name]).double().cpu())
        advance(len(x) / rows)
    mean, spreads = spread.result()
    doc_rows = torch.bincount(index, minlength=len(documents)).double()
    return {
        name: Reconstruction(rows, mean, counts[name].cpu(), doc_rows, spreads, *sums[name]) for name in dictionaries
    }


def spread_blocks(rows: int, n_rows: int, size: int) -> Iterator[tuple[int, int]]:
    """``rows`` of ``n_rows`` rows as (start, stop) blocks of at most ``size``, evenly apart, in order."""
    count = -(-rows // size)
    for number in range(count):
        taken = number * size
        start = taken + (n_rows - rows) * number // max(count - 1, 1)
        yield start, start + min(size, rows - taken)


def row_slices(rows: int, d_sae: int) -> Iterator[slice]:
    """Slices of ``rows`` rows whose codes, as a dense matrix, stay within :data:`CODES_AT_ONCE` numbers."""
    step = max(1, CODES_AT_ONCE // d_sae)
    return (slice(start, start + step) for start in range(0, rows, step))


def metrics(result: Reconstruction, config: EvalConfig) -> dict[str, Estimate]:
    """The numbers of one dictionary.

    ``fvu`` = Σ‖x−x̂‖²/Σ‖x−x̄‖², ``l0`` (non-zeros a row), ``norm_ratio`` (mean ‖x̂‖/‖x‖: below 1 is shrinkage) and
    ``cosine``, over documents; ``density`` (fraction of rows in which a feature fires), ``alive_paper`` (fraction of
    features with more than 10 activations in the ``rows`` evaluated: the paper's rule), ``alive`` (at least one) and
    ``dead`` (none), over features.
    """
    return {
        "rows": exact(result.rows, len(result.doc_rows), "documents", "a count"),
        "fvu": marked(over_documents(result.error, result.spread, config)),
        "l0": over_documents(result.nonzero, result.doc_rows, config),
        "norm_ratio": over_documents(result.norm_ratio, result.measured, config),
        "cosine": over_documents(result.cosine, result.measured, config),
        "density": over_features(result.counts.double() / result.rows, config),
        "alive": over_features(result.counts > 0, config),
        "alive_paper": over_features(result.counts > PAPER_ALIVE, config),
        "dead": over_features(result.counts == 0, config),
    }


def negative_bias(dictionary: Dictionary, config: EvalConfig) -> Estimate:
    """Fraction of encoder biases below zero (the paper, App. G: "in practice always")."""
    bias = dictionary.weights["b_enc"]
    if not bias.any():
        return not_applicable("every encoder bias is zero")
    return over_features((bias < 0).cpu(), config)


class _Spread:
    """Σ‖x − x̄‖² a document, streamed in float64 relative to the first chunk's mean."""

    def __init__(self, documents: int, d_in: int) -> None:
        self._origin: Tensor | None = None
        self._rows = torch.zeros(documents, dtype=torch.float64)
        self._sums = torch.zeros(documents, d_in, dtype=torch.float64)
        self._squares = torch.zeros(documents, dtype=torch.float64)

    def add(self, x: Float[Tensor, "rows d_in"], docs: Int[Tensor, "rows"]) -> None:
        x = x.double()
        if self._origin is None:
            self._origin = x.mean(0)
        x = x - self._origin
        self._rows.index_add_(0, docs, torch.ones(len(docs), dtype=torch.float64))
        self._sums.index_add_(0, docs, x)
        self._squares.index_add_(0, docs, x.square().sum(1))

    def result(self) -> tuple[Float[Tensor, "d_in"], Float[Tensor, "docs"]]:
        assert self._origin is not None
        shift = self._sums.sum(0) / self._rows.sum()
        spread = self._squares - 2 * self._sums @ shift + self._rows * shift.square().sum()
        return (self._origin + shift).float(), spread.clamp_min(0)


def _row_sums(
    dictionary: Dictionary,
    x: Float[Tensor, "rows d_in"],
    y: Float[Tensor, "rows d_out"],
    counts: Int[Tensor, "d_sae"],
) -> Float[Tensor, "5 rows"]:
    """Error, non-zeros, whether ‖y‖ > 0, ‖ŷ‖/‖y‖ and cosine of every row; adds to ``counts``."""
    parts = row_slices(len(x), dictionary.d_sae)
    return torch.cat([_slice_sums(dictionary, x[part], y[part], counts) for part in parts], 1)


def _slice_sums(dictionary: Dictionary, x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    codes = dictionary.encode(x)
    active = codes != 0
    counts += active.sum(0)
    y_hat = dictionary.decode(codes, x)
    norm, norm_hat = y.norm(dim=1), y_hat.norm(dim=1)
    measured = norm > 0
    safe = norm.where(measured, 1)
    cosine = (y * y_hat).sum(1) / (safe * norm_hat).clamp_min(torch.finfo(norm.dtype).tiny)
    sums = ((y - y_hat).square().sum(1), active.sum(1), measured, measured * norm_hat / safe, measured * cosine)
    return torch.stack([part.to(y_hat.dtype) for part in sums])
