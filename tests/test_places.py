"""How many files a new kind, explainer, baseline or stage takes: each is really added, to a copy of the package.

Run by hand, this file prints the table of docs/architecture.md: ``python tests/test_places.py``.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.model_folder import tiny_folder

import monolex

ROOT = Path(monolex.__file__).parent
AIMS = {"kind of dictionary": 3, "explainer": 2, "baseline": 2, "stage with a verb": 3}
"""Files of the package at most."""
NEW = "monolex/circuits.py"
ADDITIONS: dict[str, dict[str, list[tuple[str, str]]]] = {
    "kind of dictionary": {
        "monolex/kinds.py": [
            (
                '        TrainedKind("untied", "l1", "relu", "alpha", L1_CONVENTION, "sky"),\n',
                '        TrainedKind("squared", "squared", "relu", "alpha", L1_CONVENTION, "purple"),\n',
            )
        ],
        "monolex/training/losses.py": [
            (
                "LossFunction = Callable",
                "def squared_loss(params, batch, member, _settings):\n"
                '    """MSE + alpha · mean over rows of Σc²."""\n'
                "    passed = encode(params, batch, member)\n"
                "    codes = passed.pre.relu()\n"
                "    mse = (passed.target - codes @ passed.rows).square().mean()\n"
                "    loss = mse + member.alpha * codes.square().sum(1).mean()\n"
                "    return Loss(loss, *statistics(codes, mse, mse.new_zeros(())))\n\n\n",
            ),
            ("LOSSES: dict[str, LossFunction] = {", '\n    "squared": squared_loss,'),
        ],
    },
    "baseline": {
        "monolex/kinds.py": [
            (
                '        BaselineFamily("neurons", "neurons", ("", "-pm"), "olive", None, complete=("-pm",)),\n',
                '        BaselineFamily("halves", "halves", ("",), "sky", None, per_width=1.0),\n',
            )
        ],
        "monolex/dictionaries/families.py": [
            (
                "Builder = Callable",
                "def _halves(reader, config):\n"
                '    """Half of every coordinate."""\n'
                "    eye = torch.eye(reader.d_in)\n"
                '    return {"halves": _dictionary(reader, "halves", "relu", eye, eye / 2)}\n\n\n',
            ),
            ("BUILDERS: dict[str, Builder] = {", '"halves": _halves, '),
        ],
    },
    "explainer": {
        "monolex/interp/explainers.py": [
            (
                '        Explainer("ngram", ',
                '        Explainer("longest", "monolex.interp.explain.lookup:longest", "examples"),\n',
            )
        ],
        "monolex/interp/explain/lookup.py": [
            (
                "def token_table(",
                "def longest(examples: Examples) -> Explanation:\n"
                '    """The longest token it is shown."""\n'
                "    texts = [text for fragment in examples.explain for text in fragment.texts]\n"
                '    return Explanation("longest", max(texts, key=len))\n\n\n',
            )
        ],
    },
    "stage with a verb": {
        "monolex/stages.py": [
            (
                '    Stage(\n        "explain",\n',
                "    Stage(\n"
                '        "circuits",\n'
                '        "Find circuits in a run.",\n'
                '        "How wide.",\n'
                '        config="monolex.circuits:CircuitsConfig",\n'
                '        run="monolex.circuits:circuits",\n'
                '        made_of="run",\n'
                '        show="monolex.circuits:show",\n'
                '        default_out="by default RUN/circuits/WIDTH",\n'
                "    ),\n",
            )
        ],
        NEW: [
            (
                "",
                "from dataclasses import dataclass\n"
                "from monolex.artifact import json_bytes, open_artifact\n"
                "from monolex.pieces import Work\n\n"
                "@dataclass(frozen=True)\n"
                "class CircuitsConfig:\n"
                '    """What circuits are asked."""\n'
                "    width: int = 3\n"
                '    """How many."""\n'
                "    @property\n"
                "    def folder_name(self):\n"
                '        return f"width-{self.width}"\n\n'
                "def circuits(folder, run, config):\n"
                '    parents = {"activations": open_artifact(run / "activations").content}\n'
                '    work = Work(folder, "circuits", config, parents)\n'
                "    if manifest := work.answer():\n"
                "        return manifest\n"
                '    nodes = list(work.done({str(n): lambda path: "node" for n in range(config.width)}).values())\n'
                '    return work.finish({"circuits.json": json_bytes(nodes)}, {"nodes": len(nodes)})\n\n'
                "def show(folder, manifest):\n"
                "    return [f\"{manifest.data['nodes']} nodes\"]\n",
            )
        ],
    },
}
"""What is added, by file: lines, and the text in front of which they go."""


def places() -> dict[str, tuple[int, int]]:
    """Files and places that each of them takes."""
    return {what: (len(files), sum(map(len, files.values()))) for what, files in ADDITIONS.items()}


def table() -> str:
    """The table of docs/architecture.md."""
    lines = ["| a new … | files | places | which |", "|---|---|---|---|"]
    for what, (files, count) in places().items():
        named = ", ".join(f"`{path.removeprefix('monolex/')}`" for path in ADDITIONS[what])
        lines.append(f"| {what} | {files} | {count} | {named.replace('circuits.py', 'a module of its own')} |")
    return "\n".join(lines)


def extended(folder: Path) -> Path:
    """A copy of the package with everything added."""
    package = shutil.copytree(ROOT, folder / "monolex", ignore=shutil.ignore_patterns("__pycache__"))
    for files in ADDITIONS.values():
        for path, insertions in files.items():
            file = folder / path
            text = file.read_text(encoding="utf-8") if file.exists() else ""
            for before, lines in insertions:
                assert text.count(before) == 1 or not before, f"{path}: {before!r} stands {text.count(before)} times"
                inside = before.endswith("{")
                text = text.replace(before, before + lines if inside else lines + before) if before else lines
            file.write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize("what", AIMS)
def test_a_new_one_takes_few_files(what):
    assert places()[what][0] <= AIMS[what]


def test_the_table_of_the_architecture_is_this():
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert table() in page


@pytest.mark.slow
def test_what_is_added_so_works_in_a_whole_run(tmp_path):
    extended(tmp_path)
    lines = [{"text": f"document {n} says that {n * 37 % 11} cats sat on {n % 5} mats . " * 6} for n in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "run.toml").write_text(
        f"""
        [model]
        model = "{tiny_folder(tmp_path / "model")}"
        [corpus]
        corpus = "{tmp_path / "text.jsonl"}"
        context_length = 16
        max_tokens = 4000
        held_out = 0.3
        [harvest]
        sites = ["resid_post.1"]
        [train]
        kinds = ["squared", "untied"]
        batch_size = 64
        steps = 5
        [baselines]
        kinds = ["halves", "pca"]
        [eval]
        rows = 200
        contexts = 2
        resamples = 5
        [explain.words]
        explainers = ["longest", "token"]
        fragment_tokens = 8
        mode = "modern"
        features = 4
        silent = 2
        [circuits.small]
        width = 2
        """
    )

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "monolex", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "circuits small" in run("run", "run.toml", "--dry-run")
    run("run", "run.toml", "--out", "run")
    shown = run("show", "run")
    assert "squared-a8.6e-4" in shown and "halves" in shown and "longest" in shown and "2 nodes" in shown
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "squared" in page and "halves" in page and "this version" not in page
    assert "Find circuits in a run." in run("circuits", "--help")


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
