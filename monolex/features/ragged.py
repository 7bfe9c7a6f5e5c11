"""Order within many ragged segments of one array at once: the k largest of each, and all by rank."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Shaped
from numpy.typing import NDArray

SPREAD = 4
"""Pieces a segment is cut into to bound its k-th largest from below, times k."""
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Picked(NamedTuple):
    """Elements picked from segments, by segment and rank."""

    place: Int64[NDArray, "picked"]
    """Place in the whole array."""
    segment: Int64[NDArray, "picked"]
    """Segment; ascends."""
    rank: Int64[NDArray, "picked"]
    """Rank in the segment, from 0."""


def largest(offsets: Int64[NDArray, "segments_plus_1"], keys: Shaped[NDArray, "n"], k: int) -> Picked:
    """The ``k`` largest of every segment, falling; equal ones in the order in which they stand.

    Segment s is ``keys[offsets[s]:offsets[s + 1]]``. A lower bound of its k-th largest, the k-th largest of the maxima
    of its pieces, leaves few elements to sort.
    """
    sizes = np.diff(offsets)
    if k == 0 or len(keys) == 0:
        return Picked(*(np.zeros(0, np.int64) for _ in range(3)))
    pieces = SPREAD * k
    long = np.flatnonzero(sizes > pieces)
    bounds = np.full(len(sizes), keys.min())
    if len(long):
        edges = offsets[long, None] + sizes[long, None] * np.arange(pieces + 1) // pieces
        flat = edges.reshape(-1)
        maxima = np.maximum.reduceat(keys, flat[:-1] if flat[-1] == len(keys) else flat)
        maxima = np.resize(maxima, edges.shape)[:, :-1]
        bounds[long] = np.partition(maxima, pieces - k, axis=1)[:, pieces - k]
    left = np.flatnonzero(keys >= np.repeat(bounds, sizes))
    segment = np.searchsorted(offsets, left, side="right") - 1
    order = np.lexsort((-keys[left], segment))
    left, segment = left[order], segment[order]
    rank = np.arange(len(left)) - np.searchsorted(segment, segment)
    kept = rank < k
    return Picked(left[kept], segment[kept], rank[kept])


def largest_of_rows(matrix: Shaped[NDArray, "rows columns"], k: int) -> Picked:
    """:func:`largest` of every row; ``place`` is the column."""
    rows, columns = matrix.shape
    picked = largest(np.arange(rows + 1) * columns, matrix.reshape(-1), k)
    return picked._replace(place=picked.place - picked.segment * columns)


def ascending(offsets: Int64[NDArray, "segments_plus_1"], keys: Float32[NDArray, "n"]) -> Int64[NDArray, "n"]:
    """Positive ``keys`` of every segment by rising value, equal ones in the order in which they stand, as places.

    There are at most 65,535 segments: the sorts are one of numbers that hold value and place and one by bytes.
    """
    assert len(offsets) <= 2**16, len(offsets)
    bits = np.ascontiguousarray(keys).view(np.int32).astype(np.int64)
    place = np.sort(bits << 32 | np.arange(len(keys))) & (2**32 - 1)
    segment = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint16), np.diff(offsets))
    return place[np.argsort(segment[place], kind="stable")]


def drawn(seed: int, purpose: int, feature: Int64[NDArray, "n"], number: NDArray | int = 0) -> Int64[NDArray, "n"]:
    """A random number below 2^62 for every pair of ``feature`` and ``number``, by hashing (splitmix64)."""
    with np.errstate(over="ignore"):
        start = _mixed(np.array([seed % 2**63], np.uint64) * GOLDEN + np.uint64(purpose))
        base = _mixed(feature.astype(np.uint64) * GOLDEN + start)
        mixed = _mixed(base + np.asarray(number).astype(np.uint64) * GOLDEN)
    return (mixed >> np.uint64(2)).astype(np.int64)


def _mixed(x: NDArray) -> NDArray:
    x = (x ^ (x >> np.uint64(30))) * MIX[0]
    x = (x ^ (x >> np.uint64(27))) * MIX[1]
    return x ^ (x >> np.uint64(31))
