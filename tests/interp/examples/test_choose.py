"""Which fragments explain and score a feature: the paper's places, disjoint documents, silence that is real."""

import numpy as np
import pytest
import torch
from helpers.tiny_harvests import corpus_of, make_lm, store
from helpers.tiny_texts import write_jsonl

from monolex.activations.reader import Reader
from monolex.activations.stored import packed_rows
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig
from monolex.interp.examples.choose import (
    CHOOSERS,
    GROUPS,
    RARE,
    Choice,
    FeaturePeaks,
    halves,
    modern_choice,
    paper_choice,
)
from monolex.interp.examples.draw import draw
from monolex.interp.examples.fragments import CorpusFragments, cut_fragments, texts_of
from monolex.interp.records import Failure
from monolex.text.characters import joined


def peaks(maximum, varies=None, docs=None) -> FeaturePeaks:
    maximum = np.array(maximum, np.float32)
    varies = maximum > 0 if varies is None else np.array(varies)
    docs = np.arange(len(maximum)) if docs is None else np.array(docs)
    return FeaturePeaks(maximum, varies, halves(docs, 0))


def choice(outcome: Choice | Failure) -> Choice:
    assert isinstance(outcome, Choice), outcome
    return outcome


def test_the_papers_places():
    maximum = np.arange(100, 0, -1.0)
    chosen = choice(paper_choice(peaks([*maximum, *[0.0] * 40]), 10, np.random.default_rng(0)))
    assert chosen.explain.tolist() == [0, 4, 8, 12, 16]
    assert chosen.top.tolist() == [2, 6, 10, 14, 18]
    assert len(chosen.random) == 5
    assert set(chosen.random) <= set(range(20, 100))
    silent = {*chosen.silent, *chosen.explain_silent}
    assert len(silent) == 20
    assert silent <= set(range(100, 140))


def test_few_silent_fragments_are_shared():
    for quiet, scored, explained in ((0, 0, 0), (1, 1, 0), (6, 3, 3), (13, 7, 6), (40, 10, 10)):
        chosen = choice(paper_choice(peaks([*np.linspace(9, 1, 40), *[0.0] * quiet]), 10, np.random.default_rng(0)))
        assert (len(chosen.silent), len(chosen.explain_silent)) == (scored, explained)
        assert not set(chosen.silent) & set(chosen.explain_silent)


def test_equal_maxima_are_taken_in_order():
    assert choice(paper_choice(peaks([1.0] * 40), 0, np.random.default_rng(0))).explain.tolist() == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("count", [20, 24, 34, 60])
def test_random_fragments_are_never_explained_ones(count):
    for seed in range(20):
        chosen = choice(paper_choice(peaks(np.linspace(9, 1, count)), 10, np.random.default_rng(seed)))
        assert not set(chosen.random) & set(chosen.explain)
        assert len(set(chosen.random)) == 5
        assert not set(chosen.random) & set(chosen.top)
        if count >= RARE:
            assert not set(chosen.random) & set(range(20))


def test_features_with_too_few_fragments_are_skipped():
    assert isinstance(paper_choice(peaks([1.0] * 19 + [0.0] * 9), 5, np.random.default_rng(0)), Failure)
    # variation below zero counts in the paper's rule, but says nothing of what the feature is for
    chosen = paper_choice(peaks([-1.0] * 30, [True] * 30), 5, np.random.default_rng(0))
    assert chosen == Failure("never above zero")


