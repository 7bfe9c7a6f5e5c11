"""Which features fire: the strongest of those that count, ties by number, and rows that do not count."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import random_pairs, tiny
from helpers.live_models import BOTH, FIRST, SECOND, SITES, codes, dictionaries, firing, live_model, random_prompt

from monolex.activations.rule import RowRule
from monolex.errors import UserError
from monolex.live.interventions import Intervention
from monolex.live.loaded import LoadedDictionary
from monolex.live.reading import ActiveFeature, TokenFeatures, Wanted, read, token_features
from monolex.live.session import LiveModel


@pytest.fixture
def live(tmp_path) -> LiveModel:
    return live_model(tmp_path, tiny.model("llama"))


def naive(row: torch.Tensor, top: int, kept: np.ndarray) -> TokenFeatures:
    firing = [(-value, feature) for feature, value in enumerate(row.tolist()) if value > 0 and kept[feature]]
    total = -sum(value for value, _ in firing)
    return TokenFeatures(True, len(firing), tuple(ActiveFeature(f, -v, -v / total) for v, f in sorted(firing)[:top]))


def close(a: TokenFeatures, b: TokenFeatures) -> bool:
    """Equal but for rounding."""
    numbers = [[(f.value, f.share) for f in side.top] for side in (a, b)]
    assert [f.feature for f in a.top] == [f.feature for f in b.top]
    return a[:2] == b[:2] and (not a.top or np.allclose(*numbers, rtol=1e-9, atol=0))


@pytest.mark.parametrize("masked", [False, True])
def test_features_are_those_of_a_forward(live, masked):
    prompt = random_prompt(live)
    kept = {FIRST: np.arange(48) % 2 == 0, SECOND: np.arange(40) < 0} if masked else {}
    answer = read(live, prompt, dataclasses.replace(BOTH, kept=kept))
    assert answer.cost == (10, 0) and list(answer.features) == [FIRST, SECOND] and answer.prompt == prompt
    for title, tokens in answer.features.items():
        rows = codes(live, prompt, title)
        mask = kept.get(title, np.ones(rows.shape[1], dtype=bool))
        assert all(close(token, naive(row, 4, mask)) for token, row in zip(tokens, rows, strict=True))
        assert all(token.top for token in tokens) == (not masked or title == FIRST) or masked
    assert read(live, prompt, Wanted((SECOND,), 0)).features[SECOND][0].top == ()
    assert read(live, prompt, BOTH).cost == (0, 10)


@pytest.mark.parametrize("top", [1, 2, 3, 4, 5, 9])
def test_equal_codes_stand_by_number(top):
    dictionary = random_pairs.complete(8)
    weights = {"W_enc": torch.ones(8, 8), "b_enc": torch.tensor([0, 1, 0, 1, 0, -9, 1, 0]).double()}
    dictionary.weights |= {name: tensor.double() for name, tensor in weights.items()}
    dictionary.weights["centre"] = torch.zeros(8, dtype=torch.float64)
    loaded = LoadedDictionary("a", "a", dictionary, RowRule())
    (token,) = token_features(loaded, torch.ones(1, 8).double(), [0], Wanted(("a",), top))
    assert [active.feature for active in token.top] == [1, 3, 6, 0, 2, 4, 7][:top] and token.active == 7
    assert abs(sum(active.share for active in token.top) - 1) < 1e-12 or top < 7


def test_signed_codes_are_read_on_their_positive_side(tmp_path):
    title = "resid_post.1/pca"
    live = live_model(tmp_path, tiny.model("llama"), {title: random_pairs.complete(32, site=SITES[1])})
    prompt = random_prompt(live)
    answer = read(live, prompt, Wanted((title,), 32)).features[title]
    assert [token.active for token in answer] == (codes(live, prompt, title) > 0).sum(1).tolist()
    assert all(active.value > 0 for token in answer for active in token.top)


def test_many_tokens_are_read_block_by_block():
    loaded = LoadedDictionary(SECOND, SITES[1], dictionaries()[SECOND], RowRule(separator=3))
    x = torch.randn(150, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = [3 if at % 70 == 0 else 5 for at in range(150)]
    tokens = token_features(loaded, x, ids, Wanted((SECOND,), 3))
    assert [at for at, token in enumerate(tokens) if not token.counts] == [0, 70, 140]
    rows, every = loaded.weights.encode(x), np.ones(40, dtype=bool)
    assert all(close(tokens[at], naive(rows[at], 3, every)) for at in range(150) if at % 70)


def test_interventions_are_read_behind_them(live):
    prompt = random_prompt(live)
    feature = firing(live, prompt, FIRST, 4)[0]
    before, after = (
        read(live, prompt, BOTH, edits).features[SECOND] for edits in ((), [Intervention(FIRST, feature, where=4)])
    )
    assert before[:4] == after[:4] and before[4] != after[4]


def test_what_cannot_be_read_is_a_sentence(live, unchecked_arrays):
    prompt = random_prompt(live)
    with pytest.raises(UserError, match="top = -1"):
        Wanted((FIRST,), -1)
    with pytest.raises(UserError, match="dictionary 'x': there is none; there are resid_post.0/topk"):
        read(live, prompt, Wanted(("x",)))
    for kept in (np.ones(47, dtype=bool), np.ones((48, 1), dtype=bool)):
        with pytest.raises(UserError, match="kept of resid_post.0/topk: give a boolean for each of its 48 features"):
            read(live, prompt, Wanted((FIRST,), kept={FIRST: kept}))
