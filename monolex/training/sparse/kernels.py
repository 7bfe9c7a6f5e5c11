"""Kernels of a training step for CPUs, compiled by numba: decode, slopes, gradients with Adam.

Three ideas. The codes of a row, once chosen, are a list, so that all but the encoder's product costs by active codes.
A row's reconstruction, its error and the gradients of its codes take one visit of its decoder rows. And the codes
sorted by feature let the gradients of a feature be summed, projected, given to Adam and its row brought back to unit
length while they are in the cache: there is no matrix of gradients.

The records of :mod:`~monolex.training.sparse.codes` come as plain tuples: numba's parallel loops take no other.

Every loop that runs in parallel writes what is its own, and sums over threads are taken over fixed blocks in order, so
that equal inputs give equal bits whatever the number of threads.
"""

# numba compiles what it is given: annotations would only repeat the types, and loops over scalars are what it is for
from typing import Any

import numba as nb
import numpy as np
import torch

# NaN and infinity must stay what they are, or a diverging run would look like a healthy one
SAFE = {"reassoc", "contract", "arcp", "nsz"}
BLOCKS = 64

# numba starts its threads here, and tells the OpenMP that torch may share with it to use as many
_before = torch.get_num_threads()
MOST_THREADS = nb.get_num_threads()
torch.set_num_threads(_before)

parallel: Any = nb.njit(parallel=True, fastmath=SAFE, cache=True, nogil=True, error_model="numpy")
serial: Any = nb.njit(fastmath=SAFE, cache=True, nogil=True, error_model="numpy")
inlined: Any = nb.njit(inline="always")


def use_threads(most: int) -> None:
    """At most so many for the kernels that follow."""
    nb.set_num_threads(max(min(most, MOST_THREADS), 1))


@parallel
def decode(target, rows, codes, out):
    """Reconstruct every row and measure it: its error, the slope along every listed code, its squared error."""
    starts, counts, features, values = codes
    error, gradients, squares = out
    batch, d = target.shape
    scale = np.float32(2.0 / (batch * d))
    for b in nb.prange(batch):
        e = np.empty(d, np.float32)
        for c in range(d):
            e[c] = -target[b, c]
        for i in range(starts[b], starts[b] + counts[b]):
            v, w = values[i], rows[features[i]]
            for c in range(d):
                e[c] += v * w[c]
        total = np.float32(0)
        for c in range(d):
            total += e[c] * e[c]
            error[0, b, c] = e[c] * scale
        squares[0, b] = total
        for i in range(starts[b], starts[b] + counts[b]):
            w, dot = rows[features[i]], np.float32(0)
            for c in range(d):
                dot += e[c] * w[c]
            gradients[i] = dot * scale


@parallel
def decode_nested(target, rows, codes, prefixes, out):
    """Like :func:`decode` for the mean over ``prefixes`` of the features of the error by those before each.

    A feature before the first prefix has a say in every reconstruction, one after the last but one in the last alone:
    ``error[m]`` is the sum of the scaled errors of the prefixes from m on, ``squares[m]`` of m itself.
    """
    starts, counts, features, values = codes
    error, gradients, squares = out
    batch, d = target.shape
    most = len(prefixes)
    scale = np.float32(2.0 / (batch * d * most))
    for b in nb.prange(batch):
        e = np.empty(d, np.float32)
        for c in range(d):
            e[c] = -target[b, c]
        begin = 0
        for m in range(most):
            for i in range(starts[b], starts[b] + counts[b]):
                if begin <= features[i] < prefixes[m]:
                    v, w = values[i], rows[features[i]]
                    for c in range(d):
                        e[c] += v * w[c]
            total = np.float32(0)
            for c in range(d):
                total += e[c] * e[c]
                error[m, b, c] = e[c] * scale
            squares[m, b] = total
            begin = prefixes[m]
        for m in range(most - 2, -1, -1):
            for c in range(d):
                error[m, b, c] += error[m + 1, b, c]
        for i in range(starts[b], starts[b] + counts[b]):
            m = 0
            while features[i] >= prefixes[m]:
                m += 1
            w, dot = rows[features[i]], np.float32(0)
            for c in range(d):
                dot += error[m, b, c] * w[c]
            gradients[i] = dot


@parallel
def slopes(error, rows, codes, prefixes, out):
    """Of every listed code the product of its row with the error of the prefix that its feature is in."""
    starts, counts, features, _ = codes
    for b in nb.prange(len(counts)):
        for i in range(starts[b], starts[b] + counts[b]):
            m = 0
            while features[i] >= prefixes[m]:
                m += 1
            w, dot = rows[features[i]], np.float32(0)
            for c in range(len(w)):
                dot += error[m, b, c] * w[c]
            out[i] = dot


