import subprocess
import sys

import pytest

import monolex
from monolex.cli import VERBS, main


@pytest.mark.parametrize("verb", VERBS)
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
