"""A stage is one row: what a row alone brings."""

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.model_folder import tiny_folder
from markupsafe import Markup

from monolex import artifact, stages
from monolex.artifact import Manifest, open_artifact, write_json
from monolex.cli import main
from monolex.config import identity, require
from monolex.cost import Cost, Planned
from monolex.report.section import Chapter, Section
from monolex.stages import STAGES, Stage

CHAPTER = Chapter("circuits", "Circuits", "Circuits of features", Markup("What hangs together."))


@dataclass(frozen=True)
class CircuitsConfig:
    """What circuits are asked."""

    width: int = 3
    """How many."""

    @property
    def folder_name(self) -> str:
        return f"width-{self.width}"

    def __post_init__(self) -> None:
        require(self.width >= 1, f"width = {self.width}: give at least 1")


def circuits(folder: Path, run: Path, config: CircuitsConfig) -> Manifest:
    parents = {"activations": open_artifact(run / "activations").content}
    if artifact.is_done(folder, "circuits", identity(config), parents):
        return open_artifact(folder, "circuits")
    files = {"circuits.json": write_json(folder / "circuits.json", {"nodes": list(range(config.width))})}
    return artifact.finish(folder, "circuits", identity(config), parents, files, {})


def show(folder: Path, _manifest: Manifest) -> list[str]:
    return [f"nodes {json.loads((folder / 'circuits.json').read_text())['nodes']}"]


def cost(planned: Planned) -> Cost:
    return Cost(1_000_000 * planned.config.width, 2_000_000, 0.0, 60.0 * len(planned.used))


def section(_run: Path, artefacts: dict[str, Manifest], _listed: object) -> Section:
    found = [path for path, manifest in artefacts.items() if manifest.kind == "circuits"]
    return Section(CHAPTER, [Markup("<p>Circuits in {}.</p>").format(path) for path in found])


@pytest.fixture
def row(monkeypatch) -> Stage:
    """The only thing that is added: a row whose dotted names lead to the functions above."""
    module = types.ModuleType("made_up_stage")
    vars(module).update(CircuitsConfig=CircuitsConfig, circuits=circuits, show=show, cost=cost, section=section)
    monkeypatch.setitem(sys.modules, "made_up_stage", module)
    dotted = {name: f"made_up_stage:{name}" for name in ("show", "cost", "section")}
    stage = Stage(
        "circuits",
        "Find circuits in a run.",
        "How wide.",
        config="made_up_stage:CircuitsConfig",
        run="made_up_stage:circuits",
        made_of="run",
        default_out="by default RUN/circuits/WIDTH",
        **dotted,
    )
    monkeypatch.setattr(stages, "STAGES", (*STAGES, stage))
    return stage


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    lines = [{"text": f"document {n} says that {n * 37 % 11} cats sat on {n % 5} mats . " * 6} for n in range(40)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "run.toml").write_text(
        f"""
        [model]
        model = "{tiny_folder(folder / "model")}"
        [corpus]
        corpus = "{folder / "text.jsonl"}"
        context_length = 16
        max_tokens = 3000
        held_out = 0.3
        [harvest]
        sites = ["resid_post.1"]
        [baselines.all]
        kinds = ["pca"]
        [eval]
        rows = 100
        contexts = 0
        resamples = 5
        [circuits.small]
        width = 2
        """
    )
    return folder


def test_a_row_gives_a_verb_a_table_a_line_of_the_plan_and_show(row, home, tmp_path, capsys):
    assert main(["run", str(home / "run.toml"), "--out", str(tmp_path), "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("circuits small")]
    assert line.split() == ["circuits", "small", "to", "do", "2", "MB", "482", "MB", "1.0"]

    assert main(["run", str(home / "run.toml"), "--out", str(tmp_path)]) == 0
    made = tmp_path / "circuits" / "small" / "manifest.json"
    stamp = made.stat().st_mtime_ns
    page = (tmp_path / "report.html").read_text()
    assert "Circuits in circuits/small." in page and 'href="#circuits"' in page and "What hangs together." in page
    assert "circuits/small" in json.loads((tmp_path / "timings.json").read_text())

    assert main(["run", str(tmp_path)]) == 0
    assert made.stat().st_mtime_ns == stamp, "what is done is skipped"
    assert main(["run", str(tmp_path), "--dry-run"]) == 0
    assert "to do" not in capsys.readouterr().out

    assert main(["circuits", str(tmp_path), "--width", "4"]) == 0
    assert (tmp_path / "circuits" / "width-4" / "manifest.json").exists()
    assert "nodes [0, 1, 2, 3]" in capsys.readouterr().out
    assert main(["show", str(tmp_path / "circuits" / "small")]) == 0
    assert "nodes [0, 1]" in capsys.readouterr().out
    assert main(["circuits", str(tmp_path), "--width", "0"]) == 2
    assert "width = 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["circuits", "--help"])
    said = capsys.readouterr().out
    assert "Find circuits in a run." in said and "How many." in said and "by default RUN/circuits/WIDTH" in said


def test_another_schema_of_a_row_makes_its_artefacts_anew(row, home, tmp_path, monkeypatch, capsys):
    assert main(["run", str(home / "run.toml"), "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(stages, "STAGES", (*STAGES, Stage(**{**vars(row), "schema": 2})))
    assert main(["show", str(tmp_path / "circuits" / "small")]) == 2
    assert "has schema 1 of 'circuits'; make it again" in capsys.readouterr().err


def test_without_its_row_a_stage_is_unknown(home, tmp_path, capsys):
    assert main(["run", str(home / "run.toml"), "--out", str(tmp_path)]) == 2
    assert "unknown entry 'circuits'" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.verb)
def test_every_dotted_name_leads_somewhere(stage):
    for what in ("config", "run", "show", "cost", "draw", "section", "command"):
        assert callable(stage.load(what)) or not getattr(stage, what)
    assert stage.load("config").__dataclass_params__.frozen
