"""What can be known of Windows without one: what it lacks, what it forbids, what it writes otherwise."""

import ast
import io
import subprocess
import sys

import pytest
from helpers.parsed_package import ROOT, trees

from monolex.causal.config import AblateConfig
from monolex.cli import main
from monolex.errors import UserError
from monolex.run_toml import read_run

LACKING = {
    "os": {"sysconf", "uname", "sync", "getuid", "geteuid", "fork", "getpgid", "killpg", "statvfs", "nice", "wait"},
    "signal": {"SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "alarm", "setitimer", "pthread_kill"},
}
IMPORTS = """
import builtins, pkgutil, sys
from pathlib import Path
real = builtins.__import__

def without(name, caller=None, *rest, **named):
    posix = name in ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix")
    if posix and str((caller or {}).get("__name__", "")).startswith("monolex"):
        raise ImportError(f"no module named {name!r} on Windows")
    return real(name, caller, *rest, **named)

builtins.__import__ = without
import monolex
count = 0
for module in pkgutil.walk_packages(monolex.__path__, "monolex."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
        count += 1
from monolex import lock
with lock.writing(Path(sys.argv[1])):
    print(count, Path(sys.argv[1], lock.LOCK).exists())
"""


def uses(module: str, names: set[str]) -> list[str]:
    """Where the package uses some of a module's names."""
    found = {
        f"{path.name} {module}.{node.attr}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == module and node.attr in names
    }
    return sorted(found)


@pytest.mark.slow
def test_every_module_is_imported_without_the_modules_of_posix(tmp_path):
    command = [sys.executable, "-c", IMPORTS, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    count, locked = ran.stdout.split()
    assert int(count) >= len(trees()) - 3 and locked == "True"


def test_what_windows_lacks_is_used_behind_a_question_only():
    assert [use for module, names in LACKING.items() for use in uses(module, names)] == [
        "runtime.py os.sysconf",
        "workers.py signal.SIGUSR1",
    ]
    assert uses("os", {"replace"}), "or nothing would be seen"


def text_without_encoding(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name == "open":
        of_system = ast.unparse(node.func) in ("os.open", "archive.open")  # a file in an archive is of bytes
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        return not of_system and not any("b" in mode for mode in modes)
    return name in ("read_text", "write_text")


def test_text_is_utf8_whatever_the_machine_calls_text():
    assert [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if text_without_encoding(node)
    ] == []
    assert text_without_encoding(ast.parse("path.open()", mode="eval").body)


def test_paths_are_written_with_slashes():
    """``str`` of a relative path has backslashes there: no file of a manifest would be found again."""
    texts = {path: path.read_text(encoding="utf-8") for path in trees()}
    calls = (".relative_to(", "relpath(")
    wrong = [
        f"{path.name}: {line.strip()}"
        for path, text in texts.items()
        for line in text.splitlines()
        if any(call in line for call in calls) and "as_posix()" not in line
    ]
    assert wrong == ["sources.py: relative = Path(folder).relative_to(root)"], "which is made one later"


def test_names_of_folders_hold_nothing_that_is_forbidden():
    config = AblateConfig(features=("resid_post.2/tied-a1e-3@ a:b*c?", 'x/y@"<|>'))
    assert config.folder_name == "resid_post.2-tied-a1e-3-a-b-c-and-1"


def test_a_redirected_stream_of_another_alphabet_is_written_all_the_same(tmp_path, capsys, monkeypatch):
    (tmp_path / "x.json").write_text('{"token": "→ ␣"}', encoding="utf-8")
    redirected = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True)
    monkeypatch.setattr(sys, "stdout", redirected)
    assert main(["show", str(tmp_path / "x.json")]) == 0
    assert b"\\u2192 \\u2423" in redirected.buffer.getvalue() and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'\xef\xbb\xbf[model]\nmodel = "demo"\n', "[harvest] sites"),
        (b'[model]\nmodel = "C:\\models\\x"\n', r"; write a path with backslashes in single quotes, 'C:\\texts'"),
    ],
    ids=["byte order mark", "backslash"],
)
def test_a_run_toml_of_its_editors(tmp_path, content, said):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_run(tmp_path / "run.toml")
    assert said.replace("\\\\", "\\") in str(refused.value)
