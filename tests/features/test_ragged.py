"""Order within ragged segments against sorting each of them."""

import numpy as np
import pytest

from monolex.features.ragged import ascending, drawn, largest, largest_of_rows


@pytest.mark.parametrize("k", [0, 1, 3, 10])
@pytest.mark.parametrize("kinds", [3, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_are_those_of_sorting_each_segment(k, kinds, seed):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(0, [4, 40, 400, 1][seed], 30) * draw.integers(0, 2, 30)
    offsets = np.concatenate([[0], sizes.cumsum()])
    for keys in (draw.integers(1, kinds, offsets[-1]), draw.integers(1, kinds, offsets[-1]).astype(np.float32)):
        found = largest(offsets, keys, k)
        expected = []
        for segment, (low, high) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
            order = sorted(range(low, high), key=lambda i: (-keys[i], i))[:k]
            expected += [(place, segment, rank) for rank, place in enumerate(order)]
        assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


@pytest.mark.parametrize("kinds", [3, 1000])
def test_ascending_is_sorting_each_segment(kinds):
    draw = np.random.default_rng(0)
    sizes = draw.integers(0, 50, 40)
    offsets = np.concatenate([[0], sizes.cumsum()])
    keys = draw.integers(1, kinds, offsets[-1]).astype(np.float32) / 7
    expected = [
        i
        for low, high in zip(offsets[:-1], offsets[1:], strict=True)
        for i in sorted(range(low, high), key=lambda i: (keys[i], i))
    ]
    assert ascending(offsets, keys).tolist() == expected


def test_rows_of_a_matrix_give_columns():
    matrix = np.array([[1.0, 3.0, 3.0], [-1.0, -5.0, 2.0]])
    found = largest_of_rows(matrix, 2)
    assert found.place.tolist() == [1, 2, 2, 0]
    assert found.segment.tolist() == [0, 0, 1, 1]


def test_draws_are_uniform_and_their_own_for_each_purpose():
    features = np.repeat(np.arange(50), 200)
    numbers = np.tile(np.arange(200), 50)
    one, other = drawn(0, 1, features, numbers) / 2**62, drawn(0, 2, features, numbers) / 2**62
    assert one.min() >= 0 and one.max() < 1
    assert abs(one.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    assert len(np.unique(one)) == len(one)
