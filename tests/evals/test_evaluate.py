"""The eval artefact: rows of every dictionary, control and seed, resuming, refusals, and the text table."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.document_rows import make, noise
from helpers.tiny import tiny_hf
from helpers.tiny_texts import make_tokenizer, sentence, write_jsonl
from safetensors.torch import load_file

from monolex import artifact
from monolex.activations import reader
from monolex.activations.harvest import harvest
from monolex.activations.stored import held_out_rows
from monolex.artifact import FileEntry, read_json
from monolex.config import CorpusConfig, EvalConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.dictionaries.listing import RunDictionary, source_dictionaries
from monolex.errors import UserError
from monolex.evals import evaluate as module
from monolex.evals.evaluate import evaluate
from monolex.evals.recipes import neighbours, recipe, seed_groups
from monolex.evals.table import table
from monolex.kinds import BASELINES

D = 32
CONFIG = EvalConfig(rows=300, contexts=6, resamples=50, batch_contexts=4, eval_device="cpu")
SITES = ("resid_post.1", "mlp_act.0")
MEMBERS = (
    {"kind": "tied", "alpha": 1e-3, "k": None, "ratio": 1.0, "seed": 0, "lr": 1e-3},
    {"kind": "tied", "alpha": 1e-3, "k": None, "ratio": 1.0, "seed": 1, "lr": 1e-3},
    {"kind": "tied", "alpha": 1e-2, "k": None, "ratio": 1.0, "seed": 0, "lr": 1e-3},
)


def name_of(member: dict) -> str:
    return f"{member['kind']}-a{member['alpha']:g}-r{member['ratio']:g}-s{member['seed']}"


def write_dictionaries(folder: Path, kind: str, activations: Path, members: list[tuple[dict, Dictionary]]) -> Path:
    """A sweep or baselines artefact of ready-made dictionaries."""
    files: dict[str, FileEntry] = {}
    rows = []
    for row, dictionary in members:
        path = f"{row['site']}/{row['name']}"
        dictionary.config = dataclasses.replace(dictionary.config, recipe=row)
        files |= {f"{path}/{name}": entry for name, entry in dictionary.save(folder / path).items()}
        rows.append({"site": row["site"], "path": path})
    parents = {"activations": artifact.open_artifact(activations).content}
    artifact.finish(folder, kind, {}, parents, files, {"members": rows})
    return folder


def write_sweep(folder: Path, activations: Path, widths: dict[str, int]) -> Path:
    made = []
    for site, d in widths.items():
        for number, member in enumerate(MEMBERS):
            dictionary = make(noise(24, d, seed=number) / d**0.5, b_enc=-noise(24, seed=9).abs(), kind="tied")
            made.append(({**member, "site": site, "name": name_of(member)}, dictionary))
    return write_dictionaries(folder, "sweep", activations, made)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Activations of a tiny model and of its random control, a sweep on each, and baselines."""
    home = tmp_path_factory.mktemp("run")
    tokenizer = make_tokenizer()
    tiny_hf("gpt_neox", vocab_size=len(tokenizer)).save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    write_jsonl(home / "text.jsonl", [sentence(n) for n in range(60)])
    corpus = CorpusConfig(corpus=str(home / "text.jsonl"), context_length=16, held_out=0.4)
    for control in ("none", "random"):
        model = ModelConfig(model=str(home / "model"), control=control, device="cpu")
        harvest(home / control, model, corpus, HarvestConfig(sites=SITES if control == "none" else SITES[:1]))
    write_sweep(home / "sweep", home / "none", {"resid_post.1": D, "mlp_act.0": 48})
    write_sweep(home / "control-sweep", home / "random", {"resid_post.1": D})
    baselines = [
        ({"kind": "pca", "site": "resid_post.1", "k": None}, make(torch.eye(D), activation="linear", kind="pca")),
        ({"kind": "random", "site": "resid_post.1", "k": None}, make(noise(40, D), kind="random")),
    ]
    named = [({**row, "name": row["kind"]}, dictionary) for row, dictionary in baselines]
    write_dictionaries(home / "baselines", "baselines", home / "none", named)
    return home


