"""Occurrences: every one is active, in range, behind its own text, and of as many documents as there are."""

from pathlib import Path

import pytest
import torch
from helpers import random_pairs
from helpers.tiny import read
from helpers.tiny_harvests import corpus_of, make_lm, store

from monolex.activations.reader import Reader
from monolex.causal.occurrences import occurrences
from monolex.dictionaries.base import Dictionary
from monolex.errors import UserError

SITE = "resid_post.2"


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("occurrences")
    store(folder / "acts", make_lm(), corpus_of(folder / "text"))
    return folder / "acts"


def dictionary(activation: str = "relu") -> Dictionary:
    return random_pairs.dictionary(32, 48, activation, site=SITE).to(torch.float32)


@pytest.mark.parametrize("activation", ["relu", "topk", "linear"])
@pytest.mark.parametrize("low", [0.0, 0.5])
def test_tokens_are_active_in_their_own_context(acts, activation, low):
    found = occurrences(acts, dictionary(activation), [3, 9], count=12, low=low)
    codes = dictionary(activation).encode(Reader(acts, SITE).read(0, len(Reader(acts, SITE))))
    for feature, one in found.items():
        maximum = float(codes[:, feature].max())
        assert one.maximum == pytest.approx(maximum, rel=1e-5)
        in_range = (codes[:, feature] > 0) & (codes[:, feature] >= low * maximum)
        assert one.active == int(in_range.sum())
        # over all tokens of the split, silent ones and those out of range included, and negative codes as 0
        assert one.mean == pytest.approx(float(codes[:, feature].clamp_min(0).double().mean()), rel=1e-5)
        assert one.mean < float(codes[in_range, feature].mean())
        drawn = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0)), feature].clamp_min(0)
        assert torch.allclose(one.pool, drawn[:4096], rtol=1e-5, atol=1e-6)
        assert 0 < len(one.end) == min(12, one.active)
        assert (one.activation >= low * one.maximum).all()
        seen = dictionary(activation).encode(read(make_lm(), SITE, one.tokens))
        again = seen[torch.arange(len(one.end)), one.end, feature]
        assert torch.allclose(again, one.activation, atol=1e-4)
        assert not one.tokens[torch.arange(one.tokens.shape[1]) > one.end[:, None]].any()


def test_documents_come_before_second_tokens_of_one(acts):
    reader = Reader(acts, SITE)
    docs = reader.docs(0, len(reader))
    codes = dictionary().encode(reader.read(0, len(reader)))[:, 3]
    documents = len(docs[codes > 0].unique())
    assert documents < int((codes > 0).sum())
    some = occurrences(acts, dictionary(), [3], count=documents)[3]
    assert len(some.doc.unique()) == documents
    more = occurrences(acts, dictionary(), [3], count=documents + 3)[3]
    assert (len(more.doc.unique()), len(more.doc)) == (documents, documents + 3)


def test_seeds(acts):
    first, again, other = (occurrences(acts, dictionary(), [3], count=8, seed=seed)[3] for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.end, again.end)
    assert first.doc.tolist() != other.doc.tolist()


def test_a_dead_feature_has_none(acts):
    dead = dictionary()
    dead.weights["b_enc"][5] = -1e6
    one = occurrences(acts, dead, [5], count=4)[5]
    assert (len(one.end), one.maximum, one.active) == (0, 0.0, 0)
    with pytest.raises(UserError, match=r"feature \[48\]"):
        occurrences(acts, dead, [5, 48], count=4)
