"""Searches: the fast ones decide as the naive ones, and find what was planted."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import random_pairs, tiny
from helpers.wired import Scale
from torch import Tensor

from monolex import stats
from monolex.causal.config import PatchConfig
from monolex.causal.patch import claims, curves, measure, searches, sweep
from monolex.causal.patch.curves import Curve, Floors, Reference
from monolex.causal.patch.patch import Patch, prepare_patch
from monolex.errors import UserError
from monolex.model.load import wrap
from monolex.stats import Bootstrap

SITE = "resid_post.1"
THRESHOLDS = np.logspace(-5, 0, 12).tolist()
FEW = ("gpt_neox", "gemma3_text")
"""Architectures where searches are tested, which know a patch by its numbers alone: all are those of test_patch.py."""


def patch(d_sae: int = 40, *, batch_tokens: int = 400, seed: int = 0, architecture: str = "gpt_neox") -> Patch:
    return prepare_patch(
        tiny.model(architecture),
        random_pairs.pairs(),
        SITE,
        random_pairs.dictionary(32, d_sae, seed=seed),
        batch_tokens=batch_tokens,
    )


def naive_sweep(ready: Patch, thresholds: list[float], budget: str, seed: int, d_sae: int = 40) -> list[set[int]]:
    """The paper's loop: one candidate at a time, every layer, every feature encoded anew."""
    lm, prompts, dictionary = tiny.model("gpt_neox"), random_pairs.pairs(), random_pairs.dictionary(32, d_sae)
    generator = torch.Generator().manual_seed(seed)
    kept = list(range(len(ready.candidates)))

    def loss(chosen: list[int]) -> float:
        return float(random_pairs.naive_kl(lm, prompts, SITE, dictionary, ready.candidates[chosen].tolist()).mean())

    full = now = loss(kept)
    kept_sets = []
    for threshold in thresholds:
        left = list(kept)
        for candidate in [left[place] for place in torch.randperm(len(left), generator=generator).tolist()]:
            without = [other for other in kept if other != candidate]
            value = loss(without)
            if value - (now if budget == "step" else full) < threshold:
                kept, now = without, value
        kept_sets.append(set(kept))
    return kept_sets


def sets(feature_sets: list[searches.FeatureSet]) -> list[set[int]]:
    return [set(features.chosen.nonzero()[:, 0].tolist()) for features in feature_sets]


@pytest.mark.parametrize("budget", ["step", "full"])
def test_the_sweep_decides_as_one_at_a_time(budget):
    thresholds = THRESHOLDS[::3]
    expected = naive_sweep(patch(), thresholds, budget, 5)
    for batch_tokens in (1, 150, 2000):
        fast = sweep.threshold_sweep(patch(batch_tokens=batch_tokens), thresholds, budget=budget, seed=5)
        assert sets(fast) == expected
        assert [found.threshold for found in fast] == thresholds
    sizes = [len(found) for found in expected]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_the_budget_of_the_full_set_keeps_the_loss_within_it():
    ready = patch()
    full = float(ready.mean_kl(ready.edit(ready.all())[None])[0])
    for found in sweep.threshold_sweep(ready, THRESHOLDS, budget="full"):
        assert float(ready.mean_kl(ready.edit(found.chosen)[None])[0]) < full + (found.threshold or 0) + 1e-12


@pytest.mark.parametrize("architecture", FEW)
def test_a_sweep_at_the_ends_of_the_thresholds(architecture):
    ready = patch(architecture=architecture)
    everything, nothing = sweep.threshold_sweep(ready, [-math.inf, math.inf])
    assert everything.chosen.all()
    assert not nothing.chosen.any()


