import subprocess
import sys

import pytest
from helpers.interp_run import server_model

import monolex
from monolex.cli import main
from monolex.interp.protocol import correlation
from monolex.interp.simulate import sanity
from monolex.interp.simulate.sanity_suite import SUITE
from monolex.verbs import verbs


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


@pytest.mark.slow  # a local model, a token at a time, under the check of arrays: a minute
def test_sanity_of_a_model_that_never_learned_to_answer_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(server_model(tmp_path.parent / f"{tmp_path.name}-model"))
    flags = ["--simulator", "json", "--llm", model, "--llm-device", "cpu"]
    monkeypatch.setattr(sanity.run, "__defaults__", (correlation, SUITE[:1]))
    assert main(["score", "--sanity", *flags]) == 1
    assert "ranks first of 0 of 1" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main(["score", "--sanity", *flags, "--replies", str(tmp_path / "kept.sqlite")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept.sqlite"]
