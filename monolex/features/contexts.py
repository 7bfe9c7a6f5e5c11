"""Which contexts stand for a feature: the strongest, some of every quantile, the weakest, random and silent ones."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from monolex.config import FeaturesConfig
from monolex.features import groups
from monolex.features.rows import RowTable
from monolex.features.spill import Block


class Maxima(NamedTuple):
    """The contexts in which the features of a block are active, by feature and then in document order."""

    feature: Int64[NDArray, "pairs"]
    """Feature within the block."""
    fragment: Int64[NDArray, "pairs"]
    """Context."""
    value: Float32[NDArray, "pairs"]
    """Largest activation of the feature in it."""
    offsets: Int64[NDArray, "pairs+1"]
    """Entries of the block that the pair is made of."""


class Chosen(NamedTuple):
    """Examples of a block's features."""

    group: str
    """One of :data:`~monolex.features.store.GROUPS`."""
    feature: Int64[NDArray, "examples"]
    """Feature within the block."""
    part: Int64[NDArray, "examples"]
    """Quantile, else 0."""
    rank: Int64[NDArray, "examples"]
    """Place in the group."""
    fragment: Int64[NDArray, "examples"]
    """Context."""


def maxima(block: Block, feature: Int64[NDArray, "entries"], table: RowTable) -> Maxima:
    """The largest activation of every feature in every context where it is active."""
    fragment = table.fragment[block.rows].astype(np.int64)
    if len(fragment) == 0:
        return Maxima(feature, fragment, block.values, np.zeros(1, np.int64))
    new = np.append(True, (fragment[1:] != fragment[:-1]) | (feature[1:] != feature[:-1]))
    starts = np.flatnonzero(new)
    values = np.maximum.reduceat(block.values, starts)
    return Maxima(feature[starts], fragment[starts], values, np.append(starts, len(fragment)))


def choose(block: Block, of: Maxima, table: RowTable, config: FeaturesConfig) -> list[Chosen]:
    """All groups of every feature of the block.

    Contexts are ranked by falling maximum, ties in document order; quantile ``i`` of ``n`` contexts by rising maximum
    is ``i·n // q`` to ``(i + 1)·n // q``. What is random is ordered by a hash of seed, feature and context.
    """
    size = len(block.offsets) - 1
    kept = np.arange(len(of.feature))
    if config.disjoint:
        kept = kept[_best_of_documents(of, table)]
    feature, fragment = of.feature[kept], of.fragment[kept]
    order = groups.falling(feature, of.value[kept])
    rank = np.empty(len(order), np.int64)
    rank[order] = groups.places(feature[order], size)
    rising = np.bincount(feature, minlength=size)[feature] - 1 - rank
    part = ((rising + 1) * config.quantiles - 1) // np.maximum(rising + rank + 1, 1)
    draw = groups.scrambled(config.features_seed, feature + block.first, fragment).astype(np.int64)
    other = groups.scrambled(config.features_seed + 1, feature + block.first, fragment).astype(np.int64)
    random = _ranked(feature, draw, size)
    within = _ranked(feature * config.quantiles + part, other, size * config.quantiles)
    nothing = np.zeros(len(feature), np.int64)
    found = [
        _kept("top", feature, nothing, rank, fragment, config.top),
        _kept("quantile", feature, part, within, fragment, config.per_quantile),
        _kept("near_zero", feature, nothing, rising, fragment, config.near_zero),
        _kept("random", feature, nothing, random, fragment, config.random),
    ]
    return [*found, _inactive(block, of, found, table, config)]


def _kept(
    group: str, feature: NDArray, part: NDArray, rank: NDArray[np.int64], fragment: NDArray, count: int
) -> Chosen:
    chosen = np.flatnonzero(rank < count)
    return Chosen(group, feature[chosen], part[chosen], rank[chosen], fragment[chosen])


def _ranked(group: NDArray[np.int64], draw: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Place of every entry in its group by rising ``draw`` (32 bits), ties in the order given."""
    order = np.argsort((group << 32) | draw, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = groups.places(group[order], size)
    return rank


def _best_of_documents(of: Maxima, table: RowTable) -> NDArray[np.bool_]:
    """The strongest context of every document for every feature, the earliest of equals."""
    doc = table.fragments.doc[of.fragment].astype(np.int64)
    key = of.feature * (int(table.fragments.doc.max()) + 1) + doc
    order = np.lexsort((-of.value, key))
    return groups.first_of_each(key, order)


def _inactive(block: Block, of: Maxima, active: list[Chosen], table: RowTable, config: FeaturesConfig) -> Chosen:
    """Contexts in which a feature is silent, the first of a random order of its own: seen to be so, not presumed."""
    size, count = len(block.offsets) - 1, len(table.used)
    every = groups.scrambled(config.features_seed + 2, np.arange(count))
    shuffled = table.used[np.argsort(every, kind="stable")].astype(np.int64)
    begin = groups.scrambled(config.features_seed + 3, np.arange(size) + block.first).astype(np.int64) % max(count, 1)
    width = len(table.fragments.doc)
    taken = of.feature * width + of.fragment
    stride = int(table.fragments.doc.max(initial=0)) + 1
    used = np.concatenate([one.feature * stride + table.fragments.doc[one.fragment] for one in active])
    used = np.unique(used) if config.disjoint else np.zeros(0, np.int64)
    missing, reach = np.arange(size), min(max(4 * config.inactive, 16), count)
    nothing = np.zeros(0, np.int64)
    found = [(nothing, nothing)]
    while len(missing) and config.inactive:
        candidates = shuffled[(begin[missing, None] + np.arange(reach)) % count]
        free = ~_among(missing[:, None] * width + candidates, taken)
        if config.disjoint:
            free &= _first_of_documents(missing, candidates, free, table, used, stride)
        rank = np.cumsum(free, 1) - 1
        done = (rank[:, -1] + 1 >= config.inactive) | (reach >= count)
        row, column = np.nonzero(free & (rank < config.inactive) & done[:, None])
        found.append((missing[row], candidates[row, column]))
        missing, reach = missing[~done], min(4 * reach, count)
    feature, fragment = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(feature, kind="stable")
    feature, fragment = feature[order], fragment[order]
    return Chosen("inactive", feature, np.zeros_like(feature), groups.places(feature, size), fragment)


def _among(keys: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which ``keys`` are among the ascending ``known``."""
    if len(known) == 0:
        return np.zeros(keys.shape, bool)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[at] == keys


def _first_of_documents(
    features: NDArray, candidates: NDArray, free: NDArray, table: RowTable, used: NDArray, stride: int
) -> NDArray[np.bool_]:
    """Of every row's free candidates the first of each document, of documents that no active context is from."""
    doc = table.fragments.doc[candidates].astype(np.int64)
    first = free & ~_among(features[:, None] * stride + doc, used)
    for row in range(len(features)):
        at = np.flatnonzero(first[row])
        _, early = np.unique(doc[row, at], return_index=True)
        first[row] = False
        first[row, at[early]] = True
    return first
