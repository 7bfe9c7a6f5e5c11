"""Scores: an oracle gets 1, a constant nothing, chance about 0; failures are no zeros; intervals cover."""

from collections.abc import Sequence

import numpy as np
import pytest
from helpers.made_fragments import examples, fragment
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from monolex.interp.explain.lookup import ngram
from monolex.interp.llm.client import ScriptedClient
from monolex.interp.protocol import correlation
from monolex.interp.records import Examples, Explanation, Failure, Job
from monolex.interp.score import bootstrap, judging
from monolex.interp.score.bootstrap import Documents, ResampledScore, correlations, difference, interval, mean, sums
from monolex.interp.score.cards import OVERLAYS
from monolex.interp.score.cards import _overlays as overlays
from monolex.interp.score.discrimination import active_tokens, fuzz_marks, means_at, told_apart
from monolex.interp.score.judging import judged
from monolex.interp.score.lines import arrays_of
from monolex.interp.score.scorers import Scoring, correlated, score_features
from monolex.interp.simulate.by_rule import RulesSimulator
from monolex.interp.simulate.chat import ChatJudge
from monolex.interp.simulate.whole_characters import WholeCharacters
from monolex.text.characters import alone

ALL = Scoring(("correlation", "detection", "fuzz"), shuffles=2, calibrated=True)


class Fixed:
    """Predicts what a function of a job says."""

    kind = "fixed"

    def __init__(self, says) -> None:
        self.says, self.asked = says, []

    def simulate(self, jobs: Sequence[Job]):
        self.asked += jobs
        return [self.says(job) for job in jobs]


def features(count: int = 12) -> list[Examples]:
    words = (" the", " cat", "(", "42", " def", "\n")
    return [
        examples(lambda texts, at, w=words[i % 6]: float(texts[at] == w) * (1 + at % 4), feature=i)
        for i in range(count)
    ]


def named(examples: Sequence[Examples]) -> list[Explanation]:
    return [Explanation("me", f"feature {example.feature}") for example in examples]


def truth(examples: Sequence[Examples]) -> dict[tuple[str, tuple[str, ...]], np.ndarray]:
    groups = [
        (example, fragment)
        for example in examples
        for group in example.__dataclass_fields__
        if group not in ("feature", "maximum")
        for fragment in getattr(example, group)
    ]
    return {(f"feature {example.feature}", f.texts): f.activations.astype(float) for example, f in groups}


def scored(examples, simulator, scoring=ALL, explanations=None):
    return score_features(examples, explanations or named(examples), simulator, scoring, np.random.default_rng(0))


def both(example: Examples):
    return (*example.top, *example.random)


def test_an_oracle_scores_one_everywhere():
    examples = features()
    known = truth(examples)
    oracle = Fixed(lambda job: 3 * known.get((job.explanation.text, job.texts), np.zeros(len(job.texts))) + 2)
    fallen = 0
    for example, score in zip(examples, scored(examples, oracle), strict=True):
        guesses = (*score.top, *score.random)
        assert correlated(both(example), guesses).value == pytest.approx(1)
        assert correlated(example.top, score.top).value == pytest.approx(1)
        assert correlated(example.random, score.random).value == pytest.approx(1)
        assert score.detection is not None and score.fuzz is not None
        assert score.detection.auc.value == score.fuzz.auc.value == 1
        # thresholds are halfway down to 0 of the weakest explained fragment, so that a weaker one may fall below
        for judged_as, strength in ((score.detection, np.max), (score.fuzz, np.mean)):
            explained, others = (
                np.array([strength(f.activations[active_tokens(f)]) for f in part])
                for part in (example.explain, both(example))
            )
            below = float((others < explained.min() / 2).mean())
            assert judged_as.balanced_accuracy.value == pytest.approx(1 - below / 2)
            fallen += below > 0
        assert not score.failures
    assert fallen > 0


def test_one_explanation_less_leaves_what_is_asked_of_the_others():
    """A failed explanation that comes later must not make all that was paid for useless."""
    examples, without = features(), named(features())
    without[3] = Failure("timed out")

    def asked_with(explanations):
        simulator, seen = Fixed(lambda job: np.zeros(len(job.texts))), []
        client = ScriptedClient(lambda request: seen.append(request) or "[]")
        scores = score_features(examples, explanations, simulator, ALL, np.random.default_rng(0), judging=False)
        judged(scores, examples, explanations, ChatJudge(client), ("detection", "fuzz"), np.random.default_rng(0))
        return {(job.explanation.text, job.texts) for job in simulator.asked}, set(seen)

    (jobs, questions), (fewer, less) = asked_with(named(examples)), asked_with(without)
    assert less < questions
    assert all("feature 3" in request.messages[-1][1] for request in questions - less)
    assert len(fewer - jobs) <= 3 * len(both(examples[0]))  # chance of its neighbours in two shuffles
    assert len(fewer & jobs) > 0.7 * len(jobs)


