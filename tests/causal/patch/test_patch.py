"""Patches: complete bases reach the donor, dictionaries their floor, and the fast path is the naive one."""

import pytest
import torch
from helpers import random_pairs, tiny
from torch import Tensor

from monolex.causal.config import PatchConfig
from monolex.causal.patch import curves, searches, sweep
from monolex.causal.patch.measure import measure_patch
from monolex.causal.patch.patch import Patch, prepare_patch
from monolex.causal.patch.searches import FeatureSet
from monolex.causal.prompts.pairs import PromptPairs
from monolex.causal.suffix import prepare
from monolex.errors import UserError
from monolex.model import hooks

SITES = ("resid_post.0", "resid_post.2", "resid_pre.1", "mlp_out.1", "attn_out.1", "mlp_act.1")
EVERYWHERE = ("gpt_neox", "gemma3_text")
"""Architectures of which every site is patched; of the others the first and the last of the list."""


def at_end(logits: Tensor, prompts: PromptPairs) -> Tensor:
    return logits[torch.arange(len(prompts)), prompts.end]


def mask(patch: Patch, features: list[int]) -> Tensor:
    return torch.isin(patch.candidates, torch.tensor(features))


@pytest.mark.parametrize(
    ("architecture", "site"),
    [(name, site) for name in tiny.EDITED for site in (SITES if name in EVERYWHERE else SITES[::5])],
)
def test_the_fast_path_is_the_naive_one(architecture, site):
    lm, prompts = tiny.model(architecture), random_pairs.pairs()
    dictionary = random_pairs.dictionary(lm.width(site), 40)
    patch = prepare_patch(lm, prompts, site, dictionary, batch_tokens=100)
    sets = [[], [int(patch.candidates[0])], patch.candidates[::2].tolist(), patch.candidates.tolist()]
    edits = [patch.edit(mask(patch, features)) for features in sets]
    outcomes = list(patch.outcomes(edits))
    assert len(outcomes) == len(sets)
    for features, outcome in zip(sets, outcomes, strict=True):
        assert tiny.close(outcome.kl, random_pairs.naive_kl(lm, prompts, site, dictionary, features))
    assert tiny.close(patch.mean_kl(torch.stack(edits)), torch.stack([one.kl.mean() for one in outcomes]))


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_no_feature_gives_the_base_and_a_complete_basis_the_donor(architecture):
    lm, prompts = tiny.model(architecture), random_pairs.pairs()
    patch = prepare_patch(lm, prompts, "resid_post.1", random_pairs.complete(32))
    nothing = patch.suffix.end_logits((patch.base + patch.edit(~patch.all()))[None])[0]
    everything = patch.suffix.end_logits((patch.base + patch.edit(patch.all()))[None])[0]
    assert torch.equal(nothing, patch.suffix.end_logits(patch.base[None])[0])
    assert tiny.close(nothing, at_end(hooks.logits(lm, prompts.base), prompts))
    assert tiny.close(everything, at_end(hooks.logits(lm, prompts.donor), prompts))
    ends = curves.floors(patch)
    assert abs(ends.all.kl).max() < 1e-10
    assert abs(ends.whole.kl).max() < 1e-10
    assert ends.none.kl.min() > 1e-4


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_a_dictionary_leaves_a_floor(architecture):
    lm, prompts = tiny.model(architecture), random_pairs.pairs()
    dictionary = random_pairs.dictionary(32, 48)
    patch = prepare_patch(lm, prompts, "resid_post.1", dictionary)
    base, donor = tiny.read(lm, "resid_post.1", prompts.base), tiny.read(lm, "resid_post.1", prompts.donor)
    x = base + dictionary.reconstruct(donor) - dictionary.reconstruct(base)
    logits = at_end(tiny.full(hooks.run_from(lm, 2, x, prompts.base)), prompts)
    expected = logits.log_softmax(-1)
    target = at_end(hooks.logits(lm, prompts.donor), prompts).log_softmax(-1)
    ends = curves.floors(patch)
    assert tiny.close(torch.tensor(ends.all.kl), (expected.exp() * (expected - target)).sum(-1))
    assert ends.all.kl.min() > 1e-6


def test_float32_agrees():
    prompts = random_pairs.pairs()
    values = []
    for lm in (tiny.model("gpt_neox"), tiny.tiny("gpt_neox")):
        dictionary = random_pairs.dictionary(32, 48).to(lm.dtype)
        patch = prepare_patch(lm, prompts, "resid_post.0", dictionary)
        values.append(patch.run(patch.edit(patch.all())[None])[0].kl.double())
    assert tiny.close(values[1], values[0], 1e-5)


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_a_patch_between_equal_activations_is_refused(architecture):
    lm, prompts = tiny.model(architecture), random_pairs.pairs()
    same = PromptPairs(**{**vars(prompts), "donor": prompts.base})
    with pytest.raises(UserError, match="base and donor are the same at resid_post.1 in all 5 pairs"):
        prepare_patch(lm, same, "resid_post.1", random_pairs.dictionary(32, 48))


