import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.planted import MemoryStream, planted
from helpers.site_facts import site_facts
from helpers.tiny_harvests import corpus_of, make_lm
from safetensors.torch import load_file, save

from monolex.activations import outliers
from monolex.activations.norms import centre
from monolex.activations.reader import Reader
from monolex.artifact import MANIFEST, finish, open_artifact, read_json, verify, write_bytes
from monolex.dictionaries.base import Dictionary, load
from monolex.errors import UserError
from monolex.interrupt import interruptible, stoppable
from monolex.text.corpus import build
from monolex.train_config import TrainConfig
from monolex.training.data import TrainingData, model_source, stored_source
from monolex.training.trainer import checkpoint_steps, train, train_from

CONFIG = TrainConfig(
    kinds=("tied", "untied", "topk", "batchtopk"),
    alphas=(1e-2,),
    ks=(2,),
    ratios=(2.0,),
    preset="modern",
    steps=23,
    batch_size=16,
    dead_after=64,
    keep_checkpoints=2,
    save_every=4,
    log_every=6,
    train_device="cpu",
)


class Killed(Exception):
    pass


def source(before=lambda _step: None, scale: float = 1.0) -> TrainingData:
    x = {site: planted(512, d_in=d, seed=d).x * scale for site, d in (("a", 7), ("b", 8))}
    return TrainingData(
        MemoryStream(x, 16, before), {"a": 7, "b": 8}, content=f"toy{scale}", model="toy", fingerprint="f"
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def dying_at(*steps: int):
    left = set(steps)

    def before(step: int) -> None:
        if step in left:
            left.remove(step)
            raise Killed

    return before


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    train_from(folder, source(), CONFIG)
    return folder


def test_folder_is_a_whole_sweep(whole):
    manifest = verify(whole)
    assert manifest.parents == {"activations": "toy1.0"}
    assert not (whole / "state").exists()
    assert set(contents(whole)) == {*manifest.files, MANIFEST}
    table = json.loads((whole / "members.json").read_text())
    assert table == manifest.data["members"] and len(table) == 8
    for row in table:
        found = load(whole / row["path"])
        assert (found.config.site, found.config.kind, found.d_sae) == (row["site"], row["kind"], row["d_sae"])
        assert (found.config.model, found.config.model_fingerprint) == ("toy", "f")
        assert found.config.recipe["rows_seen"] == 23 * 16
        assert 0 < row["mse"] < 1 and row["path"] == f"{row['site']}/{row['name']}"
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in lines}) == [6, 12, 18, 23]
    assert len(lines) == 4 * 8 and lines[0]["rows"] == 6 * 16


@pytest.mark.parametrize("steps", [(3,), (5, 6, 22), (4, 8, 17)])
def test_interrupted_run_writes_the_same_bytes(whole, tmp_path, steps):
    stream = source(dying_at(*steps))
    for _ in steps:
        with pytest.raises(Killed):
            train_from(tmp_path, stream, CONFIG)
        assert not (tmp_path / MANIFEST).exists()
    train_from(tmp_path, stream, CONFIG)
    assert contents(tmp_path) == contents(whole)


def test_resume_does_not_repeat_what_was_saved(tmp_path):
    served: list[int] = []
    with pytest.raises(Killed):
        train_from(tmp_path, source(dying_at(11)), CONFIG)
    train_from(tmp_path, source(served.append), CONFIG)
    assert served == list(range(8, 23))