def test_judging_alone_predicts_nothing():
    simulator = Fixed(lambda job: np.zeros(len(job.texts)))
    scoring = Scoring(("detection",), shuffles=1, calibrated=False)
    explanations = [*named(features(2)), Failure("timed out")]
    scores = score_features(features(3), explanations, simulator, scoring, np.random.default_rng(0), judging=False)
    assert simulator.asked == [] and [score.failures for score in scores] == [{}, {}, {"no explanation: timed out": 1}]
    assert correlated(both(features(1)[0]), (*scores[0].top, *scores[0].random)).reason == "not asked for"


def test_a_constant_is_nan_with_a_reason_and_half_of_all_judgements():
    examples = features()
    for example, score in zip(examples, scored(examples, Fixed(lambda job: np.ones(len(job.texts)))), strict=True):
        value, reason = correlated(both(example), (*score.top, *score.random))
        assert np.isnan(value)
        assert reason == "the predictions are constant"
        assert score.detection is not None
        assert score.detection.auc.value == 0.5
        assert score.detection.balanced_accuracy.value == 0.5


def test_other_features_explanations_are_about_chance():
    examples = features(30)
    explanations = [ngram(example) for example in examples]
    scores = scored(examples, RulesSimulator(), explanations=explanations)
    true = [correlated(both(example), (*f.top, *f.random)).value for example, f in zip(examples, scores, strict=True)]
    chance = [
        correlated(both(example), guesses).value
        for example, f in zip(examples, scores, strict=True)
        for guesses in f.chance
    ]
    assert np.mean(true) > 0.7
    assert len(chance) == 60
    # every sixth feature is of the same word
    assert abs(np.nanmean(chance)) < 0.2


def test_every_feature_gets_as_many_other_explanations_as_asked_for_and_never_its_own():
    examples = features()
    simulator = Fixed(lambda job: np.zeros(len(job.texts)))
    scored(examples, simulator)
    by_text = {f.texts: f"feature {example.feature}" for example in examples for f in both(example)}
    others = [job for job in simulator.asked if by_text.get(job.texts, job.explanation.text) != job.explanation.text]
    assert len(others) == 2 * sum(len(both(example)) for example in examples)
    # nothing is asked twice
    assert len({(job.explanation.text, job.texts) for job in simulator.asked}) == len(simulator.asked)


def test_a_failure_is_counted_and_no_zero():
    examples = features(4)
    known = truth(examples)
    bad = examples[1].top[2].texts

    def says(job: Job):
        if job.texts == bad:
            return Failure("timed out")
        return known.get((job.explanation.text, job.texts), np.zeros(len(job.texts)))

    scores = scored(examples, Fixed(says))
    value, reason = correlated(both(examples[1]), (*scores[1].top, *scores[1].random))
    assert np.isnan(value)
    assert reason == "timed out"
    assert scores[1].failures == {"timed out": 1}
    assert scores[1].detection is not None and np.isnan(scores[1].detection.auc.value)
    assert correlated(examples[1].random, scores[1].random).value == pytest.approx(1)
    assert not scores[0].failures


SHAPE, FEW = "a prediction that is not one finite number a token", "a prediction of too few tokens"


def gaps(count: int, value: float = np.nan) -> np.ndarray:
    """A prediction of 16 tokens, of which the last ``count`` are missing."""
    return np.concatenate([np.arange(16.0 - count), np.full(count, value)])


@pytest.mark.parametrize(
    ("guess", "reason"),
    [(np.zeros(3), SHAPE), (np.array([[0.0]]), SHAPE), (gaps(1, np.inf), SHAPE), (gaps(5), FEW), (gaps(16), FEW)],
)
@pytest.mark.usefixtures("unchecked_arrays")
def test_predictions_of_another_shape_are_failures(guess, reason):
    examples = features(2)
    scores = scored(examples, Fixed(lambda _job: guess))
    assert scores[0].failures == {reason: 15}


