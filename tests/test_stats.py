import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm, pearsonr, spearmanr, ttest_1samp
from sklearn.metrics import roc_auc_score

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


def two_samples(seed: int, columns: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Values with many ties, higher in the positive units."""
    rng = np.random.default_rng(seed)
    positive = np.arange(37) < 14
    return np.round(rng.normal(size=(37, columns)) + 0.8 * positive[:, None], 1).clip(0), positive


def test_rank_sums_equal_the_references_with_ties():
    values, positive = two_samples(0, 20)
    values[:, 3] = 0
    result = stats.rank_sum(values, positive)
    for column in range(20):
        assert result.auroc[column] == pytest.approx(roc_auc_score(positive, values[:, column]))
        if column != 3:
            a, b = values[positive, column], values[~positive, column]
            assert result.p[column] == pytest.approx(mannwhitneyu(a, b, method="asymptotic").pvalue)
    assert (result.auroc[3], result.p[3]) == (0.5, 1)


def test_no_p_is_below_that_of_the_rarest_labelling():
    positive = np.arange(10) < 5
    assert stats.rank_sum(positive[:, None] * 1.0, positive).p[0] == pytest.approx(2 / 252)


def test_intervals_of_two_groups_are_those_of_naive_resamples():
    values, positive = two_samples(1)
    area, effect = stats.two_groups(values[:, 0], positive, "texts", resamples=200, seed=5)
    a, b = values[positive, 0], values[~positive, 0]
    areas, effects = [], []
    counts = stats.resample_counts(len(a), 200, 5), stats.resample_counts(len(b), 200, 6)
    for drawn_a, drawn_b in zip(*counts, strict=True):
        again_a, again_b = np.repeat(a, drawn_a.astype(int)), np.repeat(b, drawn_b.astype(int))
        labels = np.repeat([True, False], [len(a), len(b)])
        areas.append(roc_auc_score(labels, np.concatenate([again_a, again_b])))
        effects.append(cohen(again_a, again_b))
    assert area == (
        pytest.approx(roc_auc_score(positive, values[:, 0])),
        *map(pytest.approx, tails(areas)),
        37,
        "texts",
        "",
    )
    assert effect[:3] == (pytest.approx(cohen(a, b)), *map(pytest.approx, tails(effects)))


def cohen(a: np.ndarray, b: np.ndarray) -> float:
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    return (a.mean() - b.mean()) / pooled**0.5


def tails(values: list[float]) -> list[float]:
    return np.quantile(values, [0.025, 0.975]).tolist()


@pytest.mark.parametrize("truth", [0.5, 0.75, 0.95])
def test_intervals_of_two_groups_contain_the_truth(truth):
    shift, rng = 2**0.5 * norm.ppf(truth), np.random.default_rng(2)
    positive = np.arange(80) < 40
    hits = np.zeros(2)
    for _ in range(200):
        values = rng.normal(size=80) + shift * positive
        for i, (estimate, true) in enumerate(zip(stats.two_groups(values, positive, "u"), (truth, shift), strict=True)):
            assert estimate.low is not None and estimate.high is not None
            hits[i] += estimate.low <= true <= estimate.high
    assert (hits / 200 > 0.88).all() and (hits / 200 < 0.995).all()


def test_groups_that_do_not_overlap_are_not_certain():
    positive = np.arange(20) < 8
    values = np.arange(20.0)
    low, _ = stats.two_groups(values, positive, "texts")
    high, _ = stats.two_groups(-values, positive, "texts")
    # 8 disjoint pairs in order: 0.63^8 = 0.025
    assert (low.value, low.low) == (0, 0) and low.high == pytest.approx(1 - 0.025 ** (1 / 8))
    assert (high.value, high.high) == (1, 1) and high.low == pytest.approx(0.025 ** (1 / 8))


def test_groups_without_spread_have_no_effect():
    positive = np.arange(20) < 8
    area, effect = stats.two_groups(np.full(20, 0.3), positive, "texts")
    assert (area.value, area.low, effect.value, effect.reason) == (0.5, None, None, "constant")
    _, effect = stats.two_groups(positive * 0.3, positive, "texts")
    assert (effect.value, effect.reason) == (None, "no spread within the groups")
    rare = np.zeros(20)
    rare[0] = 1.0
    _, effect = stats.two_groups(rare, positive, "texts")
    assert effect.value is not None and effect.low is None and "too little spread" in effect.reason


def test_benjamini_hochberg_by_hand():
    # ascending 4/1 * .01, 4/2 * .02, 4/3 * .04, 4/4 * .5, and each at most the next
    adjusted = stats.benjamini_hochberg(np.array([0.02, 0.5, np.nan, 0.01, 0.04]))
    assert np.allclose(adjusted[[3, 0, 4, 1]], [0.04, 0.04, 0.16 / 3, 0.5])
    assert np.isnan(adjusted[2])
    assert np.isnan(stats.benjamini_hochberg(np.array([np.nan, np.nan]))).all()
    assert len(stats.benjamini_hochberg(np.array([]))) == 0


def test_benjamini_hochberg_keeps_false_discoveries_at_the_level():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        p = rng.random(100)
        p[:20] **= 8
        found = stats.benjamini_hochberg(p) < 0.2
        shares.append(found[20:].sum() / max(1, found.sum()))
    assert 0.1 < np.mean(shares) < 0.2


def test_paired_is_the_t_test_of_every_column():
    values = np.random.default_rng(1).normal(0.3, 1, size=(12, 5))
    assert np.allclose(stats.paired(values), ttest_1samp(values, 0).pvalue)
    assert np.isnan(stats.paired(values[:2])).all() and np.isnan(stats.paired(values[:0])).all()
    assert np.isnan(stats.paired(np.zeros((9, 2)))).all()


def by_hand(x, y, counts, ranks):
    """A correlation of a resample, laid out in full."""
    a, b = np.repeat(x, counts), np.repeat(y, counts)
    return (spearmanr if ranks else pearsonr)(a, b).statistic


@pytest.mark.parametrize("ranks", [False, True])
def test_correlations_are_those_of_the_laid_out_resamples(ranks):
    rng = np.random.default_rng(3)
    x = rng.normal(size=25).round(1)  # ties
    y = (x + rng.normal(size=25)).round(1) * 1e6 + 1e9
    found = stats.correlate(x, y, "features", ranks=ranks, resamples=200, level=0.9, seed=4)
    counts = stats.resample_counts(25, 200, 4).astype(int)
    drawn = [by_hand(x, y, one, ranks) for one in counts]
    assert found.value == pytest.approx(by_hand(x, y, np.ones(25, int), ranks), abs=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])), abs=1e-9)
    assert (found.n, found.over) == (25, "features")


def test_no_correlation_without_two_values_that_vary():
    assert stats.correlate([1, 2], [1, 2], "features").reason == "fewer than 3 features"
    assert stats.correlate([1, 2, 3], [5, 5, 5], "features")[:3] == (None, None, None)
    assert stats.correlate([1, 2, 3], [5, np.nan, 5], "features").reason == "not finite"
    lone = stats.correlate([0, 0, 0, 1], [0, 0, 1, 2], "features")
    assert lone.value is not None and lone.low is None and "too little spread" in lone.reason


def test_an_interval_is_widened_for_the_number_of_comparisons():
    known = stats.Estimate(0.4, 0.3, 0.6, 9, "features")
    assert stats.widened(known, 1) == known
    wide, wider = stats.widened(known, 2), stats.widened(known, 20)
    assert wide.low == pytest.approx(0.4 - 0.1 * 2.2414 / 1.96, abs=1e-4)  # z of 0.0125 over z of 0.025
    assert (
        wider.low < wide.low < 0.3 and wider.high > wide.high > 0.6 and wider[:1] + wider[3:] == known[:1] + known[3:]
    )
    bare = stats.Estimate(0.4, n=1, reason="no interval")
    assert stats.widened(bare, 5) == bare
