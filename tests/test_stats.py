import numpy as np
import pytest

from monolex import stats


def test_mean_equals_numpy_and_lies_in_its_interval():
    values = np.random.default_rng(0).normal(3, 1, 200)
    estimate = stats.mean(values, "documents")
    assert estimate.value == pytest.approx(values.mean(), abs=1e-12)
    assert estimate.low < estimate.value < estimate.high
    assert (estimate.n, estimate.over) == (200, "documents")


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        estimate = stats.mean(rng.normal(0, 1, 60), "documents", resamples=400, level=0.9, seed=trial)
        hits += estimate.low <= 0 <= estimate.high
    assert 0.82 <= hits / 200 <= 0.97


def test_ratio_weighs_units_by_their_size():
    estimate = stats.ratio([1, 30], [10, 90], "documents")
    assert estimate.value == pytest.approx(0.31)


def test_units_not_rows_are_resampled():
    rows = np.repeat([0.0, 1.0], 1000)
    by_row = stats.mean(rows, "rows")
    by_unit = stats.ratio([0, 1000], [1000, 1000], "documents")
    assert by_row.value == by_unit.value
    assert by_unit.high - by_unit.low > 5 * (by_row.high - by_row.low)


def test_same_seed_same_interval():
    values = np.random.default_rng(2).normal(size=50)
    assert stats.mean(values, "seeds", seed=3) == stats.mean(values, "seeds", seed=3)
    assert stats.mean(values, "seeds", seed=3) != stats.mean(values, "seeds", seed=4)


@pytest.mark.parametrize(
    ("values", "reason"), [([], "no data"), ([1.0, np.nan], "not finite"), ([2.0], "one of documents only")]
)
def test_what_has_no_interval_says_why(values, reason):
    estimate = stats.mean(values, "documents")
    assert estimate.low is None and estimate.high is None
    assert reason in estimate.reason


def test_match_recovers_a_permutation():
    order = np.random.default_rng(3).permutation(20)
    rows, columns = stats.match(np.eye(20)[order])
    assert (columns[np.argsort(rows)] == order).all()


def test_small_mean_covers_what_it_says():
    rng = np.random.default_rng(0)
    drawn = [stats.small_mean(rng.normal(3, 1, size=3), "seeds") for _ in range(2000)]
    covered = np.mean([e.low <= 3 <= e.high for e in drawn])
    assert 0.935 < covered < 0.965
    exact = stats.small_mean([1.0, 2.0, 3.0], "seeds")
    assert exact.value == 2 and exact.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert stats.small_mean([5.0], "seeds").low is None and stats.small_mean([], "seeds").reason == "no data"
    assert stats.small_mean([1.0, np.nan], "seeds").reason == "not finite"