def test_missing_tokens_are_left_out_of_every_score_and_counted():
    """An oracle that is silent on a quarter of all tokens is as good on the rest."""
    examples = features(4)
    known = truth(examples)

    def says(job: Job) -> np.ndarray:
        prediction = known.get((job.explanation.text, job.texts), np.zeros(len(job.texts)))
        quarter = np.random.default_rng(len("".join(job.texts))).permutation(16) < 4
        return np.where(quarter, np.nan, prediction)

    scores = scored(examples, Fixed(says))
    for example, score in zip(examples, scores, strict=True):
        assert correlated(both(example), (*score.top, *score.random)).value == pytest.approx(1)
        assert not score.failures and score.tokens == (15 * 16, 15 * 4, 15)
        assert score.detection is not None and score.fuzz is not None
        assert score.fuzz.auc.value > 0.9 and np.isfinite(score.detection.auc.value)
    arrays = arrays_of(examples, scores)
    assert np.isnan(arrays["predictions"]).sum() == 4 * 10 * 4
    assert np.allclose(correlations(arrays["sums"].sum(1)), 1)
    assert (arrays["sums"][..., 0] == 12).all()


def test_cards_show_what_is_missing():
    (example,) = features(1)
    predictions = np.zeros((10, 16))
    predictions[0, 3], predictions[1] = np.nan, np.nan
    gap, failed, whole = overlays(example, predictions, OVERLAYS)
    assert gap.predicted == (0.0,) * 3 + (None,) + (0.0,) * 12
    assert failed.predicted is None and whole.predicted == (0.0,) * 16


def test_marks_of_missing_tokens_alone_say_nothing():
    marks = (np.array([0, 1]), np.array([2, 3]))
    assert means_at([marks], [np.array([np.nan, 4.0, np.nan, np.nan])]) == ([4.0], [None])


@pytest.mark.parametrize(("weak", "wanted"), [(4.0, 1.0), (6.0, 0.5)])
def test_the_threshold_of_detection_comes_from_the_explained_fragments(weak, wanted):
    """Between the silent ones at 2 and the ``weak`` ones beside them, whatever the scored ones would like."""
    (example,) = features(1)
    peak = {f.texts: 3.5 for f in both(example)} | {f.texts: 2.9 for f in example.silent}
    peak |= {f.texts: weak for f in example.explain} | {f.texts: 2.0 for f in example.explain_silent}
    (score,) = scored([example], Fixed(lambda job: np.full(len(job.texts), peak[job.texts])))
    # halfway: at 3 the scored ones are told apart, at 4 all of them are below
    assert score.detection is not None and score.detection.balanced_accuracy.value == wanted
    assert score.detection.auc.value == 1


def test_a_feature_without_an_explanation():
    examples = features(3)
    explanations = [Explanation("me", "x"), Failure("refused"), Explanation("me", "y")]
    simulator = Fixed(lambda job: np.arange(float(len(job.texts))))
    scores = scored(examples, simulator, explanations=explanations)
    assert correlated(both(examples[1]), (*scores[1].top, *scores[1].random)).reason == "no explanation: refused"
    assert scores[1].chance == ()
    assert len(scores[0].chance) == 1
    assert {job.explanation.text for job in simulator.asked} == {"x", "y"}
    alone = scored(examples[:1], simulator, explanations=explanations[:1])
    assert alone[0].chance == ()


def test_judgements_are_those_of_scikit_learn():
    rng = np.random.default_rng(5)
    right, wrong = rng.integers(5, size=30).astype(float), rng.integers(4, size=20).astype(float)
    labels = np.repeat([1, 0], [30, 20])
    values = np.concatenate([right, wrong])
    apart = told_apart(list(right), list(wrong), 2.0)
    assert apart.auc.value == pytest.approx(roc_auc_score(labels, values))
    assert apart.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(labels, values >= 2))
    nothing = told_apart([1.0], [], 2.0)
    assert np.isnan(nothing.auc.value)
    assert "nothing to tell it from" in nothing.auc.reason
    assert told_apart([1.0], [0.0], None).balanced_accuracy.reason == "no threshold could be learned"


def test_fuzzing_marks_active_tokens():
    letters = fragment(list("abcdef"), [0.0, 10.0, 2.9, 3.0, -5.0, 0.1])
    assert active_tokens(letters).tolist() == [False, True, False, True, False, False]
    assert not active_tokens(fragment("ab", [0.0, -1.0])).any()


