"""Small vectorised tools over sorted groups: the largest of each group, places within a group, sums by key."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt32
from numpy.typing import NDArray

DENSE = 2**22
"""Keys below this, or below twice the number of entries, are counted in a table of all keys instead of sorted."""


class Sums(NamedTuple):
    """Entries summed by key."""

    keys: Int64[NDArray, "groups"]
    """The keys that occur, ascending."""
    counts: Int64[NDArray, "groups"]
    """Entries of each."""
    mass: Float64[NDArray, "groups"]
    """Sum of their values, in float64."""


def sums(keys: Int64[NDArray, "entries"], values: Float32[NDArray, "entries"], size: int) -> Sums:
    """Entries by key, keys being below ``size``."""
    if size <= max(DENSE, 2 * len(keys)):
        counts = np.bincount(keys, minlength=size)
        present = np.flatnonzero(counts)
        return Sums(present, counts[present], np.bincount(keys, values, size)[present])
    present, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return Sums(present, counts, np.bincount(inverse, values, len(present)))


def find(keys: Int64[NDArray, "entries"], among: Int64[NDArray, "known"], size: int) -> Int64[NDArray, "entries"]:
    """Place of every key ``among`` different ones, -1 where it is none of them; all are below ``size``."""
    if size <= max(DENSE, 2 * len(keys)):
        table = np.full(size, -1, np.int32)
        table[among] = np.arange(len(among))
        return table[keys]
    order = np.argsort(among)
    at = np.minimum(np.searchsorted(among[order], keys), len(among) - 1)
    return np.where(among[order][at] == keys, order[at], -1) if len(among) else np.full(len(keys), -1)


def places(groups: Int64[NDArray, "entries"], size: int) -> Int64[NDArray, "entries"]:
    """Place of every entry within its group, from 0; ``groups`` ascend."""
    counts = np.bincount(groups, minlength=size)
    return np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)


def falling(groups: Int64[NDArray, "entries"], values: Float32[NDArray, "entries"]) -> Int64[NDArray, "entries"]:
    """Order by group, then falling value (above zero), then the order given."""
    # Positive floats order as their bits do, so that one stable sort of integers serves.
    bits = np.ascontiguousarray(values, np.float32).view(np.int32).astype(np.int64)
    return np.argsort((groups << 32) | (0x7FFFFFFF - bits), kind="stable")


def first_of_each(groups: Int64[NDArray, "entries"], order: Int64[NDArray, "entries"]) -> Bool[NDArray, "entries"]:
    """Which entries come first in their group when taken in ``order``, which keeps groups together."""
    sorted_groups = groups[order]
    first = np.zeros(len(groups), bool)
    first[order[np.append(True, sorted_groups[1:] != sorted_groups[:-1])[: len(order)]]] = True
    return first


def scrambled(*parts: NDArray | int) -> UInt32[NDArray, "entries"]:
    """A hash of some integers as 32 random bits: the same on every machine (the finaliser of MurmurHash3, 64 bits)."""
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for part in parts:
            state = state ^ np.asarray(part).astype(np.uint64)
            state = state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x7F4A7C15)
            for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
                state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
            state = state ^ (state >> np.uint64(33))
    return (state >> np.uint64(32)).astype(np.uint32)
