"""What weights alone say: direct logits against the model's own norm, the rest against whole products."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers.tiny import ARCHITECTURES, close, model
from helpers.tiny_harvests import make_lm
from torch import Tensor, nn

from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.features import weights
from monolex.features.store import FeatureStore
from monolex.features.store_writer import StoreWriter
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.text.vocabulary import Texts


def dictionary(width: int, d_sae: int = 7, seed: int = 0) -> Dictionary:
    draw = torch.randn(d_sae, width, generator=torch.Generator().manual_seed(seed)).double()
    zeros = torch.zeros(width).double()
    made = {"W_enc": draw, "W_dec": draw, "b_enc": torch.zeros(d_sae).double(), "b_dec": zeros, "centre": zeros}
    return Dictionary(DictionaryConfig("tied", "relu", width, width, d_sae), made)


def through(lm: LanguageModel, site: str, directions: Tensor) -> Tensor:
    made = dictionary(directions.shape[1], len(directions))
    way = weights.way_to_logits(lm, Site.parse(site), made)
    assert way.through is not None, way.reason
    return way.through(directions)


def slope(module: nn.Module, at: Tensor, directions: Tensor) -> Tensor:
    """The change of a module's result for a small step along each direction."""
    jacobian = torch.autograd.functional.jacobian(module, at)
    assert isinstance(jacobian, Tensor)
    return directions @ jacobian.T


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_direction_reaches_the_logits_as_the_norms_slope_says(architecture):
    """At x, the slope of the norm along d is A d / s where d leaves the scale s of x as it is."""
    lm = model(architecture)
    norm = lm.final_norm
    x = 50 * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(1)).double()
    directions = dictionary(lm.d_model).W_dec
    centred = "LayerNorm" in type(norm).__name__ and "RMS" not in type(norm).__name__
    centre = (lambda v: v - v.mean(-1, keepdim=True)) if centred else (lambda v: v)
    along = centre(x)
    flat = directions - (centre(directions) @ along / along.square().sum())[:, None] * along
    scale = along.square().mean().sqrt()
    assert close(through(lm, "resid_post.1", flat), scale * slope(norm, x, flat), 1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["mlp_act", "attn_z"])
def test_neurons_and_heads_go_through_their_output_projection(architecture, kind):
    lm = model(architecture)
    place = lm.place(f"{kind}.1")
    directions = dictionary(place.width).W_dec
    written = place.module(directions) - place.module(torch.zeros_like(directions))
    after = lm.place(f"{weights.PROJECTED[kind]}.1").module
    post = architecture in ("gemma3_text", "olmo2")
    if post:
        assert isinstance(after.weight, Tensor)
        written = written * (after.weight + int(architecture == "gemma3_text"))
    assert (place.module not in after.modules()) == post
    assert close(through(lm, f"{kind}.1", directions), through(lm, "resid_post.1", written), 1e-5)


def test_what_is_only_read_has_no_direct_logits():
    way = weights.way_to_logits(model("gpt2"), Site("mlp_in", 1), dictionary(32))
    assert way.through is None and "mlp_in is read from the residual stream" in way.reason
    way = weights.way_to_logits(model("gpt2"), Site("resid_post", 1), dictionary(31))
    assert way.through is None and "width 31" in way.reason
    way = weights.way_to_logits(model("gpt2"), Site("mlp_act", 1), dictionary(31))
    assert way.through is None and "width 31" in way.reason


def test_what_is_no_norm_is_told_apart():
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).tanh()

    assert weights.linear_part(Squashed(), 8) is None
    assert weights.linear_part(nn.LayerNorm(8), 8) is not None
    assert weights.linear_part(nn.RMSNorm(8), 8) is not None


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
@pytest.mark.parametrize("block", [1, 2**24])
def test_tables_are_those_of_whole_products(tmp_path: Path, architecture, block, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK", block)
    lm = make_lm(architecture)
    made = dictionary(lm.d_model).to(torch.float32)
    made.weights["W_dec"][4] = 0
    site = Site("resid_post", 1)
    with StoreWriter(tmp_path / "it.sqlite") as writer:
        weights.neighbours(writer, made, 3)
        named = weights.direct_logits(writer, made, lm, weights.way_to_logits(lm, site, made), 4)
        writer.insert("vocabulary", Texts(lm).of(named), 2)
        writer.finish({"name": "it", "site": str(site), "d_sae": 7})
    assert lm.tokenizer is not None
    n = len(lm.tokenizer)
    assert n < lm.vocab_size
    logits = through(lm, str(site), made.W_dec) @ lm.unembedding[:n].T
    logits = (logits - logits.mean(1, keepdim=True)).double()
    cosines = made.directions() @ made.directions().T
    with closing(FeatureStore(tmp_path / "it.sqlite")) as store:
        for feature in range(7):
            for side in (1, -1):
                found = store.rows(
                    "SELECT token, weight FROM direct WHERE feature = ? AND side = ? ORDER BY rank", (feature, side)
                )
                order = (side * logits[feature]).argsort(descending=True)[:4] if feature != 4 else torch.zeros(0)
                assert [token for token, _ in found] == order.tolist()
                for token, weight in found:
                    assert weight == pytest.approx(float(logits[feature, token]), rel=1e-3, abs=1e-5)
            found = store.rows("SELECT other, cosine FROM neighbour WHERE feature = ? ORDER BY rank", (feature,))
            row = cosines[feature].clone()
            row[feature] = -2
            expected = row.sort(descending=True, stable=True)
            assert [other for other, _ in found] == expected.indices[:3].tolist()
            assert [cosine for _, cosine in found] == pytest.approx(expected.values[:3].tolist(), abs=1e-6)


@pytest.mark.parametrize("block", [1, 2**24])
def test_the_closest_token_is_that_of_all_cosines(block, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK", block)
    lm = make_lm()
    assert lm.tokenizer is not None
    made = dictionary(lm.d_model)
    found = weights.closest(made, Site("resid_post", 1), lm, lm.embedding)
    rows = nn.functional.normalize(lm.embedding[: len(lm.tokenizer)].double())
    cosines = made.directions() @ rows.T
    assert found.token.tolist() == cosines.argmax(1).tolist()
    assert found.cosine == pytest.approx(cosines.amax(1).tolist(), abs=1e-5)
    nothing = weights.closest(made, Site("mlp_act", 1), lm, lm.embedding)
    assert set(nothing.token.tolist()) == {-1}


def test_tokens_are_read_as_they_stand():
    lm = make_lm()
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    texts = dict(Texts(lm).of([0, *tokenizer(" the\n é <s>")["input_ids"]]))
    assert texts[0] == "<s>" and " t" in texts.values() and "\n" in texts.values()
    # half of a character is shown as the tokenizer writes it, not as a replacement character
    assert "\ufffd" not in "".join(texts.values())
    bare = LanguageModel(lm.hf, None, "bare", lm.structure)
    assert Texts(bare).of([5, 3, 5]) == [(3, "3"), (5, "5")]