def weighted(actual, predicted, counts) -> float:
    """The correlation with every fragment repeated as often as it was drawn."""
    x = np.concatenate([np.tile(a, int(n)) for a, n in zip(actual, counts, strict=True)])
    y = np.concatenate([np.tile(p, int(n)) for p, n in zip(predicted, counts, strict=True)])
    return correlation(x, y).value


def test_resamples_are_correlations_of_repeated_fragments():
    rng = np.random.default_rng(2)
    actual = rng.normal(size=(10, 64)).astype(np.float32)
    predicted = actual + rng.normal(size=(10, 64))
    docs = np.array([5, 5, 7, 9, 9, 11, 12, 13, 20, 21])
    draws = Documents(docs, 200, 3)
    stacked = np.stack([sums(a, p) for a, p in zip(actual, predicted, strict=True)])
    value = correlation(actual, predicted).value
    assert correlations(stacked.sum(0)) == pytest.approx(value)
    feature = draws.resample(value, "", stacked, docs)
    weights = draws._weights[np.searchsorted(draws._known, docs)]
    expected = np.array([weighted(actual, predicted, weights[:, b]) for b in range(200)])
    assert np.allclose(feature.drawn, expected - np.nanmean(expected) + value)
    # fragments of one document are drawn together
    assert (weights[0] == weights[1]).all()
    estimate = interval(feature, 0.95)
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < value < estimate.high


def test_a_constant_side_has_no_correlation_in_a_resample():
    flat = np.stack([sums(np.zeros(8, np.float32), np.arange(8.0))] * 3)
    assert np.isnan(correlations(flat.sum(0)))
    large = sums(np.full(8, 1e4, np.float32), np.arange(8.0))
    assert np.isnan(correlations(large))


def test_the_interval_of_a_mean_covers_it():
    """Features differ and documents are noisy: the interval must cover both; of 120 trials at 95 % at least 88 %.

    Nor must it be wider than that takes: four times the scatter of the means themselves.
    """
    rng = np.random.default_rng(11)
    inside, widths, means = [], [], []
    for trial in range(120):
        true = 0.5 + 0.15 * rng.normal(size=60)
        docs = np.arange(100)
        noise = rng.normal(size=100) * 0.8
        correlated_features = []
        for i, r in enumerate(true):
            mine = rng.permutation(100)[:10]
            x = rng.normal(size=(10, 40))
            slope = np.clip(r + 0.3 * noise[mine], -0.95, 0.95)[:, None]
            y = slope * x + np.sqrt(1 - slope**2) * rng.normal(size=(10, 40))
            correlated_features.append(
                (correlation(x, y).value, np.stack([sums(a, b) for a, b in zip(x, y, strict=True)]), mine, i)
            )
        draws = Documents(docs, 200, trial)
        average = mean([draws.resample(v, "", s, docs[m]) for v, s, m, _ in correlated_features], 0.95, [trial])
        assert average.estimate.low is not None and average.estimate.high is not None
        inside.append(average.estimate.low <= 0.5 <= average.estimate.high)
        widths.append(average.estimate.high - average.estimate.low)
        means.append(average.estimate.value)
    assert np.mean(inside) >= 0.88
    assert 0.8 < np.mean(widths) / (4 * np.std(means)) < 1.4


def test_means_leave_out_and_count_what_has_no_number():
    drawn = np.linspace(0.4, 0.6, 50)
    known, gone = ResampledScore(0.5, "", drawn), ResampledScore(np.nan, "timed out", np.full(50, np.nan))
    average = mean([known, gone, known, gone._replace(reason="no fragment")], 0.9, [0])
    assert average.estimate.value == 0.5
    assert average.estimate.n == 2
    assert average.missing == {"timed out": 1, "no fragment": 1}
    nothing = gone._replace(reason="the predictions are constant")
    with_silent = mean([known, nothing, known, gone], 0.9, [0])
    assert with_silent.estimate.value == pytest.approx(1 / 3)
    assert (with_silent.constant, with_silent.others, with_silent.missing) == (1, 0.5, {"timed out": 1})
    assert mean([nothing, nothing], 0.9, [0]).estimate.value == 0
    assert mean([gone], 0.9, [0]).estimate.reason == "timed out"
    assert mean([], 0.9, [0]).estimate.value is None
    assert mean([known], 0.9, [0]).estimate.reason == "one feature only: no interval"


