"""Which fragments explain and score a feature: the paper's places, disjoint documents, silence that is real."""

import numpy as np
import pytest
import torch
from harvests import corpus_of, make_lm, store

from monolex.activations.reader import Reader
from monolex.activations.stored import packed_rows
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig
from monolex.interp.examples.choose import CHOOSERS, GROUPS, RARE, Choice, Seen, halves, modern, paper
from monolex.interp.examples.draw import draw
from monolex.interp.examples.fragments import Windows, texts_of, windows
from monolex.interp.records import Failure


def seen(maximum, varies=None, docs=None) -> Seen:
    maximum = np.array(maximum, np.float32)
    varies = maximum > 0 if varies is None else np.array(varies)
    docs = np.arange(len(maximum)) if docs is None else np.array(docs)
    return Seen(maximum, varies, halves(docs, 0))


def choice(found: Choice | Failure) -> Choice:
    assert isinstance(found, Choice), found
    return found


def test_the_papers_places():
    maximum = np.arange(100, 0, -1.0)
    found = choice(paper(seen([*maximum, *[0.0] * 40]), 10, np.random.default_rng(0)))
    assert found.explain.tolist() == [0, 4, 8, 12, 16]
    assert found.top.tolist() == [2, 6, 10, 14, 18]
    assert len(found.random) == 5
    assert set(found.random) <= set(range(20, 100))
    silent = {*found.silent, *found.explain_silent}
    assert len(silent) == 20
    assert silent <= set(range(100, 140))


def test_few_silent_fragments_are_shared():
    for quiet, scored, explained in ((0, 0, 0), (1, 1, 0), (6, 3, 3), (13, 7, 6), (40, 10, 10)):
        found = choice(paper(seen([*np.linspace(9, 1, 40), *[0.0] * quiet]), 10, np.random.default_rng(0)))
        assert (len(found.silent), len(found.explain_silent)) == (scored, explained)
        assert not set(found.silent) & set(found.explain_silent)


def test_equal_maxima_are_taken_in_order():
    assert choice(paper(seen([1.0] * 40), 0, np.random.default_rng(0))).explain.tolist() == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("count", [20, 24, 34, 60])
def test_random_fragments_are_never_explained_ones(count):
    for seed in range(20):
        found = choice(paper(seen(np.linspace(9, 1, count)), 10, np.random.default_rng(seed)))
        assert not set(found.random) & set(found.explain)
        assert len(set(found.random)) == 5
        assert not set(found.random) & set(found.top)
        if count >= RARE:
            assert not set(found.random) & set(range(20))


def test_features_with_too_few_fragments_are_skipped():
    assert isinstance(paper(seen([1.0] * 19 + [0.0] * 9), 5, np.random.default_rng(0)), Failure)
    # variation below zero counts in the paper's rule, but says nothing of what the feature is for
    found = paper(seen([-1.0] * 30, [True] * 30), 5, np.random.default_rng(0))
    assert found == Failure("never above zero")


