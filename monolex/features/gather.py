"""Phase 2: from the codes of a dictionary, feature by feature, to the evidence of every feature in its store.

Works on blocks of neighbouring features, so that memory stays within what is given whatever the width: a block has at
most ``memory / 1024`` active codes (each takes some 100 bytes here; caches like few) and ``memory / 128`` pairs of a
feature with a token, a context or another feature. A feature with more codes makes a block of its own. All loops over
codes are numpy's.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num, Shaped
from numpy.typing import NDArray

from monolex.config import FeaturesConfig
from monolex.features.coactivation import Pairs
from monolex.features.contexts import NAMES, Active, Chooser
from monolex.features.evidence import BINS, TOKEN_BINS
from monolex.features.negative import NegativeSide
from monolex.features.ragged import Picked, largest
from monolex.features.rows import RowTable
from monolex.features.spill import Codes, Entries, blocks
from monolex.features.store_writer import StoreWriter

CODE_BYTES, PAIR_BYTES = 1024, 128
ROUNDING = 1e-13
"""A variance below this part of the mean square is the rounding of its own difference."""


class Gathered(NamedTuple):
    """What the rest of the store needs to know."""

    alive: int
    """Features that were active at all."""
    contexts: Bool[NDArray, "contexts"]
    """Contexts that are referred to."""
    tokens: Bool[NDArray, "vocabulary"]
    """Places in the table's vocabulary that are referred to."""
    coactive_rows: int
    """Rows over which co-activation was counted."""
    summaries: "Summaries"
    """The numbers of all features."""


class Summaries(NamedTuple):
    """Columns of the table ``feature``, without those that come from weights."""

    n_active: Int64[NDArray, "d_sae"]
    fragments: Int64[NDArray, "d_sae"]
    density: Float64[NDArray, "d_sae"]
    max: Float64[NDArray, "d_sae"]
    min: Float64[NDArray, "d_sae"]
    """0 where no code is below zero."""
    mean: Float64[NDArray, "d_sae"]
    variance: Float64[NDArray, "d_sae"]
    skew: Float64[NDArray, "d_sae"]
    """NaN where the variance is 0."""
    kurtosis: Float64[NDArray, "d_sae"]
    """NaN where the variance is 0."""
    mean_active: Float64[NDArray, "d_sae"]
    """NaN where the feature is dead."""
    distinct_tokens: Int64[NDArray, "d_sae"]
    top_token: Int64[NDArray, "d_sae"]
    """-1 where the feature is dead."""
    top_share: Float64[NDArray, "d_sae"]
    """NaN where the feature is dead."""
    histogram: Int64[NDArray, "d_sae bins"]


class Block(NamedTuple):
    """The active codes of some features, with what is asked of every one of them."""

    first: int
    """Number of the first feature."""
    entries: Entries
    """The codes."""
    values: Float64[NDArray, "entries"]
    """Their values in double precision."""
    bins: Int64[NDArray, "entries"]
    """Their bins in the histogram of their feature."""

    @property
    def features(self) -> int:
        """How many features it has."""
        return len(self.entries.offsets) - 1

    def spread(self, of_feature: Shaped[NDArray, "features"]) -> Shaped[NDArray, "entries"]:
        """A number of every feature for each of its codes."""
        return np.repeat(of_feature, np.diff(self.entries.offsets))

    def reduce(self, operation: np.ufunc, values: Shaped[NDArray, "entries"]) -> Shaped[NDArray, "features"]:
        """``operation`` over the codes of each feature; 0 where there are none."""
        out = np.zeros(self.features, values.dtype)
        alive = np.flatnonzero(np.diff(self.entries.offsets))
        if len(alive):
            out[alive] = operation.reduceat(values, self.entries.offsets[alive])
        return out