def test_killed_process_resumes_to_the_same_bytes(whole, tmp_path):
    script = """
        import os, runpy, signal, sys
        from pathlib import Path
        test = runpy.run_path(sys.argv[1])
        def before(step):
            if step == 14:
                os.kill(os.getpid(), signal.SIGKILL)
        test["train_from"](Path(sys.argv[2]), test["source"](before), test["CONFIG"])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), __file__, str(tmp_path)]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "state" / "state.json").exists()
    train_from(tmp_path, source(), CONFIG)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_save_the_state_of_that_step(whole, tmp_path, number):
    def before(step: int) -> None:
        if step == 9:
            signal.raise_signal(number)

    with stoppable(), pytest.raises(KeyboardInterrupt):
        train_from(tmp_path, source(before), CONFIG)
    served: list[int] = []
    train_from(tmp_path, source(served.append), CONFIG)
    assert served[0] == 10
    assert contents(tmp_path) == contents(whole)


def test_second_ctrl_c_interrupts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible() as event:
            signal.raise_signal(signal.SIGINT)
            assert event.is_set()
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_done_is_skipped_and_another_request_starts_afresh(tmp_path):
    served: list[int] = []
    train_from(tmp_path, source(served.append), CONFIG)
    first = contents(tmp_path)
    train_from(tmp_path, source(served.append), CONFIG)
    assert len(served) == 23 and contents(tmp_path) == first
    manifest = train_from(tmp_path, source(served.append, scale=2.0), CONFIG)
    assert len(served) == 46
    assert manifest.parents == {"activations": "toy2.0"}
    assert set(contents(tmp_path)) == {*manifest.files, MANIFEST}


def test_state_of_another_request_is_not_resumed(tmp_path):
    with pytest.raises(Killed):
        train_from(tmp_path, source(dying_at(10)), CONFIG)
    served: list[int] = []
    train_from(tmp_path, source(served.append, scale=2.0), CONFIG)
    assert served[0] == 0


def test_checkpoints_of_a_killed_request_are_not_those_of_the_next(tmp_path):
    """Nothing lists what a killed sweep had written, and a checkpoint looks like any other."""
    with pytest.raises(Killed):
        train_from(tmp_path / "a", source(dying_at(11)), CONFIG)
    assert (tmp_path / "a" / "checkpoints" / "8").is_dir()
    other = replace(CONFIG, keep_checkpoints=1)
    manifest = train_from(tmp_path / "a", source(), other)
    assert manifest.data["checkpoints"] == [5]
    assert {path.split("/")[1] for path in manifest.files if path.startswith("checkpoints/")} == {"5"}
    train_from(tmp_path / "b", source(), other)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_death_between_the_last_file_and_the_manifest_loses_no_step(whole, tmp_path, monkeypatch):
    """All dictionaries lie there; without a manifest they are nobody's, and the state is still what was saved."""

    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("monolex.training.trainer.finish", dies)
        train_from(tmp_path, source(), CONFIG)
    assert (tmp_path / "members.json").exists() and not (tmp_path / MANIFEST).exists()
    served: list[int] = []
    train_from(tmp_path, source(served.append), CONFIG)
    assert served == [20, 21, 22]
    assert contents(tmp_path) == contents(whole)


def test_death_while_an_older_sweep_is_cleared_leaves_no_older_answer(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "sweep")
    real = Path.unlink

    def dies(path, *arguments, **options):
        real(path, *arguments, **options)
        if path.name == "weights.safetensors":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", dies)
        train_from(tmp_path / "sweep", source(scale=2.0), CONFIG)
    assert not (tmp_path / "sweep" / MANIFEST).exists()
    train_from(tmp_path / "sweep", source(), CONFIG)
    assert contents(tmp_path / "sweep") == contents(whole)


def test_other_weights_at_the_same_place_are_another_start(whole, tmp_path):
    """The configuration names a folder; what lies in it is what was asked for."""
    start = tmp_path / "start"
    shutil.copytree(whole / "a" / "untied-a0.01-r2-s0", start)
    asked = replace(CONFIG, kinds=("untied",), init=str(start), steps=3)
    stream = TrainingData(source().stream, {"a": 7}, content="toy")
    first = train_from(tmp_path / "sweep", stream, asked)
    assert train_from(tmp_path / "sweep", stream, asked) == first
    weights = load(start)
    Dictionary(weights.config, {**weights.weights, "b_enc": weights.weights["b_enc"] + 0.1}).save(start)
    second = train_from(tmp_path / "sweep", stream, asked)
    assert second.request != first.request and second.content != first.content
    # what a dictionary says of itself is read too: its threshold, and the steps before
    facts = replace(weights.config, recipe={**weights.config.recipe, "steps_done": 7})
    Dictionary(facts, load(start).weights).save(start)
    third = train_from(tmp_path / "sweep", stream, asked)
    assert third.request not in (first.request, second.request)
    assert load(tmp_path / "sweep" / third.data["members"][0]["path"]).config.recipe["steps_before"] == 7


