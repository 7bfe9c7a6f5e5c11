"""Wrong input of every kind: one sentence on stderr, exit code 2, and what was there before is still there."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.model_folder import tiny_folder

from monolex.artifact import read_json, verify
from monolex.cli import main

HARVEST = ["--sites", "resid_post.1", "--context-length", "16", "--max-tokens", "3000"]
TRAIN = ["--batch-size", "64", "--steps", "4", "--ratios", "2"]


class World(NamedTuple):
    """What every case may use, and a folder of its own."""

    here: Path
    model: Path
    text: Path
    acts: Path
    sweep: Path

    def copy(self, what: Path) -> Path:
        return Path(shutil.copytree(what, self.here / f"copy-{what.name}"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    home = tmp_path_factory.mktemp("world")
    text = home / "text.jsonl"
    lines = [{"text": f"document {n} says that {n * 37 % 11} cats sat on {n % 5} mats . " * 6} for n in range(40)]
    text.write_text("\n".join(map(json.dumps, lines)))
    model = tiny_folder(home / "model")
    assert main(["harvest", str(home / "acts"), "--model", str(model), "--corpus", str(text), *HARVEST]) == 0
    assert main(["train", str(home / "acts"), str(home / "sweep"), *TRAIN]) == 0
    return home, model, text, home / "acts", home / "sweep"


@pytest.fixture
def world(shared, tmp_path):
    home, model, text, acts, sweep = shared
    return World(tmp_path, model, text, acts, sweep)


def harvest(w: World, *flags: str, model: Path | str | None = None, text: Path | str | None = None) -> list[str]:
    """A harvest that would succeed but for ``flags``, which take the place of those of the same name."""
    return [
        "harvest",
        str(w.here / "out"),
        "--model",
        str(model or w.model),
        "--corpus",
        str(text or w.text),
        *others(HARVEST, flags),
        *flags,
    ]


def others(defaults: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The options of ``defaults``, each with one value, that ``flags`` do not hold."""
    pairs = zip(defaults[::2], defaults[1::2], strict=True)
    return [text for option, value in pairs if option not in flags for text in (option, value)]


def train(w: World, *flags: str, acts: Path | None = None) -> list[str]:
    return ["train", str(acts or w.acts), str(w.here / "out"), *others(TRAIN, flags), *flags]


def run(w: World, toml: str, *flags: str) -> list[str]:
    path = w.here / "run.toml"
    path.write_text(toml)
    return ["run", str(path), *flags]


def model_without(w: World, *names: str) -> Path:
    folder = w.copy(w.model)
    for name in names:
        (folder / name).unlink()
    return folder


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def harvest_to(w: World, out: Path) -> list[str]:
    return ["harvest", str(out), "--model", str(w.model), "--corpus", str(w.text), *HARVEST]


