"""Patterns: planted ones are found, and batching finds what asking one text at a time does."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers.looking_back import SITE, feature_rows, looking_back, reading
from helpers.random_pairs import dictionary as random_dictionary
from helpers.tiny import tiny_hf
from helpers.tiny_texts import make_tokenizer
from torch import Tensor

from monolex.dictionaries.base import Dictionary
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig
from monolex.interp.explain import pattern
from monolex.interp.explain.pattern import Occurrence, explain, prune
from monolex.interp.explain.pattern_rule import merged
from monolex.interp.explain.pattern_text import described
from monolex.interp.explain.similar_tokens import similar_tokens
from monolex.interp.explain.subject import ActivationQuery, subject_reader
from monolex.interp.records import Examples, Explanation, Failure, Fragment
from monolex.interp.rules import ANY, Line, Rule, Slot
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap
from monolex.text.separator import separator
from monolex.text.vocabulary import Texts

A, B, C, D, E = range(5)
VOCAB = 12


def vectors() -> Tensor:
    """Rows of the planted model's embedding: unrelated ones, but for E, which is close to D."""
    rows = torch.eye(VOCAB, dtype=torch.float64)
    rows[E] = 0.8 * rows[D] + 0.6 * rows[E]
    return rows


def planted() -> tuple[LanguageModel, Dictionary]:
    """Features: 0 of A; 1 of A right after B; 2 of A two after B; 3 of D, weaker of E; 4 dead; 5 of B, A and nothing
    else in between that is not C."""
    lm = looking_back(vectors())
    rows = vectors()
    wanted = [
        {0: rows[A]},
        {0: rows[A], 1: rows[B]},
        {0: rows[A], 2: rows[B]},
        {0: rows[D]},
        {0: rows[A]},
        {0: rows[A], 1: rows[C], 2: rows[B]},
    ]
    return lm, reading(feature_rows(lm.d_model, VOCAB, wanted), [0.0, -1.0, -1.0, 0.0, -9.0, -2.0])


def codes(lm: LanguageModel, dictionary: Dictionary, site: str, tokens: Sequence[int]) -> Tensor:
    return dictionary.encode(capture(lm, torch.tensor([list(tokens)]), [site]).activations[site])[0]


def fragments(
    lm: LanguageModel, dictionary: Dictionary, site: str, feature: int, rows: Sequence[Sequence[int]]
) -> tuple[Fragment, ...]:
    """Fragments as a harvest would cut them out, strongest first."""
    cut = []
    for number, tokens in enumerate(rows):
        texts = dict(Texts(lm).of(tokens))
        activations = codes(lm, dictionary, site, tokens)[:, feature].float().numpy()
        cut.append(Fragment(number, 100 * number, tuple(tokens), tuple(texts[t] for t in tokens), activations))
    return tuple(sorted(cut, key=lambda fragment: -fragment.maximum))


def examples_of(
    lm: LanguageModel,
    dictionary: Dictionary,
    site: str,
    feature: int,
    rows: Sequence[Sequence[int]],
    maximum: float | None = None,
) -> Examples:
    cut = fragments(lm, dictionary, site, feature, rows)
    loud = tuple(f for f in cut if f.maximum > 0)
    quiet = tuple(f for f in cut if f.maximum <= 0)
    top = max((f.maximum for f in loud), default=0.0) if maximum is None else maximum
    return Examples(feature, loud, quiet, (), (), (), top)