def test_a_donor_that_differs_in_its_padding_alone_is_refused():
    lm, prompts = tiny.model("llama"), random_pairs.pairs()
    padded = torch.where(prompts.real, prompts.base, prompts.base + 1)
    assert not torch.equal(padded, prompts.base)
    same = PromptPairs(**{**vars(prompts), "donor": padded})
    with pytest.raises(UserError, match="base and donor are the same"):
        prepare_patch(lm, same, "resid_post.1", random_pairs.dictionary(32, 48))


def test_pairs_that_no_feature_changes_are_counted():
    lm, prompts = tiny.model("gpt_neox"), random_pairs.pairs()
    donor = prompts.donor.clone()
    donor[[1, 3]] = prompts.base[[1, 3]]
    some = PromptPairs(**{**vars(prompts), "donor": donor})
    patch = prepare_patch(lm, some, "resid_post.1", random_pairs.dictionary(32, 48))
    assert patch.unmoved().tolist() == [False, True, False, True, False]
    assert measure_patch(patch, PatchConfig(task="ioi", searches=("ranking",)), False).unmoved == 2


def test_a_dictionary_without_a_difference_patches_nothing_in_any_pair():
    lm, prompts = tiny.model("gpt_neox"), random_pairs.pairs()
    dictionary = random_pairs.dictionary(32, 48)
    dictionary.weights["b_enc"][:] = -1e6
    patch = prepare_patch(lm, prompts, "resid_post.1", dictionary)
    assert len(patch.candidates) == 0 and patch.unmoved().all()
    curve = curves.measure(patch, searches.prefixes(searches.ranking(searches.attribution(patch)), [0]))
    assert curve.sizes.tolist() == [0]
    assert sweep.threshold_sweep(patch, [0.1])[0].chosen.shape == (0,)


def test_features_that_do_not_differ_are_no_candidates():
    lm, prompts = tiny.model("gpt_neox"), random_pairs.pairs()
    dictionary = random_pairs.dictionary(32, 48, "topk")
    patch = prepare_patch(lm, prompts, "resid_post.1", dictionary)
    codes = [dictionary.encode(tiny.read(lm, "resid_post.1", ids)) for ids in (prompts.base, prompts.donor)]
    differs = ((codes[0] != codes[1]) & prompts.real[..., None]).flatten(0, 1).any(0)
    assert patch.candidates.tolist() == differs.nonzero()[:, 0].tolist()
    assert 0 < len(patch.candidates) < 48


def test_padding_is_neither_edited_nor_counted():
    lm, prompts = tiny.model("gpt_neox"), random_pairs.pairs()
    patch = prepare_patch(lm, prompts, "resid_post.1", random_pairs.dictionary(32, 48))
    edit = patch.edit(patch.all())
    assert not edit[~prompts.real].any()
    for number, length in enumerate(prompts.lengths.tolist()):
        expected = edit[number, :length].norm(dim=-1)
        size = patch.size(edit)
        assert torch.allclose(size.mean[number], expected.mean(), atol=1e-12)
        assert torch.allclose(size.changed[number], expected[expected > 0].mean(), atol=1e-12)


@pytest.mark.parametrize("architecture", tiny.EDITED)
@pytest.mark.parametrize("number", range(len(random_pairs.LENGTHS)))
def test_a_prompt_alone_is_that_prompt_in_a_batch(architecture, number):
    lm, prompts = tiny.model(architecture), random_pairs.pairs()
    dictionary = random_pairs.dictionary(32, 48)
    length = int(prompts.lengths[number])
    alone = prompts.select([number])
    alone = PromptPairs(**{**vars(alone), "base": alone.base[:, :length], "donor": alone.donor[:, :length]})
    outcomes = []
    for some in (prompts, alone):
        patch = prepare_patch(lm, some, "resid_post.0", dictionary)
        outcomes.append(patch.run(patch.edit(mask(patch, [1, 5, 9, 30]))[None])[0])
    for together, single in zip(*outcomes, strict=True):
        assert tiny.close(single[0], together[number])


