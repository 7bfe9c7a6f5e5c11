"""The last token alone after what is kept of the others: as in a forward of the whole text, or not at all."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny
from helpers.ablations import case, same_numbers
from transformers.cache_utils import DynamicCache

from monolex.causal.past import Past, after, continues, remember
from monolex.causal.suffix import prepare_last
from monolex.model import hooks

IDS = tiny.tokens(1, 9, seed=4)
"""Longer than the window of the sliding architecture."""


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("site", ["resid_post.0", "resid_pre.1", "mlp_act.1", "resid_post.2"])
def test_versions_of_the_last_token_equal_full_forwards(architecture, site):
    lm = tiny.model(architecture)
    assert continues(lm, IDS)
    for ids in (IDS, tiny.tokens(2, 9, seed=5)):
        suffix = prepare_last(lm, site, ids)
        assert suffix.states == ids.numel() and suffix.x.shape[:2] == (len(ids), 1)
        assert tiny.close(suffix.x[:, 0], tiny.read(lm, site, ids)[:, -1])
        edits = torch.randn(3, lm.width(site), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        logits = suffix.end_logits(suffix.x + edits[:, None, None])
        for edit, fast in zip(edits, logits, strict=True):
            naive = hooks.logits(lm, ids, {site: lambda x, edit=edit: torch.cat([x[:, :-1], x[:, -1:] + edit], 1)})
            assert tiny.close(fast, naive[:, -1])
        assert tiny.close(suffix.end_logits(suffix.x[None])[0], hooks.logits(lm, ids)[:, -1])
        assert hooks.logits(lm, ids).shape[1] == 9, "nothing is left in the model"


def test_a_text_of_one_token_has_no_past():
    lm = tiny.model("llama")
    suffix = prepare_last(lm, "resid_post.0", IDS[:, :1])
    assert suffix.past is None and suffix.states == 1
    assert tiny.close(suffix.end_logits(suffix.x[None])[0, 0], hooks.logits(lm, IDS[:, :1])[0, -1])
    assert not continues(lm, IDS[:, :1])


def test_what_is_kept_is_never_changed():
    lm = tiny.model("gemma3_text")
    past = remember(lm, IDS[:, :-1])
    assert past is not None
    before = [(layer.keys.clone(), layer.get_seq_length()) for layer in past.cache.layers]
    for versions in (1, 5):
        with after(lm, past, torch.zeros(versions, dtype=torch.int64)):
            hooks.logits(lm, IDS[:, -1:].expand(versions, 1))
    assert all(
        torch.equal(layer.keys, keys) and layer.get_seq_length() == length
        for layer, (keys, length) in zip(past.cache.layers, before, strict=True)
    )


def displaced(past: Past) -> Past:
    """The same with every key one token further on, as after a mistake in positions."""
    cache = past.of(torch.zeros(1, dtype=torch.int64))
    for layer in cache.layers:
        layer.keys = layer.keys.roll(1, 2)
    return past._replace(cache=cache)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_cache_that_gives_something_else_is_not_used(monkeypatch, dtype):
    lm = tiny.tiny("llama")
    lm = replace(lm, hf=lm.hf.to(dtype))
    assert continues(lm, IDS)
    monkeypatch.setattr("monolex.causal.past.remember", lambda *arguments: displaced(remember(*arguments)))
    assert not continues(lm, IDS)


def test_a_model_that_keeps_nothing_is_run_on_whole_texts(monkeypatch):
    lm = tiny.tiny("gpt_neox", double=True)
    setup = case(lm, "resid_post.0")
    short = setup.run().to_json()
    widths = set()
    lm.structure.blocks[2].register_forward_pre_hook(lambda _, arguments: widths.add(arguments[0].shape[1]))
    setup.run()
    assert 1 in widths and len(widths) > 1, "pasts, and tokens after them"
    widths.clear()
    # as of an architecture whose cache holds more than keys and values
    monkeypatch.setattr("monolex.causal.past.PLAIN", ())
    assert remember(lm, IDS) is None
    whole = setup.run().to_json()
    assert 1 not in widths
    same_numbers(short, whole)


def test_only_plain_caches_are_taken_for_one():
    past = remember(tiny.model("gpt2"), IDS)
    assert past is not None and isinstance(past.cache, DynamicCache) and past.length == 9