def start(run: Path, folder: Path, config: EvalConfig = CONFIG, control: bool = True):
    controls = {"random": (run / "random", [run / "control-sweep"])} if control else {}
    return evaluate(folder, run / "none", [run / "sweep", run / "baselines"], controls, config)


@pytest.fixture(scope="module")
def result(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result") / "eval"
    return folder, start(run, folder), read_json(folder / "metrics.json")


def pick(rows: list[dict], **wanted) -> list[dict]:
    return [row for row in rows if all(row[key] == value for key, value in {"other": "", **wanted}.items())]


def one(rows: list[dict], **wanted) -> dict:
    (row,) = pick(rows, **wanted)
    return row


def test_every_dictionary_has_every_metric_with_a_value_or_a_reason(result):
    rows = result[2]
    singles = {(r["model"], r["site"], r["name"]) for r in rows if r["path"] and not r["other"]}
    assert len(singles) == 3 + 3 + 2 + 3
    metrics = {r["metric"] for r in rows if r["path"] and not r["other"]}
    assert len(metrics) == 20
    for model, site, name in singles:
        mine = pick(rows, model=model, site=site, name=name)
        assert {r["metric"] for r in mine} == metrics
        assert len(mine) == len(metrics)
    for row in rows:
        assert row["value"] is not None or row["reason"], row
        assert row["low"] is None or row["over"] in ("documents", "features", "seeds")


def test_manifest_densities_and_paths(run, result):
    folder, manifest, rows = result
    assert manifest == artifact.verify(folder)
    assert set(manifest.files) == {"metrics.json", "densities.safetensors"}
    assert manifest.data["dictionaries"] == 11
    assert manifest.parents["subject.activations"] == artifact.open_artifact(run / "none").content
    assert len(manifest.parents) == 5
    counts = load_file(folder / "densities.safetensors")
    assert len(counts) == 11
    for row in pick(rows, metric="alive"):
        if row["path"]:
            fired = counts[f"{row['model']}/{row['site']}/{row['name']}"]
            assert fired.dtype == torch.int64
            assert row["value"] == pytest.approx((fired > 0).double().mean().item())
            assert (folder / row["path"] / "config.json").exists()
    assert sorted(p.name for p in folder.iterdir()) == ["densities.safetensors", "manifest.json", "metrics.json"]


def test_exact_baseline_and_references(result):
    rows = result[2]
    at = {"model": "subject", "site": "resid_post.1"}
    assert one(rows, **at, name="pca", metric="fvu")["value"] < 1e-6
    assert one(rows, **at, name="pca", metric="kl")["value"] == pytest.approx(0, abs=1e-6)
    assert one(rows, **at, name="pca", metric="loss_recovered_zero")["value"] == pytest.approx(1, abs=1e-3)
    clean, zero = (one(rows, **at, name=n, metric="ce") for n in ("clean", "zero-ablation"))
    assert clean["kind"] == "reference"
    assert clean["path"] is None
    assert zero["value"] > clean["value"]
    assert one(rows, **at, name="pca", metric="negative_bias")["reason"] == "every encoder bias is zero"


def test_token_cosines_need_the_residual_stream(result):
    rows = result[2]
    name = name_of(MEMBERS[0])
    assert one(rows, model="subject", site="resid_post.1", name=name, metric="embedding_cosine")["value"] is not None
    outside = one(rows, model="subject", site="mlp_act.0", name=name, metric="unembedding_cosine")
    assert outside["value"] is None
    assert "mlp_act is not in the space" in outside["reason"]


def test_seeds_and_pairs(result):
    rows = result[2]
    at = {"model": "subject", "site": "resid_post.1"}
    group = name_of(MEMBERS[0])[:-1] + "*"
    fvu = one(rows, **at, name=group, metric="fvu")
    members = [one(rows, **at, name=name_of(m), metric="fvu")["value"] for m in MEMBERS[:2]]
    assert fvu["value"] == pytest.approx(sum(members) / 2)
    assert (fvu["over"], fvu["n"], fvu["seed"], fvu["path"]) == ("seeds", 2, None, None)
    assert one(rows, **at, name=group, metric="seed_overlap_0.7")["value"] is not None
    alone = one(rows, **at, name=name_of(MEMBERS[2])[:-1] + "*", metric="seed_overlap_0.7")
    assert alone["reason"] == "one seed only"
    pairs = {
        (r["name"], r["other"]) for r in rows if r["other"] and r["model"] == "subject" and r["site"] == at["site"]
    }
    names = [name_of(member) for member in MEMBERS]
    assert pairs == {(names[0], names[1]), (names[0], names[2]), *((name, "random directions") for name in names)}


def test_control_has_its_own_rows(result):
    rows = pick(result[2], model="random")
    assert one(rows, name=name_of(MEMBERS[0]), metric="fvu")["value"] is not None
    assert {row["site"] for row in rows if row["value"] is not None} == {"resid_post.1"}
    absent = one(rows, site="mlp_act.0", metric="fvu")
    assert absent["reason"] == "nothing was trained on the random model at mlp_act.0"
    assert one(rows, name="clean", metric="ce")["value"] is not None


def test_done_is_skipped_and_another_request_is_not(run, result, monkeypatch, tmp_path):
    folder, manifest, _ = result
    monkeypatch.setattr(module, "_evaluate_site", None)
    assert start(run, folder) == manifest
    with pytest.raises(TypeError):
        start(run, tmp_path / "eval", EvalConfig(rows=299, contexts=6, resamples=50, eval_device="cpu"))


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_killed_evaluation_resumes_with_the_same_result(run, result, monkeypatch, tmp_path, finished):
    folder, done = tmp_path / "eval", []
    original = module._evaluate_site

    def stop_after(*arguments):
        if len(done) == finished:
            raise KeyboardInterrupt
        done.append(arguments[2])
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_evaluate_site", stop_after)
        with pytest.raises(KeyboardInterrupt):
            start(run, folder)
    assert not (folder / "manifest.json").exists()
    counted = []
    monkeypatch.setattr(module, "_evaluate_site", lambda *a: counted.append(a[2]) or original(*a))
    assert start(run, folder).content == result[1].content
    assert len(counted) == 3 - finished


def test_partial_results_of_another_request_are_dropped(run, result, tmp_path):
    stale = tmp_path / "eval" / "partial" / "another"
    stale.mkdir(parents=True)
    (stale / "subject.resid_post.1.json").write_text("[]")
    assert start(run, tmp_path / "eval").content == result[1].content


def test_no_contexts_no_fidelity(run, tmp_path, caplog):
    start(run, tmp_path / "eval", EvalConfig(rows=64, contexts=0, resamples=10, eval_device="cpu"), control=False)
    rows = read_json(tmp_path / "eval" / "metrics.json")
    ce = pick(rows, metric="ce", site="resid_post.1", name="pca")
    assert [r["reason"] for r in ce] == ["contexts = 0: not asked for"]
    assert not pick(rows, kind="reference")
    assert {r["value"] for r in pick(rows, metric="rows") if r["path"]} == {64}
    assert "no control model" in caplog.text


def test_replaced_forwards_leave_alone_what_the_harvest_left_out(run, result):
    """Here separators within rows."""
    tokens = held_out_rows(run / "none", CONFIG.contexts).tokens
    share = float((tokens[:, 1:] == 0).double().mean())
    assert one(result[2], model="subject", site="resid_post.1", name="clean", metric="spared")["value"] == share > 0


def finished_again(folder: Path, config: dict, parents: dict | None = None, **facts) -> str:
    """A manifest of another content beside the same files."""
    before = artifact.open_artifact(folder)
    parents, data = parents or before.parents, {**before.data, **facts}
    return artifact.finish(folder, before.kind, {**before.config, **config}, parents, before.files, data).content


def test_a_baseline_that_was_given_up_has_its_reason_in_every_cell(run, tmp_path):
    shutil.copytree(run / "baselines", tmp_path / "baselines")
    gone = {"site": "resid_post.1", "name": "ica", "reason": "FastICA had not converged"}
    finished_again(tmp_path / "baselines", {}, given_up=[gone])
    config = EvalConfig(rows=64, contexts=0, resamples=10, eval_device="cpu")
    evaluate(tmp_path / "eval", run / "none", [tmp_path / "baselines"], {}, config)
    rows = read_json(tmp_path / "eval" / "metrics.json")
    cells = pick(rows, name="ica", site="resid_post.1", kind="ica", path=None)
    assert {(cell["value"], cell["reason"]) for cell in cells} == {(None, gone["reason"])}
    assert [cell["metric"] for cell in cells] == [cell["metric"] for cell in pick(rows, name="pca")]


@pytest.mark.parametrize(("changed", "measured"), [("activations", 2), ("sweep", 1)])
def test_a_site_is_measured_again_only_where_what_it_is_made_of_changed(run, monkeypatch, tmp_path, changed, measured):
    # another request beside the same shards, which say whose they are
    opened = reader._tensors
    monkeypatch.setattr(reader, "_tensors", lambda path, _expected=None: opened(path))
    for name in ("none", "sweep"):
        shutil.copytree(run / name, tmp_path / name)
    original, done = module._evaluate_site, []

    def evaluated() -> None:
        evaluate(tmp_path / "eval", tmp_path / "none", [tmp_path / "sweep"], {}, CONFIG)

    def once(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(arguments)
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_evaluate_site", once)
        evaluated()
    stored = finished_again(tmp_path / "none", {"max_tokens": 7}) if changed == "activations" else None
    finished_again(tmp_path / "sweep", {"steps": 7}, stored and {"activations": stored})
    again = []
    monkeypatch.setattr(module, "_evaluate_site", lambda *a: again.append(a) or original(*a))
    evaluated()
    assert len(again) == measured


def test_a_value_above_one_is_marked_and_said(result):
    _, manifest, rows = result
    worse = [row for row in rows if row["metric"] == "fvu" and row["path"] and row["value"] > 1]
    assert worse and all(row["reason"].endswith("above 1: worse than answering with the mean") for row in worse)
    said = [line for line in manifest.data["warnings"] if ": FVU " in line and "above 1" in line]
    names = {kind: [
        row["name"] if row["model"] == "subject" else f"{row['model']}/{row['site']}/{row['name']}"
        for row in worse if (row["kind"] in BASELINES) == (kind == "baselines")
    ] for kind in ("trained", "baselines")}  # fmt: skip
    trained = names["trained"]
    assert len(said) == len(trained) and all(name in line for name, line in zip(trained, said, strict=True))
    (together,) = (line for line in manifest.data["warnings"] if line.startswith("baselines with an FVU above 1"))
    assert names["baselines"] and all(f"{name} " in together for name in names["baselines"][:5])


def test_refusals(run, tmp_path):
    def refused(match: str, *arguments):
        with pytest.raises(UserError, match=match):
            evaluate(tmp_path / "eval", *arguments, CONFIG)

    refused("control-sweep was not made from", run / "none", [run / "control-sweep"], {})
    refused("no dictionaries to evaluate", run / "none", [], {})
    refused("is an artefact of kind activations", run / "none", [run / "random"], {})
    refused("no finished", run / "none", [run / "model"], {})
    refused("holds baselines, and activations is needed", run / "baselines", [run / "sweep"], {})
    refused("given twice", run / "none", [run / "sweep"] * 2, {})


def test_a_control_in_another_precision_is_no_control(run, tmp_path):
    shutil.copytree(run / "random", tmp_path / "random")
    path = tmp_path / "random" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["data"]["model"]["model_config"]["model_dtype"] = "bf16"
    path.write_text(json.dumps(raw))
    controls = {"random": (tmp_path / "random", [run / "control-sweep"])}
    with pytest.raises(UserError, match="model in bf16 and .* in fp32: harvest the control with model_dtype = 'fp32'"):
        evaluate(tmp_path / "eval", run / "none", [run / "sweep"], controls, CONFIG)


def test_a_changed_model_is_refused(run, tmp_path):
    shutil.copytree(run / "none", tmp_path / "none")
    path = tmp_path / "none" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["data"]["model"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="no longer the one in"):
        module.stored_model(tmp_path / "none")


def test_shared_names_get_their_source(run, tmp_path):
    write_sweep(tmp_path / "again", run / "none", {"resid_post.1": D})
    listed = source_dictionaries(run / "none", [run / "sweep", tmp_path / "again"])
    dictionaries = [dictionary for dictionary in listed if dictionary.site == "resid_post.1"]
    names = [name_of(m) for m in MEMBERS]
    assert [dictionary.name for dictionary in dictionaries] == [*names, *(f"again/{name}" for name in names)]
    assert len(seed_groups(dictionaries)) == 4


def member(source: str = "first", kind: str = "tied", d_sae: int = 8, **changes) -> RunDictionary:
    config = DictionaryConfig(
        kind, "relu", 8, 8, d_sae, recipe={"alpha": 1.0, "ratio": 1.0, "seed": 0, "lr": 1.0} | changes
    )
    name = json.dumps([source, kind, d_sae, changes])
    return RunDictionary("subject", "resid_post.1", name, Path(source, "resid_post.1", name), config)


def test_neighbours_are_consecutive_along_one_axis():
    alphas = [member(alpha=a) for a in (1.0, 4.0, 2.0)]
    assert {(recipe(a)["alpha"], recipe(b)["alpha"]) for a, b in neighbours(alphas)} == {(1, 2), (4, 2)}
    seeds = [member(seed=s) for s in range(3)]
    assert len(list(neighbours(seeds))) == 3
    widths = [member(ratio=r, d_sae=int(8 * r), lr=1 / r) for r in (1.0, 2.0, 4.0)]
    assert len(list(neighbours(widths))) == 2
    assert not list(neighbours([member(), member(alpha=2.0, seed=1)]))
    assert not list(neighbours([member(), member("second", alpha=2.0)]))
    assert not list(neighbours([member(kind="random"), member(kind="random", d_sae=16)]))


def test_table():
    base = {"model": "subject", "site": "resid_post.1", "other": "", "n": 9, "over": "documents", "reason": ""}
    rows = [
        {**base, "name": "sae", "metric": "fvu", "value": 0.12345, "low": 0.1, "high": 0.2},
        {**base, "name": "sae", "metric": "ce", "value": None, "low": None, "high": None, "reason": "at chance"},
        {**base, "name": "pca", "metric": "ce", "value": None, "low": None, "high": None, "reason": "at chance"},
        {**base, "name": "sae", "metric": "mmcs", "other": "pca", "value": 1.0, "low": None, "high": None},
        {**base, "name": "pca", "metric": "l0", "value": 4.0, "low": None, "high": None, "reason": "one only"},
    ]
    lines = table(rows, ["fvu", "ce", "l0", "mmcs"]).splitlines()
    assert lines[0].split() == ["model", "site", "dictionary", "fvu", "ce", "l0", "mmcs"]
    assert lines[1].split() == ["over", "documents"]
    assert lines[2].split() == ["subject", "resid_post.1", "sae", "0.1235", "[0.1,", "0.2]", "n/a", "(1)", "–", "–"]
    assert lines[3].split() == ["subject", "resid_post.1", "pca", "–", "n/a", "(1)", "4", "(2)", "–"]
    assert lines[4:] == ["(1) at chance", "(2) one only"]
    assert lines[0].index("ce") == lines[2].index("n/a")