def gather(
    writer: StoreWriter,
    codes: Codes,
    table: RowTable,
    config: FeaturesConfig,
    advance: Callable[[int], Any] = lambda _: None,
) -> Gathered:
    """Write what the codes of one dictionary say of every feature, all but the rows of ``feature`` themselves.

    ``advance`` is told the features done.
    """
    chooser, counts = Chooser(table, config), codes.counts
    pairs = Pairs(codes.sample, len(counts))
    contexts, tokens = np.zeros(chooser.n_contexts, bool), np.zeros(len(table.vocabulary), bool)
    memory, wide = config.memory_mb * 10**6, max(len(table.vocabulary) + 1, chooser.n_contexts, len(counts))
    parts = []
    for first, last in blocks(counts, memory // CODE_BYTES, min(max(memory // PAIR_BYTES // wide, 1), 2**16 - 1)):
        block = _block(first, codes.block(first, last))
        said = _tokens(writer, block, table, config.tokens, tokens)
        fragments = _contexts(writer, block, table, chooser, contexts)
        smallest = _negative(writer, codes.negative, first, last, contexts)
        parts.append(_summaries(block, len(table), fragments, smallest, *said))
        _coactive(writer, pairs, first, last, config.neighbours)
        advance(last - first)
    summaries = Summaries(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return Gathered(int((counts > 0).sum()), contexts, tokens, pairs.rows, summaries)


def _block(first: int, entries: Entries) -> Block:
    empty = np.zeros(0, np.int64)
    block = Block(first, entries, entries.values.astype(np.float64), empty)
    scaled = block.values / block.spread(block.reduce(np.maximum, block.values))
    scaled *= BINS
    return block._replace(bins=np.minimum(scaled.astype(np.int64), BINS - 1))


def _summaries(
    block: Block,
    rows: int,
    fragments: Int64[NDArray, "features"],
    smallest: Float64[NDArray, "features"],
    distinct: Int64[NDArray, "features"],
    top_token: Int64[NDArray, "features"],
    top_mass: Float64[NDArray, "features"],
) -> Summaries:
    """Numbers of each feature over all ``rows``, those in which it is silent included."""
    n = np.diff(block.entries.offsets)
    squares = block.values * block.values
    total = block.reduce(np.add, block.values)
    mean, square = total / rows, block.reduce(np.add, squares) / rows
    cube, fourth = (block.reduce(np.add, squares * other) / rows for other in (block.values, squares))
    variance = square - mean**2
    variance[variance <= ROUNDING * square] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.where(variance > 0, cube / variance**1.5, np.nan)
        kurtosis = np.where(variance > 0, fourth / variance**2, np.nan)
        mean_active, top_share = total / n, top_mass / total
    places = block.spread(np.arange(block.features) * BINS) + block.bins
    histogram = np.bincount(places, minlength=block.features * BINS).reshape(-1, BINS)
    largest_value = block.reduce(np.maximum, block.entries.values).astype(np.float64)
    moments = (n, fragments, n / rows, largest_value, smallest, mean, variance, skew, kurtosis, mean_active)
    return Summaries(*moments, distinct, top_token, top_share, histogram)


def _tokens(
    writer: StoreWriter, block: Block, table: RowTable, keep: int, referred: Bool[NDArray, "vocabulary"]
) -> tuple[Int64[NDArray, "features"], Int64[NDArray, "features"], Float64[NDArray, "features"]]:
    """Write tables ``token`` and ``before``; returns of each feature how many tokens, the first, and its mass."""
    names, width = table.vocabulary, len(table.vocabulary)
    keys = block.spread(np.arange(block.features) * width) + table.token.take(block.entries.rows)
    mass = np.bincount(keys, block.values, minlength=block.features * width)
    picked, distinct = _heaviest(mass, width, keep)
    # where each code's token is among those picked, and -1 where it is not
    places = np.full(len(mass), -1, np.int32)
    places[picked.place] = np.arange(len(picked.place))
    places = places[keys]
    kept = np.flatnonzero(places >= 0)
    bins = places[kept] * np.int64(TOKEN_BINS) + block.bins[kept] // (BINS // TOKEN_BINS)
    histogram = np.bincount(bins, minlength=len(picked.place) * TOKEN_BINS).reshape(-1, TOKEN_BINS)
    token = picked.place % width
    referred[token] = True
    columns = (block.first + picked.segment, picked.rank, names[token], histogram.sum(1), mass[picked.place])
    writer.insert("token", _with_blobs(columns, histogram), 6)
    top, top_mass = np.full(block.features, -1), np.zeros(block.features)
    best = picked.rank == 0
    top[picked.segment[best]], top_mass[picked.segment[best]] = names[token[best]], mass[picked.place[best]]
    _before(writer, block, table, keep, referred)
    return distinct, top, top_mass


def _before(
    writer: StoreWriter, block: Block, table: RowTable, keep: int, referred: Bool[NDArray, "vocabulary"]
) -> None:
    width = len(table.vocabulary) + 1
    keys = block.spread(np.arange(block.features) * width) + table.before.take(block.entries.rows)
    mass = np.bincount(keys, block.values, minlength=block.features * width)
    mass[width - 1 :: width] = 0
    picked, _ = _heaviest(mass, width, keep)
    counts = np.bincount(keys, minlength=len(mass))[picked.place]
    token = picked.place % width
    referred[token] = True
    columns = (block.first + picked.segment, picked.rank, table.vocabulary[token], counts, mass[picked.place])
    writer.insert("before", _tuples(columns), 5)


def _heaviest(mass: Num[NDArray, "pairs"], width: int, keep: int) -> tuple[Picked, Int64[NDArray, "features"]]:
    """Of each feature's ``width`` masses the ``keep`` largest (``place`` in ``mass``), and how many are above 0."""
    positive = np.flatnonzero(mass > 0)  # of no entry at all ``np.bincount`` makes integers, weights or not
    offsets = np.searchsorted(positive, np.arange(0, len(mass) + 1, width))
    picked = largest(offsets, mass[positive], keep)
    return picked._replace(place=positive[picked.place]), np.diff(offsets)


def _contexts(
    writer: StoreWriter, block: Block, table: RowTable, chooser: Chooser, referred: Bool[NDArray, "contexts"]
) -> Int64[NDArray, "features"]:
    """Write tables ``example`` and ``activation``; returns in how many contexts each feature is active."""
    rows, values, offsets = block.entries.rows, block.entries.values, block.entries.offsets
    context = table.fragment.take(rows)
    new = np.ones(len(rows), bool)
    np.not_equal(context[1:], context[:-1], out=new[1:])
    new[offsets[:-1][np.diff(offsets) > 0]] = True
    begins = np.flatnonzero(new)
    maxima = np.maximum.reduceat(values, begins) if len(begins) else values
    active = Active(np.searchsorted(begins, offsets), context[begins], maxima)
    chosen = chooser.choose(block.first, active)
    referred[chosen.context] = True
    names = np.array(NAMES, object)[chosen.group]
    columns = (block.first + chosen.feature, names, chosen.part, chosen.rank, chosen.context)
    writer.insert("example", _tuples(columns), 5)
    held = np.unique(chosen.active[chosen.active >= 0])
    low, high = begins[held], np.append(begins, len(rows))[held + 1]
    owner = np.searchsorted(active.offsets, held, side="right") - 1
    blobs = _activations(rows, values, table, low, high)
    columns = ((block.first + owner).tolist(), active.context[held].tolist(), *blobs)
    writer.insert("activation", zip(*columns, strict=True), 4)
    return np.diff(active.offsets)


def _negative(
    writer: StoreWriter, negative: NegativeSide | None, first: int, last: int, referred: Bool[NDArray, "contexts"]
) -> Float64[NDArray, "features"]:
    """Write the negative contexts of signed codes and their table ``below``; returns each feature's smallest code."""
    if negative is None:
        return np.zeros(last - first)
    kept = negative.block(first, last)
    referred[kept.context] = True
    feature, context = kept.feature.tolist(), kept.context.tolist()
    rows = zip(feature, kept.rank.tolist(), context, strict=True)
    writer.insert("example", ((number, "negative", 0, *rest) for number, *rest in rows), 5)
    writer.insert("below", zip(feature, context, kept.positions, kept.activations, strict=True), 4)
    return negative.smallest[first:last].astype(np.float64)


def _activations(
    rows: NDArray, values: NDArray, table: RowTable, low: Int64[NDArray, "held"], high: Int64[NDArray, "held"]
) -> tuple[list[bytes], list[bytes]]:
    """Positions and values of the codes ``low`` to ``high`` of each context, as the store holds them."""
    sizes = high - low
    ends = sizes.cumsum()
    at = np.repeat(low - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)
    positions, activations = table.position[rows[at]].tobytes(), values[at].tobytes()
    cuts = list(zip((ends - sizes).tolist(), ends.tolist(), strict=True))
    return [positions[2 * a : 2 * b] for a, b in cuts], [activations[4 * a : 4 * b] for a, b in cuts]


def _coactive(writer: StoreWriter, pairs: Pairs, first: int, last: int, keep: int) -> None:
    partners = pairs.partners(first, last, keep)
    columns = (first + partners.picked.segment, partners.picked.rank, partners.other, partners.both, partners.jaccard)
    writer.insert("coactive", _tuples(columns), 5)


def _tuples(columns: Sequence[NDArray]) -> Iterable[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)


def _with_blobs(columns: Sequence[NDArray], table: Int64[NDArray, "rows bins"]) -> Iterable[tuple[Any, ...]]:
    """Tuples of the columns with the rows of ``table`` as bytes at the end."""
    size, blob = table.shape[1] * table.itemsize, table.tobytes()
    return zip(
        *(c.tolist() for c in columns), (blob[i * size : (i + 1) * size] for i in range(len(table))), strict=True
    )


def optional(column: NDArray) -> list[Any]:
    """Numbers as Python's, None for NaN, and among whole numbers for -1 (no such token)."""
    nothing = -1 if column.dtype.kind == "i" else None
    return [None if value != value or value == nothing else value for value in column.tolist()]
