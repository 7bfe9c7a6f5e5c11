"""A whole run on a tiny model: stages, skipping, redoing what changed, the plan, and what `show` prints of it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.model_folder import tiny_folder

from monolex import estimate
from monolex.artifact import MANIFEST, open_artifact, verify, write_json
from monolex.cli import main
from monolex.demo.subjects import SUBJECTS
from monolex.errors import UserError
from monolex.estimate import LIBRARIES, costs, jobs_for, model_shape
from monolex.pipeline import _do, settled
from monolex.plan import plan
from monolex.run_toml import read_run
from monolex.runtime import size
from monolex.show.path import show
from monolex.speed import Speed
from monolex.stages import of_verb
from monolex.training.members import members

TOML = """
[model]
model = "{model}"
[corpus]
corpus = "{text}"
context_length = 16
max_tokens = 6000
held_out = 0.3
[harvest]
sites = ["resid_post.*", "mlp_act.1"]
[train.residual]
sites = ["resid_post.1"]
kinds = ["tied", "batchtopk"]
alphas = [0.0, 0.01]
ks = [4]
ratios = [2.0]
seeds = [0, 1]
batch_size = 64
steps = 6
[train.mlp]
sites = ["mlp_act.*"]
kinds = ["untied"]
ratios = [0.5]
batch_size = 64
steps = 3
[baselines.all]
kinds = ["neurons", "pca", "pca-topk", "random-topk"]
match = ["residual", "mlp"]
ratio = 2.0
[controls]
models = ["random", "shuffled"]
[controls.train.small]
sites = ["resid_post.1"]
ratios = [2.0]
batch_size = 64
steps = 3
[features]
dictionaries = ["batchtopk-*", "neurons"]
fragment_tokens = 8
[eval]
rows = 400
contexts = 6
resamples = 20
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    lines = [{"text": f"document {n} says that {n * 37 % 11} cats sat on {n % 5} mats . " * 6} for n in range(60)]
    (home / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    model = tiny_folder(home / "model")
    (home / "run.toml").write_text(TOML.format(model=model, text=home / "text.jsonl"))
    assert main(["run", str(home / "run.toml"), "--out", str(home / "out")]) == 0
    return home


@pytest.fixture
def run(made, tmp_path):
    """A copy of the finished run that a test may change."""
    shutil.copytree(made / "out", tmp_path / "out")
    shutil.copy(made / "run.toml", tmp_path / "run.toml")
    return tmp_path


def stamps(folder):
    return {p.parent.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("manifest.json")}


def test_every_stage_is_there_and_whole(made):
    out = made / "out"
    kinds = {name: verify(out / name).kind for name in stamps(out)}
    assert kinds == {
        "activations": "activations",
        "train/residual": "sweep",
        "train/mlp": "sweep",
        "baselines/all": "baselines",
        "controls/random/activations": "activations",
        "controls/random/train/small": "sweep",
        "controls/shuffled/activations": "activations",
        "controls/shuffled/train/small": "sweep",
        "eval": "eval",
        "features": "features",
    }
    assert (out / "report.html").stat().st_size > 10_000
    assert set(json.loads((out / "timings.json").read_text())) == set(kinds)
    assert "<h1>Features of model (GPTNeoX, " in (out / "report.html").read_text(encoding="utf-8")
    control = open_artifact(out / "controls" / "random" / "activations")
    assert list(control.data["sites"]) == ["resid_post.1"]
    assert control.data["model"]["fingerprint"] != open_artifact(out / "activations").data["model"]["fingerprint"]


def test_names_of_files_are_names_on_windows_too(made):
    names = [path.name for path in (made / "out").rglob("*")]
    assert len(names) > 50
    assert [name for name in names if set(name) & set('<>:"/\\|?*') or name[-1] in ". "] == []


def test_a_second_run_does_nothing_again(run):
    before = stamps(run / "out")
    assert main(["run", str(run / "run.toml"), "--out", str(run / "out")]) == 0
    assert stamps(run / "out") == before


def test_steps_that_are_done_at_the_same_time_make_the_same(made, run):
    """With as many threads a step as one alone has. Two of the steps follow each other, beside two others."""
    alone, together = made / "out", run / "out"
    redone = {"controls/random/activations", "controls/random/train/small", "train/mlp", "features"}
    for name in redone:
        shutil.rmtree(together / name)
    (together / "timings.json").unlink()
    assert main(["run", str(made / "run.toml"), "--out", str(together), "--jobs", "2"]) == 0
    manifests = sorted(path.relative_to(alone) for path in alone.rglob(MANIFEST))
    assert manifests == sorted(path.relative_to(together) for path in together.rglob(MANIFEST))
    different = [p for p in manifests if verify(alone / p.parent).content != verify(together / p.parent).content]
    assert not different
    assert json.loads((together / "timings.json").read_text()).keys() == redone


def test_jobs_are_at_least_one(made, tmp_path, capsys):
    assert main(["run", str(made / "run.toml"), "--out", str(tmp_path / "run"), "--jobs", "0"]) == 2
    assert capsys.readouterr().err == "monolex: jobs must be at least 1, not 0\n"


def test_a_changed_table_redoes_its_stage_and_what_stands_on_it(run):
    before = stamps(run / "out")
    toml = (run / "run.toml").read_text().replace("ratios = [0.5]", "ratios = [0.25]")
    (run / "run.toml").write_text(toml)
    assert main(["run", str(run / "run.toml"), "--out", str(run / "out")]) == 0
    after = stamps(run / "out")
    assert {name for name in before if before[name] != after[name]} == {
        "train/mlp",
        "baselines/all",
        "eval",
        "features",
    }
    assert (run / "out" / "run.toml").read_text() == toml


def test_what_was_made_of_something_else_is_to_do(run):
    """A parent that was made again by a command of its own."""
    folder = run / "out" / "eval"
    manifest = open_artifact(folder)
    parents = {**manifest.parents, "subject.source.0": "0" * 64}
    other = dataclasses.replace(manifest, parents=parents)
    config = settled(read_run(run / "run.toml"), run / "out")
    assert all(step.answered for step in plan(config, run / "out"))
    write_json(folder / MANIFEST, {**dataclasses.asdict(other), "content": other.content})
    assert [step.name for step in plan(config, run / "out") if not step.answered] == ["eval"]


def test_a_run_can_be_moved_and_run_from_its_own_folder(run):
    shutil.move(run / "out", run / "moved")
    before = stamps(run / "moved")
    assert main(["run", str(run / "moved" / "run.toml")]) == 0
    assert stamps(run / "moved") == before


def test_another_spelling_of_the_paths_is_the_same_request(made, run, monkeypatch):
    before = stamps(run / "out")
    monkeypatch.chdir(made)
    (run / "run.toml").write_text(TOML.format(model="./model", text="../" + made.name + "/text.jsonl"))
    assert main(["run", str(run / "run.toml"), "--out", str(run / "out")]) == 0
    assert stamps(run / "out") == before
    data = open_artifact(run / "out" / "activations").data
    assert data["model"]["model_config"]["model"] == str(made / "model")


def test_a_harvest_from_relative_paths_is_found_from_anywhere(made, tmp_path, monkeypatch):
    sites = ["--sites", "resid_post.1", "--context-length", "16", "--max-tokens", "3000", "--held-out", "0.3"]
    monkeypatch.chdir(made)
    acts, found = str(tmp_path / "acts"), []
    for model, text in (("model", "text.jsonl"), ("./model", f"{made}/text.jsonl")):
        assert main(["harvest", acts, "--model", model, "--corpus", text, *sites]) == 0
        found.append(stamps(tmp_path / "acts"))
    assert found[0] == found[1]
    monkeypatch.chdir(tmp_path)
    assert main(["baselines", "acts", "pca", "--kinds", "pca"]) == 0
    assert main(["eval", "acts", "eval", "pca", "--rows", "50", "--contexts", "2", "--resamples", "5"]) == 0


def test_a_run_toml_that_was_edited_in_the_run_is_kept(run):
    mine = (run / "run.toml").read_text() + "# by hand\n"
    (run / "out" / "run.toml").write_text(mine)
    assert main(["run", str(run / "run.toml"), "--out", str(run / "out")]) == 0
    assert (run / "out" / "run.toml").read_text() == (run / "run.toml").read_text()
    assert [path.read_text() for path in (run / "out").glob("run-*.toml")] == [mine]
    assert main(["run", str(run / "run.toml"), "--out", str(run / "out")]) == 0
    assert len(list((run / "out").glob("run-*.toml"))) == 1


def test_the_demo_goes_on_with_its_own_run_toml_only(tmp_path, capsys):
    (tmp_path / "run.toml").write_bytes(SUBJECTS["demo"].toml.read_bytes())
    assert main(["demo", "--out", str(tmp_path), "--dry-run"]) == 0
    (tmp_path / "run.toml").write_text(mine := "# by hand\n")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert f"`monolex run {tmp_path}`" in capsys.readouterr().err
    assert (tmp_path / "run.toml").read_text() == mine


def test_what_run_toml_no_longer_lists_is_no_part_of_the_report(run):
    toml = (run / "run.toml").read_text()
    start = toml.index("[train.mlp]")
    less = toml[:start] + toml[toml.index("[baselines.all]") :].replace('["residual", "mlp"]', '["residual"]')
    (run / "out" / "run.toml").write_text(less)
    assert main(["report", str(run / "out")]) == 0
    page = (run / "out" / "report.html").read_text()
    assert "no longer in run.toml: train/mlp)" in page and "Configuration of train/mlp" in page
    assert main(["run", str(run / "out")]) == 0
    page = (run / "out" / "report.html").read_text()
    assert "The evaluation is not of" not in page and "train/mlp" not in page
    assert "Configuration of train/residual" in page and (run / "out" / "train" / "mlp").exists()


def test_show_verifies_every_artefact_of_a_run(run, capsys):
    assert main(["show", str(run / "out"), "--verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(stamps(run / "out")) and all(line.endswith(", whole") for line in lines)
    victim = run / "out" / "eval" / "metrics.json"
    victim.write_bytes(victim.read_bytes().replace(b"0", b"1", 1))
    assert main(["show", str(run / "out"), "--verify"]) == 2
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == len(lines) - 1
    assert error == f"monolex: {victim} has changed since it was written; run its stage again\n"


def test_a_dry_run_says_what_it_costs_and_does_nothing(made, tmp_path, capsys):
    assert main(["run", str(made / "run.toml"), "--out", str(tmp_path / "new"), "--dry-run", "--jobs", "1"]) == 0
    plan = capsys.readouterr().out
    for stage in ("harvest", "train residual", "train mlp", "baselines all", "harvest shuffled", "eval", "in all"):
        assert f"\n{stage} " in plan
    assert "to do" in plan and not (tmp_path / "new").exists()
    assert main(["run", str(made / "run.toml"), "--out", str(made / "out"), "--dry-run"]) == 0
    assert "to do" not in capsys.readouterr().out


def test_a_plan_of_several_jobs_is_shorter_and_takes_the_memory_of_as_many(made, tmp_path):
    config = read_run(made / "run.toml")
    steps = plan(config, tmp_path)
    each = [cost.memory for cost in costs(config, steps, model_shape(config.model))]
    speed = Speed(measured=False)
    alone, two = (str(estimate.estimate(config, steps, jobs, speed)).splitlines() for jobs in (1, 2))
    assert alone[1 : len(steps) + 1] == two[1 : len(steps) + 1]
    assert two[len(steps) + 1].startswith("in all, 2 jobs") and alone[len(steps) + 1].startswith("in all  ")
    assert size(sum(sorted(each)[-2:]) + LIBRARIES) in two[len(steps) + 1] and size(max(each)) in alone[len(steps) + 1]


@pytest.mark.parametrize(
    ("parameters", "device", "free", "jobs"),
    [(10**6, "cpu", 2**40, 3), (10**6, "cpu", 2**30, 1), (10**9, "cpu", 2**40, 1), (10**6, "meta", 2**40, 1)],
)
def test_jobs_go_with_the_model_and_what_is_free(parameters, device, free, jobs, made, tmp_path, monkeypatch):
    config = read_run(made / "run.toml")
    shape = dataclasses.replace(model_shape(config.model), parameters=parameters)
    monkeypatch.setattr(estimate, "model_shape", lambda _model: shape)
    monkeypatch.setattr(estimate, "device", lambda _name: torch.device(device))
    monkeypatch.setattr(estimate, "free_memory", lambda _where: free)
    monkeypatch.setattr(estimate, "cores", lambda: 3)
    assert jobs_for(config, plan(config, tmp_path)) == jobs


def test_a_step_has_its_share_of_the_threads(tmp_path):
    threads = []

    class Noted:
        draw = ""

        def load(self, _what):
            return lambda _folder, **_: threads.append(torch.get_num_threads())

    step: Any = SimpleNamespace(stage=Noted(), folder=tmp_path, config=None, inputs={})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for share in (1, 2, 9):
            _do(step, "said", share)
        assert threads == [4, 2, 1] and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_the_estimate_of_disk_is_near_what_is_written(made):
    config = read_run(made / "run.toml")
    stages = plan(config, made / "out")
    for stage, cost in zip(stages, costs(config, stages, model_shape(config.model)), strict=True):
        written = sum(p.stat().st_size for p in stage.folder.rglob("*") if p.is_file())
        assert 0.5 < cost.disk / written < 2, stage.name


def test_show_prints_everything_a_run_wrote(made):
    out = made / "out"
    text = show(out)
    for words in (
        "activations, ",
        "sweep, ",
        "baselines, ",
        "eval, ",
        "tied-a0.01-r2-s0",
        "pca-topk-k",
        "resid_post.1",
    ):
        assert words in text
    member = out / "train" / "residual" / "resid_post.1" / "batchtopk-k4-r2-s1"
    assert "d_sae=64" in show(member) and '"threshold"' in show(member)
    assert "W_dec" in show(member / "weights.safetensors")
    assert "fvu" in show(out / "train" / "residual" / "metrics.jsonl")
    assert '"metric"' in show(out / "eval" / "metrics.json")
    assert "activations" in show(out / "activations" / "resid_post.1" / "train-00000.safetensors")


def test_show_refuses_what_monolex_did_not_write(tmp_path):
    with pytest.raises(UserError, match="nothing monolex wrote"):
        show(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(UserError, match="is damaged"):
        show(tmp_path / "x.safetensors")


def test_the_demo_is_a_valid_run():
    config = read_run(SUBJECTS["demo"].toml)
    names = [stage.name for stage in plan(config, SUBJECTS["demo"].toml.parent)]
    last = ["eval", "features", "patch ioi", "ablate def", "tree def", "explain demo", "score demo"]
    assert names[0] == "harvest" and names[-7:] == last
    assert {"train residual", "train mlp", "train seeds", "train random mlp", "baselines shuffled pca"} <= set(names)


HEAD = """
[model]
model = "demo"
[harvest]
sites = ["resid_post.1", "resid_post.2"]
"""


def parsed(tmp_path, toml):
    (tmp_path / "run.toml").write_text(HEAD + toml)
    return read_run(tmp_path / "run.toml")


def step_names(run):
    return [step.name for step in plan(run, Path("run"))]


@pytest.mark.parametrize("table", ["train", "baselines"])
def test_a_table_without_named_ones_is_one_called_main(tmp_path, table):
    run = parsed(tmp_path, f"[{table}]\n")
    assert step_names(run) == ["harvest", f"{table} main", "eval"]
    assert run.tables[table]["main"] == of_verb(table).load("config")()


def test_values_beside_named_tables_are_shared_and_no_sweep(tmp_path):
    toml = "[train]\nratios = [2.0]\n[train.long]\nepochs = 3.0\n"
    run = parsed(tmp_path, toml)
    assert set(run.tables["train"]) == {"long"}
    assert run.tables["train"]["long"].ratios == (2.0,)
    wrong = parsed(tmp_path, toml + '[baselines]\nmatch = ["main"]\n')
    sentence = "match of [baselines.main] names 'main'; the sweeps are long (values in [train] beside [train.long] are "
    with pytest.raises(UserError, match=re.escape(sentence)):
        plan(wrong, Path("run"))


def test_controls_train_without_named_tables_is_one_sweep_with_what_train_shares(tmp_path):
    run = parsed(tmp_path, "[train]\nratios = [2.0]\nks = [4]\n[controls.train]\nkinds = ['topk']\n")
    sweeps = run.controls.tables["train"]
    assert set(sweeps) == {"main"}
    assert (sweeps["main"].ratios, sweeps["main"].ks, sweeps["main"].kinds) == ((2.0,), (4,), ("topk",))
    assert "train random main" in step_names(run)


def test_controls_baselines_have_what_baselines_share(tmp_path):
    toml = "[train.long]\n[baselines]\nratio = 2.0\nmatch = ['long']\n[baselines.all]\n"
    toml += "[controls.train.small]\n[controls.baselines.all]\n{}"
    run = parsed(tmp_path, toml.format(""))
    of_controls, of_subject = run.controls.tables["baselines"]["all"], run.tables["baselines"]["all"]
    assert of_controls.ratio == of_subject.ratio == 2.0
    assert (of_controls.match, of_subject.match) == ((), ("long",)), "sweeps of controls have names of their own"
    sentence = "match of [controls.baselines.all] names 'long'; the sweeps are small"
    with pytest.raises(UserError, match=re.escape(sentence)):
        plan(parsed(tmp_path, toml.format("match = ['long']\n")), Path("run"))


def test_a_key_that_controls_do_not_have_is_refused(tmp_path):
    hints = {"tables": "known keys: models, control_seed, train, baselines", "trian": "did you mean 'train'"}
    for key, hint in hints.items():
        with pytest.raises(UserError, match=rf"\[controls\]: unknown key '{key}'; {hint}"):
            parsed(tmp_path, f"[train]\n[controls.{key}]\nks = [4]\n")


def test_controls_with_models_alone_train_the_smallest_member_of_every_sweep(tmp_path):
    run = parsed(
        tmp_path,
        """
[train.wide]
sites = ["resid_post.2"]
kinds = ["batchtopk", "tied"]
ks = [24, 8]
alphas = [0.1, 0.2]
ratios = [4.0, 2.0]
seeds = [3, 0]
lrs = [0.01, 0.001]
keep_checkpoints = 2
[train.plain]
sites = ["resid_post.2"]
kinds = ["tied", "topk"]
auxk = 0.1
[controls]
models = ["shuffled"]
""",
    )
    wide = run.controls.tables["train"]["wide"]
    widths = {"resid_post.2": 64}
    (member,) = members(wide, widths)
    assert (member.name, member.lr, wide.keep_checkpoints) == ("batchtopk-k24-r2-s3", 0.01, 0)
    assert [m.name for m in members(run.controls.tables["train"]["plain"], {"resid_post.2": 8})] == [
        "tied-a8.6e-4-r4-s0"
    ]
    names = step_names(run)
    assert [name for name in names if "shuffled" in name] == [
        "harvest shuffled",
        "train shuffled wide",
        "train shuffled plain",
    ]
    (harvest,) = [step for step in plan(run, Path("run")) if step.name == "harvest shuffled"]
    assert harvest.config.sites == ("resid_post.2",)
