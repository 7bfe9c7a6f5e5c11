"""Rules and the explainers that look up tokens, against their definitions done one by one."""

import numpy as np
import pytest
from helpers.made_fragments import WORDS, examples, fragment, random_fragments

from monolex.interp.explain import lookup
from monolex.interp.protocol import correlation
from monolex.interp.records import Examples, Explanation, Failure, Job
from monolex.interp.rule_text import describe
from monolex.interp.rules import ANY, Line, Rule, Slot, from_json
from monolex.interp.simulate.by_rule import RulesSimulator
from monolex.interp.token_classes import CLASSES, class_of


def tokens(*texts: str) -> Slot:
    return Slot(frozenset(texts))


def classes(*names: str) -> Slot:
    return Slot(classes=frozenset(names))


RULE = Rule(
    (
        Line((tokens(" the"), ANY, tokens(" cat", " mat")), 9.0),
        Line((classes("digits"), classes("closing brackets")), 7.0),
        Line((tokens(" the"), ANY), 3.0),
        Line((Slot(frozenset(("\n",)), frozenset(("sentence ends",))),), 2.0),
        Line((classes("lower-case words"),), 1.0),
    ),
    default=0.5,
)


def test_the_first_line_that_fits_decides():
    texts = ["42", ")", " the", " the", " cat", " cat", ".", "\n", "X"]
    assert RULE.predict(texts).tolist() == [0.5, 7, 1, 3, 9, 9, 2, 2, 0.5]
    # a fragment's first tokens cannot be told to follow anything
    assert RULE.predict([")", " cat"]).tolist() == [0.5, 1]


def test_all_at_once_is_one_by_one():
    fragments = [drawn.texts for drawn in random_fragments(40, lambda *_: 0, seed=4)]
    fragments += [(" the",), ("\ufffd", "", "  ", " the", "été", " cat")]
    for alone, together in zip([RULE.predict(texts) for texts in fragments], RULE.predict_all(fragments), strict=True):
        assert np.array_equal(alone, together)
    assert RULE.predict_all([]) == []
    long = tuple(tokens(*WORDS[i : i + 2]) for i in range(12))
    chain = Rule((Line(long, 5.0), Line((*long[1:], ANY), 2.0)))
    texts = (*(WORDS[i + i % 2] for i in range(12)), *WORDS[:3])
    assert len(WORDS) ** 12 > 2**40
    assert chain.predict(texts)[11] == 5
    assert chain.predict(texts)[12] == 2
    many = (texts, *(tuple(str(i) for i in range(3000)) for _ in range(1)))
    assert all(np.array_equal(a, chain.predict(b)) for a, b in zip(chain.predict_all(many), many, strict=True))
    assert Rule(()).predict_all([("a", "b")])[0].tolist() == [0, 0]


def test_rules_survive_json():
    again = from_json(RULE.to_json())
    assert again == RULE
    assert from_json(Rule((), 2.5).to_json()) == Rule((), 2.5)


def test_every_token_has_one_class():
    assert class_of(r" \xe5") == class_of(r"\xac") == "parts of characters" != class_of("xe5")
    classes_of = {text: class_of(text) for text in (*WORDS, "", "  ", "\t", "été", "a_b", "  \n", '"', "—", "<!--")}
    assert classes_of["42"] == "digits"
    assert classes_of[" HTTP"] == "capitals"
    assert classes_of[" Paris"] == "capitalised words"
    assert classes_of["  \n"] == "line breaks"
    assert classes_of["a_b"] == "underscored"
    assert classes_of["été"] == "other letters"
    assert classes_of[""] == "anything else"
    assert set(classes_of.values()) <= {*CLASSES, "anything else"}


def test_words_name_the_general_and_leave_out_what_it_says():
    rule = Rule((Line((tokens("("), tokens("x")), 8.0), Line((tokens("y"),), 5.0), Line((tokens("("), ANY), 7.0)))
    assert describe(rule, 10.0) == 'any token after "(" (7); the token "y" (5)'
    # ... but not what is far stronger than the general case
    strong = Rule((Line((tokens("("), tokens("x")), 10.0), Line((tokens("x"),), 4.0)))
    assert describe(strong, 10.0) == 'the token "x" after "(" (10); the token "x" (4)'
    assert describe(rule, 0.0) == ""
    assert "any token after any token" in describe(Rule((Line((ANY, ANY), 5.0),)), 5.0)


def test_the_token_table_is_the_mean_over_the_explained_fragments():
    of_feature = examples(lambda texts, at: float(texts[at] == " cat") * (2 + at % 3))
    explanation = lookup.token_table(of_feature)
    shown = (*of_feature.explain, *of_feature.explain_silent)
    on_cat = [float(a) for f in shown for text, a in zip(f.texts, f.activations, strict=True) if text == " cat"]
    assert explanation.rule is not None
    assert [line.slots for line in explanation.rule.lines] == [(tokens(" cat"),)]
    assert explanation.rule.lines[0].value == pytest.approx(np.mean(on_cat))
    assert explanation.text.startswith('the token " cat"')


