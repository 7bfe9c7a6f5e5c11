"""A site at which nothing changes is left out with its reason, and all other sites are done."""

import json
from pathlib import Path

import pytest
import torch
from helpers.counted_stores import write_pairs
from helpers.tiny_harvests import corpus_of, make_lm, store
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from monolex.activations.constant import constant_sites
from monolex.activations.reader import shard_name
from monolex.artifact import Manifest, open_artifact
from monolex.causal.config import PatchConfig
from monolex.causal.patch.stage import patch
from monolex.config import BaselineConfig, EvalConfig, FeaturesConfig
from monolex.dictionaries.baselines import fit_folder
from monolex.errors import UserError
from monolex.evals.evaluate import evaluate
from monolex.features.stage import features
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

ZERO, CONSTANT, VARYING = "mlp_out.0", "mlp_out.1", "resid_post.1"
REASONS = [
    f"{ZERO} is left out: all of its {{}} activations are zero",
    f"{CONSTANT} is left out: all of its {{}} activations are one and the same row",
]
SWEEP = TrainConfig(kinds=("topk",), ks=(4,), ratios=(1.0,), steps=2, batch_size=32, train_device="cpu")


def make_constant():
    """A model with an MLP that writes nothing, and one that writes the same everywhere."""
    lm = make_lm()
    for layer, value in ((0, 0.0), (1, 0.5)):
        mlp = lm.hf.gpt_neox.layers[layer].mlp.dense_4h_to_h
        with torch.no_grad():
            mlp.weight.zero_()
            mlp.bias.fill_(value)
    return lm


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("constant")
    store(home / "activations", make_constant(), corpus_of(home), sites=(VARYING, ZERO, CONSTANT))
    train(home / "train" / "all", home / "activations", SWEEP)
    fit_folder(home / "baselines" / "all", home / "activations", BaselineConfig(kinds=("pca", "neurons"), fit_rows=500))
    return home


@pytest.fixture(autouse=True)
def model_at_hand(monkeypatch):
    """The stages need no folder of a model."""
    lm = make_constant()
    for module in ("monolex.evals.evaluate", "monolex.causal.patch.stage", "helpers.counted_stores"):
        monkeypatch.setattr(f"{module}.stored_model", lambda *_: lm)


def reasons(run: Path, split: str) -> list[str]:
    rows = open_artifact(run / "activations").data["rows"][split]
    return [reason.format(f"{rows:,} {split}") for reason in REASONS]


def sources(run: Path) -> list[Path]:
    return [run / "train" / "all", run / "baselines" / "all"]


def member_sites(manifest: Manifest) -> set[str]:
    return {member["site"] for member in manifest.data["members"]}


def test_sites_are_looked_at_by_name_and_split(run):
    assert list(constant_sites(run / "activations").values()) == reasons(run, "train")
    assert list(constant_sites(run / "activations", split="held_out").values()) == reasons(run, "held_out")
    assert list(constant_sites(run / "activations", (VARYING, CONSTANT))) == [CONSTANT]


def test_a_site_is_constant_only_to_its_end(tmp_path):
    out = tmp_path / "out"
    data = store(out, make_constant(), corpus_of(tmp_path, 250), sites=(CONSTANT,)).data
    assert data["rows"]["train"] > 1024, "or the first read would be all"
    assert list(constant_sites(out)) == [CONSTANT]
    last = out / shard_name(CONSTANT, "train", len(data["shards"]["train"]) - 1)
    with safe_open(last, framework="pt") as shard:
        stamp = shard.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(last).items()}
    tensors["activations"][-1] += 1
    save_file(tensors, last, metadata=stamp)
    assert constant_sites(out) == {}


def test_sweeps_and_baselines_have_the_other_sites(run):
    for folder in sources(run):
        manifest = open_artifact(folder)
        assert member_sites(manifest) == {VARYING} and manifest.data["warnings"] == reasons(run, "train")


def test_a_sweep_at_constant_sites_alone_has_no_dictionary(run, tmp_path):
    config = TrainConfig(sites=("mlp_out.*",), keep_checkpoints=2, init=None, train_device="cpu")
    manifest = train(tmp_path / "sweep", run / "activations", config)
    assert manifest.data["members"] == [] and manifest.data["warnings"] == reasons(run, "train")
    assert train(tmp_path / "sweep", run / "activations", config) == open_artifact(tmp_path / "sweep")
    baselines = fit_folder(tmp_path / "pca", run / "activations", BaselineConfig(sites=(ZERO,), kinds=("pca",)))
    assert baselines.data["members"] == [] and baselines.data["warnings"] == reasons(run, "train")[:1]
    config = EvalConfig(rows=100, contexts=0, resamples=5, eval_device="cpu")
    with pytest.raises(UserError, match="no dictionaries to evaluate"):
        evaluate(tmp_path / "eval", run / "activations", [tmp_path / "sweep", tmp_path / "pca"], {}, config)
    with_others = evaluate(tmp_path / "eval", run / "activations", [tmp_path / "sweep", *sources(run)], {}, config)
    assert with_others.data["sites"] == {"subject": [VARYING]}


def test_the_evaluation_is_of_the_other_sites(run, tmp_path, caplog):
    config = EvalConfig(rows=100, contexts=0, resamples=5, eval_device="cpu")
    of_control = run / "activations", sources(run)
    manifest = evaluate(tmp_path, run / "activations", sources(run), {"random": of_control}, config)
    wanted = reasons(run, "held_out")
    assert manifest.data["warnings"] == wanted + [f"random model: {reason}" for reason in wanted]
    assert manifest.data["sites"] == {"subject": [VARYING], "random": [VARYING]}
    assert {row["site"] for row in json.loads((tmp_path / "metrics.json").read_text())} == {VARYING}


@pytest.mark.parametrize("sites", [(), (VARYING, ZERO, CONSTANT)])
def test_evidence_is_of_the_other_sites(run, tmp_path, sites):
    config = FeaturesConfig(sites=sites, fragment_tokens=8, coactive_rows=100, features_device="cpu")
    manifest = features(tmp_path, run / "activations", sources(run), config, lm=make_constant())
    assert {entry["site"] for entry in manifest.data["stores"]} == {VARYING}
    assert manifest.data["warnings"] == reasons(run, "train")


def test_patching_is_at_the_other_sites(run, tmp_path):
    asked = {"task": str(write_pairs(run)), "patch_device": "cpu", "resamples": 5, "against": "pca"}
    config = PatchConfig(sites=(ZERO, VARYING), dictionaries=("pca",), held_out=0.0, **asked)
    manifest = patch(tmp_path, run, config)
    curves = json.loads((tmp_path / "patch.json").read_text())["curves"]
    assert [curve["site"] for curve in curves] == [VARYING]
    assert manifest.data["warnings"] == reasons(run, "train")[:1]