def test_folder_of_another_kind_is_left_alone(tmp_path):
    (tmp_path / "keep").write_text("x")
    entry = {"kind": "activations", "files": {"keep": {"bytes": 1, "sha256": ""}}}
    (tmp_path / MANIFEST).write_text(json.dumps(entry))
    with pytest.raises(UserError, match="holds an artefact of kind 'activations'"):
        train_from(tmp_path, source(), CONFIG)
    assert (tmp_path / "keep").exists()


def test_damaged_state_says_what_to_do(tmp_path):
    with pytest.raises(Killed):
        train_from(tmp_path, source(dying_at(11)), CONFIG)
    (part,) = (tmp_path / "state").rglob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cut short.*; delete .*state to train from the beginning"):
        train_from(tmp_path, source(), CONFIG)


def test_checkpoints_are_loadable_and_spaced_in_the_logarithm(whole):
    assert checkpoint_steps(10_000, 3) == [10, 100, 1000]
    assert checkpoint_steps(1, 5) == [] and checkpoint_steps(100, 0) == []
    assert len(checkpoint_steps(4, 50)) == 3
    steps = checkpoint_steps(23, 2)
    assert sorted(int(p.name) for p in (whole / "checkpoints").iterdir()) == steps
    name = json.loads((whole / "members.json").read_text())[0]["path"]
    early, late = load(whole / "checkpoints" / str(steps[0]) / name), load(whole / name)
    assert early.config.recipe["steps_done"] == steps[0]
    assert not torch.equal(early.W_dec, late.W_dec)


def rows(stream: TrainingData) -> dict[str, torch.Tensor]:
    """The activations that :func:`source` serves, to be spoiled."""
    assert isinstance(stream.stream, MemoryStream)
    return stream.stream.x


def spoiled_at(at: int) -> TrainingData:
    """Activations that are infinite from batch number ``at`` on."""

    def spoil(step: int) -> None:
        if step == at:
            for x in rows(stream).values():
                x.fill_(torch.inf)

    stream = source(spoil)
    return stream


def test_not_finite_keeps_the_last_good_state_and_names_it(tmp_path):
    message = r"tied-a0.01-r2-s0 at a is not finite at step 11 .*; the dictionaries of step 8 are kept in .*last_good"
    with pytest.raises(UserError, match=message):
        train_from(tmp_path, spoiled_at(10), CONFIG)
    assert not (tmp_path / MANIFEST).exists()
    steps = {json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()}
    assert steps == {6}
    fresh = tmp_path / "fresh"
    bad = source()
    rows(bad)["a"].fill_(torch.inf)
    with pytest.raises(UserError, match="at step 1 .*; nothing had been saved before"):
        train_from(fresh, bad, CONFIG)
    assert not (fresh / "last_good").exists()


@pytest.mark.parametrize("save_every", [4, 100], ids=["state", "checkpoint"])
def test_the_last_good_dictionaries_outlive_the_advice_that_they_are_for(whole, tmp_path, save_every):
    with pytest.raises(UserError, match="dictionaries of step 8 are kept"):
        train_from(tmp_path, spoiled_at(10), replace(CONFIG, save_every=save_every))
    good = contents(tmp_path / "last_good")
    assert good == contents(whole / "checkpoints" / "8")
    path = tmp_path / "last_good" / "a" / "untied-a0.01-r2-s0"
    only_a = replace(CONFIG, kinds=("untied",), lrs=(1e-4,), init=str(path), steps=5)
    stream = TrainingData(source().stream, {"a": 7}, content="toy")
    assert train_from(tmp_path, stream, only_a).data["steps"] == 5
    assert contents(tmp_path / "last_good") == good
    verify(tmp_path)
    with pytest.raises(UserError, match=r"dictionaries of step 4 are kept"):
        train_from(tmp_path, spoiled_at(5), replace(CONFIG, keep_checkpoints=0, data_seed=1))
    assert load(path).config.recipe["steps_done"] == 4