def test_a_mean_stays_where_correlations_can_be():
    """Features that are all active in one document: a resample without it says nothing, rather than 0."""
    rng = np.random.default_rng(0)
    resampled = []
    draws = Documents(np.arange(11), 400, 0)
    for _ in range(20):
        x = np.zeros((10, 20), np.float32)
        x[0] = rng.random(20)
        y = x + 0.05 * rng.normal(size=x.shape)
        docs = np.array([0, *rng.permutation(np.arange(1, 11))[:9]])
        stacked = np.stack([sums(a, b) for a, b in zip(x, y, strict=True)])
        resampled.append(draws.resample(correlation(x, y).value, "", stacked, docs))
    average = mean(resampled, 0.95, [0])
    assert average.estimate.value is not None and average.estimate.value > 0.9
    assert average.estimate.reason == "constant in too many resamples: no interval"
    high = [ResampledScore(0.99, "", np.full(400, 0.99) + 0.2 * rng.normal(size=400)) for _ in range(3)]
    clipped = mean(high, 0.95, [0]).estimate
    assert clipped.high == 1


def test_fuzzing_cannot_be_solved_by_counting():

    dense = fragment(list("abcdefghij"), [5.0] * 9 + [0.0])
    right, wrong = fuzz_marks(dense, np.random.default_rng(0))
    assert len(right) == len(wrong) == 1
    right, wrong = fuzz_marks(fragment(list("abc"), [0.0, 2.0, -1.0]), np.random.default_rng(0))
    assert right.tolist() == [1] and len(wrong) == 1

    # the other parts of a character with an active one are no silent tokens: marks stand around the whole of it
    cut = [alone(bytes([byte])) for byte in "京".encode()]
    for seed in range(9):
        right, wrong = fuzz_marks(fragment([*cut, "."], [0.0, 0.0, 2.0, 0.0]), np.random.default_rng(seed))
        assert right.tolist() == [2] and wrong.tolist() == [3]


def test_chance_is_measured_for_every_score():
    examples = features(30)
    scores = scored(examples, RulesSimulator(), explanations=[ngram(example) for example in examples])
    for name in ("detection", "fuzz"):
        true = np.nanmean([getattr(f, name).auc.value for f in scores])
        chance = np.nanmean([getattr(f, name).chance_auc.value for f in scores])
        assert true > 0.8
        # every sixth feature is of the same word
        assert 0.4 < chance < 0.65


def test_differences_are_paired_by_document():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=1000)
    a = bootstrap.Mean(bootstrap.Estimate(0.6, n=9), 0.6 + shared, {})
    b = bootstrap.Mean(bootstrap.Estimate(0.4, n=7), 0.4 + shared, {})
    gap = difference(a, b, 0.95)
    assert gap.value == pytest.approx(0.2)
    assert gap.low == pytest.approx(0.2)
    assert gap.n == 7
    none = bootstrap.Mean(bootstrap.Estimate(None, reason="dead"), np.zeros(0), {})
    assert difference(a, none, 0.95).reason == "dead"


def test_what_is_said_of_a_character_goes_to_all_of_its_tokens():
    cut = tuple(alone(bytes([byte])) for byte in "京".encode())
    inner = Fixed(lambda job: np.arange(1.0, len(job.texts) + 1))
    jobs = [Job(Explanation("test", "x"), ("a", *cut, "b")), Job(Explanation("test", "x"), ("a", "b"))]
    first, second = WholeCharacters(inner).simulate(jobs)
    assert [job.texts for job in inner.asked] == [("a", "京", "b"), ("a", "b")]
    assert list(first) == [1, 2, 2, 2, 3] and list(second) == [1, 2]
    assert WholeCharacters(inner).kind == "fixed"
    short = WholeCharacters(Fixed(lambda _: np.zeros(1))).simulate(jobs[:1])
    assert len(short[0]) == 1, "refused where predictions are checked"
    assert WholeCharacters(Fixed(lambda _: Failure("no"))).simulate(jobs[:1]) == [Failure("no")]


def test_judges_are_shown_whole_characters():
    cut = [alone(bytes([byte])) for byte in "京".encode()]
    active, silent = fragment([*cut, "."], [0.0, 2.0, 0.0, 0.0]), fragment(["a", *cut], [0.0] * 4)
    example = Examples(0, (active,), (), (active,), (), (silent,), 2.0)
    (shown,) = judging._plain(example, np.random.default_rng(0))
    assert [item.text for item in shown] == ["京.", "a京"]
    shown = [item.text for half in judging._marks(example, np.random.default_rng(0)) for item in half]
    assert sorted(shown) == ["«京».", "京«.»"]
