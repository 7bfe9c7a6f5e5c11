"""What the documents promise is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from monolex.verbs import verbs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def tree_paths(page: str) -> dict[str, str]:
    """Path -> description of every line of a page's tree; two spaces of indent a level."""
    paths, folders = {}, []
    for line in page.split("```text\n", 1)[1].split("```", 1)[0].splitlines():
        name, _, about = line.strip().partition("  ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        paths["".join(folders)] = about.strip()
    return paths


@pytest.mark.parametrize("page", [README, MAP], ids=["README.md", "docs/architecture.md"])
def test_every_line_of_a_tree_exists_and_stands_alone(page):
    for path, about in tree_paths(page).items():
        assert (ROOT / path).exists(), path
        assert path.endswith("/") == (ROOT / path).is_dir(), path
        assert about, f"{path} has no description"
        assert not re.match(r"(its|their|and|the same|another|that)\b", about), f"{path} leans on a line before it"


def test_every_folder_of_the_package_is_in_the_readme():
    listed = tree_paths(README)
    for file in (ROOT / "monolex").rglob("__init__.py"):
        assert f"{file.parent.relative_to(ROOT).as_posix()}/" in listed


def test_every_module_is_on_the_map():
    listed = tree_paths(MAP)
    for file in (ROOT / "monolex").rglob("*.py"):
        if file.name != "__init__.py" or file.parent == ROOT / "monolex":
            assert file.relative_to(ROOT).as_posix() in listed


def test_every_verb_is_in_the_readme():
    for verb in verbs():
        assert f"| `{verb}" in README


def test_the_page_of_verbs_is_up_to_date():
    code = "import runpy; print(runpy.run_path('docs/verbs.py')['text'](), end='')"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "printed"), [("README.md", "indices="), ("docs/python.md", "'distinct'")])
def test_the_python_of_a_page_runs_as_printed(page, printed, tmp_path):
    blocks = (ROOT / page).read_text(encoding="utf-8").split("```python\n")[1:]
    code = "\n".join(block.split("```", 1)[0] for block in blocks)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_the_version_is_one():
    import monolex

    assert f'version = "{monolex.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"## {monolex.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_commands_and_the_toml_of_the_page_on_interpretation(tmp_path, capsys):
    from monolex.cli import main
    from monolex.run_toml import read_run

    page = (ROOT / "docs" / "interpretation.md").read_text(encoding="utf-8")
    (tmp_path / "run.toml").write_text(page.split("```toml\n", 1)[1].split("```", 1)[0], encoding="utf-8")
    assert read_run(tmp_path / "run.toml").tables["train"]["residual"].ratios == (2.0,)
    commands = page.split("```sh\n", 1)[1].split("```", 1)[0].replace("\\\n", "").splitlines()
    commands = [line.split()[1:] for line in commands if line.startswith("monolex ")]
    assert [verb for verb, *_ in commands] == ["run", "explain", "score", "score", "score", "figure"]
    known = set()
    for verb in ("run", "explain", "score", "figure"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert all(set(re.findall(r"--[a-z-]+", " ".join(words))) <= flags for words in commands if words[0] == verb)
        known |= flags
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= known