def changed(w: World) -> Path:
    """A run of which one sweep holds a file of the right length with other content."""
    copy = w.copy(w.sweep)
    victim = next(copy.rglob("weights.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x01")
    return copy.parent


def truncated(w: World, folder: Path, pattern: str) -> Path:
    folder = w.copy(folder)
    victim = next(iter(sorted(folder.rglob(pattern))))
    victim.write_bytes(victim.read_bytes()[:-7])
    return folder


def inconsistent(w: World) -> Path:
    """A sweep whose member claims another width than its weights have."""
    folder = w.copy(w.sweep)
    path = next(folder.rglob("config.json"))
    path.write_text(path.read_text().replace('"d_sae": 64', '"d_sae": 65'))
    return path.parent


RUN = '[model]\nmodel = "m"\n[corpus]\ncorpus = "c"\n[harvest]\nsites = ["resid_post.0"]\n'

CASES: dict[str, tuple[Callable[[World], list[str]], str]] = {
    "site kind": (lambda w: harvest(w, "--sites", "residual.1"), "unknown kind 'residual'"),
    "site form": (lambda w: harvest(w, "--sites", "resid_post"), "write kind.layer"),
    "site layer": (lambda w: harvest(w, "--sites", "resid_post.9"), "there is no layer 9"),
    "site of another architecture": (lambda w: harvest(w, "--sites", "resid_mid.1"), "resid_mid does not exist"),
    "no site": (lambda w: harvest(w, "--sites"), "sites is empty"),
    "no such model": (lambda w: harvest(w, model=w.here / "nothing"), "there is no folder"),
    "model without weights": (
        lambda w: harvest(w, model=model_without(w, "model.safetensors")),
        "no safetensors weights",
    ),
    "model without configuration": (lambda w: harvest(w, model=model_without(w, "config.json")), "no configuration"),
    "model without tokenizer": (lambda w: harvest(w, model=model_without(w, "tokenizer.json")), "no tokenizer"),
    "no such device": (lambda w: harvest(w, "--device", "tpu9"), "not available here"),
    "no such corpus": (lambda w: harvest(w, text=w.here / "nothing.txt"), "nothing.txt"),
    "empty corpus": (lambda w: harvest(w, text=written(w.here / "a.txt", b"")), "empty"),
    "undecodable corpus": (lambda w: harvest(w, text=written(w.here / "a.txt", b"\xff\xfe\xfa" * 9)), "a.txt"),
    "text field": (lambda w: harvest(w, "--text-field", "body"), "body"),
    "context too long": (lambda w: harvest(w, "--context-length", "4096"), "4096"),
    "positions": (lambda w: harvest(w, "--positions", "90:"), "keeps no position"),
    "held out": (lambda w: harvest(w, "--held-out", "1.5"), "fraction of documents"),
    "max norm": (lambda w: harvest(w, "--max-norm", "0.5"), "multiple above 1"),
    "negative alpha": (lambda w: train(w, "--alphas", "-0.001"), "cannot be negative"),
    "auxk of relu kinds": (lambda w: train(w, "--auxk", "0.1"), "acts on topk, batchtopk, matryoshka"),
    "k above d_sae": (lambda w: train(w, "--kinds", "topk", "--ks", "1000"), "k = 1000"),
    "k zero": (lambda w: train(w, "--kinds", "topk", "--ks", "0"), "at least one feature"),
    "ratio": (lambda w: train(w, "--ratios", "0"), "must be positive"),
    "site not harvested": (lambda w: train(w, "--sites", "resid_post.0"), "resid_post.0"),
    "batch above rows": (lambda w: train(w, "--batch-size", "200000"), "batch_size = 200000"),
    "member twice": (lambda w: train(w, "--seeds", "1", "1"), "every value once"),
    "init is no dictionary": (lambda w: train(w, "--init", str(w.text.parent)), "holds no dictionary"),
    "init of another width": (
        lambda w: train(w, "--ratios", "3", "--init", str(next(w.sweep.rglob("weights.safetensors")).parent)),
        "but member",
    ),
    "diverging loss": (lambda w: train(w, "--alphas", "1e38"), "is not finite at step"),
    "truncated shard": (
        lambda w: train(w, acts=truncated(w, w.acts, "resid_post.1/*.safetensors")),
        "bytes instead of",
    ),
    "not activations": (lambda w: train(w, acts=w.sweep), "holds sweep, and activations is needed"),
    "nothing harvested": (lambda w: train(w, acts=w.here), "run its stage first"),
    "truncated weights": (lambda w: ["show", str(truncated(w, w.sweep, "weights.safetensors"))], "bytes instead of"),
    "weights that do not fit": (lambda w: ["show", str(inconsistent(w))], "should be (65, 32)"),
    "damaged manifest": (
        lambda w: ["show", str(written(w.copy(w.sweep) / "manifest.json", b"{").parent)],
        "is damaged",
    ),
    "baseline k": (
        lambda w: ["baselines", str(w.acts), str(w.here / "out"), "--kinds", "pca-topk", "--ks", "999"],
        "999",
    ),
    "eval without dictionaries": (
        lambda w: ["eval", str(w.acts), str(w.here / "out"), str(w.here)],
        "run its stage first",
    ),
    "another kind of artefact is there": (
        lambda w: ["baselines", str(w.acts), str(w.sweep), "--kinds", "pca"],
        "holds an artefact of kind 'sweep'",
    ),
    "harvest into a file": (
        lambda w: harvest_to(w, written(w.here / "a", b"")),
        "/a is a file where a folder is needed",
    ),
    "harvest below a file": (
        lambda w: harvest_to(w, written(w.here / "a", b"") / "b" / "c"),
        "/a is a file where a folder is needed",
    ),
    "train into a file": (
        lambda w: ["train", str(w.acts), str(written(w.here / "a", b"")), *TRAIN],
        "/a is a file where a folder is needed",
    ),
    "baselines into a file": (
        lambda w: ["baselines", str(w.acts), str(written(w.here / "a", b"")), "--kinds", "pca"],
        "/a is a file where a folder is needed",
    ),
    "eval into a file": (
        lambda w: ["eval", str(w.acts), str(written(w.here / "a", b"")), str(w.sweep)],
        "/a is a file where a folder is needed",
    ),
    "run into a file": (
        lambda w: run(w, RUN + "[train.x]\n", "--out", str(written(w.here / "a", b""))),
        "/a is a file where a folder is needed",
    ),
    "a folder in place of a file": (lambda w: ["show", str(folder(w.here / "a.json"))], "a.json: Is a directory;"),
    "demo over another run.toml": (
        lambda w: ["demo", "--out", str(written(w.here / "run.toml", b"[train.mine]").parent)],
        "run.toml is not this demo's: go on with it by `monolex run ",
    ),
    "verify what was changed": (lambda w: ["show", str(changed(w)), "--verify"], "has changed since it was written"),
    "verify nothing": (lambda w: ["show", str(w.here), "--verify"], "holds no finished artefact to verify"),
    "report without eval": (lambda w: ["report", str(w.here)], "eval"),
    "show nothing": (lambda w: ["show", str(w.here / "nothing")], "does not exist"),
    "run.toml missing": (lambda w: ["run", str(w.here / "no.toml")], "cannot be read"),
    "run.toml not TOML": (lambda w: run(w, "[model\n"), "not valid TOML"),
    "run.toml unknown table": (lambda w: run(w, RUN + "[trane.x]\n"), "unknown entry 'trane'"),
    "run.toml unknown key": (lambda w: run(w, RUN + "[train.x]\nalpha = [1.0]\n"), "did you mean 'alphas'?"),
    "run.toml wrong type": (lambda w: run(w, RUN + '[train.x]\nks = "32"\n'), "write a list"),
    "run.toml nothing to do": (lambda w: run(w, RUN), "nothing to evaluate"),
    "run.toml controls without a sweep": (lambda w: run(w, RUN + "[baselines.x]\n[controls]\n"), "nothing to train"),
    "run.toml match of no sweep": (
        lambda w: run(w, RUN + "[train.x]\n[baselines.y]\nmatch = ['z']\n"),
        "match of [baselines.y] names 'z'; the sweeps are x",
    ),
    "eval controls without a source": (
        lambda w: ["eval", str(w.acts), str(w.here / "e"), str(w.sweep), "--controls", "random=a"],
        "write NAME=ACTIVATIONS,SOURCE",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_exit_code_2(name, world, capsys):
    build, sentence = CASES[name]
    arguments = build(world)
    kept = verify(world.acts).content, verify(world.sweep).content
    assert main(arguments) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("monolex: ") and sentence in last
    assert "Traceback" not in error
    assert (verify(world.acts).content, verify(world.sweep).content) == kept
    assert not (world.here / "out" / "manifest.json").exists()


def test_a_full_disk_is_refused_before_any_work(world, monkeypatch, capsys):
    usage = shutil.disk_usage(world.here)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    assert main(harvest(world)) == 2
    assert "has 1 kB free" in capsys.readouterr().err
    assert not (world.here / "out" / "manifest.json").exists()


def test_what_the_system_refuses_is_one_sentence(world, monkeypatch, capsys):
    """Permissions cannot be taken away from whoever runs the tests as root, so the system's answer is made up."""
    shut = world.here / "shut"
    shut.mkdir()
    scandir = os.scandir

    def refusing(path):
        if Path(path) == shut:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert main(harvest(world, text=shut)) == 2
    error = capsys.readouterr().err
    assert f"monolex: {shut}: Permission denied; change its permissions or choose another path" in error
    (world.here / "a.txt").write_text("red cats sat on mats . " * 200)
    (world.here / "b.txt").write_text("old dogs sat on mats . " * 200)
    assert main(harvest(world, text=world.here)) == 0
    report = read_json(world.here / "out" / "manifest.json")["data"]["corpus"]["report"]
    assert report["undecodable"] == 1 and report["problems"] == [f"{shut}: Permission denied"]


@pytest.mark.parametrize(
    "flags", [["train", "a", "b", "--alpha", "1"], ["tran"], ["train", "a"], ["train", "a", "b", "--ks", "x"]]
)
def test_flags_that_do_not_parse_exit_with_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip()
