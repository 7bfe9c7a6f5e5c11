"""What ranks choose together, where there is one of them: beside a sort."""

import pytest
import torch

from monolex.ranks.group import ALONE
from monolex.training.sparse.across import among_largest, cut_listed, kth_largest
from monolex.training.sparse.operators import listed


def numbers(seed: int, shape: tuple[int, ...], steps: int) -> torch.Tensor:
    """Some of them negative, and many alike where there are few ``steps``."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (drawn * steps).round() / steps


@pytest.mark.parametrize("steps", [2, 10**6])
@pytest.mark.parametrize("wanted", [1, 7, 40, 10**4])
def test_the_cut_is_that_of_a_sort(steps: int, wanted: int) -> None:
    values = numbers(wanted, (200,), steps)
    positive = values[values > 0].sort(descending=True).values
    cut = kth_largest(values, wanted, ALONE)
    if wanted > len(positive):
        assert (float(cut.value), int(cut.ties)) == (0, 0)
        return
    assert cut.value == positive[wanted - 1]
    assert int(cut.ties) == wanted - int((positive > cut.value).sum())


@pytest.mark.parametrize("steps", [2, 10**6])
def test_as_many_are_kept_as_are_wanted_and_none_is_smaller_than_what_is_left_out(steps: int) -> None:
    pre = numbers(3, (9, 31), steps)
    codes = listed(pre > 0, pre)
    kept, _ = cut_listed(codes, 40, ALONE)
    assert len(kept.values) == 40 == int(kept.counts.sum())
    assert torch.equal(kept.values.sort().values, codes.values.sort().values[-40:])
    table = pre.relu()
    chosen = among_largest(table, 5, ALONE)
    assert chosen.sum(1).tolist() == [5] * 9
    best = table.sort(descending=True).values[:, :5]
    assert torch.equal((table * chosen).sort(descending=True).values[:, :5], best)
