"""Features that come back beside those that do not: groups, effects against naive ones, the artefact and its pages."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_harvests import corpus_of, make_lm, store

from monolex import stats
from monolex.activations.reader import Reader
from monolex.artifact import finish, open_artifact, read_json, verify, write_json
from monolex.causal import edits
from monolex.causal.occurrences import occurrences
from monolex.config import FeaturesConfig
from monolex.dictionaries.listing import run_dictionaries
from monolex.errors import UserError
from monolex.features import seeds
from monolex.features.stage import features
from monolex.features.store import FeatureStore
from monolex.model import hooks
from monolex.pages.stability_charts import pictures
from monolex.report.stability_section import section
from monolex.show.path import show
from monolex.stability import measure
from monolex.stability.config import StabilityConfig
from monolex.stability.stage import stability
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

CONFIG = StabilityConfig(
    stable=0.6, unstable=0.3, sample=4, occurrences=5, rows=300, resamples=50, stability_device="cpu"
)
LM = make_lm()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three seeds, of which some features are alike by a low bar."""
    home = tmp_path_factory.mktemp("stability")
    store(home / "activations", LM, corpus_of(home), sites=("resid_post.1",))
    config = TrainConfig(kinds=("topk",), ks=(6,), ratios=(1.0,), seeds=(0, 1, 2), steps=30, batch_size=32, lrs=(3e-3,))
    train(home / "train" / "seeds", home / "activations", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "ALIKE", 0.35)
        gathering = FeaturesConfig(fragment_tokens=8, coactive_rows=200, features_device="cpu")
        features(home / "features", home / "activations", [home / "train" / "seeds"], gathering, lm=LM)
    return home


@pytest.fixture(scope="module", autouse=True)
def model_at_hand():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monolex.stability.stage.stored_model", lambda *_: LM)
        yield


def test_groups_are_by_the_evidence(run: Path):
    kept = FeatureStore(run / "features" / "resid_post.1" / "topk-k6-r1-s0.sqlite")
    groups = measure.grouped(kept.summaries(), CONFIG)
    expected = {"stable": [], "unstable": []}
    for s in kept.summaries():
        if s.n_active >= 10:
            assert s.reappears is not None
            name = "stable" if s.reappears >= 0.6 else "unstable" if s.reappears <= 0.3 else None
            expected.get(name, []).append(s.id)
    assert {name: ids.tolist() for name, ids in groups.members.items()} == expected
    assert all(expected.values())
    for name, ids in groups.sample.items():
        assert len(ids) == min(4, len(expected[name])) and set(ids.tolist()) <= set(expected[name])
    assert sum(measure.distribution(kept.summaries())) == len(kept)


def test_an_ablation_is_that_of_a_forward_pass_each(run: Path):
    (dictionary, *_) = run_dictionaries(run)
    weights = dictionary.weights()
    kept = FeatureStore(run / "features" / "resid_post.1" / "topk-k6-r1-s0.sqlite")
    feature = int(measure.grouped(kept.summaries(), CONFIG).members["stable"][0])
    drawn = occurrences(run / "activations", weights, [feature], count=5)[feature]
    values, sizes = [], []
    for tokens, end in zip(drawn.tokens, drawn.end.tolist(), strict=True):
        text = tokens[None, : end + 1]
        edit = edits.ablate(weights, [feature], positions=[end])
        base = hooks.logits(LM, text)[0, -1].log_softmax(-1)
        after = hooks.logits(LM, text, {"resid_post.1": edit})[0, -1].log_softmax(-1)
        values.append(float((base.exp() * (base - after)).sum()))
        x = hooks.capture(LM, text, ["resid_post.1"]).activations["resid_post.1"][0, -1]
        sizes.append(float(weights.encode(x)[feature] * weights.W_dec[feature].norm()))
    result = measure.ablated(LM, weights, feature, drawn, CONFIG)
    assert result.kl == pytest.approx(np.mean(values), rel=1e-3, abs=1e-7)
    assert result.size == pytest.approx(np.mean(sizes), rel=1e-4)


def test_a_feature_that_is_active_nowhere_is_left_out_of_its_group(run: Path):
    weights = next(iter(run_dictionaries(run))).weights()
    silent = weights.weights["W_enc"].clone()
    silent[3] = 0
    weights = type(weights)(weights.config, {**weights.weights, "W_enc": silent})
    sample = {"stable": np.array([3]), "unstable": np.array([3, 5])}
    steps: list[int] = []
    groups = measure.Grouped(sample, sample)
    done = measure.ablations(LM, weights, run / "activations", groups, CONFIG, "train", steps.append)
    assert [len(done[name]) for name in measure.GROUPS] == [0, 1] and len(steps) == 3