@pytest.mark.parametrize("architecture", EVERYWHERE)
def test_stored_sizes_and_losses_are_those_of_the_sets_kept(architecture):
    lm, prompts = tiny.model(architecture), random_pairs.pairs()
    dictionary = random_pairs.dictionary(32, 48)
    patch = prepare_patch(lm, prompts, "resid_post.1", dictionary)
    found = sweep.threshold_sweep(patch, [1e-4, 1e-2, 0.1, 1.0], seed=1)
    curve = curves.measure(patch, found)
    base, donor = (tiny.read(lm, "resid_post.1", ids) for ids in (prompts.base, prompts.donor))
    change = dictionary.encode(donor) - dictionary.encode(base)
    for row, one in enumerate(found):
        features = patch.candidates[one.chosen]
        assert curve.sizes[row] == len(features)
        norms = (change[..., features] @ dictionary.W_dec[features]).norm(dim=-1) * prompts.real
        assert torch.allclose(torch.tensor(curve.edit[row]), norms.sum(1) / prompts.lengths, rtol=0, atol=1e-12)
        expected = random_pairs.naive_kl(lm, prompts, "resid_post.1", dictionary, features.tolist())
        assert tiny.close(torch.tensor(curve.kl[row]), expected)


def test_logit_differences_and_what_is_recovered():
    lm, prompts = tiny.model("gpt_neox"), random_pairs.pairs()
    patch = prepare_patch(lm, prompts, "resid_post.1", random_pairs.complete(32))
    ends = curves.floors(patch)
    logits = at_end(hooks.logits(lm, prompts.base), prompts)
    rows = torch.arange(len(prompts))
    expected = logits[rows, rows] - logits[rows, rows + 30]
    assert tiny.close(torch.tensor(ends.none.metric), expected)
    assert tiny.close(torch.tensor(ends.whole.metric), torch.tensor(ends.donor_metric))
    curve = curves.measure(patch, [FeatureSet(~patch.all()), FeatureSet(patch.all())])
    assert curves.recovered(curve, 0, ends).value == pytest.approx(0, abs=1e-9)
    assert curves.recovered(curve, 1, ends).value == pytest.approx(1, abs=1e-9)


def test_what_is_right_after_both_prompts_is_no_foil():
    """Else the base's own answer stands on both sides, and the difference is pulled towards 0."""
    lm, prompts = tiny.model("gpt_neox"), random_pairs.pairs()
    alone = prompts.donor_right
    both = tuple((*base, *donor) for base, donor in zip(prompts.right, alone, strict=True))
    shared = PromptPairs(**{**vars(prompts), "donor_right": both})
    base, donor = (at_end(hooks.logits(lm, ids), prompts) for ids in (prompts.base, prompts.donor))
    rows = torch.arange(len(prompts))
    patch = prepare_patch(lm, shared, "resid_post.1", random_pairs.complete(32))
    assert [list(row) for row in patch.foil] == [list(row) for row in alone]
    ends = curves.floors(patch)
    for metric, logits in ((ends.none.metric, base), (ends.donor_metric, donor)):
        assert tiny.close(torch.tensor(metric), logits[rows, rows] - logits[rows, rows + 30])
    # where the donor has no answer of its own, the base's wrong ones take its place
    nothing = PromptPairs(**{**vars(prompts), "donor_right": prompts.right})
    patch = prepare_patch(lm, nothing, "resid_post.1", random_pairs.complete(32))
    wrong = torch.logsumexp(torch.stack([base[rows, rows + 10], base[rows, rows + 20]]), 0)
    assert tiny.close(torch.tensor(curves.floors(patch).none.metric), base[rows, rows] - wrong)


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_faithfulness_and_completeness_at_their_ends(architecture):
    lm, prompts = tiny.model(architecture), random_pairs.pairs()
    patch = prepare_patch(lm, prompts, "resid_post.1", random_pairs.dictionary(32, 48))
    ends = curves.floors(patch)
    curve = curves.measure(patch, [FeatureSet(~patch.all()), FeatureSet(patch.all())])
    assert curves.faithfulness(curve, 0, ends).value == pytest.approx(0, abs=1e-9)
    assert curves.faithfulness(curve, 1, ends).value == pytest.approx(1, abs=1e-9)
    assert curves.completeness(curve, 0, ends).value == pytest.approx(1, abs=1e-9)
    assert curves.completeness(curve, 1, ends).value == pytest.approx(0, abs=1e-9)


def test_many_versions_fold_into_the_batch_in_order():
    lm, prompts = tiny.model("gemma3_text"), random_pairs.pairs()
    suffix = prepare(lm, "resid_post.0", prompts.base, prompts.end)
    versions = suffix.x + torch.randn(
        3, *suffix.x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    together = suffix.end_logits(versions)
    for number, one in enumerate(versions):
        assert tiny.close(together[number], suffix.end_logits(one[None])[0])


def test_a_dictionary_of_another_width_is_refused():
    with pytest.raises(UserError, match="does not fit resid_post.1, which is 32 wide"):
        prepare_patch(tiny.model("gpt_neox"), random_pairs.pairs(), "resid_post.1", random_pairs.dictionary(16, 48))
    with pytest.raises(UserError, match="no prompt pairs"):
        prepare_patch(
            tiny.model("gpt_neox"), random_pairs.pairs().select([]), "resid_post.1", random_pairs.dictionary(32, 48)
        )
