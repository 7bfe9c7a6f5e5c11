"""Which features come back under other seeds: against loops, by identities, and in a real store."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers.tiny_harvests import corpus_of, make_lm, store
from torch.nn.functional import normalize

from monolex import stats
from monolex.cli import main
from monolex.config import FeaturesConfig
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.dictionaries.listing import source_dictionaries
from monolex.features import seeds
from monolex.features.stage import features
from monolex.features.store import FeatureStore
from monolex.kinds import KINDS
from monolex.pages.card import card_html
from monolex.report.gallery import gallery
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

CONFIG = FeaturesConfig(fragment_tokens=8, coactive_rows=200, features_device="cpu")
LM = make_lm()


def random_dictionary(d_sae: int = 12, d_in: int = 6, seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(d_sae, d_in, generator=generator) for name in ("W_enc", "W_dec")}
    weights["W_dec"] = normalize(weights["W_dec"], dim=1)
    weights |= {"b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_in), "centre": torch.zeros(d_in)}
    return Dictionary(DictionaryConfig("untied", "relu", d_in, d_in, d_sae), weights)


def with_rows(dictionary: Dictionary, **weights: torch.Tensor) -> Dictionary:
    d_sae = len(next(iter(weights.values())))
    config = dataclasses.replace(dictionary.config, d_sae=d_sae)
    return Dictionary(config, {**dictionary.weights, "b_enc": torch.zeros(d_sae), **weights})


@pytest.mark.parametrize("block", [2**24, 7, 40])
def test_the_nearest_is_that_of_two_loops(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seeds, "BLOCK", block)
    a, b = random_dictionary(d_in=2), random_dictionary(d_sae=9, d_in=2, seed=1)
    nearest = seeds.nearest_in(a, b)

    def likeness(i: int, j: int) -> float:
        pairs = ((a.W_enc[i], b.W_enc[j]), (a.W_dec[i], b.W_dec[j]))
        return min(float(x @ y / x.norm() / y.norm()) for x, y in pairs)

    for i in range(12):
        partner = max(range(9), key=lambda j: likeness(i, j))
        assert int(nearest.partner[i]) == partner
        assert float(nearest.likeness[i]) == pytest.approx(likeness(i, partner), abs=1e-6)
        back = max(range(12), key=lambda k: likeness(k, partner))
        assert bool(nearest.mutual[i]) == (back == i)
        assert bool(nearest.alike[i]) == (back == i and likeness(i, partner) >= seeds.ALIKE)
    assert bool(nearest.alike.any()) and not bool(nearest.alike.all())


def test_order_and_length_of_encoder_rows_say_nothing():
    a = random_dictionary()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    lengths = torch.rand(12, 1, generator=torch.Generator().manual_seed(4)) + 0.1
    b = with_rows(a, W_enc=(a.W_enc * lengths)[order], W_dec=a.W_dec[order])
    nearest = seeds.nearest_in(a, b)
    assert bool(nearest.alike.all()) and torch.equal(order[nearest.partner], torch.arange(12))
    torch.testing.assert_close(nearest.likeness, torch.ones(12))


@pytest.mark.parametrize("part", ["W_enc", "W_dec"])
def test_both_rows_have_to_agree(part: str):
    a = random_dictionary(d_in=40)
    other = random_dictionary(d_in=40, seed=5).weights[part]
    changed = a.weights[part].clone()
    changed[:5] = other[:5]
    alike = seeds.nearest_in(a, with_rows(a, **{part: changed})).alike
    assert alike.tolist() == [False] * 5 + [True] * 7
    assert not bool(seeds.nearest_in(a, with_rows(a, **{part: -a.weights[part]})).alike.any())


def test_one_feature_is_no_two():
    """Two near copies in one dictionary do not both come back in a single feature of another."""
    a = random_dictionary(d_in=40)
    nearby = a.W_dec[:1] + 0.02
    b = with_rows(a, W_enc=torch.cat([a.W_enc, a.W_enc[:1]]), W_dec=torch.cat([a.W_dec, nearby]))
    assert int(seeds.nearest_in(b, a).alike.sum()) == 12
    assert int(seeds.nearest_in(a, b).alike.sum()) == 12


def test_the_interval_of_a_share():
    """Wilson's, by the closed form."""
    for hits, trials in ((0, 4), (3, 4), (4, 4), (7, 30)):
        estimate = stats.share(hits, trials, "seeds")
        z, p = 1.959963984540054, hits / trials
        centre, half = (p + z * z / 2 / trials), z * (p * (1 - p) / trials + z * z / 4 / trials**2) ** 0.5
        assert estimate.value == p and estimate.n == trials
        assert estimate.low == pytest.approx(max(0, (centre - half) / (1 + z * z / trials)), abs=1e-9)
        assert estimate.high == pytest.approx(min(1, (centre + half) / (1 + z * z / trials)), abs=1e-9)
    assert stats.share(0, 0, "seeds").value is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three seeds of one kind, one of another, and one of the first's in a sweep of its own."""
    home = tmp_path_factory.mktemp("seeds")
    store(home / "activations", LM, corpus_of(home), sites=("resid_post.0",))
    config = TrainConfig(kinds=("topk",), ks=(4,), ratios=(1.5,), seeds=(0, 1, 2), steps=20, batch_size=32)
    train(home / "train" / "three", home / "activations", config)
    train(home / "train" / "again", home / "activations", dataclasses.replace(config, seeds=(0, 3)))
    train(home / "train" / "other", home / "activations", dataclasses.replace(config, ks=(5,), seeds=(0,)))
    sources = [home / "train" / name for name in ("three", "again", "other")]
    with pytest.MonkeyPatch.context() as patch:  # what twenty steps learn is hardly alike
        patch.setattr(seeds, "ALIKE", 0.3)
        features(home / "features", home / "activations", sources, CONFIG, lm=LM)
    return home