def test_state_is_never_overwritten_with_numbers_that_are_not_finite(tmp_path):
    def spoil(step: int) -> None:
        if step == 10:
            rows(stream)["b"].fill_(torch.nan)

    stream = source(spoil)
    with pytest.raises(UserError, match=r"at b is not finite at step 11 .* of step 8 "):
        train_from(tmp_path, stream, replace(CONFIG, log_every=1000, keep_checkpoints=0))
    assert read_json(tmp_path / "state" / "state.json")["step"] == 8
    (part,) = (tmp_path / "state" / "8").iterdir()
    assert all(tensor.isfinite().all() for tensor in load_file(part).values())


def test_init_is_the_same_however_its_path_is_spelled(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(whole)
    fields = {"kinds": ("topk",), "ks": (2,), "ratios": (2.0,), "steps": 1, "batch_size": 16, "train_device": "cpu"}
    only_b = TrainingData(source().stream, {"b": 8}, content="toy")
    spelled = ("b/topk-k2-r2-s0", f"{whole}/b/./topk-k2-r2-s0/")
    made = [train_from(tmp_path, only_b, TrainConfig(**fields, init=init)) for init in spelled]
    assert made[0].request == made[1].request and made[0].config["init"] == str(whole / "b" / "topk-k2-r2-s0")


def test_init_continues_from_a_dictionary(whole, tmp_path):
    start = whole / "b" / "topk-k2-r2-s0"
    fields = {"kinds": ("topk",), "preset": "modern", "ks": (2,), "ratios": (2.0,), "steps": 1, "batch_size": 16}
    made = TrainConfig(**fields, lrs=(1e-9,), init=str(start), train_device="cpu")
    only_b = source()
    only_b = TrainingData(only_b.stream, {"b": 8}, content="toy")
    manifest = train_from(tmp_path, only_b, made)
    assert set(manifest.parents) == {"activations", "init"}
    made_of, continued = load(start), load(tmp_path / "b" / "topk-k2-r2-s0")
    torch.testing.assert_close(continued.weights, made_of.weights, rtol=1e-5, atol=1e-6)
    # with a rate of its own it moves on from there by a step of Adam, where a fresh start is nowhere near
    moving, fresh = (replace(made, lrs=(1e-3,), init=init) for init in (made.init, None))
    distances = []
    for name, asked in (("moved", moving), ("fresh", fresh)):
        train_from(tmp_path / name, only_b, asked)
        ends = load(tmp_path / name / "b" / "topk-k2-r2-s0").W_enc, made_of.W_enc
        distances.append(float((ends[0] - ends[1]).abs().max()))
    assert 1e-4 < distances[0] < 5e-3 < 5e-2 < distances[1]
    with pytest.raises(UserError, match=r"is topk at b .* but member topk-k2-r2-s0 is topk at a"):
        train_from(tmp_path / "x", source(), made)
    with pytest.raises(UserError, match="holds no dictionary"):
        train_from(tmp_path / "y", only_b, TrainConfig(**fields, init=str(tmp_path / "nowhere"), train_device="cpu"))


def test_epochs_set_the_steps(tmp_path):
    made = TrainConfig(alphas=(1e-3,), ratios=(1.0,), epochs=0.25, batch_size=16, train_device="cpu")
    assert train_from(tmp_path, source(), made).data["steps"] == 512 // 16 // 4
    assert open_artifact(tmp_path, "sweep").data["rows"] == 8 * 16


def stored(folder: Path, rows: int) -> Path:
    """An activations artefact of one site, as the harvest writes it."""
    folder.mkdir()
    x = planted(rows, d_in=8).x
    tensors = {"resid_post.0/train-00000.safetensors": {"activations": x.half(), "norms": x.norm(dim=1)}}
    ids, part = torch.arange(rows, dtype=torch.int32), "rows/train-00000.safetensors"
    tensors[part] = {
        "tokens": ids,
        "docs": ids // 8,
        "positions": ids % 8,
        "contexts": ids // 4,
    }
    data = {
        "model": {"name": "toy", "fingerprint": "f"},
        "sites": {"resid_post.0": {**site_facts(8), "median_norm": float(x.norm(dim=1).median())}},
        "rows": {"train": rows, "held_out": 0},
        "shards": {"train": [rows], "held_out": []},
    }
    tensors[outliers.FILE] = {split: torch.empty(0, dtype=torch.int64) for split in ("train", "held_out")}
    files = {name: write_bytes(folder / name, save(values)) for name, values in tensors.items()}
    finish(folder, "activations", {}, {}, files, data)
    return folder


def test_train_straight_from_the_model(tmp_path):
    lm = make_lm()
    text = build(corpus_of(tmp_path, held_out=0.0), lm.tokenizer)  # pyright: ignore[reportArgumentType]
    made = TrainConfig(sites=("resid_post.0", "mlp_act.*"), ratios=(1.0,), batch_size=32, buffer_rows=256, steps=6)
    stream = model_source(lm, text.train, made, batch_rows=4)
    assert dict(stream.sites) == {"resid_post.0": 32, "mlp_act.0": 48, "mlp_act.1": 48, "mlp_act.2": 48}
    manifest = train_from(tmp_path / "sweep", stream, made)
    assert manifest.data["mixing"]["ratio"] > 0.5 and len(manifest.data["members"]) == 4
    found = load(tmp_path / "sweep" / "mlp_act.1" / "tied-a8.6e-4-r1-s0").config
    assert (found.model, found.model_fingerprint) == (lm.name, lm.fingerprint)
    again = model_source(lm, text.train, made, batch_rows=8)
    assert train_from(tmp_path / "sweep", again, made) == manifest
    assert model_source(lm, text.train, replace(made, data_seed=1)).content != again.content
    with pytest.raises(UserError, match="sites is empty"):
        model_source(lm, text.train, TrainConfig())


def test_train_reads_a_stored_harvest(tmp_path):
    activations = stored(tmp_path / "activations", 128)
    made = TrainConfig(alphas=(1e-3,), ratios=(1.0,), batch_size=32, buffer_rows=64, epochs=2, train_device="cpu")
    manifest = train(tmp_path / "sweep", activations, made)
    assert manifest.parents == {"activations": open_artifact(activations).content}
    assert manifest.data["steps"] == 8 and manifest.data["sites"] == {"resid_post.0": 8}
    found = load(tmp_path / "sweep" / manifest.data["members"][0]["path"])
    assert (found.config.model, found.config.site) == ("toy", "resid_post.0")
    with pytest.raises(UserError, match="batch_size = 129 but .* has 128 training rows"):
        train(tmp_path / "x", activations, TrainConfig(batch_size=129))
    with pytest.raises(UserError, match="holds no site 'mlp_out.9'"):
        train(tmp_path / "x", activations, TrainConfig(sites=("mlp_out.9",)))


def test_a_sweep_knows_what_is_usual_of_all_rows(tmp_path):
    """The unit is the median norm that the harvest wrote down, the centre the geometric median."""
    activations, lm = stored(tmp_path / "activations", 128), make_lm()
    made = TrainConfig(batch_size=32, buffer_rows=64, train_device="cpu")
    known = stored_source(activations, made).usual["resid_post.0"]
    reader = Reader(activations, "resid_post.0")
    assert known.norm == reader.median_norm
    assert torch.allclose(known.centre, centre(reader.read(0, 128)), atol=1e-3)
    text = build(corpus_of(tmp_path, held_out=0.0), lm.tokenizer)  # pyright: ignore[reportArgumentType]
    live = model_source(lm, text.train, replace(made, sites=("resid_post.0", "mlp_act.1"), buffer_rows=256))
    assert {site: len(usual.centre) for site, usual in live.usual.items()} == {"resid_post.0": 32, "mlp_act.1": 48}


def test_a_sweep_says_what_is_doubtful_of_its_dictionaries(tmp_path, caplog):
    made = replace(CONFIG, kinds=("tied",), alphas=(1e-2, 1e3), lrs=(0.03,), preset="paper", keep_checkpoints=0)
    manifest = train_from(tmp_path, replace(source(), warnings=("c is left out",)), made)
    ruined = [member["path"] for member in manifest.data["members"] if member["alpha"] == 1e3]
    said = manifest.data["warnings"]
    assert said[0] == "c is left out" and {line.partition(":")[0] for line in said[1:]} == set(ruined)
    assert all(line in caplog.text for line in said)