def test_modern_explains_and_scores_on_different_documents():
    rng = np.random.default_rng(3)
    docs = np.repeat(np.arange(30), 8)
    maximum = np.where(rng.random(240) < 0.5, rng.random(240), 0)
    info = seen(maximum, docs=docs)
    found = choice(modern(info, 10, np.random.default_rng(1)))
    explained, scored = ({*docs[np.concatenate(parts)]} for parts in ((found.explain, found.explain_silent), found[2:]))
    assert not explained & scored
    assert len(found.explain) == 15
    assert len(found.random) == 10
    assert not set(found.top) & set(found.random)
    for some in (found.silent, found.explain_silent):
        assert (maximum[some] <= 0).all()
    mine = np.flatnonzero(~info.explained & (maximum > 0))
    assert set(found.top) == set(mine[np.argsort(-maximum[mine])][:5])
    # every strength: two of each fifth
    ranks = np.argsort(np.argsort(-maximum[mine]))[np.searchsorted(mine, found.random)] - 5
    assert len(set(ranks * 5 // (len(mine) - 5))) == 5


def test_modern_says_which_half_is_too_small():
    found = modern(seen([1.0] * 12, docs=range(12)), 5, np.random.default_rng(0))
    assert isinstance(found, Failure)
    assert "explain from" in found.reason


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choose")
    lm = make_lm()
    store(folder / "acts", lm, corpus_of(folder, documents=120, context_length=32))
    return lm, Reader(folder / "acts", "resid_post.0"), packed_rows(folder / "acts", "train")


def cut(stored, **changes) -> Windows:
    lm, reader, packed = stored
    return windows(reader, packed, lm, ExplainConfig(**{"fragment_tokens": 6, "fragments": 10**6, **changes}))


@pytest.mark.parametrize("mode", ["paper", "modern"])
def test_fragments_are_neighbouring_tokens_of_one_document(stored, mode):
    found = cut(stored, mode=mode)
    _, reader, _ = stored
    tokens, docs = reader.tokens(0, len(reader)).numpy(), reader.docs(0, len(reader)).numpy()
    context, position = reader.contexts(0, len(reader)).numpy(), reader.positions(0, len(reader)).numpy()
    rows = found.rows().numpy()
    assert (tokens[rows] == found.tokens).all()
    assert (docs[rows] == found.doc[:, None]).all()
    assert (context[rows] == context[rows][:, :1]).all()
    assert (np.diff(position[rows], axis=1) == 1).all()
    assert len(np.unique(found.doc)) == len(found.doc) if mode == "paper" else len(np.unique(rows)) == rows.size


def test_one_fragment_a_document_at_a_random_place(stored):
    starts = [cut(stored, explain_seed=seed).start for seed in range(3)]
    assert all(len(start) == len(starts[0]) for start in starts)
    assert (starts[0] != starts[1]).any()
    assert np.array_equal(starts[0], cut(stored, explain_seed=0).start)
    long = cut(stored, fragment_tokens=10)
    left = long.left_out["documents without 10 kept tokens in a row"]
    assert 0 < left == len(np.unique(stored[1].docs(0, len(stored[1])))) - len(long.doc)
    some = cut(stored, fragments=7)
    assert len(some.start) == 7
    assert some.left_out["fragments beyond the limit"] == len(starts[0]) - 7


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
    found = cut(stored, mode=mode)
    dictionary = planted(kind=kind)
    config = ExplainConfig(mode=mode, features=20, silent=4)
    whole = draw(reader, dictionary, found, config, "key")
    codes = dictionary.encode(reader.gather(found.rows().flatten())).view(*found.tokens.shape, -1).numpy()
    assert whole.asked == 20
    assert len(whole.features) + sum(whole.skipped.values()) == 20
    assert len(whole.features) > 3
    made = whole.of(found, texts_of(found.tokens, lm))
    for feature, one in zip(whole.features.tolist(), made, strict=True):
        assert one.feature == feature
        for name in GROUPS:
            for fragment in getattr(one, name):
                number = int(np.flatnonzero(found.start == fragment.row)[0])
                assert np.allclose(fragment.activations, codes[number, :, feature], atol=1e-5)
                assert fragment.tokens == tuple(found.tokens[number])
                if "silent" in name:
                    assert (codes[number, :, feature] <= 0).all()
        assert one.maximum == max(fragment.maximum for fragment in one.explain)
    chosen = codes[:, :, whole.features].reshape(-1, len(whole.features)).astype(np.float64)
    assert np.allclose(whole.moments.mean, chosen.mean(0), atol=1e-6)
    assert np.allclose(whole.moments.variance, chosen.var(0), rtol=1e-4)
    assert np.allclose(whole.moments.kurtosis, (chosen**4).mean(0) / chosen.var(0) ** 2, rtol=1e-4)
    # in pieces as at once
    monkeypatch.setattr("monolex.interp.examples.draw.CODES", 6 * 48 * 3)
    monkeypatch.setattr("monolex.interp.examples.draw.PEAKS", 7 * len(found.start))
    again = draw(reader, dictionary, found, config, "key")
    assert np.array_equal(again.features, whole.features)
    assert np.array_equal(again.fragment, whole.fragment)
    assert np.allclose(again.activations, whole.activations, atol=1e-5)


def test_which_features(stored):
    _, reader, _ = stored
    found = cut(stored)
    first = draw(reader, planted(), found, ExplainConfig(features=10), "a")
    # the paper's first ones, dead or not
    assert first.asked == 10
    assert first.skipped["fewer than 20 fragments with any variation"] >= 3
    assert set(first.features) <= set(range(10))
    sample = ExplainConfig(features=10, pick="alive")
    alive = draw(reader, planted(), found, sample, "a")
    assert not set(alive.features) & {0, 1, 2}
    assert max(alive.features) > 10
    assert np.array_equal(alive.features, draw(reader, planted(), found, sample, "a").features)
    assert not np.array_equal(alive.features, draw(reader, planted(), found, sample, "b").features)
    everything = draw(reader, planted(), found, ExplainConfig(features=1000, pick="alive"), "a")
    assert everything.asked == 45


def test_every_mode_has_a_chooser():
    assert set(CHOOSERS) == {"paper", "modern"}