def drawn(n: int, length: int, vocab: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(1, vocab, (n, length)).tolist()


def only(explanations: list[Explanation | Failure]) -> Explanation:
    assert len(explanations) == 1
    assert isinstance(explanations[0], Explanation), explanations
    return explanations[0]


def slots(*texts: str) -> tuple[Slot, ...]:
    return tuple(Slot(frozenset(text.split("|"))) if text else ANY for text in texts)


@pytest.mark.parametrize(
    ("feature", "rows", "expected", "text"),
    [
        (0, [[7, 8, 9, A], [6, A, 5, 7]], slots("0"), '"0" (strength 10 of 10)'),
        (1, [[7, 8, 9, B, A, A], [6, A, B, A]], slots("1", "0"), '"0" after "1" (strength 10 of 10)'),
        (
            2,
            [[7, 8, B, 9, A], [6, A, 5, B, 8, A]],
            slots("1", "", "0"),
            '"0" after any token after "1" (strength 10 of 10)',
        ),
        (5, [[7, 8, B, C, A], [6, B, C, A, 9]], slots("1", "2", "0"), '"0" after "2" after "1" (strength 10 of 10)'),
        (3, [[7, 8, 9, D], [6, 5, D]], slots("3|4"), '"3" or "4" (strength 10 of 10)'),
    ],
)
def test_a_planted_pattern_is_found(feature, rows, expected, text):
    lm, dictionary = planted()
    silent = [[5, 6, 7, 8, 9, 10, 11], [11, 10, 9, 8, 7, 6, 5]]
    examples = [examples_of(lm, dictionary, SITE, feature, rows + silent)]
    explanation = only(explain(lm, dictionary, SITE, examples, ExplainConfig(batch_tokens=64)))
    assert explanation.rule is not None
    assert [line.slots for line in explanation.rule.lines] == [expected]
    assert explanation.rule.lines[0].value == pytest.approx(1.0)
    assert explanation.explainer == "pattern"
    assert explanation.text == text


def test_a_line_predicts_the_mean_of_what_was_stored():
    lm, dictionary = planted()
    examples = examples_of(lm, dictionary, SITE, 1, [[7, 8, B, A], [6, B, A, 9]])
    examples.explain[0].activations[:] *= 3
    explanation = only(explain(lm, dictionary, SITE, [examples], ExplainConfig(batch_tokens=64)))
    assert explanation.rule is not None
    assert explanation.rule.lines[0].value == pytest.approx(2.0)


def test_another_strong_token_of_a_fragment_gives_a_line_too():
    """Feature 3 is .8 on E and 1 on D, so that a fragment with both tells of both; a weak one would not."""
    lm, dictionary = planted()
    examples = examples_of(lm, dictionary, SITE, 3, [[7, 8, D, 9, E]])
    stored = [occurrence.stored for occurrence in pattern.active_tokens(0, examples, 16)]
    assert stored == pytest.approx([1.0, 0.8])
    assert len(pattern.active_tokens(0, examples_of(lm, dictionary, SITE, 3, [[7, D, E]], maximum=1.7), 16)) == 1
    assert len(pattern.active_tokens(0, examples_of(lm, dictionary, SITE, 3, [[7, D, D]]), 16)) == 1


def test_dead_and_negative_features_fail():
    lm, dictionary = planted()
    dead = examples_of(lm, dictionary, SITE, 4, [[7, 8, A]])
    negative = Fragment(0, 0, (7, 8), ("7", "8"), np.array([-2.0, -1.0], np.float32))
    below = Examples(0, (negative,), (), (), (), (), -1.0)
    assert (
        explain(lm, dictionary, SITE, [dead, below], ExplainConfig(batch_tokens=64))
        == [Failure("never above zero")] * 2
    )
    assert explain(lm, dictionary, SITE, [], ExplainConfig(batch_tokens=64)) == []


def test_without_the_text_before_a_feature_may_be_silent():
    """The fragment was cut where what made the feature active lies outside."""
    lm, dictionary = planted()
    cut = Fragment(0, 0, (A, 9), ("0", "9"), np.array([1.0, 0.0], np.float32))
    whole = fragments(lm, dictionary, SITE, 1, [[7, B, A]])
    lost, half = (Examples(1, group, (), (), (), (), 1.0) for group in ((cut,), (cut, *whole)))
    explanations = explain(lm, dictionary, SITE, [lost, half], ExplainConfig(batch_tokens=64))
    assert explanations[0] == Failure("not active without the text before")
    assert isinstance(explanations[1], Explanation)
    assert explanations[1].rule is not None
    assert [line.slots for line in explanations[1].rule.lines] == [slots("1", "0")]


def test_one_token_fragments():
    lm, dictionary = planted()
    examples = examples_of(lm, dictionary, SITE, 0, [[A]])
    explanation = only(explain(lm, dictionary, SITE, [examples], ExplainConfig(batch_tokens=1)))
    assert explanation.rule == Rule((Line(slots("0"), 1.0),))


def test_a_text_of_one_token_repeated_has_no_other_to_try():
    """Nothing can be put in the place of the tokens before, so they are taken to matter."""
    examples = Examples(1, (Fragment(0, 0, (A, A), ("0", "0"), np.array([0.0, 1.0], np.float32)),), (), (), (), (), 1.0)
    replacement = pattern.replacements(examples, 0)
    assert replacement((A, A), 0) is None
    occurrences = [
        Occurrence(0, ActivationQuery((A, A), 1), 1.0, 1.0),
        Occurrence(0, ActivationQuery((B, A), 1), 1.0, 1.0),
    ]
    seen = []

    def read(queries: Sequence[ActivationQuery]) -> np.ndarray:
        seen.extend(queries)
        return np.full(len(queries), 0.51)

    assert pattern.saliency(read, occurrences, [replacement]) == [[True, True], [False, True]]
    assert seen == [ActivationQuery((A, A), 1)]


def test_the_whole_suffix_is_kept_where_no_shorter_one_will_do():
    whole = Occurrence(0, ActivationQuery(tuple(range(16)), 0), 5.0)
    by_length = {16: 4.0, 12: 2.0, 8: 1.9, 1: -3.0}
    seen = prune(lambda queries: np.array([by_length.get(len(query.tokens), 0.0) for query in queries]), [whole])
    assert seen == [whole._replace(alone=4.0)]
    by_length[6] = 2.1
    seen = prune(lambda queries: np.array([by_length.get(len(query.tokens), 0.0) for query in queries]), [whole])
    assert seen == [Occurrence(0, ActivationQuery(tuple(range(10, 16)), 0), 5.0, 2.1)]


def spelling_model() -> LanguageModel:
    """Random, in float64, with a tokenizer whose separator is 0; the embedding has rows beyond its entries."""
    return wrap(tiny_hf("gpt_neox", vocab_size=330).double(), make_tokenizer(), "tiny")


def alone(lm: LanguageModel, dictionary: Dictionary, site: str, tokens: tuple[int, ...], feature: int) -> float:
    """A feature at the end of one text behind the separator."""
    assert lm.tokenizer is not None
    start = separator(lm.tokenizer)
    return float(codes(lm, dictionary, site, tokens if tokens[0] == start else (start, *tokens))[-1, feature])  # pyright: ignore[reportArgumentType]


def naive(lm: LanguageModel, dictionary: Dictionary, site: str, examples: Examples, seed: int) -> Explanation | Failure:
    """The method as its description reads, one text at a time."""
    if examples.maximum <= 0:
        return Failure("never above zero")
    replacement, similar = pattern.replacements(examples, seed), similar_tokens(lm, range(296))
    lines: dict[tuple[Slot, ...], list[float]] = {}
    for occurrence in pattern.active_tokens(0, examples, 16):
        tokens = occurrence.query.tokens
        whole = alone(lm, dictionary, site, tokens, examples.feature)
        if whole <= 0:
            continue
        for length in (1, 2, 3, 4, 6, 8, 12, 16):
            suffix = tokens[-length:]
            kept = alone(lm, dictionary, site, suffix, examples.feature)
            if kept > whole / 2 or suffix == tokens:
                break
        places = []
        for at, token in enumerate(suffix):

            def put(new: int, at: int = at, suffix: tuple[int, ...] = suffix) -> float:
                return alone(lm, dictionary, site, (*suffix[:at], new, *suffix[at + 1 :]), examples.feature)

            last = at == len(suffix) - 1
            instead = None if last else replacement(suffix, at)
            if last or instead is None or put(instead) <= kept / 2:
                ids = {token, *(new for new in similar[token] if put(new) > kept / 2)}
                places.append(Slot(frozenset(text for _, text in Texts(lm).of(ids))))
            elif places:
                places.append(ANY)
        lines.setdefault(tuple(places), []).append(occurrence.stored)
    if not lines:
        return Failure("not active without the text before")
    rule = Rule(tuple(Line(slots, float(np.mean(values))) for slots, values in merged(lines).items()))
    seen = {text for fragment in examples.explain for text in fragment.texts}
    return Explanation("pattern", described(rule.lines, examples.maximum, seen), rule)


def many_examples(lm: LanguageModel, dictionary: Dictionary, site: str) -> list[Examples]:
    """Each feature with the five of some texts on which it is strongest, and one text without its tokens."""
    rows = [[0, *row] if number % 3 == 0 else row for number, row in enumerate(drawn(24, 19, 296))]
    examples = []
    for feature in range(dictionary.d_sae):
        cut = fragments(lm, dictionary, site, feature, rows)
        examples.append(Examples(feature, cut[:5], cut[-2:], (), (), (), cut[0].maximum))
    return examples


@pytest.mark.parametrize(
    ("site", "activation"), [("resid_post.2", "relu"), ("mlp_act.1", "topk"), ("resid_post.2", "linear")]
)
def test_batches_find_what_single_texts_do(site, activation):
    lm = spelling_model()
    dictionary = random_dictionary(lm.width(site), 6, activation, site=site)
    examples = many_examples(lm, dictionary, site)
    explanations = explain(lm, dictionary, site, examples, ExplainConfig(batch_tokens=100, explain_seed=3))
    assert explanations == [naive(lm, dictionary, site, of_feature, 3) for of_feature in examples]
    rules = [said.rule for said in explanations if isinstance(said, Explanation) and said.rule is not None]
    lengths = {len(line.slots) for rule in rules for line in rule.lines}
    assert len(lengths) > 2, "the test should see more than single tokens"


def test_a_feature_does_not_depend_on_its_company():
    lm = spelling_model()
    dictionary = random_dictionary(32, 24, site="resid_post.1")
    examples = many_examples(lm, dictionary, "resid_post.1")
    together = explain(lm, dictionary, "resid_post.1", examples, ExplainConfig(batch_tokens=256))
    turned = explain(lm, dictionary, "resid_post.1", examples[::-1], ExplainConfig(batch_tokens=7))
    assert together == turned[::-1]
    assert together[3:4] == explain(lm, dictionary, "resid_post.1", examples[3:4], ExplainConfig(batch_tokens=256))
    assert together != explain(
        lm, dictionary, "resid_post.1", examples, ExplainConfig(batch_tokens=256, explain_seed=1)
    )


def test_reading_many_equals_reading_one():
    lm = spelling_model()
    dictionary = random_dictionary(32, 24, "topk", site="resid_post.2")
    texts = [tuple(row) for n in (1, 2, 5) for row in drawn(6, n, 296, seed=n)] + [(0, 5, 6), (0,)]
    queries = [ActivationQuery(text, feature) for text in texts for feature in (3, 17)] * 2
    activations = subject_reader(lm, dictionary, "resid_post.2", 12)(queries)
    expected = [alone(lm, dictionary, "resid_post.2", query.tokens, query.feature) for query in queries]
    assert np.count_nonzero(expected) > 5
    assert activations == pytest.approx(expected, abs=1e-10)
    with pytest.raises(UserError, match="resid_post.9"):
        subject_reader(lm, dictionary, "resid_post.9", 12)


def test_unicode_stays_readable():
    lm = spelling_model()
    assert lm.tokenizer is not None
    dictionary = random_dictionary(32, 24, site="resid_post.2")
    ids = [lm.tokenizer(text)["input_ids"] for text in ("the 漢字 cat", "🙂 that\n\n é", "\u202ea\tb\u0301 saw")]
    examples = [examples_of(lm, dictionary, "resid_post.2", feature, ids) for feature in range(24)]
    for of_feature, explanation in zip(
        examples, explain(lm, dictionary, "resid_post.2", examples, ExplainConfig(batch_tokens=64)), strict=True
    ):
        if isinstance(explanation, Explanation):
            assert explanation.rule is not None
            assert "\n" not in explanation.text
            strongest = of_feature.explain[0]
            assert explanation.rule.predict(strongest.texts)[strongest.activations.argmax()] > 0


def test_similar_tokens():
    lm = spelling_model()
    assert lm.tokenizer is not None
    ids = {text: i for i, text in Texts(lm).of(range(296))}
    similar = similar_tokens(lm, [ids["cat"], ids[" mat"], ids["the"], ids["t"]])
    assert ids[" cat"] in similar[ids["cat"]]
    assert ids["mat"] in similar[ids[" mat"]]
    assert {ids["T"], ids[" t"]} <= set(similar[ids["t"]])
    for token, others in similar.items():
        assert token not in others
        assert all(3 < other < 296 for other in others)
    table = torch.nn.functional.normalize(lm.embedding[4:296].double(), dim=1)
    nearest = (table @ table[ids["the"] - 4]).argsort(descending=True)[1:9] + 4
    assert set(nearest.tolist()) <= set(similar[ids["the"]])


def test_lines_that_are_never_reached_add_to_those_that_are():
    wide, narrow, longer, apart = slots("a|b"), slots("a"), slots("x", "a"), slots("c")
    stored = {
        wide: [4.0],
        narrow: [2.0],
        longer: [6.0],
        apart: [1.0],
        slots("y|x", "", "a"): [3.0],
        slots("x", "", "a"): [5.0],
    }
    assert list(merged(stored).items()) == [
        (slots("y|x", "", "a"), [3.0, 5.0]),
        (longer, [6.0]),
        (wide, [4.0, 2.0]),
        (apart, [1.0]),
    ]


def test_descriptions():
    long = Line(slots("a", "", "", "b"), 2.0)
    many = Line((Slot(frozenset("stuvwxyz")),), 4.0)
    text = described([long, many], 4.0, {"z", "x"})
    first, second = text.split("; ")
    assert first == '"x", "z", "s", "t", "u", "v" or 2 more like these (strength 10 of 10)'
    assert second == '"b" after any 2 tokens after "a" (strength 5 of 10)'
    assert described([Line(slots("\n", '"', "é"), 1.0)], 1.0) == '"é" after "\\"" after "\\n" (strength 10 of 10)'
