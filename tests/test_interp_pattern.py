"""Patterns: planted ones are found, and batching finds what asking one text at a time does."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from looking_back import SITE, feature_rows, looking_back, reading
from pairs import dictionary
from texts import make_tokenizer
from tiny import tiny_hf
from torch import Tensor

from monolex.dictionaries.base import Dictionary
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig
from monolex.interp.explain import pattern
from monolex.interp.explain.pattern import Clue, explain, merged, prune
from monolex.interp.explain.pattern_text import described
from monolex.interp.explain.similar_tokens import alike
from monolex.interp.explain.subject import Asked, reader
from monolex.interp.records import Examples, Explanation, Failure, Fragment
from monolex.interp.rules import ANY, Line, Rule, Slot
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel, wrap
from monolex.text.corpus import separator
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


def codes(lm: LanguageModel, some: Dictionary, site: str, tokens: Sequence[int]) -> Tensor:
    return some.encode(capture(lm, torch.tensor([list(tokens)]), [site]).activations[site])[0]


def fragments(
    lm: LanguageModel, some: Dictionary, site: str, feature: int, rows: Sequence[Sequence[int]]
) -> tuple[Fragment, ...]:
    """Fragments as a harvest would cut them out, strongest first."""
    made = []
    for number, tokens in enumerate(rows):
        texts = dict(Texts(lm).of(tokens))
        activations = codes(lm, some, site, tokens)[:, feature].float().numpy()
        made.append(Fragment(number, 100 * number, tuple(tokens), tuple(texts[t] for t in tokens), activations))
    return tuple(sorted(made, key=lambda fragment: -fragment.maximum))


def examples_of(
    lm: LanguageModel,
    some: Dictionary,
    site: str,
    feature: int,
    rows: Sequence[Sequence[int]],
    maximum: float | None = None,
) -> Examples:
    made = fragments(lm, some, site, feature, rows)
    loud = tuple(f for f in made if f.maximum > 0)
    quiet = tuple(f for f in made if f.maximum <= 0)
    top = max((f.maximum for f in loud), default=0.0) if maximum is None else maximum
    return Examples(feature, loud, quiet, (), (), (), top)


def drawn(n: int, length: int, vocab: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(1, vocab, (n, length)).tolist()


def only(found: list[Explanation | Failure]) -> Explanation:
    assert len(found) == 1
    assert isinstance(found[0], Explanation), found
    return found[0]


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
    lm, some = planted()
    silent = [[5, 6, 7, 8, 9, 10, 11], [11, 10, 9, 8, 7, 6, 5]]
    examples = [examples_of(lm, some, SITE, feature, rows + silent)]
    found = only(explain(lm, some, SITE, examples, ExplainConfig(batch_tokens=64)))
    assert found.rule is not None
    assert [line.slots for line in found.rule.lines] == [expected]
    assert found.rule.lines[0].value == pytest.approx(1.0)
    assert found.explainer == "pattern"
    assert found.text == text


def test_a_line_predicts_the_mean_of_what_was_stored():
    lm, some = planted()
    one = examples_of(lm, some, SITE, 1, [[7, 8, B, A], [6, B, A, 9]])
    one.explain[0].activations[:] *= 3
    found = only(explain(lm, some, SITE, [one], ExplainConfig(batch_tokens=64)))
    assert found.rule is not None
    assert found.rule.lines[0].value == pytest.approx(2.0)


def test_another_strong_token_of_a_fragment_gives_a_line_too():
    """Feature 3 is .8 on E and 1 on D, so that a fragment with both tells of both; a weak one would not."""
    lm, some = planted()
    one = examples_of(lm, some, SITE, 3, [[7, 8, D, 9, E]])
    stored = [clue.stored for clue in pattern.occurrences(0, one, 16)]
    assert stored == pytest.approx([1.0, 0.8])
    assert len(pattern.occurrences(0, examples_of(lm, some, SITE, 3, [[7, D, E]], maximum=1.7), 16)) == 1
    assert len(pattern.occurrences(0, examples_of(lm, some, SITE, 3, [[7, D, D]]), 16)) == 1


def test_dead_and_negative_features_fail():
    lm, some = planted()
    dead = examples_of(lm, some, SITE, 4, [[7, 8, A]])
    negative = Fragment(0, 0, (7, 8), ("7", "8"), np.array([-2.0, -1.0], np.float32))
    below = Examples(0, (negative,), (), (), (), (), -1.0)
    assert explain(lm, some, SITE, [dead, below], ExplainConfig(batch_tokens=64)) == [Failure("never above zero")] * 2
    assert explain(lm, some, SITE, [], ExplainConfig(batch_tokens=64)) == []


def test_without_the_text_before_a_feature_may_be_silent():
    """The fragment was cut where what made the feature active lies outside."""
    lm, some = planted()
    cut = Fragment(0, 0, (A, 9), ("0", "9"), np.array([1.0, 0.0], np.float32))
    whole = fragments(lm, some, SITE, 1, [[7, B, A]])
    lost, half = (Examples(1, some, (), (), (), (), 1.0) for some in ((cut,), (cut, *whole)))
    found = explain(lm, some, SITE, [lost, half], ExplainConfig(batch_tokens=64))
    assert found[0] == Failure("not active without the text before")
    assert isinstance(found[1], Explanation)
    assert found[1].rule is not None
    assert [line.slots for line in found[1].rule.lines] == [slots("1", "0")]


def test_one_token_fragments():
    lm, some = planted()
    one = examples_of(lm, some, SITE, 0, [[A]])
    found = only(explain(lm, some, SITE, [one], ExplainConfig(batch_tokens=1)))
    assert found.rule == Rule((Line(slots("0"), 1.0),))


def test_a_text_of_one_token_repeated_has_no_other_to_try():
    """Nothing can be put in the place of the tokens before, so they are taken to matter."""
    one = Examples(1, (Fragment(0, 0, (A, A), ("0", "0"), np.array([0.0, 1.0], np.float32)),), (), (), (), (), 1.0)
    other = pattern.others(one, 0)
    assert other((A, A), 0) is None
    clues = [Clue(0, Asked((A, A), 1), 1.0, 1.0), Clue(0, Asked((B, A), 1), 1.0, 1.0)]
    seen = []

    def read(asked: Sequence[Asked]) -> np.ndarray:
        seen.extend(asked)
        return np.full(len(asked), 0.51)

    assert pattern.saliency(read, clues, [other]) == [[True, True], [False, True]]
    assert seen == [Asked((A, A), 1)]


def test_the_whole_suffix_is_kept_where_no_shorter_one_will_do():
    clue = Clue(0, Asked(tuple(range(16)), 0), 5.0)
    by_length = {16: 4.0, 12: 2.0, 8: 1.9, 1: -3.0}
    seen = prune(lambda asked: np.array([by_length.get(len(one.tokens), 0.0) for one in asked]), [clue])
    assert seen == [clue._replace(given=4.0)]
    by_length[6] = 2.1
    seen = prune(lambda asked: np.array([by_length.get(len(one.tokens), 0.0) for one in asked]), [clue])
    assert seen == [Clue(0, Asked(tuple(range(10, 16)), 0), 5.0, 2.1)]


def spelling_model() -> LanguageModel:
    """Random, in float64, with a tokenizer whose separator is 0; the embedding has rows beyond its entries."""
    return wrap(tiny_hf("gpt_neox", vocab_size=330).double(), make_tokenizer(), "tiny")


def alone(lm: LanguageModel, some: Dictionary, site: str, tokens: tuple[int, ...], feature: int) -> float:
    """A feature at the end of one text behind the separator."""
    assert lm.tokenizer is not None
    start = separator(lm.tokenizer)
    return float(codes(lm, some, site, tokens if tokens[0] == start else (start, *tokens))[-1, feature])  # pyright: ignore[reportArgumentType]


def naive(lm: LanguageModel, some: Dictionary, site: str, one: Examples, seed: int) -> Explanation | Failure:
    """The method as its description reads, one text at a time."""
    if one.maximum <= 0:
        return Failure("never above zero")
    other, like = pattern.others(one, seed), alike(lm, range(296))
    lines: dict[tuple[Slot, ...], list[float]] = {}
    for clue in pattern.occurrences(0, one, 16):
        tokens = clue.asked.tokens
        whole = alone(lm, some, site, tokens, one.feature)
        if whole <= 0:
            continue
        for length in (1, 2, 3, 4, 6, 8, 12, 16):
            suffix = tokens[-length:]
            given = alone(lm, some, site, suffix, one.feature)
            if given > whole / 2 or suffix == tokens:
                break
        places = []
        for at, token in enumerate(suffix):

            def put(new: int, at: int = at, suffix: tuple[int, ...] = suffix) -> float:
                return alone(lm, some, site, (*suffix[:at], new, *suffix[at + 1 :]), one.feature)

            last = at == len(suffix) - 1
            instead = None if last else other(suffix, at)
            if last or instead is None or put(instead) <= given / 2:
                ids = {token, *(new for new in like[token] if put(new) > given / 2)}
                places.append(Slot(frozenset(text for _, text in Texts(lm).of(ids))))
            elif places:
                places.append(ANY)
        lines.setdefault(tuple(places), []).append(clue.stored)
    if not lines:
        return Failure("not active without the text before")
    rule = Rule(tuple(Line(slots, float(np.mean(values))) for slots, values in merged(lines).items()))
    seen = {text for fragment in one.explain for text in fragment.texts}
    return Explanation("pattern", described(rule.lines, one.maximum, seen), rule)


def many_examples(lm: LanguageModel, some: Dictionary, site: str) -> list[Examples]:
    """Each feature with the five of some texts on which it is strongest, and one text without its tokens."""
    rows = [[0, *row] if number % 3 == 0 else row for number, row in enumerate(drawn(24, 19, 296))]
    made = []
    for feature in range(some.d_sae):
        found = fragments(lm, some, site, feature, rows)
        made.append(Examples(feature, found[:5], found[-2:], (), (), (), found[0].maximum))
    return made


@pytest.mark.parametrize("activation", ["relu", "topk", "linear"])
@pytest.mark.parametrize("site", ["resid_post.2", "mlp_act.1"])
def test_batches_find_what_single_texts_do(site, activation):
    lm = spelling_model()
    some = dictionary(lm.width(site), 10, activation, site=site)
    made = many_examples(lm, some, site)
    found = explain(lm, some, site, made, ExplainConfig(batch_tokens=100, explain_seed=3))
    assert found == [naive(lm, some, site, one, 3) for one in made]
    rules = [one.rule for one in found if isinstance(one, Explanation) and one.rule is not None]
    lengths = {len(line.slots) for rule in rules for line in rule.lines}
    assert len(lengths) > 2, "the test should see more than single tokens"


def test_a_feature_does_not_depend_on_its_company():
    lm = spelling_model()
    some = dictionary(32, 24, site="resid_post.1")
    made = many_examples(lm, some, "resid_post.1")
    together = explain(lm, some, "resid_post.1", made, ExplainConfig(batch_tokens=256))
    turned = explain(lm, some, "resid_post.1", made[::-1], ExplainConfig(batch_tokens=7))
    assert together == turned[::-1]
    assert together[3:4] == explain(lm, some, "resid_post.1", made[3:4], ExplainConfig(batch_tokens=256))
    assert together != explain(lm, some, "resid_post.1", made, ExplainConfig(batch_tokens=256, explain_seed=1))


def test_reading_many_equals_reading_one():
    lm = spelling_model()
    some = dictionary(32, 24, "topk", site="resid_post.2")
    texts = [tuple(row) for n in (1, 2, 5) for row in drawn(6, n, 296, seed=n)] + [(0, 5, 6), (0,)]
    asked = [Asked(text, feature) for text in texts for feature in (3, 17)] * 2
    found = reader(lm, some, "resid_post.2", 12)(asked)
    expected = [alone(lm, some, "resid_post.2", one.tokens, one.feature) for one in asked]
    assert np.count_nonzero(expected) > 5
    assert found == pytest.approx(expected, abs=1e-10)
    with pytest.raises(UserError, match="resid_post.9"):
        reader(lm, some, "resid_post.9", 12)


def test_unicode_stays_readable():
    lm = spelling_model()
    assert lm.tokenizer is not None
    some = dictionary(32, 24, site="resid_post.2")
    ids = [lm.tokenizer(text)["input_ids"] for text in ("the 漢字 cat", "🙂 that\n\n é", "\u202ea\tb\u0301 saw")]
    made = [examples_of(lm, some, "resid_post.2", feature, ids) for feature in range(24)]
    for one, found in zip(made, explain(lm, some, "resid_post.2", made, ExplainConfig(batch_tokens=64)), strict=True):
        if isinstance(found, Explanation):
            assert found.rule is not None
            assert "\n" not in found.text
            strongest = one.explain[0]
            assert found.rule.predict(strongest.texts)[strongest.activations.argmax()] > 0


def test_tokens_alike():
    lm = spelling_model()
    assert lm.tokenizer is not None
    ids = {text: i for i, text in Texts(lm).of(range(296))}
    found = alike(lm, [ids["cat"], ids[" mat"], ids["the"], ids["t"]])
    assert ids[" cat"] in found[ids["cat"]]
    assert ids["mat"] in found[ids[" mat"]]
    assert {ids["T"], ids[" t"]} <= set(found[ids["t"]])
    for token, some in found.items():
        assert token not in some
        assert all(3 < other < 296 for other in some)
    table = torch.nn.functional.normalize(lm.embedding[4:296].double(), dim=1)
    nearest = (table @ table[ids["the"] - 4]).argsort(descending=True)[1:9] + 4
    assert set(nearest.tolist()) <= set(found[ids["the"]])


def test_lines_that_are_never_reached_add_to_those_that_are():
    wide, narrow, longer, apart = slots("a|b"), slots("a"), slots("x", "a"), slots("c")
    found = {
        wide: [4.0],
        narrow: [2.0],
        longer: [6.0],
        apart: [1.0],
        slots("y|x", "", "a"): [3.0],
        slots("x", "", "a"): [5.0],
    }
    assert list(merged(found).items()) == [
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
