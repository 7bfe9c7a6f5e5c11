"""Names of sites, and the module each of them is in every architecture."""

import pytest
from helpers.tiny import ARCHITECTURES, tiny, tiny_hf
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM

from monolex.errors import UserError
from monolex.model.load import wrap
from monolex.model.sites import KINDS, Site, expand, resolve, select


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_is_what_its_text_says(kind: str) -> None:
    site = Site.parse(f"{kind}.12")
    assert site == Site(kind, 12)
    assert str(site) == f"{kind}.12"
    assert Site.parse(site) is site


@pytest.mark.parametrize("text", ["resid_post", "resid_post.", ".3", "resid_post.-1", "resid_post.3.4", "a b.3", ""])
def test_a_malformed_site_names_the_format(text: str) -> None:
    with pytest.raises(UserError, match="write kind.layer"):
        Site.parse(text)


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="'resid'.*resid_pre, resid_post, resid_mid"):
        Site.parse("resid.3")


def test_a_star_is_no_single_site() -> None:
    with pytest.raises(UserError, match="every layer"):
        Site.parse("resid_post.*")


def test_expand_keeps_order_and_drops_duplicates() -> None:
    sites = expand(["mlp_out.2", "resid_post.*", "resid_post.1", "mlp_out.2"], 3)
    assert [str(site) for site in sites] == ["mlp_out.2", "resid_post.0", "resid_post.1", "resid_post.2"]


def test_expand_names_the_layers_there_are() -> None:
    with pytest.raises(UserError, match="'mlp_out.3'.*layers 0 to 2"):
        expand(["mlp_out.3"], 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_exists_in_every_architecture_but_resid_mid_in_parallel_ones(architecture: str) -> None:
    lm = tiny(architecture)
    parallel = architecture == "gpt_neox"
    for places in lm.structure.places:
        assert set(places) == set(KINDS) - ({"resid_mid"} if parallel else set())
    heads = 4 * 16 if architecture == "qwen3" else 32
    assert [lm.width(f"{kind}.1") for kind in ("resid_post", "mlp_in", "mlp_act", "attn_z")] == [32, 32, 48, heads]


@pytest.mark.parametrize(
    ("architecture", "mlp_out", "attn_out", "resid_mid"),
    [
        ("phi3", "mlp", "self_attn", "post_attention_layernorm"),
        ("mistral", "mlp", "self_attn", "post_attention_layernorm"),
        ("opt", "fc2", "self_attn", "final_layer_norm"),
        ("gpt_neox", "mlp", "attention", None),
        ("gpt_neox-serial", "mlp", "attention", "post_attention_layernorm"),
        ("gpt2", "mlp", "attn", "ln_2"),
        ("llama", "mlp", "self_attn", "post_attention_layernorm"),
        ("qwen3", "mlp", "self_attn", "post_attention_layernorm"),
        ("gemma3_text", "post_feedforward_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"),
        ("olmo2", "post_feedforward_layernorm", "post_attention_layernorm", "mlp"),
    ],
)
def test_contributions_are_read_after_post_norms(
    architecture: str, mlp_out: str, attn_out: str, resid_mid: str | None
) -> None:
    lm = tiny(architecture)
    block = lm.structure.blocks[1]
    assert lm.place("mlp_out.1").module is getattr(block, mlp_out)
    assert lm.place("attn_out.1").module is getattr(block, attn_out)
    if resid_mid is not None:
        assert lm.place("resid_mid.1").module is getattr(block, resid_mid)


def test_resid_mid_of_parallel_blocks_is_explained() -> None:
    with pytest.raises(UserError, match="in parallel"):
        tiny("gpt_neox").place("resid_mid.0")


def test_a_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="'resid_post.3'.*layers 0 to 2"):
        tiny("gpt_neox").width("resid_post.3")


def test_resolve_says_what_it_did_not_find() -> None:
    with pytest.raises(LookupError, match="stack of 3 blocks"):
        resolve(nn.Sequential(nn.Linear(2, 2)), 3, 2)
    model = tiny_hf("llama")
    model.model.second_norm = nn.LayerNorm(32)
    with pytest.raises(LookupError, match="expected one final norm, found 2"):
        resolve(model, 3, 32)


def test_blocks_without_an_mlp_are_refused() -> None:
    hf = tiny_hf("opt")
    del hf.model.decoder.layers[0].fc2
    with pytest.raises(UserError, match="architecture opt is not one monolex can read: expected one stack of 3 blocks"):
        wrap(hf)


def test_an_embedding_of_another_width_than_the_stream_is_refused() -> None:
    with pytest.raises(UserError, match="opt .* its embedding is 16 wide and its residual stream 32"):
        tiny("opt", word_embed_proj_dim=16)


def test_blocks_that_normalise_the_stream_itself_are_refused() -> None:
    with pytest.raises(UserError, match="architecture opt is not one monolex can read"):
        tiny("opt", do_layer_norm_before=False)


def test_a_residual_stream_that_does_not_add_up_is_refused() -> None:
    config = GraniteConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        residual_multiplier=0.5,
    )
    with pytest.raises(UserError, match="architecture granite .* resid_pre \\+ attn_out \\+ mlp_out .* layer 0"):
        wrap(GraniteForCausalLM(config))


def test_select_takes_all_some_or_one() -> None:
    available = ("resid_post.0", "resid_post.10", "mlp_act.1")
    assert select((), available, "x") == available
    assert select(("resid_post.*",), available, "x") == available[:2]
    assert select(("mlp_act.1", "resid_post.*", "mlp_act.1"), available, "x") == ("mlp_act.1", *available[:2])
    for wrong in ("resid_post.1", "resid_pre.*", "resid"):
        with pytest.raises(UserError, match="the shelf holds no site"):
            select((wrong,), available, "the shelf")
