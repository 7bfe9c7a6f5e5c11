"""Sets chosen on some prompts and measured on others."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_pairs, tiny
from helpers.counted_stores import found_run, write_pairs
from safetensors.numpy import load_file

from monolex.artifact import WARNINGS, read_json
from monolex.causal.config import PatchConfig
from monolex.causal.patch.measure import elsewhere, measure_patch
from monolex.causal.patch.patch import prepare_patch
from monolex.causal.patch.searches import FeatureSet
from monolex.causal.patch.stage import halves, patch
from monolex.errors import UserError
from monolex.show.path import show

SEARCHES = ("ranking", "random", "sweep", "greedy")
CONFIG = PatchConfig(task="ioi", searches=SEARCHES, points=5, thresholds=4, limit=4)


def test_a_set_is_the_same_features_elsewhere():
    lm, dictionary = tiny.model("gpt_neox"), random_pairs.dictionary(32, 60, "topk")
    here = prepare_patch(lm, random_pairs.pairs(), "resid_post.1", dictionary)
    there_pairs = random_pairs.pairs((8, 6, 9), seed=9)
    there = prepare_patch(lm, there_pairs, "resid_post.1", dictionary)
    assert set(here.candidates.tolist()) != set(there.candidates.tolist())
    sets = [FeatureSet(here.all()), FeatureSet(~here.all()), FeatureSet(here.all() & (here.candidates % 3 == 0))]
    curve = elsewhere(there, here, sets)
    assert curve.sizes.tolist() == [int(features.chosen.sum()) for features in sets]
    for i, features in enumerate(sets):
        chosen = here.candidates[features.chosen].tolist()
        naive = random_pairs.naive_kl(lm, there_pairs, "resid_post.1", dictionary, chosen)
        assert tiny.close(torch.tensor(curve.kl[i]), naive)


def test_a_dictionary_that_moves_nothing_here_may_move_something_there():
    lm, dictionary = tiny.model("gpt_neox"), random_pairs.dictionary(32, 60, "topk")
    other = prepare_patch(lm, random_pairs.pairs(), "resid_post.1", dictionary)
    none = torch.zeros(0, dtype=torch.long)
    empty = dataclasses.replace(
        other, candidates=none, difference=other.difference[none], directions=other.directions[none]
    )
    curve = elsewhere(other, empty, [FeatureSet(torch.zeros(0, dtype=torch.bool))])
    assert curve.sizes.tolist() == [0] and np.allclose(
        curve.kl[0], random_pairs.naive_kl(lm, random_pairs.pairs(), "resid_post.1", dictionary, [])
    )


def test_on_the_same_prompts_both_curves_are_one():
    lm, prompts = tiny.model("llama"), random_pairs.pairs()
    patch = prepare_patch(lm, prompts, "resid_post.1", random_pairs.dictionary(32, 48))
    alone, both = measure_patch(patch, CONFIG, True), measure_patch(patch, CONFIG, True, patch)
    assert alone.in_sample == {} and set(both.in_sample) == set(both.curves) == set(alone.curves)
    for name, curve in alone.curves.items():
        for other in (both.curves[name], both.in_sample[name]):
            assert all(np.array_equal(a, b) for a, b in zip(curve, other, strict=True))


def test_sets_are_chosen_without_the_held_out_prompts():
    """Whatever is measured elsewhere, the curves in sample stay what they were."""
    lm, dictionary = tiny.model("gpt2"), random_pairs.dictionary(32, 48)
    patch = prepare_patch(lm, random_pairs.pairs(), "resid_post.1", dictionary)
    others = [prepare_patch(lm, random_pairs.pairs(seed=seed), "resid_post.1", dictionary) for seed in (3, 4)]
    alone = measure_patch(patch, CONFIG, True)
    for other in others:
        apart = measure_patch(patch, CONFIG, True, other)
        for name, curve in alone.curves.items():
            assert np.array_equal(apart.in_sample[name].kl, curve.kl)
            assert np.array_equal(apart.curves[name].sizes, curve.sizes)
            assert not np.array_equal(apart.curves[name].kl, curve.kl)


def test_a_complete_basis_reaches_other_donors_too():
    lm, basis = tiny.model("gpt_neox"), random_pairs.complete(32)
    here, other = (prepare_patch(lm, random_pairs.pairs(seed=seed), "resid_post.1", basis) for seed in (0, 1))
    assert abs(measure_patch(here, CONFIG, False, other).curves["ranking"].kl[-1]).max() < 1e-10


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_halves_are_a_partition(share: float):
    pairs = random_pairs.pairs(tuple(range(5, 15)))
    chosen, held_out = halves(pairs, dataclasses.replace(CONFIG, held_out=share))
    assert held_out is not None and len(held_out) == round(10 * share) and len(chosen) + len(held_out) == 10
    assert sorted(chosen.right + held_out.right) == sorted(pairs.right)
    again, other = (halves(pairs, dataclasses.replace(CONFIG, prompt_seed=seed))[0].right for seed in (0, 1))
    assert again == halves(pairs, CONFIG)[0].right != other


def test_the_artefact_says_on_how_many(tmp_path: Path):
    run = found_run(tmp_path)
    rows = write_pairs(run).read_text().splitlines()
    task = tmp_path / "six.jsonl"
    task.write_text("\n".join(rows + rows) + "\n")
    config = dataclasses.replace(CONFIG, task=str(task), dictionaries=("pca",), searches=("ranking",), resamples=20)
    patch(tmp_path / "six", run, config)
    content = read_json(tmp_path / "six" / "patch.json")
    assert (content["pairs"], content["chosen_on"], content["measured_on"]) == (6, 3, 3)
    stored = load_file(tmp_path / "six" / "pairs.safetensors")
    for curves in content["curves"]:
        key = f"subject/{curves['site']}/{curves['name']}"
        for point, kl in zip(curves["in_sample"]["ranking"], stored[f"{key}/in_sample/ranking.kl"], strict=True):
            assert point["kl"]["value"] == pytest.approx(kl.mean()) and kl.shape == (3,)
        assert [p["size"] for p in curves["in_sample"]["ranking"]] == [p["size"] for p in curves["curves"]["ranking"]]
    assert "sets chosen on 3 and measured on 3" in show(tmp_path / "six")
    manifest = patch(tmp_path / "few", run, dataclasses.replace(config, task=str(write_pairs(run))))
    assert any("too few to hold some out" in warning for warning in manifest.data[WARNINGS])


def test_too_few_pairs_are_not_cut():
    for count in (1, 2, 3):
        assert halves(random_pairs.pairs((6,) * count), CONFIG)[1] is None
    assert halves(random_pairs.pairs(), dataclasses.replace(CONFIG, held_out=0.0))[1] is None
    with pytest.raises(UserError, match="held_out = 1"):
        dataclasses.replace(CONFIG, held_out=1.0)
