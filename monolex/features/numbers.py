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
    histogram: Int64[NDArray, "listed token_bins"]
    """Active rows by bin of the activation."""
    distinct: Int64[NDArray, "features"]
    """Different tokens of every feature of the block."""


def feature_of(block: Block) -> Int64[NDArray, "entries"]:
    """Feature of every entry, from 0 within the block."""
    return np.repeat(np.arange(len(block.offsets) - 1), np.diff(block.offsets))


def moments(block: Block, feature: Int64[NDArray, "entries"], n_rows: int) -> Moments:
    """Moments over ``n_rows`` rows (paper, C.4: third and fourth about zero)."""
    size = len(block.offsets) - 1
    values = block.values.astype(np.float64)
    square = values * values
    weights = (values, square, square * values, square * square)
    first, second, third, fourth = (np.bincount(feature, weight, size) for weight in weights)
    mean = first / n_rows
    variance = np.maximum(second / n_rows - mean * mean, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew, kurtosis = third / n_rows / variance**1.5, fourth / n_rows / variance**2
    return Moments(np.diff(block.offsets), peaks(block), first, mean, variance, skew, kurtosis)


def peaks(block: Block) -> Float64[NDArray, "features"]:
    """The largest activation of every feature; 0 for one that is never active."""
    found = np.zeros(len(block.offsets) - 1)
    active = np.diff(block.offsets) > 0
    if active.any():
        found[active] = np.maximum.reduceat(block.values, block.offsets[:-1][active])
    return found


def bins(block: Block, feature: Int64[NDArray, "entries"], peak: Float64[NDArray, "features"]) -> NDArray[np.int64]:
    """Bin of every entry's activation, of :data:`BINS` equal ones from 0 to the feature's maximum."""
    share = block.values.astype(np.float64) / peak[feature]
    return np.minimum((share * BINS).astype(np.int64), BINS - 1)


def histogram(feature: NDArray[np.int64], bin_of: NDArray[np.int64], size: int) -> Int64[NDArray, "features bins"]:
    """Entries of every feature by bin."""
    return np.bincount(feature * BINS + bin_of, minlength=size * BINS).reshape(size, BINS)


def token_table(
    block: Block, feature: Int64[NDArray, "entries"], tokens: NDArray[np.int32], bin_of: NDArray[np.int64], keep: int
) -> TokenTable:
    """The ``keep`` tokens with the largest mass of every feature; ``tokens`` has one of each entry, -1 for none."""
    size, vocabulary = len(block.offsets) - 1, int(tokens.max(initial=0)) + 1
    known = np.flatnonzero(tokens >= 0)
    keys = feature[known] * vocabulary + tokens[known]
    found = groups.sums(keys, block.values[known].astype(np.float64), size * vocabulary)
    owner, token = found.keys // vocabulary, found.keys % vocabulary
    order = np.lexsort((-found.mass, owner))
    rank = np.empty(len(order), np.int64)
    rank[order] = groups.places(owner[order], size)
    listed = order[rank[order] < keep]
    slot = np.full(len(found.keys), -1)
    slot[listed] = np.arange(len(listed))
    at = slot[found.inverse]
    counted = at[at >= 0] * TOKEN_BINS + bin_of[known][at >= 0] // (BINS // TOKEN_BINS)
    spread = np.bincount(counted, minlength=len(listed) * TOKEN_BINS).reshape(-1, TOKEN_BINS)
    distinct = np.bincount(owner, minlength=size)
    counts, mass = found.counts[listed], found.mass[listed]
    return TokenTable(owner[listed], rank[listed], token[listed], counts, mass, spread, distinct)


def entry_tokens(block: Block, table: RowTable) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of every entry its token and the token before."""
    return table.token[block.rows], table.before[block.rows]
