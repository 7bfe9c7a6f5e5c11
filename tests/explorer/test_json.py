"""``--json``: every verb that prints gives one JSON value on stdout and nothing else there."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.explored import NAME, ROOT, SITES, strongest

from monolex import estimate, workers
from monolex.artifact import read_json
from monolex.cli import main
from monolex.explorer.index import FILE
from monolex.show.data import data
from monolex.speed import Speed
from monolex.stages import STAGES
from monolex.verbs import verbs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(explored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("json") / "run"
    return Path(shutil.copytree(explored, run, ignore=shutil.ignore_patterns(f"{FILE}*")))


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]):
    """The JSON that a verb prints."""

    def run(*words: Any, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == code, capsys.readouterr().err
        out = capsys.readouterr().out
        assert out.isascii() and out.count("\n") == 1
        return json.loads(out, parse_constant=pytest.fail)

    return run


def test_every_verb_that_prints_has_the_flag():
    flagged = {name for name, verb in verbs().items() if "json" in inspect.signature(verb).parameters}
    assert flagged == set(verbs()) - {"mcp"}


def test_what_is_shown_is_what_the_files_say(copy, printed):
    ablation = printed("show", copy / "ablate" / "root")
    assert ablation["kind"] == "ablate" and ablation["result"] == read_json(copy / "ablate" / "root" / "ablate.json")
    assert ablation["content"] == read_json(copy / "ablate" / "root" / "manifest.json")["content"]
    assert printed("show", copy / "eval")["result"] == read_json(copy / "eval" / "metrics.json")
    assert printed("show", copy / "eval" / "metrics.json") == read_json(copy / "eval" / "metrics.json")
    explained = printed("show", copy / "explain" / "rules")
    assert 0 < len(explained["explanations"]) <= 12 and explained["result"]["dictionaries"]
    for path in ("score/rules", "tree/root", "activations", "train/main", "features"):
        assert printed("show", copy / path)["data"] == read_json(copy / path / "manifest.json")["data"]
    run = printed("show", copy)
    assert len(run["artefacts"]) == len(list(copy.rglob("manifest.json")))
    checked = printed("show", copy, "--verify")
    assert [each["whole"] for each in checked] == [True] * len(run["artefacts"])
    dictionary = printed("show", copy / "train" / "main" / SITES[1] / NAME)
    assert dictionary["config"]["kind"] == "topk" and dictionary["weights"]
    shard = next((copy / "activations" / SITES[0]).glob("*.safetensors"))
    assert printed("show", shard)["tensors"] and printed("show", copy / "score" / "rules" / "scores.jsonl")["lines"] > 0
    store = copy / "features" / SITES[1] / f"{NAME}.sqlite"
    assert printed("show", store)["meta"]["name"] == NAME
    feature = printed("show", store, "--feature", strongest(copy).rpartition(":")[2])
    assert feature["evidence"]["summary"]["n_active"] > 0 and feature["evidence"]["examples"]["top"]


def test_a_json_that_holds_no_number_is_still_json(copy, printed, tmp_path):
    (tmp_path / "odd.json").write_text('{"a": NaN, "b": "\\ud800", "é": [1]}')
    assert printed("show", tmp_path / "odd.json") == {"a": None, "b": "\ud800", "é": [1]}


def test_stages_print_what_show_prints(copy, printed, tmp_path):
    acts, cpu = copy / "activations", "cpu"
    sweep = ("--kinds", "topk", "--ks", "4", "--ratios", "2", "--steps", "3", "--batch-size", "64")
    out = tmp_path / "sweep"
    assert printed("train", acts, out, *sweep, "--train-device", cpu) == json.loads(json.dumps(data(out)))
    assert printed("baselines", acts, tmp_path / "neurons", "--kinds", "neurons")["kind"] == "baselines"
    measured = printed("eval", acts, tmp_path / "eval", out, "--rows", "50", "--contexts", "2", "--resamples", "5")
    assert {row["name"] for row in measured["result"]} >= {NAME}
    gathered = printed("features", acts, tmp_path / "features", out, "--features-device", cpu)
    assert gathered["kind"] == "features"
    ablated = printed(
        "ablate", copy, "--features", strongest(copy), "--occurrences", "6", "--resamples", "20", "--ablate-device", cpu
    )
    assert ablated["result"]["ablations"] and all(Path(path).exists() for path in ablated["pictures"])
    scored = printed("score", copy, "--explanations", "rules", "--resamples", "20")
    assert scored["result"]["simulator"] == "rules"


def test_questions_and_what_stands_alone(copy, printed, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 1)
    monkeypatch.setattr(estimate, "measure", lambda *_: Speed(measured=False))
    hits = printed("find", copy, "--sort", "max", "--limit", "2", "--dictionaries", ROOT)
    assert len(hits["rows"]) == 2 and hits["rows"][0]["dictionary"] == NAME
    assert Path(printed("report", copy)["report"]).is_file()
    gallery = printed("figure", copy)
    assert gallery["drawn"] and gallery["missing"] and all(Path(path).is_file() for path in gallery["paths"])
    seeds = [copy / "train" / "main" / SITES[1] / f"topk-k4-r2-s{seed}" for seed in (0, 1)]
    assert printed("pool", tmp_path / "pooled", *seeds)["seeds"] == 2
    sanity = printed("score", "--sanity")
    assert sanity["first"] == sanity["features"] > 0
    toml = tmp_path / "run.toml"
    toml.write_text('[harvest]\nsites = ["resid_post.1"]\n[corpus]\nmax_tokens = 4000\n[train]\nsteps = 2\n')
    plan = printed("run", toml, "--dry-run", "--jobs", "1")
    assert [step["done"] for step in plan["steps"]] == [False] * len(plan["steps"]) and plan["minutes"] > 0
    assert plan["disk"] == sum(step["disk"] for step in plan["steps"])


def test_what_a_user_can_mend_leaves_stdout_empty(tmp_path, capsys):
    assert main(["show", str(tmp_path / "none"), "--json"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1


def test_every_stage_that_says_more_has_a_text_too():
    assert all(stage.load("show") for stage in STAGES if stage.load("show_data"))
