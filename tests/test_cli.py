import dataclasses
import inspect
import subprocess
import sys
import typing
from functools import partial
from pathlib import Path

import pytest
from helpers.interp_run import server_model
from tyro.conf import Positional

import monolex
from monolex import cli, train_config
from monolex.causal.config import PatchConfig, TreeConfig
from monolex.cli import main
from monolex.features.query import FindConfig
from monolex.interp.config import ExplainConfig, FigureConfig
from monolex.interp.simulate import sanity
from monolex.interp.simulate.sanity_suite import SUITE
from monolex.stages import STAGES
from monolex.training.optim import RECIPES
from monolex.verbs import verbs

VERBS = Path(__file__).parents[1] / "docs" / "verbs.md"
QUERIES = {
    "patch": PatchConfig,
    "explain": ExplainConfig,
    "find": FindConfig,
    "figure": FigureConfig,
    "tree": TreeConfig,
}


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"monolex {verb}" in capsys.readouterr().out


def test_help_and_import_need_no_torch():
    code = "import sys, monolex, monolex.cli; monolex.PUBLIC; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_exists():
    for name in monolex.PUBLIC:
        assert getattr(monolex, name) is not None
    assert set(monolex.PUBLIC) <= set(dir(monolex))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = monolex.nothing


def test_a_public_name_stays_what_it_is():
    for name in monolex.PUBLIC:
        first = getattr(monolex, name)
        assert getattr(monolex, name) is first


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{monolex.__version__}\n"


def test_sanity_of_rules_writes_nothing_and_finds_all_true_ones_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["score", "--sanity"]) == 0
    assert "ranks first of" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_sanity_fails_where_but_some_true_ones_are_first(monkeypatch, capsys):
    first, second = SUITE[:2]
    mistaken = second._replace(true=second.false[0], false=(second.true, *second.false[1:]))
    monkeypatch.setattr(sanity, "run", partial(sanity.run, suite=(first, mistaken)))
    assert main(["score", "--sanity"]) == 1
    assert "ranks first of 1 of 2" in capsys.readouterr().out


@pytest.mark.slow  # a local model, a token at a time, under the check of arrays: a minute
def test_sanity_of_a_model_that_never_learned_to_answer_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(server_model(tmp_path.parent / f"{tmp_path.name}-model"))
    flags = ["--simulator", "json", "--llm", model, "--llm-device", "cpu"]
    monkeypatch.setattr(sanity, "run", partial(sanity.run, suite=SUITE[:1]))
    assert main(["score", "--sanity", *flags]) == 1
    assert "ranks first of 0 of 1" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main(["score", "--sanity", *flags, "--replies", str(tmp_path / "kept.sqlite")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept.sqlite"]


def test_lists_are_written_alike_in_every_verb():
    """As one option with several values, never as an option that is repeated."""
    for stage in STAGES:
        for field in dataclasses.fields(stage.load("config")):
            hint = typing.get_type_hints(stage.load("config"), include_extras=True)[field.name]
            if "tuple" in str(hint):
                assert "UseAppendAction" not in str(hint), (stage.verb, field.name)
    assert "repeat" not in VERBS.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "verb", [["patch"], ["explain"], ["find", "--sort", "max"], ["figure"], ["tree", "--features", "a:1"]]
)
def test_dictionaries_are_a_list_and_not_repeated(monkeypatch, verb, capsys):
    asked = []
    name = verb[0]

    def noted(run: Positional[Path], config: QUERIES[name]) -> None:
        asked.append((run, config.dictionaries))

    monkeypatch.setattr(cli, "verbs", lambda: {name: noted, "other": noted})
    assert main([name, "RUN", *verb[1:], "--dictionaries", "a", "b"]) == 0
    assert asked == [(Path("RUN"), ("a", "b"))]
    assert main([name, "RUN", *verb[1:], "--dictionaries", "a", "--dictionaries=b"]) == 2
    said = "--dictionaries is given twice; give it once (a list is written --dictionaries A B)"
    assert said in capsys.readouterr().err
    assert len(asked) == 1


def test_the_help_of_presets_says_what_they_set():
    said = inspect.getsource(train_config)
    said = " ".join(said[said.index("preset: Preset") :].split('"""')[1].split())
    for name in ("paper", "paper-effective"):
        row = RECIPES[name]
        assert f"`{name}`: " in said and f"at {row.lr:f}".rstrip("0") in said
        assert (row.warmup, row.decay, row.preprocess, row.bias, row.unit, row.scaled) == (0, 0, "none", *3 * [False])
    modern = RECIPES["modern"]
    rate = f"`modern`: {modern.lr:.4f} / sqrt(d_sae / {2**14})"
    assert f"{rate}, warmup {modern.warmup}, decay {modern.decay}, preprocess {modern.preprocess}" in said
    assert modern.scaled and modern.bias and modern.unit
    assert "either with warmup 0, decay 0, preprocess none" in said
