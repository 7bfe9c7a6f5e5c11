"""Edits of features: no-ops to the last bit, what each one adds, generation, and a model left as it was."""

from collections.abc import Callable

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


def unchecked(edit: edits.Edit) -> Callable[[Tensor], Tensor]:
    """The edit as a plain function, which may change nothing."""
    return lambda x: edit(x)


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
    assert torch.equal(hooks.logits(lm, ids, {SITE: unchecked(swap(dictionary, other, []))}), plain)
    assert torch.equal(hooks.logits(lm, ids, {SITE: unchecked(ablate(dictionary, []))}), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "activation"), [*((name, "relu") for name in tiny.EDITED), *(("gpt_neox", k) for k in KINDS[1:])]
)
def test_equal_base_and_donor_are_no_edit_to_the_last_bit(architecture, dtype, activation):
    lm = wrap(tiny.tiny_hf(architecture).to(dtype))
    dictionary = random_pairs.dictionary(32, 48, activation).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    ids = tiny.tokens()
    same = tiny.read(lm, SITE, ids)
    plain = hooks.logits(lm, ids)
    for features in (None, [3], [3, 40, 7]):
        assert torch.equal(hooks.logits(lm, ids, {SITE: unchecked(swap(dictionary, same, features))}), plain)


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_a_model_in_training_mode_is_no_noise(architecture):
    names = {"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop")}.get(architecture, ("attention_dropout",))
    names += ("hidden_dropout",) if architecture.startswith("gpt_neox") else ()
    hf = tiny.tiny_hf(architecture, **dict.fromkeys(names, 0.5)).double().train()
    lm = wrap(hf)
    ids, dictionary = tiny.tokens(), random_pairs.dictionary(32, 48)
    same = tiny.read(lm, SITE, ids)
    assert torch.equal(hooks.logits(lm, ids, {SITE: unchecked(swap(dictionary, same))}), hooks.logits(lm, ids))
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


@pytest.mark.usefixtures("unchecked_arrays")
def test_a_mask_may_differ_between_prompts(x):
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = True
    y = FeatureEdit(random_pairs.dictionary(32, 48), [2], added(1.0), mask)(x)
    assert torch.equal((y != x).any(-1), mask)
    listed = FeatureEdit(random_pairs.dictionary(32, 48), [2], added(1.0), mask.tolist())(x)
    assert torch.equal(listed, y), "lists of booleans were read as the positions 0 and 1"


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        (torch.eye(2, 6, dtype=torch.int64), r"positions are numbers of shape \[2, 6\]: .* a mask of booleans"),
        ([[1], [4]], r"positions are numbers of shape \[2, 1\]: .* hold for all prompts"),
        ([[1], [4, 5]], "positions are lists of different lengths: give a mask"),
        ([0.5], r"positions are numbers of shape \[1\]: give whole numbers"),
        (torch.ones(2, 1, dtype=torch.bool), r"a mask of shape \[2, 1\] and the text has 6 tokens"),
        (torch.ones(1, 2, 6, dtype=torch.bool), r"a mask of shape \[1, 2, 6\] and the text"),
        (torch.ones(2, 5, dtype=torch.bool), r"a mask of shape \[2, 5\] and the text has 6 tokens"),
    ],
)
@pytest.mark.usefixtures("unchecked_arrays")
def test_positions_that_may_be_misread_are_refused(positions, said, x):
    with pytest.raises(UserError, match=said):
        FeatureEdit(random_pairs.dictionary(32, 48), [2], added(1.0), positions)(x)


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
@pytest.mark.parametrize(
    ("change", "positions"), [(added(4.0), None), (scaled(5.0), slice(6, None)), (set_to(3.0), [2, 9])]
)
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


def test_codes_of_a_longer_donor_belong_to_its_positions_with_and_without_a_cache():
    """A donor as long as all that is generated: under a cache the newest token gets the codes of its own position."""
    lm, prompt = tiny.model("llama"), tiny.tokens(2, 7)
    donor = 5 * tiny.read(lm, SITE, tiny.tokens(2, 15, seed=9))
    dictionary = random_pairs.dictionary(32, 48)
    for error in ("keep", "donor"):
        patched = {SITE: swap(dictionary, donor, error=error)}
        cached, plain = (generate(lm, prompt, patched, 8, cache=cache) for cache in (True, False))
        assert torch.equal(cached, plain)
        other = {SITE: swap(dictionary, torch.cat([donor[:, :7], donor[:, 7:].flip(1)], 1), error=error)}
        assert not torch.equal(cached, generate(lm, prompt, other, 8))


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


# Padding, beams and several sequences