def test_modern_explains_and_scores_on_different_documents():
    rng = np.random.default_rng(3)
    docs = np.repeat(np.arange(30), 8)
    maximum = np.where(rng.random(240) < 0.5, rng.random(240), 0)
    info = peaks(maximum, docs=docs)
    chosen = choice(modern_choice(info, 10, np.random.default_rng(1)))
    explained, scored = (
        {*docs[np.concatenate(parts)]} for parts in ((chosen.explain, chosen.explain_silent), chosen[2:])
    )
    assert not explained & scored
    assert len(chosen.explain) == 15
    assert len(chosen.random) == 10
    assert not set(chosen.top) & set(chosen.random)
    for numbers in (chosen.silent, chosen.explain_silent):
        assert (maximum[numbers] <= 0).all()
    active = np.flatnonzero(~info.explained & (maximum > 0))
    assert set(chosen.top) == set(active[np.argsort(-maximum[active])][:5])
    # every strength: two of each fifth
    ranks = np.argsort(np.argsort(-maximum[active]))[np.searchsorted(active, chosen.random)] - 5
    assert len(set(ranks * 5 // (len(active) - 5))) == 5


def test_modern_says_which_half_is_too_small():
    chosen = modern_choice(peaks([1.0] * 12, docs=range(12)), 5, np.random.default_rng(0))
    assert isinstance(chosen, Failure)
    assert "explain from" in chosen.reason


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choose")
    lm = make_lm()
    store(folder / "acts", lm, corpus_of(folder, documents=120, context_length=32))
    return lm, Reader(folder / "acts", "resid_post.0"), packed_rows(folder / "acts", "train")


def cut(stored, **changes) -> CorpusFragments:
    _, reader, packed = stored
    return cut_fragments(reader, packed, ExplainConfig(**{"fragment_tokens": 6, "fragments": 10**6, **changes}))


@pytest.mark.parametrize("mode", ["paper", "modern"])
def test_fragments_are_neighbouring_tokens_of_one_document(stored, mode):
    fragments = cut(stored, mode=mode)
    _, reader, _ = stored
    tokens, docs = reader.tokens(0, len(reader)).numpy(), reader.docs(0, len(reader)).numpy()
    context, position = reader.contexts(0, len(reader)).numpy(), reader.positions(0, len(reader)).numpy()
    rows = fragments.rows().numpy()
    assert (tokens[rows] == fragments.tokens).all()
    assert (docs[rows] == fragments.doc[:, None]).all()
    assert (context[rows] == context[rows][:, :1]).all()
    assert (np.diff(position[rows], axis=1) == 1).all()
    assert len(np.unique(fragments.doc)) == len(fragments.doc) if mode == "paper" else len(np.unique(rows)) == rows.size


@pytest.mark.parametrize("mode", ["paper", "modern"])
def test_rows_with_gaps_between_them_are_no_fragment(tmp_path, mode):
    """With `positions = "::2"` neighbouring rows are not neighbouring tokens."""
    lm = make_lm()
    store(tmp_path, lm, corpus_of(tmp_path / "text", context_length=32, positions="::2"))
    gaps = lm, Reader(tmp_path, "resid_post.0"), packed_rows(tmp_path, "train")
    with pytest.raises(UserError, match="no document has 2 kept tokens in a row: lower fragment_tokens"):
        cut(gaps, mode=mode, fragment_tokens=2)


def test_one_fragment_a_document_at_a_random_place(stored):
    starts = [cut(stored, explain_seed=seed).start for seed in range(3)]
    assert all(len(start) == len(starts[0]) for start in starts)
    assert (starts[0] != starts[1]).any()
    assert np.array_equal(starts[0], cut(stored, explain_seed=0).start)
    long = cut(stored, fragment_tokens=10)
    left = long.left_out["documents without 10 kept tokens in a row"]
    assert 0 < left == len(np.unique(stored[1].docs(0, len(stored[1])))) - len(long.doc)
    few = cut(stored, fragments=7)
    assert len(few.start) == 7
    assert few.left_out["fragments beyond the limit"] == len(starts[0]) - 7


@pytest.mark.parametrize("mode", ["paper", "modern"])
def test_text_whose_characters_are_cut_is_explained_too(mode, tmp_path):
    lm = make_lm()
    path = write_jsonl(tmp_path / "corpus.jsonl", [f"{number} 北京 “上海” 😀 " * 6 for number in range(12)])
    store(tmp_path / "acts", lm, corpus_of(tmp_path / "unused", corpus=str(path), context_length=64))
    fragments = cut((lm, Reader(tmp_path / "acts", "resid_post.0"), packed_rows(tmp_path / "acts", "train")), mode=mode)
    assert not [reason for reason in fragments.left_out if "character" in reason]
    assert len(fragments.doc) >= len(np.unique(fragments.doc)) >= 8
    texts = texts_of(fragments.tokens, lm)
    shown = [joined(texts[token] for token in tokens) for tokens in fragments.tokens.tolist()]
    assert "京" in "".join(shown) and "\ufffd" not in "".join(shown)


def test_no_fragment_is_refused(stored):
    with pytest.raises(UserError, match="lower fragment_tokens"):
        cut(stored, fragment_tokens=33)


def planted(d_in: int = 32, d_sae: int = 48, *, kind: str = "relu", seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(d_sae, d_in, generator=generator)
    weights = {
        "W_enc": w,
        "b_enc": -torch.rand(d_sae, generator=generator) * 6,
        "centre": torch.zeros(d_in),
        "W_dec": w,
        "b_dec": torch.zeros(d_in),
    }
    weights["b_enc"][:3] = -1e9  # dead
    k = 6 if kind == "topk" else None
    config = DictionaryConfig("tied", kind, d_in, d_in, d_sae, k=k, site="resid_post.0")
    return Dictionary(config, weights)


@pytest.mark.parametrize("kind", ["relu", "topk", "linear"])
@pytest.mark.parametrize("mode", ["paper", "modern"])
def test_examples_hold_the_activations_of_their_fragments(stored, kind, mode, monkeypatch):
    lm, reader, _ = stored
    fragments = cut(stored, mode=mode)
    dictionary = planted(kind=kind)
    config = ExplainConfig(mode=mode, features=20, silent=4)
    whole = draw(reader, dictionary, fragments, config, "key")
    codes = dictionary.encode(reader.gather(fragments.rows().flatten())).view(*fragments.tokens.shape, -1).numpy()
    assert whole.looked_at == 20
    assert len(whole.features) + sum(whole.skipped.values()) == 20
    assert len(whole.features) > 3
    examples = whole.spelled_out(fragments, texts_of(fragments.tokens, lm))
    for feature, of_feature in zip(whole.features.tolist(), examples, strict=True):
        assert of_feature.feature == feature
        for name in GROUPS:
            for fragment in getattr(of_feature, name):
                number = int(np.flatnonzero(fragments.start == fragment.row)[0])
                assert np.allclose(fragment.activations, codes[number, :, feature], atol=1e-5)
                assert fragment.tokens == tuple(fragments.tokens[number])
                if "silent" in name:
                    assert (codes[number, :, feature] <= 0).all()
        assert of_feature.maximum == max(fragment.maximum for fragment in of_feature.explain)
    chosen = codes[:, :, whole.features].reshape(-1, len(whole.features)).astype(np.float64)
    assert np.allclose(whole.moments.mean, chosen.mean(0), atol=1e-6)
    assert np.allclose(whole.moments.variance, chosen.var(0), rtol=1e-4)
    assert np.allclose(whole.moments.kurtosis, (chosen**4).mean(0) / chosen.var(0) ** 2, rtol=1e-4)
    # in pieces as at once
    monkeypatch.setattr("monolex.interp.examples.draw.CODES", 6 * 48 * 3)
    monkeypatch.setattr("monolex.interp.examples.draw.PEAKS", 7 * len(fragments.start))
    again = draw(reader, dictionary, fragments, config, "key")
    assert np.array_equal(again.features, whole.features)
    assert np.array_equal(again.fragment, whole.fragment)
    assert np.allclose(again.activations, whole.activations, atol=1e-5)


def test_which_features(stored):
    _, reader, _ = stored
    fragments = cut(stored)
    first = draw(reader, planted(), fragments, ExplainConfig(features=10), "a")
    # the paper's first ones, dead or not
    assert first.looked_at == 10
    assert first.skipped["fewer than 20 fragments with any variation"] >= 3
    assert set(first.features) <= set(range(10))
    sample = ExplainConfig(features=10, pick="alive")
    alive = draw(reader, planted(), fragments, sample, "a")
    assert not set(alive.features) & {0, 1, 2}
    assert max(alive.features) > 10
    assert np.array_equal(alive.features, draw(reader, planted(), fragments, sample, "a").features)
    assert not np.array_equal(alive.features, draw(reader, planted(), fragments, sample, "b").features)
    everything = draw(reader, planted(), fragments, ExplainConfig(features=1000, pick="alive"), "a")
    assert everything.looked_at == 45


def test_every_mode_has_a_chooser():
    assert set(CHOOSERS) == {"paper", "modern"}
