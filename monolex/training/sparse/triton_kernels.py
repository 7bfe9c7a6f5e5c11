"""Kernels of a sparse step for GPUs, in Triton: a program a row of the batch, or a feature.

Vectors of a row are held whole, padded to a power of two (``WIDTH``); sums are in float32 and in the order of the
codes, so that these kernels give the same bits every time. With ``TRITON_INTERPRET=1`` they run on a CPU, slowly; the
tests hold them against autograd that way.
"""

import triton
import triton.language as tl


@triton.jit
def decode(
    target, rows, starts, counts, features, values, prefixes, error, slopes, squares,
    batch, width, scale, PREFIXES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Errors of the reconstructions of a row by the features before each prefix, and its codes' slopes.

    As :meth:`~monolex.training.sparse.parts.StepParts.decode`: ``error[m]`` is the sum of the scaled errors of the
    prefixes from m on, ``squares[m]`` the squared error of m itself.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    first = tl.load(starts + row)
    last = first + tl.load(counts + row)
    residual = -tl.load(target + row * width + columns, mask=inside, other=0.0)
    begin = 0
    for level in tl.static_range(PREFIXES):  # pyright: ignore[reportGeneralTypeIssues]
        end = tl.load(prefixes + level)
        for code in range(first, last):
            feature = tl.load(features + code).to(tl.int64)
            if (feature >= begin) & (feature < end):
                weights = tl.load(rows + feature * width + columns, mask=inside, other=0.0)
                residual += tl.load(values + code) * weights
        begin = end
        place = level * batch + row
        tl.store(squares + place, tl.sum(residual * residual))
        tl.store(error + place * width + columns, residual * scale, mask=inside)
    tl.debug_barrier()
    whole = tl.zeros([WIDTH], tl.float32)
    for level in tl.static_range(PREFIXES - 1, -1, -1):  # pyright: ignore[reportGeneralTypeIssues]
        place = error + (level * batch + row) * width + columns
        whole += tl.load(place, mask=inside, other=0.0)
        tl.store(place, whole, mask=inside)
        begin = 0
        if level > 0:
            begin = tl.load(prefixes + level - 1)
        end = tl.load(prefixes + level)
        for code in range(first, last):
            feature = tl.load(features + code).to(tl.int64)
            if (feature >= begin) & (feature < end):
                weights = tl.load(rows + feature * width + columns, mask=inside, other=0.0)
                tl.store(slopes + code, tl.sum(whole * weights))


@triton.jit
def feature_sums(ends, sorted_slopes, number, added, sums, BLOCK: tl.constexpr):
    """For every feature the sum of its slopes, which are sorted by feature and end at ``ends``, and what is added."""
    feature = tl.program_id(0).to(tl.int64)
    first, last = tl.load(ends + feature), tl.load(ends + feature + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(first, last, BLOCK):
        places = begin + tl.arange(0, BLOCK)
        total += tl.load(sorted_slopes + places, mask=places < last, other=0.0)
    whole = tl.sum(total)
    extra = tl.load(number + feature)
    if extra >= 0:
        whole += tl.load(added + extra)
    tl.store(sums + feature, whole)


@triton.jit
def move(
    table, factors, second_table, second_factors, sorted_rows, ends, level, number, added, second_added, rows,
    weights, mean, variance, batch, width, rate, root, b1, b2,
    TWO: tl.constexpr, THROUGH_UNIT: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A row of a matrix after Adam's step with its gradient: the sum of ``factors`` times the rows of ``table``.

    ``factors`` and the numbers of the rows are sorted by feature and end at ``ends``; ``level`` says which of the
    tables of a batch a feature goes by. With ``TWO`` there is a second sum, of tied weights. ``number`` says which of
    the added gradients is a feature's own, if any. ``THROUGH_UNIT``: the gradient came by the row at unit length,
    ``rows``; ``UNIT``: the row is brought back to that.
    """
    feature = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    gradient = tl.zeros([WIDTH], tl.float32)
    of_level = table + tl.load(level + feature) * batch * width
    for code in range(tl.load(ends + feature), tl.load(ends + feature + 1)):
        row = tl.load(sorted_rows + code).to(tl.int64) * width + columns
        gradient += tl.load(factors + code) * tl.load(of_level + row, mask=inside, other=0.0)
        if TWO:
            gradient += tl.load(second_factors + code) * tl.load(second_table + row, mask=inside, other=0.0)
    extra = tl.load(number + feature)
    if extra >= 0:
        gradient += tl.load(added + extra * width + columns, mask=inside, other=0.0)
        if TWO:
            gradient += tl.load(second_added + extra * width + columns, mask=inside, other=0.0)
    cells = feature * width + columns
    stored = tl.load(weights + cells, mask=inside, other=0.0)
    if THROUGH_UNIT:
        # what is along the row changes nothing
        direction = tl.load(rows + cells, mask=inside, other=0.0)
        length = tl.maximum(tl.sqrt(tl.sum(stored * stored)), 1e-8)
        gradient = (gradient - tl.sum(gradient * direction) * direction) / length
    first = tl.load(mean + cells, mask=inside, other=0.0)
    first += (gradient - first) * (1 - b1)
    tl.store(mean + cells, first, mask=inside)
    second = b2 * tl.load(variance + cells, mask=inside, other=0.0) + (1 - b2) * gradient * gradient
    tl.store(variance + cells, second, mask=inside)
    moved = stored - rate * first / (tl.sqrt(second) * root + 1e-8)
    if UNIT:
        moved = moved / tl.maximum(tl.sqrt(tl.sum(tl.where(inside, moved * moved, 0.0))), 1e-8)
    tl.store(weights + cells, moved, mask=inside)