def test_other_seeds_are_of_the_same_recipe_and_each_is_taken_once(run: Path):
    sources = [run / "train" / name for name in ("three", "again", "other")]
    listed = source_dictionaries(run / "activations", sources)
    by_name = {dictionary.name: dictionary for dictionary in listed}
    others = {name: [o.name for o in seeds.other_seeds(d, listed)] for name, d in by_name.items()}
    assert others["topk-k4-r1.5-s0"] == ["topk-k4-r1.5-s1", "topk-k4-r1.5-s2", "topk-k4-r1.5-s3"]
    assert others["topk-k4-r1.5-s3"] == ["topk-k4-r1.5-s0", "topk-k4-r1.5-s1", "topk-k4-r1.5-s2"]
    assert others["topk-k5-r1.5-s0"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_of_every_kind_know_each_other(kind: str, tmp_path: Path):
    """Nothing that training comes to, such as a controller's last state, is taken for the recipe."""
    store(tmp_path / "activations", LM, corpus_of(tmp_path), sites=("resid_post.0",))
    config = TrainConfig(kinds=(kind,), ks=(4,), alphas=(1e-3,), ratios=(1.5,), seeds=(0, 1), steps=6, batch_size=32)  # pyright: ignore[reportArgumentType]
    train(tmp_path / "sweep", tmp_path / "activations", config)
    first, second = source_dictionaries(tmp_path / "activations", [tmp_path / "sweep"])
    assert seeds.other_seeds(first, [first, second]) == [second]


def test_what_went_on_from_one_dictionary_has_no_other_seeds(run: Path, tmp_path: Path):
    start = run / "train" / "three" / "resid_post.0" / "topk-k4-r1.5-s0"
    config = TrainConfig(kinds=("topk",), ks=(4,), ratios=(1.5,), seeds=(0, 1), steps=3, batch_size=32, init=str(start))
    train(tmp_path / "more", run / "activations", config)
    first, second = source_dictionaries(run / "activations", [tmp_path / "more"])
    assert seeds.other_seeds(first, [first, second]) == []


def test_a_store_keeps_what_comes_back(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seeds, "ALIKE", 0.3)
    sources = [run / "train" / name for name in ("three", "again", "other")]
    listed = {d.name: d for d in source_dictionaries(run / "activations", sources)}
    mine = listed["topk-k4-r1.5-s0"].weights()
    others = [listed[f"topk-k4-r1.5-s{seed}"].weights() for seed in (1, 2, 3)]
    nearest = [seeds.nearest_in(mine, other) for other in others]
    kept = FeatureStore(run / "features" / "resid_post.0" / "topk-k4-r1.5-s0.sqlite")
    assert kept.meta["other_seeds"] == [1, 2, 3]
    for summary in kept.summaries():
        times = sum(bool(n.alike[summary.id]) for n in nearest)
        assert summary.seeds == 3 and summary.reappears == times / 3
        assert summary.comes_back == stats.share(times, 3, "seeds")
        likeness = sum(float(n.likeness[summary.id]) for n in nearest) / 3
        assert summary.seed_cosine == pytest.approx(likeness, abs=1e-6)
    alone = FeatureStore(run / "features" / "resid_post.0" / "topk-k5-r1.5-s0.sqlite")
    assert {(s.seeds, s.reappears, s.comes_back) for s in alone.summaries()} == {(0, None, None)}


def test_it_is_looked_for_listed_and_on_the_card(run: Path, capsys: pytest.CaptureFixture[str]):
    kept = FeatureStore(run / "features" / "resid_post.0" / "topk-k4-r1.5-s0.sqlite")
    wanted = {s.id for s in kept.summaries() if s.reappears and s.reappears >= 0.3 and s.n_active}
    assert wanted, "some feature comes back"
    command = ["find", str(run), "--where", "reappears>=0.3", "n_active>0", "--dictionaries", "topk-k4-r1.5-s0"]
    assert main([*command, "--limit", "99", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["feature"] for row in rows} == wanted
    assert all(row["reappears"]["n"] == 3 and row["reappears"]["low"] < row["reappears"]["value"] for row in rows)
    assert main([*command, "--sort", "reappears"]) == 0
    assert "reappears" in capsys.readouterr().out
    shown = card_html(kept.feature(min(wanted)), kept.meta)
    assert "Comes back" in shown and "of 3<" in shown
    page = gallery(kept)
    assert "comes back most" in page and "% of 3 other seeds" in page
    alone = FeatureStore(run / "features" / "resid_post.0" / "topk-k5-r1.5-s0.sqlite")
    assert "comes back" not in gallery(alone).lower()
