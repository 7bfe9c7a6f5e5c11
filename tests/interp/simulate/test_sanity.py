"""The suite of known features: what is true is true of it, and only simulators that see so rank it first."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from monolex.errors import UserError
from monolex.interp import protocol
from monolex.interp.protocol import Correlation, normalise
from monolex.interp.records import Explanation, Failure, Job, Prediction
from monolex.interp.rules import ANY, Rule
from monolex.interp.simulate.by_rule import RulesSimulator
from monolex.interp.simulate.sanity import run
from monolex.interp.simulate.sanity_suite import SUITE, examples
from monolex.interp.simulate.sanity_texts import TEXTS, pieces, vocabulary

NAMES = [case.name for case in SUITE]
EVERY = [explanation for case in SUITE for explanation in (case.true, *case.false)]


class Scripted:
    """A simulator out of a function of a job."""

    kind = "scripted"

    def __init__(self, answer: Callable[[Job], Prediction | Failure]) -> None:
        self.answer = answer

    def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        return [self.answer(job) for job in jobs]


def rule_of(explanation: Explanation) -> Rule:
    assert explanation.rule is not None
    return explanation.rule


def reader_of_texts() -> Scripted:
    """Like a language model it sees the words of an explanation alone, and answers in whole numbers from 0 to 10."""
    known = {explanation.text: rule_of(explanation) for explanation in EVERY}

    def answer(job: Job) -> Prediction:
        rule = known[job.explanation.text]
        strongest = max(line.value for line in rule.lines)
        return normalise(rule.predict(job.texts), strongest).astype(np.float64)

    return Scripted(answer)


def test_the_suite_is_large_enough():
    assert len(SUITE) >= 12
    assert len(set(NAMES)) == len(SUITE)
    assert all(len(case.false) >= 3 for case in SUITE)


def test_the_same_words_mean_the_same_tokens():
    """Only strengths may differ, which no score minds in a rule of one strength."""
    meant: dict[str, list] = {}
    for explanation in EVERY:
        assert meant.setdefault(explanation.text, places(explanation)) == places(explanation)


def places(explanation: Explanation) -> list:
    return [(line.slots, line.value > 0) for line in rule_of(explanation).lines]


def test_texts_are_their_tokens():
    assert all("".join(pieces(text)) == text for text in TEXTS)
    assert len(set(TEXTS)) == len(TEXTS)
    assert pieces("\nclass Lake(Water):\n    depth = 30") == (
        "\n", "class", " Lake", "(", "Water", ")", ":", "\n", "    ", "depth", " =", " 30",
    )  # fmt: skip
    assert pieces("The king was walking. 3.50!") == (
        "The", " king", " was", " walk", "ing", ".", " 3", ".", "50", "!",
    )  # fmt: skip


@pytest.mark.parametrize("number", range(len(SUITE)), ids=NAMES)
def test_fragments_are_apart_and_as_they_are_called(number):
    known = examples(number, SUITE[number])
    groups = (known.explain, known.explain_silent, known.top, known.random, known.silent)
    docs = [fragment.doc for group in groups for fragment in group]
    assert len(docs) == len(set(docs))
    assert (len(known.explain), len(known.random)) == (3, 8)
    assert len(known.top) >= 3
    assert all(fragment.maximum > 0 for fragment in (*known.explain, *known.top))
    assert all(not fragment.activations.any() for fragment in (*known.explain_silent, *known.silent))
    assert known.maximum == max(fragment.maximum for fragment in known.explain)
    assert known.feature == number
    words = vocabulary()
    for fragment in (fragment for group in groups for fragment in group):
        assert "".join(fragment.texts) == TEXTS[fragment.doc]
        assert tuple(words[token] for token in fragment.tokens) == fragment.texts
        assert len(fragment.activations) == len(fragment.texts)


@pytest.mark.parametrize("case", SUITE, ids=NAMES)
def test_what_is_called_true_is_exactly_true_and_nothing_else(case):
    """The feature is one program and the rule another; over all texts they agree, and no false rule does."""
    actual = [case.activation(pieces(text), at) for text in TEXTS for at in range(len(pieces(text)))]
    assert len(set(actual)) > 1
    assert actual == pytest.approx(np.concatenate([rule_of(case.true).predict(pieces(text)) for text in TEXTS]))
    for explanation in case.false:
        predicted = np.concatenate([rule_of(explanation).predict(pieces(text)) for text in TEXTS])
        assert protocol.correlation(actual, predicted).value < 0.99, explanation.text
        slots = [slot for line in rule_of(explanation).lines for slot in line.slots]
        assert all(slot.tokens or slot.classes or slot is ANY for slot in slots), "a pattern that matches nothing"


def test_some_known_activations():
    by_name = {case.name: case.activation for case in SUITE}

    def active(name: str, text: str) -> list[str]:
        texts = pieces(text)
        return [piece for at, piece in enumerate(texts) if by_name[name](texts, at) > 0]

    assert active("two tokens in a row", "New York, York, New") == [" York"]
    assert active("one token apart", "between a and b, between x y and c and d") == [" and"]
    assert active("third in a list", "a, b, c, d, e, and then one thing, more") == [" c"]
    assert active("a word of code", "first-class\nclass Upper:\n    class") == ["class"]
    assert active("ends of sentences", "It is 3.5. Is it? Yes!") == ["?", "!"]
    assert active("a number in its place", "page 3 of 4, page four") == [" 3"]
    assert active("beginnings of lines", "a\n\nb c\nd") == ["b", "d"]


def test_rules_rank_every_true_explanation_first():
    ranking = run(RulesSimulator())
    assert ranking.simulator == "rules"
    assert [feature.rank for feature in ranking.features] == [1] * len(SUITE)
    assert (ranking.first, ranking.unranked) == (len(SUITE), 0)
    assert all(not feature.failures for feature in ranking.features), "every false explanation can be scored"
    assert all(feature.true.score == pytest.approx(1.0) for feature in ranking.features)


def test_a_language_model_that_understands_ranks_them_first():
    ranking = run(reader_of_texts())
    assert ranking.first == len(SUITE)
    assert all(feature.true.score is not None and feature.true.score > 0.99 for feature in ranking.features)


def test_a_constant_simulator_ranks_nothing():
    ranking = run(Scripted(lambda job: np.full(len(job.texts), 3.0)))
    assert (ranking.first, ranking.unranked) == (0, len(SUITE))
    assert all(len(feature.failures) == 5 for feature in ranking.features)
    assert {told.reason for feature in ranking.features for told in feature.failures} == {
        "the predictions are constant"
    }
    assert "failed: the predictions are constant" in ranking.table()


def test_a_simulator_that_always_fails_is_counted():
    ranking = run(Scripted(lambda _: Failure("no answer")))
    assert (ranking.first, ranking.unranked) == (0, len(SUITE))
    assert all([told.reason for told in feature.failures] == ["no answer"] * 5 for feature in ranking.features)
    assert all(feature.true.score is None and feature.best_false is None for feature in ranking.features)


def test_a_shuffled_simulator_does_not_rank_them_first():
    """Each job gets the answer to another explanation of the same text."""

    class Shuffled:
        kind = "shuffled"

        def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
            order = np.random.default_rng(0).permutation(len(EVERY))
            other = {id(explanation): EVERY[index] for explanation, index in zip(EVERY, order, strict=True)}
            return RulesSimulator().simulate([Job(other[id(job.explanation)], job.texts) for job in jobs])

    ranking = run(Shuffled())
    assert ranking.first < len(SUITE) // 2


def test_a_false_explanation_that_scores_as_high_counts_against_the_true_one():
    """Deaf to what is said, but not constant: every explanation of a feature scores the same."""
    ranking = run(Scripted(lambda job: np.arange(len(job.texts), dtype=np.float64)))
    assert [feature.rank for feature in ranking.features] == [5] * len(SUITE)


def test_failures_of_single_explanations():
    """Without the true one there is no rank; without a false one the others still compare."""
    case = SUITE[0]
    lost = case.true.text
    rules = RulesSimulator()

    def answer(job: Job) -> Prediction | Failure:
        return Failure("lost") if job.explanation.text == lost else rules.simulate([job])[0]

    without_true = run(Scripted(answer), suite=SUITE[:1]).features[0]
    assert (without_true.rank, [told.text for told in without_true.failures]) == (None, [lost])
    assert without_true.best_false is not None
    lost = case.false[0].text
    without_false = run(Scripted(answer), suite=SUITE[:1]).features[0]
    assert (without_false.rank, [told.text for told in without_false.failures]) == (1, [lost])


def test_missing_tokens_are_left_out_and_counted():
    rules = RulesSimulator()

    def answer(job: Job) -> Prediction | Failure:
        (prediction,) = rules.simulate([job])
        assert isinstance(prediction, np.ndarray)
        return np.where(np.arange(len(job.texts)) == 3, np.nan, prediction)

    ranking = run(Scripted(answer), suite=SUITE[:2])
    assert all(feature.true.score == pytest.approx(1.0) and not feature.failures for feature in ranking.features)
    tokens = ranking.to_json()["tokens"]
    assert tokens["missing"] == tokens["fragments"] > 50 and tokens["predicted"] > 10 * tokens["missing"]
    assert f"named no number at {tokens['missing']:,} of {tokens['predicted']:,} tokens (" in ranking.table()


def test_explanations_without_rules_fail():
    spoken = [Job(Explanation("someone", "dogs"), ("a", "b")), Job(EVERY[0], (" river", "."))]
    predicted = RulesSimulator().simulate(spoken)
    assert predicted[0] == Failure("the explanation has no rule")
    assert predicted[1] == pytest.approx([9.0, 0.0])
    assert RulesSimulator().kind == "rules"


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(UserError, match="scripted"):
        run(Scripted(lambda job: np.zeros(len(job.texts) + 1)))

    class Short(Scripted):
        def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
            return super().simulate(jobs)[:-1]

    with pytest.raises(UserError, match="one prediction a job"):
        run(Short(lambda job: np.zeros(len(job.texts))))


def test_another_score_may_be_given():
    ranking = run(RulesSimulator(), lambda actual, predicted: Correlation(-float(np.abs(actual - predicted).sum())))
    assert ranking.first == len(SUITE)
    assert ranking.features[0].true.score == 0


def test_json_and_table():
    ranking = run(RulesSimulator(), suite=SUITE[:2])
    plain = json.loads(json.dumps(ranking.to_json(), allow_nan=False))
    assert (plain["simulator"], plain["features"], plain["first"], plain["unranked"]) == ("rules", 2, 2, 0)
    first = plain["ranked"][0]
    assert (first["name"], first["rank"], first["true"]["text"]) == (NAMES[0], 1, SUITE[0].true.text)
    assert first["true"]["score"] == pytest.approx(1.0)
    assert first["best_false"]["score"] < 1
    failed = run(Scripted(lambda _: Failure("no answer")), suite=SUITE[:1])
    assert json.loads(json.dumps(failed.to_json(), allow_nan=False))["ranked"][0]["best_false"] is None
    header, first_line, two, last = ranking.table().split("\n")
    assert header.split()[:3] == ["feature", "rank", "true"]
    assert first_line.startswith(NAMES[0])
    assert two.startswith(NAMES[1])
    assert last == "rules: the true explanation ranks first of 2 of 2 features; 0 could not be ranked"
    assert "n/a" in failed.table()