def padded_prompts(pad: int = 3) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Prompts of 7 and 4 tokens, padded on the left; their mask; the prompts."""
    rows = [tiny.tokens(1, length, seed=length) for length in (7, 4)]
    fill = torch.full((1, 3), pad)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    return torch.cat([rows[0], torch.cat([fill, rows[1]], 1)]), mask, rows


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_padded_prompts_are_continued_as_each_alone(architecture, cache):
    lm, (prompts, mask, rows) = tiny.model(architecture), padded_prompts()
    steered = {SITE: FeatureEdit(random_pairs.dictionary(32, 48), [3, 8], added(4.0))}
    together = generate(lm, prompts, steered, 5, mask=mask, cache=cache)
    for number, row in enumerate(rows):
        alone = generate(lm, row, steered, 5, cache=cache)
        assert together[number, -5:].tolist() == alone[0, -5:].tolist()


def test_padding_is_not_edited():
    lm, (prompts, mask, _) = tiny.model("llama"), padded_prompts()
    with applied(lm, {SITE: FeatureEdit(random_pairs.dictionary(32, 48), [2], added(1.0))}, mask=mask):
        edited = hooks.capture(lm, prompts, [SITE], mask=mask).activations[SITE]
    plain = hooks.capture(lm, prompts, [SITE], mask=mask).activations[SITE]
    assert torch.equal((edited != plain).any(-1), mask.bool())


def test_prompts_padded_on_the_right_are_not_continued():
    lm, prompts = tiny.model("llama"), tiny.tokens(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    with pytest.raises(UserError, match="row 1 of the tokens ends in padding"):
        generate(lm, prompts, {}, 2, mask=mask)
    padded = tiny.tiny("llama", pad_token_id=3, eos_token_id=2)
    with pytest.raises(UserError, match="row 1 of the tokens ends in padding"):
        generate(padded, torch.tensor([[5, 6], [7, 3]]), {}, 2)
    shared = tiny.tiny("llama", pad_token_id=2, eos_token_id=2, bos_token_id=2)
    assert generate(shared, torch.tensor([[5, 2]]), {}, 2).shape[0] == 1
    assert generate(shared, torch.tensor([[2], [2]]), {}, 2).shape[0] == 2
    for ambiguous in ([[5, 2], [6, 7]], [[5, 2, 2]]):
        with pytest.raises(UserError, match="row 0 of the tokens ends in padding"):
            generate(shared, torch.tensor(ambiguous), {}, 2)
    with pytest.raises(UserError, match="token id 101 has no row"):
        generate(lm, torch.tensor([[101]]), {}, 2)
    with pytest.raises(UserError, match="attention_mask: give it as mask="):
        generate(lm, prompts, {}, 2, attention_mask=mask)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_of_a_prompt_have_its_edit(options, cache):
    """Values, masks and padding of a prompt go with all of its rows: as if each prompt were generated alone."""
    lm, (prompts, mask, _) = tiny.model("llama"), padded_prompts()
    dictionary = random_pairs.dictionary(32, 48)
    values = 6 * torch.rand(2, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    where = torch.ones(2, 11, dtype=torch.bool)
    where[0, 2] = where[1, 5] = False
    steered = {SITE: FeatureEdit(dictionary, [3, 8], set_to(values), where)}
    together = generate(lm, prompts, steered, 4, mask=mask, cache=cache, **options)
    assert len(together) == 2 * options.get("num_return_sequences", 1)
    alone = []
    for row in range(2):
        one = {SITE: FeatureEdit(dictionary, [3, 8], set_to(values[row : row + 1]), where[row])}
        alone.append(generate(lm, prompts[row : row + 1], one, 4, mask=mask[row : row + 1], cache=cache, **options))
    assert torch.equal(together, torch.cat(alone))


def test_several_sampled_sequences_have_the_edit_of_their_prompt():
    lm, (prompts, mask, _) = tiny.model("llama"), padded_prompts()
    donor = hooks.capture(lm, prompts, [SITE], mask=mask).activations[SITE] + 1.0
    patched = {SITE: swap(random_pairs.dictionary(32, 48), donor, positions=slice(0, 7), error="donor")}
    seen = []
    with hooks.edit(lm, {"resid_pre.2": lambda x: seen.append(x) or x}):
        made = generate(lm, prompts, patched, 1, mask=mask, do_sample=True, num_return_sequences=3)
    assert made.shape == (6, 8)
    real = mask.repeat_interleave(3, 0).bool()
    assert tiny.close(seen[0][real], donor.repeat_interleave(3, 0)[real])


def test_values_of_other_prompts_than_a_forward_has_are_refused(x, donor):
    dictionary = random_pairs.dictionary(32, 48)
    more = torch.cat([x, x])
    with pytest.raises(UserError, match="value is of 2 prompts and the forward has 4 rows"):
        swap(dictionary, donor)(more)
    with pytest.raises(UserError, match="error_value is of 2 prompts and the forward has 4 rows"):
        FeatureEdit(dictionary, [1], added(1.0), error="donor", error_value=donor)(more)
    with pytest.raises(UserError, match="donor is of 2 prompts and the forward has 4 rows"):
        Projection(dictionary, [1], donor)(more)
    with pytest.raises(UserError, match="positions are of 2 prompts and the forward has 4 rows"):
        FeatureEdit(dictionary, [1], added(1.0), torch.ones(2, 6, dtype=torch.bool))(more)
    lm, edit = tiny.model("llama"), FeatureEdit(dictionary, [1], added(1.0))
    with (
        pytest.raises(UserError, match="an edit of 2 prompts ran on 3 rows"),
        applied(lm, {SITE: edit}, mask=torch.ones(2, 6, dtype=torch.bool)),
    ):
        hooks.logits(lm, tiny.tokens(3, 6))


# An edit that does nothing


def silent(dictionary: Dictionary, feature: int) -> Dictionary:
    b_enc = dictionary.weights["b_enc"].clone()
    b_enc[feature] = -1e6
    return Dictionary(dictionary.config, {**dictionary.weights, "b_enc": b_enc})


def idle_edits() -> dict[str, tuple[edits.Edit, str]]:
    """By name an edit that changes nothing of two tiny prompts, and what is said of it."""
    lm, ids, dictionary = tiny.model("llama"), tiny.tokens(), random_pairs.dictionary(32, 48)
    x = tiny.read(lm, SITE, ids)
    codes = dictionary.encode_some(x, torch.tensor([3]))
    nowhere = torch.zeros(2, 10, dtype=torch.bool)
    return {
        "silent": (ablate(silent(dictionary, 3), [3]), "feature 3 is not active on any of these tokens"),
        "scaled": (FeatureEdit(dictionary, [3], scaled(1.0)), "the codes are already what they are to become"),
        "clamped": (FeatureEdit(dictionary, [3], set_to(codes)), "the codes are already what they are to become"),
        "beyond": (
            FeatureEdit(dictionary, [3], added(1.0), slice(10, None)),
            "its positions fit none of the 10 tokens",
        ),
        "list": (FeatureEdit(dictionary, [3], added(1.0), [40]), "its positions fit none of the 10 tokens"),
        "mask": (FeatureEdit(dictionary, [3], added(1.0), nowhere), "its positions fit none of the 10 tokens"),
        "empty": (ablate(dictionary, []), "it names no feature"),
        "donor": (swap(dictionary, x), "the codes are already what they are to become"),
        "lost": (FeatureEdit(dictionary, [3], added(1e-30)), "what it adds is lost in the rounding of torch.float64"),
        "projection": (Projection(dictionary, [3], x), "along these directions the activation is already"),
        "directions": (Projection(dictionary, []), "it names no feature"),
        "unmeant": (Projection(dictionary, [3], None, [40]), "its positions fit none of the 10 tokens"),
    }


@pytest.mark.parametrize("name", idle_edits())
def test_an_edit_that_changes_nothing_is_an_error(name):
    lm, ids, (edit, why) = tiny.model("llama"), tiny.tokens(), idle_edits()[name]
    message = f"the edit of {SITE} changes nothing: .*{why}"
    assert torch.equal(hooks.logits(lm, ids, {SITE: unchecked(edit)}), hooks.logits(lm, ids))
    with pytest.raises(UserError, match=message):
        hooks.logits(lm, ids, {SITE: edit})
    with pytest.raises(UserError, match=message), applied(lm, {SITE: edit}):
        hooks.logits(lm, ids)
    with pytest.raises(UserError, match=message):
        hooks.run_from(lm, 1, tiny.read(lm, "resid_pre.1", ids), ids, edits={SITE: edit})
    if name not in ("beyond", "list", "unmeant", "clamped", "mask", "donor", "projection"):  # else of the prompt alone
        with pytest.raises(UserError, match=f"the edit of {SITE} changes nothing"):
            generate(lm, ids, {SITE: edit}, 2)


def test_positions_that_generation_never_reaches_are_an_error():
    lm, edit = tiny.model("llama"), FeatureEdit(random_pairs.dictionary(32, 48), [3], added(4.0), [12])
    with pytest.raises(UserError, match="its positions fit none of the 11 tokens"):
        generate(lm, tiny.tokens(), {SITE: edit}, 2)
    assert generate(lm, tiny.tokens(), {SITE: edit}, 4).shape == (2, 14)


def test_an_edit_of_padding_alone_is_an_error():
    lm, (prompts, mask, _) = tiny.model("llama"), padded_prompts()
    edit = FeatureEdit(random_pairs.dictionary(32, 48), [3], added(4.0), (1 - mask).bool())
    with pytest.raises(UserError, match="changes nothing"), applied(lm, {SITE: edit}, mask=mask):
        hooks.logits(lm, prompts, mask=mask)


def test_an_edit_that_no_forward_reaches_is_an_error():
    lm, edit = tiny.model("llama"), FeatureEdit(random_pairs.dictionary(32, 48), [3], added(4.0))
    with pytest.raises(UserError, match="no forward inside reached it"), applied(lm, {SITE: edit}):
        hooks.capture(lm, tiny.tokens(), ["resid_pre.0"])


def test_one_edit_of_several_that_changes_nothing_is_an_error():
    lm, dictionary = tiny.model("llama"), random_pairs.dictionary(32, 48)
    both = {"resid_post.0": FeatureEdit(dictionary, [3], added(1.0)), SITE: FeatureEdit(dictionary, [3], scaled(1.0))}
    with pytest.raises(UserError, match=f"the edit of {SITE} changes nothing"):
        hooks.logits(lm, tiny.tokens(), both)


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
    with pytest.raises(UserError, match="reconstructs 16 numbers, not the site that it reads"):
        edits.FeatureEdit(wide, [0], added(1.0))
