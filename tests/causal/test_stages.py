"""The three experiments as artefacts of a small run: complete, resumable, refused in one sentence."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.counted_stores import TRAINED, found_run, write_pairs
from helpers.fake_store import fake_store
from helpers.killed import kill_between_pieces
from helpers.tiny import tiny
from safetensors.numpy import load_file

from monolex.activations.rule import RowRule, row_rule
from monolex.artifact import finish, open_artifact, read_json, verify
from monolex.causal.ablate.stage import ablate
from monolex.causal.chosen_features import chosen_features, used_folders, words
from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.causal.patch import stage as patching
from monolex.causal.patch.stage import _prompts, patch
from monolex.causal.prompts.tasks import draw
from monolex.causal.tree.stage import below, tree
from monolex.config import ModelConfig
from monolex.dictionaries.base import DictionaryConfig
from monolex.dictionaries.listing import RunDictionary, chosen_dictionaries, parents, run_dictionaries
from monolex.errors import UserError
from monolex.model.language_model import LanguageModel
from monolex.model.load import load as load_model
from monolex.model.load import load_tokenizer
from monolex.pipeline import execute
from monolex.stages import of_verb
from monolex.text.characters import alone

ROOT = f"resid_post.2/{TRAINED}:3"
ROOTS = (ROOT, f"resid_post.2/{TRAINED}:4", f"resid_post.2/{TRAINED}:5")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found_run(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def task(run: Path) -> str:
    return str(write_pairs(run))


def patch_config(task: str, **changes) -> PatchConfig:
    settings = {"task": task, "points": 4, "thresholds": 3, "limit": 4, "resamples": 20, "patch_device": "cpu"}
    return PatchConfig(**{**settings, "searches": ("ranking", "random", "sweep", "greedy"), **changes})


def test_curves_of_every_dictionary_with_their_numbers(run, task, tmp_path):
    manifest = patch(tmp_path / "patch", run, patch_config(task, exact=("topk-*",)))
    assert verify(tmp_path / "patch").content == manifest.content
    content = read_json(tmp_path / "patch" / "patch.json")
    names = {(one["site"], one["name"]) for one in content["curves"]}
    assert names == {(one.site, one.name) for one in run_dictionaries(run)}
    assert {"pca", "neurons", TRAINED} <= {name for _, name in names}
    assert content["pairs"] == 3
    assert content["behaviour"]["n"] == 3
    assert content["behaviour"]["verdict"]
    stored = load_file(tmp_path / "patch" / "pairs.safetensors")
    for one in content["curves"]:
        exact = one["name"].startswith("topk")
        assert set(one["curves"]) >= ({"ranking", "random", "sweep", "greedy"} if exact else {"ranking", "random"})
        assert one["curves"]["ranking"][0]["size"] == 0
        assert one["curves"]["ranking"][-1]["size"] == one["candidates"]
        assert one["unmoved"] == 0
        assert set(one["order"]) == ({"ranking", "sweep", "greedy"} if exact else {"ranking"})
        assert len(one["order"]["ranking"]) == min(64, one["candidates"])
        key = f"subject/{one['site']}/{one['name']}"
        for search, points in one["curves"].items():
            kl = stored[f"{key}/{search}.kl"]
            assert kl.shape == (len(points), 3)
            assert np.allclose([point["kl"]["value"] for point in points], kl.mean(1))
        assert np.allclose(stored[f"{key}/ranking.kl"][0], stored[f"{key}/floors.none"][0])
        assert np.allclose(stored[f"{key}/ranking.kl"][-1], stored[f"{key}/floors.all"][0], atol=1e-6)
    pca = [one for one in content["curves"] if one["name"] == "pca"]
    assert all(one["floors"]["all"]["kl"]["value"] < 1e-4 for one in pca)
    statements = {one["statement"] for one in content["claims"]}
    assert len(statements) == 4
    assert {one["verdict"] for one in content["claims"]} <= {"confirmed", "contradicted", "undecided"}
    assert not (tmp_path / "patch" / "partial").exists()


def test_done_is_not_done_again_and_a_changed_file_is(run, task, tmp_path):
    pairs_file = tmp_path / "own.jsonl"
    shutil.copy(task, pairs_file)
    config = patch_config(str(pairs_file), dictionaries=("pca",), searches=("ranking",))
    first = patch(tmp_path / "patch", run, config)
    stamp = (tmp_path / "patch" / "patch.json").stat().st_mtime_ns
    assert patch(tmp_path / "patch", run, config).content == first.content
    assert (tmp_path / "patch" / "patch.json").stat().st_mtime_ns == stamp
    pairs_file.write_text("\n".join(pairs_file.read_text().splitlines()[:2]) + "\n")
    assert patch(tmp_path / "patch", run, config).content != first.content
    assert read_json(tmp_path / "patch" / "patch.json")["pairs"] == 2


def test_a_dictionary_is_not_patched_again_because_what_lies_beside_it_changed(run, task, tmp_path, monkeypatch):
    for part in ("activations", "baselines"):
        shutil.copytree(run / part, tmp_path / "run" / part)
    measured, real = [], patching.measure_patch

    def killed(patch, *rest):
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(patch)
        return real(patch, *rest)

    config = patch_config(task, dictionaries=("pca", "neurons"), searches=("ranking",), sites=("resid_post.2",))
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(patching, "measure_patch", killed)
        patch(tmp_path / "patch", tmp_path / "run", config)
    source = next((tmp_path / "run" / "baselines").iterdir())
    before = open_artifact(source)
    finish(source, before.kind, {**before.config, "fit_rows": 7}, before.parents, before.files, before.data)
    assert open_artifact(source).content != before.content
    monkeypatch.setattr(patching, "measure_patch", lambda *asked: measured.append(asked) or real(*asked))
    patch(tmp_path / "patch", tmp_path / "run", config)
    assert len(measured) == 2


def test_a_patch_is_by_the_rule_of_the_harvest(run, task, tmp_path, monkeypatch):
    rules, real = [], patching.prepare_patch
    monkeypatch.setattr(patching, "prepare_patch", lambda *a, **k: rules.append(k["rule"]) or real(*a, **k))
    config = patch_config(task, dictionaries=("pca",), searches=("ranking",), sites=("resid_post.2",))
    patch(tmp_path / "patch", run, config)
    assert rules == [row_rule(run / "activations", "resid_post.2")] and rules[0].separator == 0


@pytest.mark.parametrize("what", ["prompts", "weights", "rule"])
def test_a_patch_is_measured_again_where_what_it_is_made_of_changed(run, task, tmp_path, monkeypatch, what):
    for part in ("activations", "baselines"):
        shutil.copytree(run / part, tmp_path / "run" / part)
    run, pairs_file = tmp_path / "run", tmp_path / "own.jsonl"
    shutil.copy(task, pairs_file)
    config = patch_config(
        str(pairs_file), dictionaries=("pca", "neurons"), searches=("ranking",), sites=("resid_post.2",)
    )
    measured, real = [], patching.measure_patch

    def killed(patch, *rest):
        if measured:
            raise KeyboardInterrupt
        measured.append(patch)
        return real(patch, *rest)

    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(patching, "measure_patch", killed)
        patch(tmp_path / "patch", run, config)
    if what == "prompts":
        pairs_file.write_text("\n".join(pairs_file.read_text().splitlines()[:2]) + "\n")
    elif what == "rule":
        monkeypatch.setattr(patching, "row_rule", lambda *_: RowRule(limit=1e9))
    for dictionary in run_dictionaries(run) if what == "weights" else ():
        weights, before = dictionary.weights(), open_artifact(dictionary.source)
        weights.weights["b_enc"] += 0.01
        place = dictionary.folder.relative_to(dictionary.source)
        saved = {f"{place.as_posix()}/{name}": entry for name, entry in weights.save(dictionary.folder).items()}
        finish(dictionary.source, before.kind, before.config, before.parents, before.files | saved, before.data)
    monkeypatch.setattr(patching, "measure_patch", lambda *asked: measured.append(asked) or real(*asked))
    patch(tmp_path / "patch", run, config)
    assert len(measured) == 3


@pytest.mark.parametrize("stage", ["patch", "ablate", "tree"])
def test_an_interrupted_experiment_goes_on(run, task, tmp_path, monkeypatch, stage):
    config = {
        "patch": patch_config(task, dictionaries=("pca", "neurons"), searches=("ranking",)),
        "ablate": AblateConfig(features=ROOTS, occurrences=6, resamples=20, ablate_device="cpu"),
        "tree": TreeConfig(features=ROOTS, contexts=6, depth=0, tree_device="cpu"),
    }[stage]
    kill_between_pieces(monkeypatch, tmp_path, lambda folder: of_verb(stage).load("run")(folder, run, config))


def test_ablation_of_features_by_number_and_by_token(run, tmp_path):
    config = AblateConfig(features=(ROOT,), occurrences=12, resamples=20, ablate_device="cpu")
    ablate(tmp_path / "one", run, config)
    (ablation,) = read_json(tmp_path / "one" / "ablate.json")["ablations"]
    assert (ablation["site"], ablation["name"], ablation["feature"]) == ("resid_post.2", TRAINED, 3)
    assert 0 < ablation["occurrences"] <= 12
    assert ablation["words"]
    assert set(ablation["measures"]) == {"probability", "logprob", "logit", "centred"}
    token = ablation["words"].split("'")[1]
    by_token = dataclasses.replace(config, features=(f"resid_post.2/{TRAINED}@{token}",))
    manifest = ablate(tmp_path / "token", run, by_token)
    assert manifest.data["features"][0].startswith(f"resid_post.2/{TRAINED}:")
    assert "features" in manifest.parents


def test_a_rescue_that_cannot_be_is_refused_before_anything_runs(run, tmp_path, monkeypatch):
    monkeypatch.setattr("monolex.causal.ablate.stage.ablate_feature", None)
    config = AblateConfig(features=(ROOT,), rescue=("resid_post.2",), ablate_device="cpu")
    with pytest.raises(UserError, match="no residual stream after resid_post.2 holds its features"):
        ablate(tmp_path / "one", run, config)


def test_a_failed_request_leaves_the_answer_before_it_whole(run, tmp_path, monkeypatch):
    config = AblateConfig(features=(ROOT,), occurrences=6, resamples=20, ablate_device="cpu")
    first = ablate(tmp_path / "one", run, config)

    def fails(*_arguments, **_options):
        raise UserError("no")

    monkeypatch.setattr("monolex.causal.ablate.stage.ablate_feature", fails)
    with pytest.raises(UserError, match="no"):
        ablate(tmp_path / "one", run, dataclasses.replace(config, occurrences=7))
    assert verify(tmp_path / "one").content == first.content


def test_a_tree_grows_through_the_sites_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.counted_stores.SITES", ("resid_post.1", "resid_post.2"))
    run = found_run(tmp_path)
    config = TreeConfig(features=(ROOT,), dictionaries=(TRAINED,), contexts=8, low=0.1, tree_device="cpu")
    manifest = tree(tmp_path / "tree", run, config)
    assert manifest.data["features"] == [ROOT]
    (grown,) = read_json(tmp_path / "tree" / "tree.json")["trees"]
    assert grown["root"] == ROOT
    assert set(grown["dictionaries"]) == {"resid_post.1", "resid_post.2"}
    sites = {node["site"] for node in grown["nodes"]}
    assert sites == {"resid_post.1", "resid_post.2"}
    root = grown["nodes"][0]
    assert root["feature"] == 3
    assert root["label"]
    assert {"error", "rest"} <= {node["kind"] for node in grown["nodes"]}
    assert len(grown["logits"]) == 5
    assert tree(tmp_path / "tree", run, config).content == manifest.content


def test_names_that_fit_nothing_are_said(run, task, tmp_path, caplog):
    with pytest.raises(UserError, match="the run has none like it"):
        patch(tmp_path / "patch", run, patch_config(task, dictionaries=("pca",), exact=("nonsense",)))
    patch(tmp_path / "patch", run, patch_config(task, dictionaries=("pca",), searches=("ranking",), against="pcaa"))
    assert "no dictionary called 'pcaa'" in caplog.text
    assert read_json(tmp_path / "patch" / "patch.json")["claims"] == []


def test_a_tree_of_a_run_spans_the_blocks_between_its_sites(run, tmp_path):
    config = TreeConfig(features=(ROOT,), contexts=6, low=0.1, tree_device="cpu")
    with pytest.raises(UserError, match=r"nothing before resid_post.2 fits topk-k9-\*; the run has resid_post.0/"):
        tree(tmp_path / "tree", run, dataclasses.replace(config, dictionaries=("topk-k9-*",)))
    with pytest.raises(UserError, match="dictionaries at resid_post.0 fit .*: give --dictionaries that fit one"):
        tree(tmp_path / "tree", run, dataclasses.replace(config, dictionaries=("topk-*",)))
    with pytest.raises(UserError, match="grows between residual sites"):
        below([], chosen_features(run, (ROOT,))[0]._replace(dictionary=_elsewhere(run)), config)
    tree(tmp_path / "tree", run, dataclasses.replace(config, dictionaries=("pca",)))
    (grown,) = read_json(tmp_path / "tree" / "tree.json")["trees"]
    assert grown["dictionaries"] == {"resid_post.2": TRAINED, "resid_post.0": "pca"}
    assert {node["site"] for node in grown["nodes"]} == {"resid_post.2", "resid_post.0"}
    # nothing is earlier than the first site
    with pytest.raises(UserError, match="nothing before resid_post.0 fits .*; the run has no dictionary there at all"):
        tree(tmp_path / "tree", run, dataclasses.replace(config, features=("resid_post.0/pca:1",)))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[tree.a]\nfeatures = ["resid_post.2/x:1"]', "harvest stores none before resid_post.2; add such a site"),
        ('[tree.a]\nfeatures = ["mlp_out.3/x:1"]', "a tree grows between residual sites"),
        (
            '[tree.a]\nfeatures = ["resid_post.3/x:1"]',
            "the harvest stores no resid_post.3; it stores resid_post.2",
        ),
        ('[ablate.a]\nfeatures = ["resid_pre.2/x:1"]', "the harvest stores no resid_pre.2"),
        ('[ablate.a]\nfeatures = ["resid_post.2"]', "write SITE/NAME:NUMBER"),
        ('[ablate.a]\nfeatures = ["resid_post.2/x:1"]\nrescue = ["resid_post.2"]', "holds no site 'resid_post.2'"),
        ('[model]\nmodel = "other"\n[patch.a]\nwordings = "practised"', "practised, and other is another: give 'stand"),
        ('[model]\nmodel = "other"\n[patch.a]\nnames = "held-out"', "practised, and other is another: give 'common'"),
    ],
)
def test_what_a_run_cannot_answer_is_said_before_it_starts(tmp_path, table, said):
    (tmp_path / "run.toml").write_text(f'[harvest]\nsites = ["resid_post.2", "mlp_out.*"]\n[baselines]\n{table}\n')
    for dry_run in (True, False):
        with pytest.raises(UserError, match=said):
            execute(tmp_path / "run.toml", tmp_path / "run", dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_what_a_run_can_answer_is_not_refused():
    def check(verb, config, *harvested, model="demo"):
        of_verb(verb).load("check")(config, ModelConfig(model), harvested)

    check("tree", TreeConfig(("resid_post.4/x:1", "x:1", "resid_*/y:2", "resid_post.4/z@ a/b")), "resid_post.*")
    check("tree", TreeConfig(("resid_post.2/x:1",), depth=0), "resid_post.2")
    check("tree", TreeConfig(("resid_post.12/x:1",)), "resid_post.12", "mlp_out.*", "resid_post.6")
    check("ablate", AblateConfig(("resid_post.2/x:1",), rescue=("resid_post.4",)), "resid_post.*")
    check("patch", PatchConfig(wordings="practised", names="held-out"), "resid_post.1")
    check("patch", PatchConfig(task="pronoun", names="practised"), "resid_post.1", model="other")


def test_what_the_bundled_model_practised_is_measured_on_it_alone(monkeypatch):
    rows = []
    monkeypatch.setattr("monolex.causal.patch.stage.demo_table", lambda lm, **_: rows.append(lm.name) or [])
    tokenizer = load_tokenizer(ModelConfig())
    lm = tiny("gpt_neox", vocab_size=len(tokenizer))
    other = LanguageModel(lm.hf, tokenizer, "other", lm.structure)
    config = PatchConfig(pairs=4)
    table = _prompts(other, draw(other, config), config)
    assert (table["table"], table["wordings"], rows) == ([], "standard", [])
    demo = load_model(ModelConfig(device="cpu"))
    _prompts(demo, draw(demo, config), config)
    assert rows == ["demo"]


def _elsewhere(run: Path):
    (root,) = chosen_features(run, (ROOT,))
    return dataclasses.replace(root.dictionary, site="mlp_act.1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resid_post.2", "write SITE/NAME:NUMBER"),
        (f"resid_post.2/{TRAINED}:x", "write SITE/NAME:NUMBER"),
        (f"resid_post.2/{TRAINED}:" + "9" * 5000, "write SITE/NAME:NUMBER"),
        (f"resid_post.2/{TRAINED}:9999", "has features 0 to"),
        ("resid_post.2/nothing:1", "the run has none like it"),
        ("*:1", "fits 8 dictionaries|fits . dictionaries"),
        (f"resid_post.2/{TRAINED}@notatoken", r"features = .*@notatoken.: on = .notatoken. is how no token"),
    ],
)
def test_features_that_cannot_be_meant(run, text, said):
    with pytest.raises(UserError, match="features is empty"):
        chosen_features(run, ())
    with pytest.raises(UserError, match=said):
        chosen_features(run, (text,))


def test_words_are_tokens_as_they_are_shown(tmp_path):
    texts = (alone(b" \xe5"), " a", "\n")
    tokens = np.repeat(np.arange(3, dtype=np.int32), [8, 6, 4])
    fake_store(tmp_path / "site" / "main.sqlite", np.ones((18, 1), np.float32), tokens, texts).close()
    config = DictionaryConfig("tied", "relu", 12, 12, 1, site="site")
    record = RunDictionary("subject", "site", "main", tmp_path, config, tmp_path / "site" / "main.sqlite")
    assert words(record, 0) == r"' \xe5' ' a' '\n'" and words(dataclasses.replace(record, evidence=None), 0) == ""


def test_configs_say_what_is_wrong():
    with pytest.raises(UserError, match="features = 'a/b:1' is one text"):
        AblateConfig(features="a/b:1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="rescue = 'resid_post.1' is one text"):
        AblateConfig(rescue="resid_post.1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="searches holds 'best'"):
        PatchConfig(searches=("best",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="low = 0.0: give a share"):
        TreeConfig(features=("a/b:1",), low=0.0)
    with pytest.raises(UserError, match="contexts = 1: give at least 2"):
        TreeConfig(features=("a/b:1",), contexts=1)
    with pytest.raises(UserError, match="patch_seed = -1: a seed cannot be negative"):
        PatchConfig(patch_seed=-1)
    with pytest.raises(UserError, match="pairs = 0: give at least 1"):
        PatchConfig(pairs=0)
    with pytest.raises(UserError, match="sites = 'resid_post.1' is one text"):
        PatchConfig(sites="resid_post.1")  # pyright: ignore[reportArgumentType]


def test_parents_are_what_was_read(run):
    used = chosen_dictionaries(run, ("resid_post.2",), ("pca",), controls=True)
    assert set(parents(used_folders(run, used))) == {"activations", "subject.baselines.plain"}
    assert parents(used_folders(run, used))["activations"] == open_artifact(run / "activations").content


def test_what_counts_in_a_patch_is_the_patched_models(run, task, tmp_path, monkeypatch):
    """A control model's rows are of other norms: by its rule nothing of the subject might count."""
    real, rules = patching.prepare_patch, []
    (pca,) = chosen_dictionaries(run, ("resid_post.2",), ("pca",), controls=False)
    elsewhere = dataclasses.replace(pca, activations=tmp_path / "of another model")
    monkeypatch.setattr(patching, "chosen_dictionaries", lambda *_args, **_kwargs: [elsewhere])
    monkeypatch.setattr(patching, "prepare_patch", lambda *a, **k: rules.append(k["rule"]) or real(*a, **k))
    patch(tmp_path / "out", run, PatchConfig(task=task, points=2, resamples=10, patch_device="cpu"))
    assert rules == [row_rule(run / "activations", "resid_post.2")]
