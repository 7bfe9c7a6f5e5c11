"""Kernels that choose the active codes of a training step for CPUs, compiled by numba.

They work on the bits of pre-activations as signed integers, for those of positive numbers compare like them.
"""

import numba as nb
import numpy as np

from monolex.training.sparse.kernels import inlined, parallel, serial

GROUP = 32
"""How many entries of a row are looked at through their maximum first."""


@inlined
def _kth(bits, count, k, top_bit):
    """The k-th largest of the first ``count`` of some non-negative integers: found bit by bit, for counting is fast."""
    low = bits.dtype.type(0)
    for bit in range(top_bit, -1, -1):
        tried = bits.dtype.type(low | bits.dtype.type(1 << bit))
        reached = 0
        for i in range(count):
            reached += bits[i] >= tried
        if reached >= k:
            low = tried
    return low


@inlined
def _maxima(row, groups, top):
    """Largest entry of every group, at least 0; group q is q, q + groups, q + 2 groups, …, along which loops go."""
    whole = len(row) // groups
    for q in range(groups):
        top[q] = 0
    for i in range(whole):
        part = row[i * groups : (i + 1) * groups]  # a loop of one length, which is what vectorises
        for q in range(groups):
            top[q] = part[q] if part[q] > top[q] else top[q]
    for q in range(len(row) - whole * groups):
        x = row[whole * groups + q]
        top[q] = x if x > top[q] else top[q]


@inlined
def _reaching(row, groups, top, low, values, places):
    """Write the entries that are at least ``low`` and say how many; only groups that reach it are read."""
    whole, count = len(row) // groups, 0
    for q in range(groups):
        if top[q] >= low:
            for i in range(whole + (q < len(row) - whole * groups)):
                place = i * groups + q
                x = row[place]
                values[count] = x
                places[count] = place
                count += x >= low
    return count


@parallel
def topk(bits, k, top_bit, shift, counts, features, values):
    """Of every row the ``k`` largest positive entries, of equal ones at the end any; a row has ``k`` slots.

    ``bits`` are the bits of the pre-activations as signed integers: those of positive numbers compare like them.
    """
    rows, n = bits.shape
    groups = max(n // GROUP, min(n, 2 * k))
    for b in nb.prange(rows):
        row = bits[b]
        top = np.empty(groups, bits.dtype)
        _maxima(row, groups, top)
        least = bits.dtype.type(1)
        low = max(_kth(top, groups, k, top_bit), least) if groups >= k else least
        candidates, places = np.empty(n + 1, bits.dtype), np.empty(n + 1, np.int32)
        reached = _reaching(row, groups, top, low, candidates, places)
        cut = _kth(candidates, reached, k, top_bit) if reached > k else least
        at, above = b * k, 0
        for i in range(reached):
            above += candidates[i] > cut
        ties = k - above
        for i in range(reached):
            x = candidates[i]
            if x > cut or (x == cut and ties > 0):
                ties -= x == cut
                features[at] = places[i]
                values[at] = np.uint32(x) << shift
                at += 1
        counts[b] = at - b * k


@parallel
def maxima(bits, groups, out):
    """Of every row the largest entry of every group."""
    for b in nb.prange(bits.shape[0]):
        _maxima(bits[b], groups, out[b])


@serial
def kth(bits, k, top_bit):
    """The k-th largest of many non-negative integers; threads would wait for each other at every bit."""
    return _kth(bits, len(bits), k, top_bit)


@parallel
def count_reaching(bits, groups, top, low, counts):
    """How many entries of every row are at least ``low``."""
    rows, n = bits.shape
    for b in nb.prange(rows):
        count = 0
        for q in range(groups):
            if top[b, q] >= low:
                for place in range(q, n, groups):
                    count += bits[b, place] >= low
        counts[b] = count


@parallel
def gather_reaching(bits, groups, top, low, starts, places, candidates):
    """Write the entries of every row that are at least ``low`` from ``starts`` on."""
    rows, n = bits.shape
    for b in nb.prange(rows):
        at = starts[b]
        for q in range(groups):
            if top[b, q] >= low:
                for place in range(q, n, groups):
                    if bits[b, place] >= low:
                        candidates[at] = bits[b, place]
                        places[at] = place
                        at += 1


@serial
def cut_rows(candidates, cut, ties, shift, codes, values):
    """Of ``candidates``, whose features ``codes`` have, keep those above ``cut`` and the first ``ties`` that equal it.

    They move up, and ``values`` takes their bits. Says how many there are.
    """
    starts, counts, features, _ = codes
    at = 0
    for b in range(len(counts)):
        begin, end = starts[b], starts[b] + counts[b]
        starts[b] = at
        for i in range(begin, end):
            x = candidates[i]
            if x > cut or (x == cut and ties > 0):
                ties -= x == cut
                features[at] = features[i]
                values[at] = np.uint32(x) << shift
                at += 1
        counts[b] = at - starts[b]
    return at


@parallel
def reaching_own(bits, groups, low, hits, counts):
    """How many entries of every row are at least their column's ``low``, and which groups have any."""
    rows, n = bits.shape
    for b in nb.prange(rows):
        for q in range(groups):
            hits[b, q] = 0
        count = 0
        for base in range(0, n, groups):
            for q in range(min(groups, n - base)):
                reached = bits[b, base + q] >= low[base + q]
                hits[b, q] |= reached
                count += reached
        counts[b] = count


@parallel
def gather_own(bits, groups, low, hits, shift, codes):
    """Write features and values of the entries of every row that are at least their column's ``low``."""
    starts, _, features, values = codes
    rows, n = bits.shape
    for b in nb.prange(rows):
        at = starts[b]
        for q in range(groups):
            if hits[b, q]:
                for place in range(q, n, groups):
                    if bits[b, place] >= low[place]:
                        features[at] = place
                        values[at] = np.uint32(bits[b, place]) << shift
                        at += 1
