"""A card holds every number of its feature's evidence, as text that a reader sees."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from helpers import fake_scores
from helpers.fake_store import HOSTILE, TEXTS, fake_codes, fake_store
from helpers.page_parser import Page

from monolex.features.evidence import TOKEN_BINS
from monolex.features.store import FeatureStore
from monolex.interp.records import Overlay, Scored
from monolex.pages import html, tokens
from monolex.pages.axis import Axis
from monolex.pages.card import card, card_html, percent, token_chart
from monolex.pages.card_contexts import NARROW, OPEN, SMALL
from monolex.pages.card_explanations import FRAGMENTS, sort_key
from monolex.pages.histogram import Layer, stacked
from monolex.pages.html import interval, number

DEAD, DENSE, HOSTILE_ONE, ONCE = 3, 4, 5, 7


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return fake_store(tmp_path_factory.mktemp("s") / "resid_post.1" / "tied-a1.sqlite")


def drawn(store: FeatureStore, feature: int, **options) -> str:
    return str(card(store.feature(feature), store.meta, text=store.text, **options))


def stats(shown: str) -> dict[str, tuple[str, str]]:
    numbers = re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>(.*?)</small>", shown)
    return {label: (value, under) for label, value, under in numbers}


@pytest.mark.parametrize("feature", [0, 1, 2, DENSE, HOSTILE_ONE, 6, ONCE])
def test_numbers_are_those_of_the_codes(store, feature):
    codes, ids = fake_codes()
    column = codes[:, feature].astype(np.float64)
    active, variance = column[column > 0], column.var()
    shown = stats(drawn(store, feature))
    assert shown["Density"] == (percent(len(active) / len(column)), f"1 in {number(len(column) / len(active))}")
    assert shown["Active"] == (number(len(active)), f"of {len(column):,}")
    assert shown["Contexts"][0] == number(int((column.reshape(-1, 32).max(1) > 0).sum()))
    assert shown["Maximum"] == (number(float(active.max())), f"mean active {number(float(active.mean()))}")
    assert shown["Skew"][0] == number(float((column**3).mean() / variance**1.5))
    assert shown["Kurtosis"][0] == number(float((column**4).mean() / variance**2))
    assert shown["Tokens"][0] == str(len(set(ids[column > 0])))


@pytest.mark.parametrize("feature", [0, 2, DENSE])
def test_tables_hold_every_share(store, feature):
    evidence = store.feature(feature)
    rows = re.findall(r'<th scope="row">(.*?)</th>.*?<td>(.*?)</td><td>(.*?)</td></tr>', drawn(store, feature))
    wanted = [(str(tokens.token(s.text)), percent(s.share), str(s.n_active)) for s in evidence.tokens]
    wanted += [(str(tokens.token(s.text)), percent(s.share), str(s.n_active)) for s in evidence.before]
    assert rows == wanted and len(rows) > 5


def test_every_context_is_there_with_its_maximum_and_group(store):
    evidence, shown = store.feature(2), drawn(store, 2)
    values = re.findall(r"<li[^>]*><b>(.*?)</b>", shown)
    top, by_part = evidence.examples["top"], {}
    for context in evidence.examples["quantile"]:
        by_part.setdefault(context.part, []).append(context)
    falling = [
        sorted(by_part[part], key=lambda context: -max(context.activations)) for part in sorted(by_part, reverse=True)
    ]
    order = [*top, *(context for part in falling for context in part)]
    order += [context for group in ("near_zero", "random", "inactive") for context in evidence.examples[group]]
    assert values == [number(max(context.activations)) for context in order] and len(top) > OPEN
    labels = re.findall(r"<summary>(.*?) <small>", shown)
    assert labels == [
        "Next",
        *(f"Quantile {i} of 5" for i in (5, 4, 3, 2, 1)),
        "Just above zero",
        "At random",
        "Inactive",
    ]
    assert shown.count("<details>") == len(labels) and "<details open" not in shown


def test_quantiles_say_the_ranks_that_they_were_drawn_from(store):
    active = store.feature(2).summary.fragments
    spans = re.findall(r"ranked ([\d,]+) to ([\d,]+) of ([\d,]+)", drawn(store, 2))
    ranks = [rank for first, last, _ in spans for rank in range(int(first), int(last) + 1)]
    assert ranks == list(range(1, active + 1)) and {int(of) for *_, of in spans} == {active}


def test_no_rank_is_claimed_where_one_context_a_document_was_ranked(tmp_path):
    disjoint = fake_store(tmp_path / "s" / "it.sqlite", config={"disjoint": True})
    assert "ranked" not in drawn(disjoint, 2) and drawn(disjoint, 2).count("of one context a document") == 5


def test_direct_neighbours_and_embedding(store):
    evidence = store.feature(0)
    shown = drawn(store, 0, link={other.feature: f"#f{other.feature}" for other in evidence.neighbours[:1]}.get)
    for token in (*evidence.promoted, *evidence.suppressed):
        assert f"<span>{tokens.token(token.text)} {number(token.weight)}</span>" in shown
    assert "Raises" in shown and "Lowers" in shown and "through the final norm and unembedding alone" in shown
    first, second = evidence.neighbours[:2]
    assert first.top_token == store.text(store.feature(first.feature).summary.top_token) != ""
    token = tokens.token(first.top_token)
    assert f'<a href="#f{first.feature}">{first.feature}</a> {token} {number(first.value)}' in shown
    assert f"<em>{second.feature}</em> {tokens.token(second.top_token)} {number(second.value)}" in shown
    for neighbour in evidence.coactive:
        assert f"{tokens.token(neighbour.top_token)} {number(neighbour.value)} ({neighbour.both:,})" in shown
    assert f"embedding {tokens.token(TEXTS[0])} 0.250" in shown and "unembedding" in shown


def test_reason_stands_where_there_is_no_direct_effect(tmp_path):
    store = fake_store(tmp_path / "mlp_in.0" / "a.sqlite", direct_reason="mlp_in writes to no stream", directed=False)
    shown = drawn(store, 0)
    assert "mlp_in writes to no stream" in shown and "Raises" not in shown


def test_dead_feature_says_so(store):
    shown = drawn(store, DEAD)
    assert "<strong>Dead</strong>: not once above zero in 960 activations" in shown
    assert 'class="chart"' not in shown and 'class="ctx"' not in shown and "Similar direction" in shown
    assert "Dead" in drawn(store, DEAD, compact=True)


def test_dense_feature_has_no_inactive_contexts_and_says_so(store):
    assert not store.feature(DENSE).examples["inactive"]
    assert "No inactive contexts" in drawn(store, DENSE) and "No inactive contexts" not in drawn(store, 0)


def test_signed_kinds_name_their_side(tmp_path):
    store = fake_store(tmp_path / "resid_post.0" / "pca.sqlite", signed=True)
    assert "pca at resid_post.0, positive side" in drawn(store, 0)


def test_the_negative_side_is_a_folded_group_in_the_other_colour(tmp_path, store):
    codes, ids = fake_codes()
    codes[::7] *= -1
    signed = fake_store(tmp_path / "resid_post.0" / "pca.sqlite", codes, ids)
    evidence, shown = signed.feature(2), drawn(signed, 2)
    below = evidence.examples["negative"]
    folded = shown[shown.index("<summary>Most negative") :]
    folded = folded[: folded.index("</details>")]
    assert re.findall(r"<li><b>(.*?)</b>", folded) == [number(min(c.activations)) for c in below]
    assert all(value.startswith("−") for value in re.findall(r"<b>(.*?)</b>", folded)) and len(below) > 5
    lines = [str(tokens.context(c, evidence.summary.min, NARROW, cut=False)) for c in below]
    assert all(f"<p>{line}</p>" in folded for line in lines) and '<mark class="n10 peak"' in lines[0]
    assert "class=a" not in folded and 'class="n' not in shown.replace(folded, "")
    assert f"<dt>Minimum</dt><dd>{number(evidence.summary.min)}<small>negative side" in shown
    assert "Most negative" not in drawn(signed, 2, compact=True)
    assert "Most negative" not in drawn(store, 2) and "Minimum" not in drawn(store, 2)


@pytest.mark.parametrize("feature", range(8))
@pytest.mark.parametrize("compact", [False, True])
def test_hostile_tokens_stay_text_and_tags_balance(store, feature, compact):
    shown = drawn(store, feature, compact=compact)
    page = Page(shown)
    assert "<img" not in shown and "<script" not in shown and "://" not in shown
    assert not [value for name, value in page.attributes if name.startswith("on") or name == "src"]
    assert feature != HOSTILE_ONE or HOSTILE[:9] not in shown


def test_compact_card_is_small_and_links_to_the_whole(store):
    shown = drawn(store, 2, compact=True, link=lambda n: f"gallery/x.html#feature-{n}")
    assert '<a href="gallery/x.html#feature-2">Feature 2</a>' in shown
    assert shown.count("<li><b>") == SMALL and "<details" not in shown and len(shown) < 12_000


def test_whole_card_costs_little_more_than_its_text(tmp_path):
    drawn_from = np.random.default_rng(0)
    ids = drawn_from.integers(0, 50, 12_800).astype(np.int32)
    codes = np.where(drawn_from.random((12_800, 1)) < 0.02, drawn_from.gamma(2, 1, (12_800, 1)), 0).astype(np.float32)
    store = fake_store(tmp_path / "s" / "a.sqlite", codes, ids, tuple(f" w{i}" for i in range(50)), fragment=64)
    assert sum(map(len, store.feature(0).examples.values())) == 65
    assert len(drawn(store, 0).encode()) < 27_500


def test_notebook_card_carries_its_style_and_needs_no_store(store):
    shown = card_html(store.feature(0), store.meta)
    assert shown.startswith('<div class="monolex"><style>') and "<script" not in shown and "<link" not in shown
    assert f"embedding {tokens.token(TEXTS[0])}" in shown
    sheet = re.sub(r"/\*.*?\*/", "", str(html.style()), flags=re.S)
    outside = re.sub(r":where\(\.monolex\) \{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}", "", sheet)
    assert outside.split() == ["@media", "(prefers-color-scheme:", "dark)", "{", "}"]


def test_every_level_of_activation_has_a_style():
    sheet = html.asset("card.css")
    assert all(f".feature .a{step} " in sheet for step in range(tokens.STEPS + 1))


def bars(chart) -> list[ET.Element]:
    return [p for p in ET.fromstring(str(chart)).iter("path") if "layer" in (p.get("class") or "")]


def heights(path: ET.Element) -> list[float]:
    ends = re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", path.get("d") or "")
    return [float(foot) - float(head) for foot, head in ends]


def test_token_histogram_counts_every_activation_once(store):
    evidence = store.feature(2)
    titles = [t.text or "" for t in ET.fromstring(str(token_chart(evidence))).iter("title")]
    totals = [int(t.split()[0].replace(",", "")) for t in titles]
    assert totals == [n for n in evidence.token_histogram if n] and sum(totals) == evidence.summary.n_active
    for title, total in zip(titles, totals, strict=True):
        assert sum(int(line.rsplit(" ", 1)[1]) for line in title.split("\n")[1:]) == total
    assert len(evidence.token_histogram) == TOKEN_BINS


@pytest.mark.parametrize("log", [False, True])
def test_stacked_parts_share_a_bar_in_proportion(log):
    layers = [Layer("a", "blue", [30, 0]), Layer("b", "green", [10, 0])]
    below, above = bars(stacked(layers, Axis("x", 0, 1), "s", log=log))
    assert re.findall(r"V([\d.]+)", below.get("d") or "")[0] == re.findall(r" ([\d.]+)V", above.get("d") or "")[0]
    first, second = heights(below)[0], heights(above)[0]
    assert first == pytest.approx(3 * second, abs=0.5)
    single, many = (
        heights(bars(stacked([Layer("", "blue", [n, 1000])], Axis("x", 0, 1), "s", log=log))[0]) for n in (1, 10)
    )
    assert single[0] < many[0] < many[1] and (single[0] > 3 if log else single[0] < 1)


def test_nothing_to_stack():
    assert bars(stacked([Layer("a", "blue", [0, 0])], Axis("x", 0, 1), "empty", log=True)) == []


def explained(feature: int, simulators=("rules",), explainers=("token",)) -> list[Scored]:
    entry, level = fake_scores.plan(("resid_post.1",))[0]
    rows = [fake_scores.line(entry, feature, e, s, level) for s in simulators for e in explainers]
    return [Scored(row, fake_scores.overlays(feature)) for row in rows]


def test_a_card_without_explanations_is_as_before(store):
    assert drawn(store, 0, scored=()) == drawn(store, 0)
    assert "explained" not in drawn(store, 0) and "Explanations" not in drawn(store, 0)


@pytest.mark.parametrize("feature", [0, 1, 2, DEAD])
def test_explanations_with_every_score_and_interval(store, feature):
    (score,) = explained(feature)
    shown = drawn(store, feature, scored=[score])
    numbers = re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>(.*?)</small>", shown[shown.index('class="marks"') :])
    scores = score.row["scores"]
    cells = [scores[name] for name in ("top_and_random", "top", "random", "chance")]
    judged = [score.row[kind] for kind in ("detection", "fuzz") if score.row[kind]]
    cells += [cells[name] for cells in judged for name in ("balanced_accuracy", "auc")]
    assert [value for _, value, _ in numbers[: len(cells)]] == [number(cell["value"]) for cell in cells]
    assert [under for *_, under in numbers[: len(cells)]] == [interval(c["low"], c["high"]) for c in cells]
    assert [label for label, *_ in numbers[:4]] == ["Score", "Top", "Random", "Chance"]
    assert tokens.line(score.row["text"]) in shown and "no language model" in shown
    Page(shown)


def test_what_is_missing_says_why(store):
    shown = drawn(store, 5, scored=explained(5))
    assert shown.count(f"<dd>n/a<small>{fake_scores.REASON}</small>") == 3
    unsaid = drawn(store, 6, scored=explained(6))
    assert "<i>no explanation</i>" in unsaid and f"n/a<small>{fake_scores.UNSAID}</small>" in unsaid
    assert f"failed: {fake_scores.UNSAID} (10)" in unsaid
    assert f"failed: {fake_scores.FAILED} (2)" in drawn(store, 0, scored=explained(3))
    assert "None" not in shown + unsaid


def test_scores_of_two_simulators_stand_apart_under_one_text(store):
    shown = drawn(store, 0, scored=explained(0, ("rules", fake_scores.EXACT), ("token", "pattern")))
    assert shown.count('class="say"') == 2 and shown.count('class="marks"') == 4
    assert shown.count(f"Simulated by: {fake_scores.EXACT}") == 2 and shown.count("<details open>") == 1


def test_output_tokens_are_apart_from_the_explanations(store):
    shown = drawn(store, 0, scored=explained(0, explainers=("token", "pattern")))
    said = "Output side, which says nothing of when the feature is active: <em>promotes</em>"
    assert shown.count(said) == 1 and shown.index(said) > shown.rindex('class="marks"')
    assert str(tokens.token(" self")) in shown[shown.index(said) :]


def test_a_small_card_has_texts_and_scores_alone(store):
    scored = explained(0, ("rules", fake_scores.EXACT))
    shown = drawn(store, 0, scored=scored, compact=True)
    cell = scored[0].row["scores"]["top_and_random"]
    score = f"{number(cell['value'])} {interval(cell['low'], cell['high'])}"
    chance = f"chance {number(scored[0].row['scores']['chance']['value'])}"
    assert f"score {score} by rules, {chance}; {score} by {fake_scores.EXACT}, {chance}</small>" in shown
    assert "<details" not in shown and shown.count('class="say"') == 1
    assert "score n/a the predictions are constant by rules" in drawn(store, 0, scored=explained(5), compact=True)


def test_hostile_explanations_stay_text(store):
    for compact in (False, True):
        shown = drawn(store, 2, scored=explained(2), compact=compact)
        Page(shown)
        assert "<script" not in shown and "&lt;script&gt;" in shown
        assert "\u202e" not in shown and "\x00" not in shown


MARK = re.compile(r'<mark class="([^"]*)" title="([^"]*)">(.*?)</mark>')


def test_strips_are_real_above_and_simulated_below():
    fragment = Overlay("top", 1, ("a", "b", "c", "d", ""), (0.0, 2.0, -1.0, 4.0, 0.0), (0.0, 0.0, 5.0, 10.0, 2.5))
    shown = str(tokens.overlaid(fragment, 4.0, 10.0))
    assert MARK.findall(shown) == [
        ("r5", "real 2.00, simulated 0", "b"),
        ("s5", "real −1.00, simulated 5.00", "c"),
        ("r10 s10 peak", "real 4.00, simulated 10.0", "d"),
        ("s2", "real 0, simulated 2.50", tokens.EMPTY),
    ]
    assert re.sub(r"<[^>]*>", "", shown) == "abcd∅"


def test_a_fragment_that_was_not_simulated_says_so():
    shown = str(tokens.overlaid(Overlay("top", 1, ("a", "b"), (0.0, 2.0), None), 4.0, 0.0))
    assert MARK.findall(shown) == [("r5 peak", "real 2.00", "b")] and "the simulator failed here" in shown
    gap = str(tokens.overlaid(Overlay("top", 1, ("a", "b", "c"), (1.0, 2.0, 0.0), (3.0, None, None)), 2.0, 3.0))
    assert MARK.findall(gap) == [
        ("r5 s10", "real 1.00, simulated 3.00", "a"),
        ("r10 peak", "real 2.00, simulated nothing", "b"),
    ]
    assert "failed" not in gap
    quiet = tokens.overlaid(Overlay("random", 1, ("a", "b"), (-1.0, -2.0), (0.0, 0.0)), 0.0, 0.0)
    assert quiet == "ab"


def test_few_fragments_of_every_group_share_one_scale(store):
    (score,) = explained(0)
    many = [Overlay(group, doc, ("x",), (float(doc),), (1.0,)) for group in ("top", "random") for doc in range(1, 7)]
    shown = drawn(store, 0, scored=[Scored(score.row, tuple(many))])
    fragments = shown[shown.index('class="ctx two"') : shown.index("</ol>", shown.index('class="ctx two"'))]
    assert re.findall(r'title="document (\d)"><b>(\w+)', fragments) == [
        (str(doc), group) for group in ("top", "random") for doc in range(1, FRAGMENTS + 1)
    ]
    assert [style for style, *_ in MARK.findall(fragments)] == ["r5 s10 peak", "r10 s10 peak"] * 2


def test_features_are_sorted_by_scores_of_one_kind_alone():
    scored = {i: explained(i, (fake_scores.EXACT, "rules"), ("pattern", "token")) for i in (5, 0, 1)}
    name, scores = sort_key(scored)
    assert name == f"score (pattern, {fake_scores.EXACT})" and set(scores) == {0, 1}
    assert scores[0] == scored[0][0].row["scores"]["top_and_random"]["value"]
    assert sort_key({5: explained(5)}) == sort_key({}) == ("", {})


def test_notebook_cards_carry_explanations(store):
    shown = card_html(store.feature(0), store.meta, scored=explained(0))
    assert (
        "Explanations" in shown
        and "Simulated by" in shown
        and "Explanations" not in card_html(store.feature(0), store.meta)
    )