def test_the_reconstruction_without_a_group_is_that_of_the_others(run: Path):
    (dictionary, *_) = run_dictionaries(run)
    weights = dictionary.weights()
    kept = FeatureStore(run / "features" / "resid_post.1" / "topk-k6-r1-s0.sqlite")
    groups = measure.grouped(kept.summaries(), CONFIG)
    parts = measure.reconstruction(weights, run / "activations", groups, CONFIG)
    reader = Reader(run / "activations", "resid_post.1", "held_out")
    x = reader.read(0, min(300, len(reader))).float()
    variance = (x - x.mean(0)).square().sum()
    for name, ids in groups.members.items():
        codes = weights.encode(x)
        whole = (x - weights.decode(codes)).square().sum()
        codes[:, ids] = 0
        assert parts[name].value == pytest.approx(
            float(((x - weights.decode(codes)).square().sum() - whole) / variance)
        )
        assert parts[name].over == "documents"


def test_chance_is_small_where_directions_are_many(run: Path):
    (dictionary, *_) = run_dictionaries(run)
    assert measure.chance(dictionary.weights(), 0) < 0.2


def test_a_difference_of_means_has_an_interval_over_both_groups():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 40), rng.normal(0, 3, 30)
    estimate = stats.difference(a, b, "features", resamples=4000)
    half = 1.96 * (a.var() / 40 + b.var() / 30) ** 0.5
    assert estimate.value == pytest.approx(a.mean() - b.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)
    assert stats.difference([], b, "features").value is None
    assert stats.difference([1.0], b, "features").low is None
    assert stats.difference([np.nan, 1.0], b, "features").value is None


def test_the_artefact_its_text_its_chart_and_its_section(run: Path):
    written = write_json(run / "score" / "some" / "score.json", {"dictionaries": [], "explanations": "none"})
    finish(run / "score" / "some", "score", {}, {}, {"score.json": written}, {})
    scored = dataclasses.replace(CONFIG, scores=("some",))
    manifest = stability(run / "stability" / "seeds", run, scored)
    assert verify(run / "stability" / "seeds").content == manifest.content
    content = read_json(run / "stability" / "seeds" / "stability.json")
    (facts,) = content["dictionaries"]
    assert facts["name"] == "topk-k6-r1-s0" and facts["other_seeds"] == [1, 2]
    assert sum(facts["times"]) + facts["rare"] == 32
    assert set(facts["compared"]) == {"kl", "size", "density"}
    for values in facts["compared"].values():
        apart = values["stable"]["value"] - values["unstable"]["value"]
        assert values["difference"]["value"] == pytest.approx(apart)
    assert stability(run / "stability" / "seeds", run, scored).content == manifest.content
    told = show(run / "stability" / "seeds")
    assert "comes back under another seed with a probability of" in told and "difference" in told
    (picture,) = pictures(content)
    assert len(picture.panels[0].series) == 1
    made_of = {name: open_artifact(run / name) for name in ("activations", "features", "train/seeds", "score/some")}
    part = str(section(run, {**made_of, "stability/seeds": manifest}, None).parts[0])
    assert "run it again" not in part
    assert "How often features come back" in part and "Variance lost without all of them" in part


def test_every_seed_is_taken_where_it_is_asked_for(run: Path, tmp_path: Path):
    config = dataclasses.replace(CONFIG, dictionaries=("topk-*-s1", "topk-*-s2"))
    manifest = stability(tmp_path / "two", run, config)
    assert manifest.data["dictionaries"] == [f"subject/resid_post.1/topk-k6-r1-s{seed}" for seed in (1, 2)]


def test_transcoders_are_left_out(tmp_path: Path):
    store(tmp_path / "activations", LM, corpus_of(tmp_path), sites=("mlp_in.1", "mlp_out.1"))
    config = TrainConfig(
        sites=("mlp_in.1",),
        kinds=("topk",),
        ks=(6,),
        ratios=(1.0,),
        seeds=(0, 1),
        steps=5,
        batch_size=32,
        target="mlp_out",
    )
    train(tmp_path / "train" / "seeds", tmp_path / "activations", config)
    gathering = FeaturesConfig(fragment_tokens=8, coactive_rows=200, features_device="cpu")
    features(tmp_path / "features", tmp_path / "activations", [tmp_path / "train" / "seeds"], gathering, lm=LM)
    with pytest.raises(UserError, match="no evidence of a dictionary with other seeds"):
        stability(tmp_path / "s", tmp_path, CONFIG)


def test_what_cannot_be_compared_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="stable = 0.2"):
        dataclasses.replace(CONFIG, stable=0.2)
    with pytest.raises(UserError, match="no finished"):
        stability(tmp_path / "s", run, dataclasses.replace(CONFIG, scores=("none",)))
    store(tmp_path / "bare" / "activations", LM, corpus_of(tmp_path), sites=("resid_post.1",))
    sweep = TrainConfig(kinds=("topk",), ks=(6,), ratios=(1.0,), steps=5, batch_size=32)
    train(tmp_path / "bare" / "train" / "one", tmp_path / "bare" / "activations", sweep)
    with pytest.raises(UserError, match="no evidence of a dictionary with other seeds"):
        stability(tmp_path / "s", tmp_path / "bare", CONFIG)


def test_a_group_without_features_has_no_number():
    values = measure.compared({"stable": [], "unstable": [1.0, 2.0]}, CONFIG)
    assert values["stable"]["value"] is None and values["difference"]["reason"] == "a group is empty"
