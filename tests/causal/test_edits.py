"""Edits of features: no-ops to the last bit, what each one adds, generation, and a model left as it was."""

import pytest
import torch
from helpers import random_pairs, tiny
from torch import Tensor

from monolex.causal import edits
from monolex.causal.edits import (
    FeatureEdit,
    Projection,
    ablate,
    added,
    applied,
    generate,
    resampled,
    scaled,
    set_to,
    swap,
)
from monolex.dictionaries.base import Dictionary
from monolex.errors import UserError
from monolex.model import hooks
from monolex.model.load import wrap

SITE = "resid_post.1"
KINDS = ("relu", "linear", "topk", "threshold")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture
def donor() -> Tensor:
    return torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("activation", KINDS)
def test_some_codes_are_those_of_all(activation, x):
    dictionary = random_pairs.dictionary(32, 48, activation)
    some = torch.tensor([5, 0, 47, 5])
    assert torch.allclose(dictionary.encode_some(x, some), dictionary.encode(x)[..., some], rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_no_feature_is_no_edit_to_the_last_bit(architecture):
    lm, ids = tiny.model(architecture), tiny.tokens()
    dictionary = random_pairs.dictionary(32, 48)
    other = tiny.read(lm, SITE, tiny.tokens(seed=1))
    plain = hooks.logits(lm, ids)
    assert torch.equal(hooks.logits(lm, ids, {SITE: swap(dictionary, other, [])}), plain)
    assert torch.equal(hooks.logits(lm, ids, {SITE: ablate(dictionary, [])}), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_equal_base_and_donor_are_no_edit_to_the_last_bit(architecture, dtype, activation):
    lm = wrap(tiny.tiny_hf(architecture).to(dtype))
    dictionary = random_pairs.dictionary(32, 48, activation).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    ids = tiny.tokens()
    same = tiny.read(lm, SITE, ids)
    plain = hooks.logits(lm, ids)
    for features in (None, [3], [3, 40, 7]):
        assert torch.equal(hooks.logits(lm, ids, {SITE: swap(dictionary, same, features)}), plain)


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_a_model_in_training_mode_is_no_noise(architecture):
    names = {"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop")}.get(architecture, ("attention_dropout",))
    names += ("hidden_dropout",) if architecture.startswith("gpt_neox") else ()
    hf = tiny.tiny_hf(architecture, **dict.fromkeys(names, 0.5)).double().train()
    lm = wrap(hf)
    ids, dictionary = tiny.tokens(), random_pairs.dictionary(32, 48)
    same = tiny.read(lm, SITE, ids)
    assert torch.equal(hooks.logits(lm, ids, {SITE: swap(dictionary, same)}), hooks.logits(lm, ids))
    assert hf.training


def test_all_features_add_the_difference_of_reconstructions(x, donor):
    dictionary = random_pairs.dictionary(32, 48)
    expected = x + dictionary.reconstruct(donor) - dictionary.reconstruct(x)
    assert torch.allclose(swap(dictionary, donor)(x), expected, rtol=0, atol=1e-12)


def test_features_add_their_own_differences(x, donor):
    dictionary = random_pairs.dictionary(32, 48)
    chosen = [4, 9, 30]
    change = dictionary.encode(donor) - dictionary.encode(x)
    expected = x + sum(change[..., i, None] * dictionary.W_dec[i] for i in chosen)
    assert torch.allclose(swap(dictionary, donor, chosen)(x), expected, rtol=0, atol=1e-12)


def test_error_modes(x, donor):
    dictionary = random_pairs.dictionary(32, 48)
    error = x - dictionary.reconstruct(x)
    assert torch.allclose(swap(dictionary, donor, error="donor")(x), donor, rtol=0, atol=1e-12)
    assert torch.allclose(swap(dictionary, donor, error="zero")(x), dictionary.reconstruct(donor), rtol=0, atol=1e-12)
    mean = (donor - dictionary.reconstruct(donor)).mean((0, 1))
    assert torch.allclose(
        swap(dictionary, donor, [1], error="mean")(x) - swap(dictionary, donor, [1])(x),
        mean - error,
        rtol=0,
        atol=1e-12,
    )
    with pytest.raises(UserError, match="error_value goes with mean and donor"):
        FeatureEdit(dictionary, [1], set_to(0.0), error="mean")
    with pytest.raises(UserError, match="error_value goes with mean and donor"):
        FeatureEdit(dictionary, [1], set_to(0.0), error_value=mean)


def test_changes(x):
    dictionary = random_pairs.dictionary(32, 48)
    some = torch.tensor([2, 17])
    codes, rows = dictionary.encode(x)[..., some], dictionary.W_dec[some]

    def edited(change) -> Tensor:
        return FeatureEdit(dictionary, some, change)(x) - x

    assert torch.allclose(edited(set_to(0.0)), -codes @ rows, rtol=0, atol=1e-12)
    assert torch.allclose(edited(set_to(2.5)), (2.5 - codes) @ rows, rtol=0, atol=1e-12)
    assert torch.allclose(
        edited(set_to(torch.tensor([1.0, 3.0]))), (torch.tensor([1.0, 3.0]) - codes) @ rows, atol=1e-12
    )
    assert torch.allclose(edited(scaled(3.0)), 2 * codes @ rows, rtol=0, atol=1e-12)
    assert torch.allclose(edited(added(1.5)), (1.5 * rows.sum(0)).expand_as(x), rtol=0, atol=1e-12)
    pool = torch.rand(7, 2, dtype=torch.float64)
    once, again = edited(resampled(pool, 1)), edited(resampled(pool, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, edited(resampled(pool, 2)))


def test_clamping_to_what_is_there_and_scaling_by_one_change_nothing(x):
    dictionary = random_pairs.dictionary(32, 48)
    some = torch.tensor([2, 17])
    codes = dictionary.encode_some(x, some)
    assert torch.equal(FeatureEdit(dictionary, some, set_to(codes))(x), x)
    assert torch.equal(FeatureEdit(dictionary, some, scaled(1.0))(x), x)


def test_ablation_leaves_silent_positions_alone_and_a_projection_does_not(x):
    dictionary = random_pairs.dictionary(32, 48)
    feature = int((dictionary.encode(x) > 0).flatten(0, 1).sum(0).argmin())
    feature = feature if (dictionary.encode(x)[..., feature] > 0).any() else 17
    silent = dictionary.encode(x)[..., feature] == 0
    assert silent.any()
    assert not silent.all()
    y = ablate(dictionary, [feature])(x)
    assert torch.equal(y[silent], x[silent])
    assert not torch.equal(y[~silent], x[~silent])
    assert not torch.isclose(Projection(dictionary, [feature])(x)[silent], x[silent]).all(-1).any()


def test_a_projection_takes_away_or_takes_over_a_span(x, donor):
    dictionary = random_pairs.dictionary(32, 48)
    chosen = [3, 5, 3]
    rows = dictionary.W_dec[chosen]
    assert torch.allclose(Projection(dictionary, chosen)(x) @ rows.T, torch.zeros(2, 6, 3, dtype=x.dtype), atol=1e-12)
    taken = Projection(dictionary, chosen, donor)(x)
    assert torch.allclose(taken @ rows.T, donor @ rows.T, rtol=0, atol=1e-12)
    assert torch.allclose(Projection(dictionary, range(48), donor)(x), donor, rtol=0, atol=1e-10)
    assert torch.equal(Projection(dictionary, [])(x), x)


@pytest.mark.parametrize(
    ("positions", "meant"),
    [
        (slice(2, 4), [2, 3]),
        (slice(4, None), [4, 5]),
        ([0, 5], [0, 5]),
        (torch.tensor([False, True, False, False, False, True]), [1, 5]),
    ],
)
def test_positions(positions, meant, x):
    dictionary = random_pairs.dictionary(32, 48)
    y = FeatureEdit(dictionary, [2], added(1.0), positions)(x)
    assert (y != x).any(-1)[0].nonzero()[:, 0].tolist() == meant


def test_a_mask_may_differ_between_prompts(x):
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = True
    y = FeatureEdit(random_pairs.dictionary(32, 48), [2], added(1.0), mask)(x)
    assert torch.equal((y != x).any(-1), mask)


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_several_sites_at_once(architecture):
    lm, ids = tiny.model(architecture), tiny.tokens()
    first, second = random_pairs.dictionary(32, 48), random_pairs.dictionary(32, 40, seed=1)
    others = [tiny.read(lm, site, tiny.tokens(seed=1)) for site in ("resid_post.0", "resid_post.2")]
    both = {"resid_post.0": swap(first, others[0], [1, 2]), "resid_post.2": swap(second, others[1])}
    with applied(lm, both):
        together = hooks.logits(lm, ids)
    with hooks.edit(lm, {"resid_post.0": both["resid_post.0"]}):
        nested = hooks.logits(lm, ids, {"resid_post.2": both["resid_post.2"]})
    assert torch.equal(together, nested)
    assert not torch.allclose(together, hooks.logits(lm, ids, {"resid_post.0": both["resid_post.0"]}))


@pytest.mark.parametrize("architecture", tiny.EDITED)
@pytest.mark.parametrize("change", [added(4.0), scaled(5.0), set_to(3.0)])
@pytest.mark.parametrize("positions", [None, slice(6, None), [2, 9]])
def test_generation_is_the_same_with_and_without_a_cache(architecture, change, positions):
    lm, prompt = tiny.model(architecture), tiny.tokens(2, 7)
    steered = {SITE: FeatureEdit(random_pairs.dictionary(32, 48), [3, 8], change, positions)}
    cached, plain = (generate(lm, prompt, steered, 8, cache=cache) for cache in (True, False))
    assert torch.equal(cached, plain)
    assert cached.shape == (2, 15)


def test_resampling_is_the_same_with_and_without_a_cache():
    lm, prompt = tiny.model("llama"), tiny.tokens(2, 7)
    pool = 9 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steered = {SITE: FeatureEdit(random_pairs.dictionary(32, 48), [3, 8], resampled(pool, 5))}
    cached, plain = (generate(lm, prompt, steered, 8, cache=cache) for cache in (True, False))
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, generate(lm, prompt, {}, 8))


@pytest.mark.parametrize("cache", [True, False])
def test_a_patch_of_the_prompt_alone_generates(cache):
    lm, prompt = tiny.model("gpt_neox"), tiny.tokens(2, 7)
    donor = tiny.read(lm, SITE, tiny.tokens(2, 7, seed=9))
    patched = {SITE: swap(random_pairs.dictionary(32, 48), donor, positions=slice(0, 7), error="donor")}
    made = generate(lm, prompt, patched, 5, cache=cache)
    assert made.shape == (2, 12)
    with hooks.edit(lm, {SITE: lambda x: torch.cat([donor, x[:, 7:]], 1)}):
        expected = lm.hf.generate(prompt, max_new_tokens=5, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(made, expected)


def test_steering_changes_what_is_generated():
    lm, prompt = tiny.model("gpt_neox"), tiny.tokens(2, 7)
    steered = {SITE: FeatureEdit(random_pairs.dictionary(32, 48), [3], added(30.0))}
    assert not torch.equal(generate(lm, prompt, steered, 8), generate(lm, prompt, {}, 8))


def test_codes_of_a_donor_do_not_reach_beyond_it():
    lm, prompt = tiny.model("gpt_neox"), tiny.tokens(2, 7)
    patched = {SITE: swap(random_pairs.dictionary(32, 48), tiny.read(lm, SITE, prompt))}
    with pytest.raises(UserError, match="value is of 7 tokens and the text has 8"):
        generate(lm, prompt, patched, 3)


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_the_model_is_left_as_it_was(architecture):
    lm, ids = tiny.tiny(architecture), tiny.tokens()
    dictionary = random_pairs.dictionary(32, 48).to(torch.float32)
    lm.hf.train()
    foreign = lm.hf.register_forward_hook(lambda *_: None)

    def state() -> list:
        modules = list(lm.hf.modules())
        hooked = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
        return [hooked, [m.training for m in modules], [(p.requires_grad, p.grad, p.dtype) for p in lm.hf.parameters()]]

    before = state()
    generate(lm, ids, {SITE: FeatureEdit(dictionary, [1], added(1.0))}, 2)
    with pytest.raises(ZeroDivisionError), applied(lm, {SITE: FeatureEdit(dictionary, [1], added(1.0))}):
        raise ZeroDivisionError
    broken = FeatureEdit(dictionary, [1], lambda codes, _: codes[:, :3])
    with pytest.raises(RuntimeError), applied(lm, {SITE: broken}):
        hooks.logits(lm, ids)
    assert state() == before
    foreign.remove()


def test_bad_edits(x):
    dictionary = random_pairs.dictionary(32, 48)
    with pytest.raises(UserError, match=r"feature \[48\]: .* has features 0 to 47"):
        ablate(dictionary, [0, 48])
    with pytest.raises(UserError, match="1 of them stand there twice"):
        ablate(dictionary, [3, 5, 3])
    with pytest.raises(UserError, match="count from the first token"):
        FeatureEdit(dictionary, [0], added(1.0), slice(-1, None))(x)
    with pytest.raises(UserError, match="negative number"):
        FeatureEdit(dictionary, [0], added(1.0), [-1])(x)
    wide = Dictionary(
        random_pairs.dictionary(32, 48).config.__class__(kind="t", activation="relu", d_in=32, d_out=16, d_sae=48),
        {**dictionary.weights, "W_dec": torch.zeros(48, 16), "b_dec": torch.zeros(16)},
    )
    with pytest.raises(UserError, match="writes 16 wide"):
        edits.FeatureEdit(wide, [0], added(1.0))