@serial
def by_feature(codes, ordered):
    """Sort the codes by feature, those of a feature by row."""
    starts, counts, features, _ = codes
    ends, rows, slots = ordered
    ends[:] = 0
    for b in range(len(counts)):
        for i in range(starts[b], starts[b] + counts[b]):
            ends[features[i] + 1] += 1
    for f in range(len(ends) - 1):
        ends[f + 1] += ends[f]
    place = ends[:-1].copy()
    for b in range(len(counts)):
        for i in range(starts[b], starts[b] + counts[b]):
            at = place[features[i]]
            rows[at], slots[at] = b, i
            place[features[i]] = at + 1


@inlined
def _gradients(f, level, batch, added, g_dec, g_enc):
    """Sum the gradients of a feature's rows into two rows; that of its pre-activation is the result."""
    centred, values, error, by_code, ends, rows, slots = batch
    g_dec[:] = 0
    g_enc[:] = 0
    g_pre = np.float32(0)
    for p in range(ends[f], ends[f + 1]):
        b, i = rows[p], slots[p]
        v, g = values[i], by_code[i]
        g_pre += g
        e, x = error[level, b], centred[b]
        for c in range(len(g_dec)):
            g_dec[c] += v * e[c]
        for c in range(len(g_enc)):
            g_enc[c] += g * x[c]
    numbers, extra_dec, extra_enc, extra_pre = added
    number = numbers[f]
    if number >= 0:
        g_pre += extra_pre[number]
        for c in range(len(g_dec)):
            g_dec[c] += extra_dec[number, c]
        for c in range(len(g_enc)):
            g_enc[c] += extra_enc[number, c]
    return g_pre


@inlined
def _length(w):
    total = np.float32(0)
    for c in range(len(w)):
        total += w[c] * w[c]
    return max(np.sqrt(total), np.float32(1e-8))


@inlined
def _through_unit(gradient, r, length):
    """The gradient by a row of what came by the row at unit length: what is along it changes nothing."""
    along, inverse = np.float32(0), np.float32(1) / length
    for c in range(len(r)):
        along += gradient[c] * r[c]
    for c in range(len(r)):
        gradient[c] = (gradient[c] - along * r[c]) * inverse


@inlined
def _adam(weights, gradient, first, second, by):
    rate, root, b1, b2 = by
    for c in range(len(weights)):
        g = gradient[c]
        first[c] += (g - first[c]) * (np.float32(1) - b1)
        second[c] = b2 * second[c] + (np.float32(1) - b2) * g * g
        weights[c] -= rate * first[c] / (np.sqrt(second[c]) * root + np.float32(1e-8))


@parallel
def update(batch, added, moving, rows, prefixes, sums, switches, by):
    """Gradients of every feature from its codes, a step of Adam, and the decoder's row at unit length if ``unit``.

    ``batch`` is what its codes, its errors and its sorted codes hold; ``moving`` are decoder and encoder, each with its
    moments; ``rows`` the decoder's rows as they were read, the decoder itself where they are kept unit or free;
    ``prefixes`` end the features of each of the errors; ``switches`` say whether the weights are tied, rows are kept
    unit, rows have any length, and the decoder and the encoder move; ``by`` the rate, the root and the betas of Adam,
    of decoder and encoder.
    ``sums`` take what a feature's pre-activation gets over the batch and, block by block, what the encoder has to say
    to its input: its old rows times that.
    """
    (w_dec, first_dec, second_dec), (w_enc, first_enc, second_enc) = moving
    tied, unit, free, moves_dec, moves_enc = switches
    by_dec, by_enc = by
    pre, pull = sums
    n, d_out, d_in = len(w_dec), w_dec.shape[1], w_enc.shape[1]
    size = (n + BLOCKS - 1) // BLOCKS
    for block in nb.prange(BLOCKS):
        g_dec, g_enc = np.empty(d_out, np.float32), np.empty(d_in, np.float32)
        level = 0
        for f in range(block * size, min((block + 1) * size, n)):
            while f >= prefixes[level]:
                level += 1
            g_pre = _gradients(f, level, batch, added, g_dec, g_enc)
            pre[f] = g_pre
            w, r = w_dec[f], rows[f]
            encoder = r if tied else w_enc[f]
            for c in range(d_in):
                pull[block, c] += g_pre * encoder[c]
            if tied:
                for c in range(d_in):
                    g_dec[c] += g_enc[c]
            if moves_dec:
                if not free:
                    _through_unit(g_dec, r, _length(w))
                _adam(w, g_dec, first_dec[f], second_dec[f], by_dec)
                if unit:
                    inverse = np.float32(1) / _length(w)
                    for c in range(d_out):
                        w[c] *= inverse
            if moves_enc:
                _adam(w_enc[f], g_enc, first_enc[f], second_enc[f], by_enc)