@pytest.mark.parametrize("architecture", FEW)
def test_equal_seeds_give_equal_sets(architecture):
    ready = patch(architecture=architecture)
    first, again, other = (sets(sweep.threshold_sweep(ready, THRESHOLDS, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def permuted(ready: Patch, order: Tensor) -> Patch:
    fields = {name: getattr(ready, name)[order] for name in ("candidates", "difference", "directions")}
    return dataclasses.replace(ready, **fields)


@pytest.mark.parametrize("architecture", FEW)
def test_the_order_of_features_does_not_matter_to_rankings(architecture):
    ready = patch(architecture=architecture)
    order = torch.randperm(len(ready.candidates), generator=torch.Generator().manual_seed(0))
    measured, greedy = [], []
    for version in (ready, permuted(ready, order)):
        scores = searches.attribution(version)
        found = searches.prefixes(searches.ranking(scores), searches.log_sizes(len(scores), 6))
        measured.append((curves.measure(version, found).kl, version.candidates[searches.ranking(scores)].tolist()))
        greedy.append([set(version.candidates[step.chosen].tolist()) for step in searches.greedy(version, 3)])
    assert measured[0][1] == measured[1][1]
    assert np.allclose(measured[0][0], measured[1][0], rtol=0, atol=1e-12)
    assert len(greedy[0][3]) == 3 and greedy[0] == greedy[1]


def test_integrated_gradients_add_up_to_the_effect_of_all():
    ready = patch()
    none, full = ready.mean_kl(torch.stack([ready.edit(~ready.all()), ready.edit(ready.all())])).tolist()
    coarse, fine = (float(searches.attribution(ready, points).sum()) for points in (0, 10))
    assert fine == pytest.approx(full - none, rel=1e-5)
    assert abs(coarse - (full - none)) > abs(fine - (full - none))


def test_attribution_is_the_derivative_at_the_base():
    ready = patch()
    scores = searches.attribution(ready, 0)
    small = 1e-6
    none = ready.mean_kl(ready.edit(~ready.all())[None])
    for candidate in (0, 3, len(scores) - 1):
        moved = ready.mean_kl(small * ready.contribution(candidate)[None])
        assert float((moved - none)[0]) / small == pytest.approx(float(scores[candidate]), rel=1e-4, abs=1e-9)


def test_effects_are_single_patches():
    ready = patch()
    none = float(ready.mean_kl(ready.edit(~ready.all())[None])[0])
    lm, prompts, dictionary = tiny.model("gpt_neox"), random_pairs.pairs(), random_pairs.dictionary(32, 40)
    effects = searches.effects(ready)
    for candidate in (0, 7, len(effects) - 1):
        alone = random_pairs.naive_kl(lm, prompts, SITE, dictionary, [int(ready.candidates[candidate])]).mean()
        assert float(effects[candidate]) == pytest.approx(float(alone) - none, abs=1e-10)


@pytest.mark.parametrize("architecture", FEW)
def test_greedy_is_the_naive_one_and_no_better_than_the_optimum(architecture):
    ready = patch(9, architecture=architecture)
    assert 4 <= len(ready.candidates) <= 9
    best = [float(ready.mean_kl(ready.edit(found.chosen)[None])[0]) for found in searches.exhaustive(ready)]
    greedy = searches.greedy(ready)
    chosen: set[int] = set()
    for step, found in enumerate(greedy):
        kl = float(ready.mean_kl(ready.edit(found.chosen)[None])[0])
        assert kl >= best[step] - 1e-12
        assert sets([found])[0] == chosen
        rest = set(range(len(ready.candidates))) - chosen
        trials = {}
        for candidate in rest:
            mask = found.chosen.clone()
            mask[candidate] = True
            trials[candidate] = float(ready.mean_kl(ready.edit(mask)[None])[0])
        if trials:
            chosen = chosen | {min(trials, key=trials.__getitem__)}
    assert len(greedy) == len(ready.candidates) + 1
    assert len(searches.greedy(ready, 2)) == 3


@pytest.mark.parametrize("seed", range(3))
def test_nested_sets_say_in_which_order_they_take_features(seed):
    """Growing or shrinking; what steps leave open stands as in the ties."""
    order, ties = (torch.randperm(20, generator=torch.Generator().manual_seed(s)) for s in (seed, 9))
    every = searches.prefixes(order, range(21))
    assert searches.taken(every, ties).tolist() == searches.taken(every[::-1], ties).tolist() == order.tolist()
    assert searches.taken(searches.prefixes(order, [0, 1, 4, 20]), order).tolist() == order.tolist()
    few = searches.taken(searches.prefixes(order, [0, 3, 7]), ties).tolist()
    rank = {feature: place for place, feature in enumerate(ties.tolist())}
    first, then = (sorted(order[part].tolist(), key=rank.__getitem__) for part in (slice(3), slice(3, 7)))
    assert few == first + then


def test_the_order_of_each_search_is_kept_by_the_numbers_of_features(monkeypatch):
    dictionary = random_pairs.dictionary(32, 60, "topk")
    ready = prepare_patch(tiny.model("gpt_neox"), random_pairs.pairs(), SITE, dictionary)
    numbers = ready.candidates.tolist()
    assert numbers != list(range(len(numbers)))
    wanted = ("ranking", "random", "effects", "sweep", "greedy", "swaps")
    config = PatchConfig(task="ioi", searches=wanted, points=4, thresholds=12, limit=5)
    result = measure.measure_patch(ready, config, True)
    assert set(result.order) == set(measure.NESTED) == set(wanted) - {"random", "swaps"}
    for name, scores in (("ranking", searches.attribution(ready)), ("effects", searches.effects(ready))):
        assert result.order[name] == [numbers[i] for i in searches.ranking(scores).tolist()]
    growing = sets(searches.greedy(ready, 5))
    assert result.order["greedy"] == [numbers[(b - a).pop()] for a, b in pairwise(growing)]
    for left in sets(sweep.threshold_sweep(ready, sweep.paper_thresholds(12), seed=config.patch_seed)):
        assert set(result.order["sweep"][: len(left)]) == {numbers[i] for i in left}
    monkeypatch.setattr(measure, "TAKEN", 3)
    few = measure.measure_patch(ready, config, False)
    assert few.order == {"ranking": result.order["ranking"][:3]}
    assert measure.as_json(few, 5, Bootstrap(10))["order"] == few.order


def test_swaps_only_improve_and_keep_the_size():
    ready = patch()
    order = searches.random_order(ready, 0)
    for start in searches.prefixes(order, [0, 1, 5, len(order)]):
        better = searches.local_swaps(ready, start)
        before, after = ready.mean_kl(torch.stack([ready.edit(start.chosen), ready.edit(better.chosen)])).tolist()
        assert better.chosen.sum() == start.chosen.sum()
        assert after <= before + 1e-12
    five = searches.prefixes(order, [5])[0]
    values = ready.mean_kl(torch.stack([ready.edit(five.chosen), ready.edit(searches.local_swaps(ready, five).chosen)]))
    assert values[1] < values[0]


def test_exhaustive_refuses_many():
    with pytest.raises(UserError, match="use greedy above 16"):
        searches.exhaustive(patch(48))


def test_sizes_reach_from_none_to_all():
    assert searches.log_sizes(0) == [0]
    assert searches.log_sizes(1) == [0, 1]
    sizes = searches.log_sizes(300, 10)
    assert sizes[:2] == [0, 1]
    assert sizes[-1] == 300
    assert sizes == sorted(set(sizes))
    assert searches.log_sizes(100, 1) == [0, 1, 100]


def test_a_planted_readout_is_recovered():
    """Logits read four of 32 orthonormal features: those, and no others, must be found."""
    hf = tiny.tiny_hf("gpt_neox").double()
    hf.get_submodule("gpt_neox").register_module("final_layer_norm", Scale(32))
    dictionary = random_pairs.complete(32, seed=3)
    planted = [2, 11, 19, 30]
    readers = torch.randn(tiny.VOCAB, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        hf.get_parameter("lm_head.weight").copy_(readers @ dictionary.W_dec[planted])
    ready = prepare_patch(wrap(hf), random_pairs.pairs(), "resid_post.2", dictionary)
    assert len(ready.candidates) == 32
    swept = sweep.threshold_sweep(ready, [1e-9], seed=2)[0]
    assert ready.candidates[swept.chosen].tolist() == planted
    ranked = searches.ranking(-searches.attribution(ready).abs())
    assert sorted(ready.candidates[ranked[:4]].tolist()) == planted
    greedy = searches.greedy(ready, 4)[-1]
    assert ready.candidates[greedy.chosen].tolist() == planted
    assert float(ready.mean_kl(ready.edit(greedy.chosen)[None])[0]) < 1e-10


def curve(sizes: list[int], kl: list[float], edit: list[float], prompts: int = 40) -> Curve:
    """The same numbers for every pair, but for a factor that differs between them and not between curves."""
    factor = np.linspace(0.9, 1.1, prompts)
    losses, moved = (np.array(values)[:, None] * factor for values in (kl, edit))
    return Curve(np.array(sizes), losses, losses, losses, losses, moved, moved, moved)


def ends(none: float, full: float, prompts: int = 40) -> Floors:
    factor = np.linspace(0.9, 1.1, prompts)
    references = [
        Reference(value * factor, value * factor, edit * factor) for value, edit in ((none, 0), (full, 9), (0, 9))
    ]
    return Floors(*references, donor_metric=np.zeros(prompts))


def test_what_a_curve_needs_is_read_between_its_points():
    line = curve([0, 10, 20], [1.0, 0.5, 0.0], [0.0, 3.0, 4.0])
    features, edit = curves.needed(line, ends(1.0, 0.0), 0.25, Bootstrap(50))
    assert features[0] == pytest.approx(15)
    assert edit[0] == pytest.approx(3.5)
    assert np.isnan(curves.needed(line, ends(1.0, 0.0), -0.1, Bootstrap(50))[0]).all()
    assert curves.needed(line, ends(1.0, 0.0), 2.0, Bootstrap(50))[0][0] == 0


def test_areas_and_their_ratio():
    line, half = curve([0, 10, 20], [1.0, 0.5, 0.0], [0] * 3), curve([20, 0], [0.0, 0.5], [0] * 2)
    assert curves.area(line, ends(1.0, 0.0), 20).mean() == pytest.approx(10)
    assert curves.area(line, ends(1.0, 0.0), 10).mean() == pytest.approx(7.5)
    assert curves.area(line, ends(1.0, 0.0), 30).mean() == pytest.approx(10)
    ratio = curves.area_ratio(line, half, ends(1.0, 0.0), 20)
    assert ratio.value == pytest.approx(2)
    assert ratio.low == pytest.approx(2)
    assert stats.ratio([1.0], [2.0], "prompts").value == 0.5


def patched(name: str, ranking: Curve, floors: Floors, kind: str = "tied", alpha: float | None = None):
    return claims.PatchedDictionary(name, kind, alpha, 8, floors, ranking)


def test_claims_are_read_off_the_curves():
    bootstrap, low = Bootstrap(200), ends(1.0, 0.01)
    better, worse = curve([0, 4, 8], [1.0, 0.4, 0.01], [0, 1, 2]), curve([0, 40, 80], [1.0, 0.4, 0.01], [0, 10, 20])
    floor = curve([0, 8], [1.0, 0.45], [0, 1])
    fewer = claims.compare(patched("sae", better, low), patched("pca", worse, low), "features", claims.FEWER, bootstrap)
    assert [claim.verdict for claim in fewer] == ["confirmed"] * 4
    assert fewer[0].estimate.value == pytest.approx(0.1)
    larger = claims.compare(patched("pca", worse, low), patched("sae", better, low), "edit", claims.SMALLER, bootstrap)
    assert [claim.verdict for claim in larger] == ["contradicted"] * 4
    high = patched("sae", floor, ends(1.0, 0.45))
    early, _, half, quarter = claims.compare(high, patched("pca", worse, low), "features", claims.FEWER, bootstrap)
    assert early.estimate.value is not None
    assert half.estimate.value is not None
    assert (quarter.estimate.value, quarter.verdict) == (None, "contradicted")
    assert quarter.estimate.reason == "sae never gets there: the floor is above"
    a, b, stuck = (patched(name, line, ends(1, 0)) for name, line in (("a", worse), ("b", floor), ("a", floor)))
    other = claims.compare(a, b, "edit", "", bootstrap)[3]
    assert (other.verdict, other.estimate.reason) == ("confirmed", "b never gets there: the floor is above")
    neither = claims.compare(stuck, b, "edit", "", bootstrap)[3]
    assert (neither.verdict, neither.estimate.value) == ("undecided", None)


def test_claims_where_resamples_disagree_are_undecided():
    """Half of the pairs get there and half never do, so that some resamples do and some do not."""
    kl = np.concatenate([np.full((1, 40), 1.0), np.repeat([[0.1, 0.41]], 20, axis=1).reshape(1, 40)])
    torn = patched("torn", Curve(np.array([0, 4]), *(kl,) * 4, *(np.zeros((2, 40)),) * 3), ends(1.0, 0.0))
    sure = patched("sure", curve([0, 8], [1.0, 0.2], [0, 1]), ends(1.0, 0.0))
    assert claims.compare(torn, sure, "features", "", Bootstrap(500))[3].verdict == "undecided"


def test_only_a_sparser_dictionary_is_asked_whether_it_is_finer():
    line, floors = curve([0, 8], [1.0, 0.1], [0, 1]), ends(1.0, 0.1)
    recipes = (("a", "tied", 0.1), ("b", "tied", 0.1), ("c", "tied", 0.3), ("d", "topk", None), ("pca", "pca", None))
    *trained, pca = (patched(name, line, floors, kind, alpha) for name, kind, alpha in recipes)
    read = claims.read_off([*trained, pca], pca, Bootstrap(20))
    finer = {(claim.dictionary, claim.against) for claim in read if claim.statement == claims.FINER}
    assert finer == {("c", "a")}
    assert {claim.dictionary for claim in read if claim.statement == claims.FEWER} == {"a", "b", "c", "d"}
    assert [claim.dictionary for claim in read if claim.statement == claims.NO_FLOOR] == ["pca"]
    itself = claims.read_off(trained, trained[0], Bootstrap(20))
    assert not [claim for claim in itself if claim.dictionary == claim.against or claim.statement == claims.NO_FLOOR]


def test_floors_are_claims_too():
    bootstrap = Bootstrap(200)
    assert claims.floor("sae", ends(1.0, 0.2), True, bootstrap).verdict == "confirmed"
    assert claims.floor("sae", ends(1.0, 1e-9), True, bootstrap).verdict == "contradicted"
    assert claims.floor("pca", ends(1.0, 1e-9), False, bootstrap).verdict == "confirmed"
    assert claims.floor("pca", ends(1.0, 0.2), False, bootstrap).verdict == "contradicted"
    few = np.zeros(40)
    few[0] = 1.0  # a floor on one pair of forty: an interval that begins at nothing
    torn = ends(1.0, 0.0)._replace(all=Reference(few, few, few))
    assert all(claims.floor("", torn, leaves, bootstrap).verdict == "undecided" for leaves in (True, False))
    assert claims.floor("pca", ends(1.0, 1e-3), False, bootstrap, claims.ROUGH).verdict == "confirmed"


def test_a_curve_without_the_empty_set_begins_there_all_the_same():
    whole, part = curve([0, 10, 20], [1.0, 0.5, 0.0], [0, 1, 2]), curve([10, 20], [0.5, 0.0], [1, 2])
    assert np.allclose(curves.area(whole, ends(1.0, 0.0), 20), curves.area(part, ends(1.0, 0.0), 20))
    assert curves.needed(part, ends(1.0, 0.0), 0.75, Bootstrap(10))[0][0] == pytest.approx(5)