def test_fragments_that_are_scored_are_not_looked_at():
    shown = examples(lambda texts, at: float(texts[at] == " cat"))
    garbled = tuple(fragment(f.texts, [1e6] * len(f.texts)) for f in shown.top)
    for explain in (lookup.token_table, lookup.ngram):
        changed = Examples(0, shown.explain, shown.explain_silent, garbled, garbled, garbled, shown.maximum)
        assert explain(shown) == explain(changed)


PATTERNS = {
    "a token": lambda texts, at: float(texts[at] == " cat"),
    "a class": lambda texts, at: float(class_of(texts[at]) in ("opening brackets", "closing brackets")),
    "after a token": lambda texts, at: float(at > 0 and texts[at - 1] == " the"),
    "two tokens back": lambda texts, at: float(at > 1 and texts[at - 2] == "("),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_ngrams_find_what_there_is(name):
    scores = []
    for seed in range(4):
        shown = examples(PATTERNS[name], seed=seed, count=10)
        explanation = lookup.ngram(shown)
        assert explanation.rule is not None
        unseen = (*shown.top, *shown.random)
        predicted = np.concatenate(explanation.rule.predict_all([f.texts for f in unseen]))
        scores.append(correlation(np.concatenate([f.activations for f in unseen]), predicted).value)
    assert np.mean(scores) > 0.9


def test_the_words_of_ngrams_say_what_there_is():
    assert lookup.ngram(examples(PATTERNS["after a token"], count=10)).text.startswith('any token after " the" (')
    assert '" cat"' in lookup.ngram(examples(PATTERNS["a token"], count=10)).text


def test_predictions_from_other_fragments_are_those_of_a_fit_without_them():
    shown = examples(lambda texts, at: float(texts[at] == " cat") + 0.3 * (at > 0 and texts[at - 1] == "("), seed=2)
    fragments = (*shown.explain, *shown.explain_silent)
    tokens = lookup._training_tokens(fragments)
    numbers = lookup._numbers(tokens)
    for chain in lookup.CONTEXTS:
        predicted = lookup._from_others(tokens, [lookup._level(tokens, shape, numbers) for shape in chain], 0.7)
        expected = [naive(chain, fragments, left, 0.7) for left in range(len(fragments))]
        assert np.allclose(predicted, np.concatenate(expected))


def naive(chain, fragments, left: int, kappa: float) -> list[float]:
    """Smoothing from the general to the particular, fitted on all fragments but one and applied to that."""

    def key(shape, texts, at):
        if at < len(shape) - 1:
            return None
        part = texts[at + 1 - len(shape) : at + 1]
        look = {lookup.TOKEN: str, lookup.CLASS: class_of, lookup.ANYTHING: lambda _: ""}
        return tuple(look[kind](text) for kind, text in zip(shape, part, strict=True))

    others = [f for i, f in enumerate(fragments) if i != left]
    y = np.concatenate([f.activations for f in others]).astype(float)
    guesses = []
    for at in range(len(fragments[left].texts)):
        value = y.mean()
        for shape in chain:
            wanted = key(shape, fragments[left].texts, at)
            if wanted is None:
                continue
            activations = [
                float(f.activations[i]) for f in others for i in range(len(f.texts)) if key(shape, f.texts, i) == wanted
            ]
            value = (sum(activations) + kappa * value) / (len(activations) + kappa)
        guesses.append(value)
    return guesses


def test_lines_that_say_nothing_new_are_left_out():
    shown = examples(PATTERNS["a token"], count=10)
    explanation = lookup.ngram(shown)
    assert explanation.rule is not None
    full = lookup.FLOOR
    texts = [f.texts for f in (*shown.explain, *shown.explain_silent)]
    pruned = np.concatenate(explanation.rule.predict_all(texts))
    try:
        lookup.FLOOR = 0.0
        whole = lookup.ngram(shown)
    finally:
        lookup.FLOOR = full
    assert whole.rule is not None
    assert len(explanation.rule.lines) < len(whole.rule.lines)
    assert np.abs(pruned - np.concatenate(whole.rule.predict_all(texts))).max() <= full * shown.maximum + 1e-9


@pytest.mark.parametrize("texts", [("a",), ("", "\ufffd"), ("\n", "\u2028", "‮")])
def test_odd_fragments(texts):
    group = (fragment(texts, [1.0] * len(texts)),)
    shown = Examples(0, group, (), group, group, (), 1.0)
    for explain in (lookup.token_table, lookup.ngram):
        explanation = explain(shown)
        assert explanation.rule is not None
        assert explanation.rule.predict(texts).tolist() == pytest.approx([1.0] * len(texts))


def test_the_simulator_applies_rules_and_counts_what_has_none():
    jobs = [
        Job(Explanation("a", "", RULE), (" the", ".")),
        Job(Explanation("b", "in words"), ("x",)),
        Job(Explanation("c", "", Rule((), 4.0)), ("x", "y", "z")),
    ]
    simulator = RulesSimulator()
    predictions = simulator.simulate([*jobs, jobs[0]._replace(texts=(".",))])
    assert simulator.kind == "rules"
    assert isinstance(predictions[1], Failure)
    assert [values.tolist() for values in predictions if not isinstance(values, Failure)] == [[1, 3], [4, 4, 4], [2]]
