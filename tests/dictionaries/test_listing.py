"""The dictionaries of a run: their order and names, sources, control models, checkpoints, patterns, parents."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from helpers.counted_stores import SITES, TRAINED, found_run
from helpers.interp_run import SITES as SMALL_SITES
from helpers.interp_run import TIED, small_run

from monolex.artifact import SUBJECT, finish, model_home, open_artifact
from monolex.config import EvalConfig, FeaturesConfig
from monolex.dictionaries.base import DictionaryConfig, load
from monolex.dictionaries.listing import (
    RunDictionary,
    by_site,
    checkpoints,
    choose,
    chosen_dictionaries,
    control_models,
    fits,
    given_folders,
    name_fits,
    parents,
    run_dictionaries,
    source_dictionaries,
    source_folders,
)
from monolex.errors import UserError
from monolex.evals.evaluate import evaluate
from monolex.features.stage import features

NAMES = [TRAINED, f"second/{TRAINED}", "topk-k8-r2-s0", "neurons", "pca"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps that share a name at the first site, baselines, and evidence of all."""
    return found_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def with_control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a checkpoint, baselines, and a control model with a sweep of that name."""
    return small_run(tmp_path_factory.mktemp("controlled"))


def sources(run: Path) -> list[Path]:
    return [run / "train" / "first", run / "train" / "second", run / "baselines" / "plain"]


def test_sites_and_names_of_a_run(run):
    listed = run_dictionaries(run)
    assert {site: [d.name for d in at] for site, at in by_site(listed).items()} == {
        SITES[0]: NAMES,
        SITES[1]: [TRAINED, "neurons", "pca"],
    }
    assert [d.key for d in listed[:2]] == [f"subject/{SITES[0]}/{TRAINED}", f"subject/{SITES[0]}/second/{TRAINED}"]
    assert listed[1].title == f"{SITES[0]}/second/{TRAINED}"
    assert [d.source for d in by_site(listed)[SITES[0]]] == [sources(run)[i] for i in (0, 1, 1, 2, 2)]
    for dictionary in listed:
        weights = dictionary.weights()
        assert weights.config == dictionary.config == load(dictionary.folder).config
        assert dictionary.trained == dictionary.config.kind.startswith("topk")
        assert dictionary.step is None
        assert dictionary.evidence == run / "features" / f"{dictionary.title}.sqlite"


def test_names_are_those_of_the_stages_that_were_given_the_sources_in_another_order(run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("features"))
    assert [d.name for d in run_dictionaries(copied)][:2] == [TRAINED, f"second/{TRAINED}"]
    backwards = sources(copied)[::-1]
    config = EvalConfig(rows=20, contexts=0, resamples=2, eval_device="cpu")
    evaluate(copied / "eval", copied / "activations", backwards, {}, config)
    rows = json.loads((copied / "eval" / "metrics.json").read_text())
    measured = dict.fromkeys((row["site"], row["name"]) for row in rows if row["path"] and not row["other"])
    listed = run_dictionaries(copied)
    assert [(d.site, d.name) for d in listed] == list(measured)
    assert f"first/{TRAINED}" in [d.name for d in listed]
    gathered = FeaturesConfig(dictionaries=("first/*",), coactive_rows=20, features_device="cpu")
    features(copied / "features", copied / "activations", backwards, gathered)
    with_evidence = [d for d in run_dictionaries(copied) if d.evidence]
    assert [d.name for d in with_evidence] == [f"first/{TRAINED}"]
    assert with_evidence[0].evidence == copied / "features" / SITES[0] / "first" / f"{TRAINED}.sqlite"


def test_evidence_that_is_older_than_its_dictionaries_is_refused(run, tmp_path):
    stale = tmp_path / "run"
    shutil.copytree(run, stale)
    path = stale / "features" / "manifest.json"
    raw = json.loads(path.read_text())
    plain = open_artifact(stale / "baselines" / "plain").content
    raw["parents"] = {name: content for name, content in raw["parents"].items() if content != plain}
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"features was gathered before .*plain was made; gather again"):
        run_dictionaries(stale)
    # what was made anew does not matter where nothing was gathered of it
    raw["data"]["stores"] = [store for store in raw["data"]["stores"] if store["name"] not in ("neurons", "pca")]
    path.write_text(json.dumps(raw))
    assert {d.name for d in run_dictionaries(stale) if d.evidence is None} == {"neurons", "pca"}


def test_sources_that_do_not_fit(run, with_control, tmp_path):
    acts = run / "activations"
    first = sources(run)[0]
    with pytest.raises(UserError, match="no folder of a run"):
        run_dictionaries(run / "nowhere")
    with pytest.raises(UserError, match="first is given twice"):
        source_dictionaries(acts, [first, first])
    with pytest.raises(UserError, match="no dictionaries to evaluate"):
        source_dictionaries(acts, [])
    with pytest.raises(UserError, match="artefact of kind activations"):
        source_dictionaries(acts, [acts])
    with pytest.raises(UserError, match="was not made from"):
        source_dictionaries(acts, [with_control / "train" / "main"])
    copies = [shutil.copytree(first, tmp_path / parent / "first") for parent in "ab"]
    assert len(source_dictionaries(acts, [first, copies[0]])) == 4
    with pytest.raises(UserError, match="two sources share its name"):
        source_dictionaries(acts, [first, *copies])


def test_control_models(with_control, run):
    assert control_models(with_control) == ["random"]
    assert control_models(run) == []
    assert model_home(with_control, SUBJECT) == with_control
    assert model_home(with_control, "random") == with_control / "controls" / "random"
    listed = run_dictionaries(with_control, "random")
    assert [d.key for d in listed] == [f"random/{site}/{TIED}" for site in SMALL_SITES]
    assert all(d.folder.is_relative_to(with_control / "controls" / "random") for d in listed)


def test_chosen_by_site_and_pattern_with_control_models_behind(with_control):
    last, first = SMALL_SITES[1], SMALL_SITES[0]
    chosen = chosen_dictionaries(with_control, (last, first), ("tied-*", "neurons"), controls=True)
    expected = [f"subject/{{}}/{TIED}", "subject/{}/neurons", f"random/{{}}/{TIED}"]
    assert [d.key for d in chosen] == [key.format(site) for site in (last, first) for key in expected]
    alone = chosen_dictionaries(with_control, ("resid_post.*",), (), controls=False)
    assert alone == run_dictionaries(with_control)
    # a control model has no baselines, which is no mistake
    pca = chosen_dictionaries(with_control, (first,), ("pca",), controls=True)
    assert [d.key for d in pca] == [f"subject/{first}/pca"]
    with pytest.raises(UserError, match="holds no site 'mlp_act.0'"):
        chosen_dictionaries(with_control, ("mlp_act.0",), (), controls=True)
    with pytest.raises(UserError, match="dictionaries = 'pcb': the run has none like it; there are resid_post.0/tied"):
        chosen_dictionaries(with_control, (), ("pcb",), controls=True)


def test_checkpoints_in_the_order_of_training(with_control, tmp_path):
    tied, neurons, *_ = run_dictionaries(with_control)
    (early,) = checkpoints(tied)
    (step,) = open_artifact(with_control / "train" / "main").data["checkpoints"]
    assert (early.step, early.name, early.source) == (step, f"{TIED}@{step}", tied.source)
    assert early.folder == with_control / "train" / "main" / "checkpoints" / str(step) / tied.site / TIED
    assert early.config.recipe["steps_done"] == step and early.evidence is None
    assert checkpoints(neurons) == []
    copied = shutil.copytree(with_control / "train" / "main", tmp_path / "main")
    for other in (100, 9):
        shutil.copytree(copied / "checkpoints" / str(step), copied / "checkpoints" / str(other))
    moved = dataclasses.replace(tied, folder=copied / tied.site / TIED)
    assert [d.step for d in checkpoints(moved)] == [step, 9, 100]


def test_patterns(run):
    listed = run_dictionaries(run)
    second = listed[1]
    for pattern in (second.title, second.name, second.site, "second/*", "resid_post.0/*", "*-k4-*"):
        assert fits(second, ("nothing", pattern)), pattern
    assert not fits(second, ()) and not fits(second, (TRAINED, "subject/*"))
    assert name_fits("a", "b", ("pca-topk",), "pca-topk") and not name_fits("a", "b", ("pca-topk",))
    assert choose(listed, ()) == listed
    # in the order of the run, each once
    assert [d.name for d in choose(listed, ("pca", "topk-k8-*", "resid_post.0/pca")) if d.site == SITES[0]] == [
        "topk-k8-r2-s0",
        "pca",
    ]


def test_parents_are_contents_by_the_names_of_requests(with_control):
    run = with_control
    folders = given_folders("random", run / "activations", [run / "train" / "main", run / "baselines" / "plain"])
    assert list(folders) == ["random.activations", "random.source.0", "random.source.1"]
    assert parents(folders)["random.source.1"] == open_artifact(run / "baselines" / "plain").content
    used = [*run_dictionaries(run), *run_dictionaries(run, "random")]
    used += checkpoints(used[0])
    assert source_folders(used) == {
        "random.train.main": run / "controls" / "random" / "train" / "main",
        "subject.baselines.plain": run / "baselines" / "plain",
        "subject.train.main": run / "train" / "main",
    }


def test_a_pattern_of_what_was_given_up_is_passed_over(tmp_path, caplog):
    gone = {"site": "resid_post.1", "name": "ica", "reason": "FastICA had not converged"}
    finish(tmp_path, "baselines", {}, {}, {}, {"members": [], "given_up": [gone]})
    config = DictionaryConfig("pca", "linear", 4, 4, 4)
    pca = RunDictionary("subject", "resid_post.1", "pca", tmp_path / "resid_post.1" / "pca", config)
    assert choose([pca], ("pca", "ica-topk-*")) == [pca]
    assert "'ica-topk-*': ica is left out: FastICA had not converged" in caplog.text
    with pytest.raises(UserError, match="dictionaries = 'nmf': the run has none like it"):
        choose([pca], ("nmf",))
