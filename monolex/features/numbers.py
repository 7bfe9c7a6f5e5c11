"""Numbers of every feature of a block: moments, histogram, and what tokens have to do with it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from monolex.features import groups
from monolex.features.rows import RowTable
from monolex.features.spill import Block
from monolex.features.store import BINS, TOKEN_BINS


class Moments(NamedTuple):
    """Moments of a block's features over all rows; infinite or NaN where a denominator is zero."""

    n_active: Int64[NDArray, "features"]
    """Rows above zero."""
    peak: Float64[NDArray, "features"]
    """Largest activation; 0 for none."""
    mass: Float64[NDArray, "features"]
    """Sum of the activations."""
    mean: Float64[NDArray, "features"]
    """Mean over all rows."""
    variance: Float64[NDArray, "features"]
    """Mean square less squared mean."""
    skew: Float64[NDArray, "features"]
    """Third moment about zero over variance^1.5."""
    kurtosis: Float64[NDArray, "features"]
    """Fourth moment about zero over variance²."""


class TokenTable(NamedTuple):
    """The tokens with most of a feature's activation, by feature and rank."""

    feature: Int64[NDArray, "listed"]
    """Feature within the block."""
    rank: Int64[NDArray, "listed"]
    """Place by falling mass, ties by token."""
    token: Int64[NDArray, "listed"]
    """Token id."""
    n_active: Int64[NDArray, "listed"]
    """Active rows."""
    mass: Float64[NDArray, "listed"]
    """Sum of activations."""
    distinct: Int64[NDArray, "features"]
    """Different tokens of every feature of the block."""


class Listed(NamedTuple):
    """How to find the entries of a token table."""

    keys: Int64[NDArray, "entries"]
    """Feature and token of every entry that has one, as one number."""
    chosen: Int64[NDArray, "listed"]
    """Those of the table's lines."""
    size: int
    """All are below this."""


def feature_of(block: Block) -> Int64[NDArray, "entries"]:
    """Feature of every entry, from 0 within the block."""
    return np.repeat(np.arange(len(block.offsets) - 1), np.diff(block.offsets))


def moments(block: Block, n_rows: int) -> Moments:
    """Moments over ``n_rows`` rows (paper, C.4: third and fourth about zero)."""
    values = block.values.astype(np.float64)
    square = values * values
    first, second = _by_feature(np.add, values, block), _by_feature(np.add, square, block)
    values *= square
    third = _by_feature(np.add, values, block)
    square *= square
    fourth = _by_feature(np.add, square, block)
    mean = first / n_rows
    variance = np.maximum(second / n_rows - mean * mean, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew, kurtosis = third / n_rows / variance**1.5, fourth / n_rows / variance**2
    peak = _by_feature(np.maximum, block.values, block)
    return Moments(np.diff(block.offsets), peak, first, mean, variance, skew, kurtosis)


def _by_feature(what: np.ufunc, values: NDArray, block: Block) -> Float64[NDArray, "features"]:
    """Entries of each feature reduced to one number; 0 for a feature without any."""
    found = np.zeros(len(block.offsets) - 1)
    active = np.diff(block.offsets) > 0
    if active.any():
        found[active] = what.reduceat(values, block.offsets[:-1][active])
    return found


def bins(block: Block, feature: Int64[NDArray, "entries"], peak: Float64[NDArray, "features"]) -> NDArray[np.int64]:
    """Bin of every entry's activation, of :data:`BINS` equal ones from 0 to the feature's maximum."""
    share = block.values.astype(np.float64) / peak[feature]
    return np.minimum((share * BINS).astype(np.int64), BINS - 1)


def histogram(feature: NDArray[np.int64], bin_of: NDArray[np.int64], size: int) -> Int64[NDArray, "features bins"]:
    """Entries of every feature by bin."""
    return np.bincount(feature * BINS + bin_of, minlength=size * BINS).reshape(size, BINS)


def token_table(
    block: Block, feature: Int64[NDArray, "entries"], tokens: NDArray[np.int32], keep: int
) -> tuple[TokenTable, Listed]:
    """The ``keep`` tokens with the largest mass of every feature; ``tokens`` has one of each entry, -1 for none.

    With it how to find the entries of what is listed.
    """
    size, vocabulary = len(block.offsets) - 1, int(tokens.max(initial=0)) + 1
    keys, values = feature * vocabulary + tokens, block.values
    if tokens.min(initial=0) < 0:
        known = tokens >= 0
        keys, values = keys[known], values[known]
    found = groups.sums(keys, values, size * vocabulary)
    owner, token = found.keys // vocabulary, found.keys % vocabulary
    listed = _heaviest(owner, found.mass, size, keep)
    rank = groups.places(owner[listed], size)
    counts, mass = found.counts[listed], found.mass[listed]
    distinct = np.bincount(owner, minlength=size)
    return TokenTable(owner[listed], rank, token[listed], counts, mass, distinct), Listed(
        keys, found.keys[listed], size * vocabulary
    )


def _heaviest(owner: NDArray[np.int64], mass: NDArray[np.float64], size: int, keep: int) -> NDArray[np.int64]:
    """The ``keep`` largest of every owner by falling mass, ties in order; owners ascend.

    Single precision finds the few that can be among them; those are ranked exactly.
    """
    rough = mass.astype(np.float32)
    order = groups.falling(owner, rough)
    place = groups.places(owner[order], size)
    least = np.zeros(size, np.float32)
    last = order[place == keep - 1]
    least[owner[last]] = rough[last]
    near = np.flatnonzero(rough >= least[owner])
    near = near[np.lexsort((-mass[near], owner[near]))]
    return near[groups.places(owner[near], size) < keep]


def token_histograms(listed: Listed, bin_of: NDArray[np.int64]) -> Int64[NDArray, "listed token_bins"]:
    """Entries of what is listed by bin of the activation; every entry must have a token."""
    line = groups.find(listed.keys, listed.chosen, listed.size)
    counted = np.flatnonzero(line >= 0)
    slots = line[counted] * TOKEN_BINS + bin_of[counted] // (BINS // TOKEN_BINS)
    return np.bincount(slots, minlength=len(listed.chosen) * TOKEN_BINS).reshape(-1, TOKEN_BINS)


def entry_tokens(block: Block, table: RowTable) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of every entry its token and the token before."""
    return table.token[block.rows], table.before[block.rows]
