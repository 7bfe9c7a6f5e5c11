"""Write docs/verbs.md: every verb's help, from the code. Run after changing a config: ``python docs/verbs.py``."""

import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
from pathlib import Path

os.environ["COLUMNS"] = "100"

from monolex.cli import main
from monolex.config import CorpusConfig, ModelConfig, plain
from monolex.run_toml import ControlsTable
from monolex.stages import STAGES, Stage
from monolex.verbs import verbs


def heading(stage: Stage) -> str:
    """Of the table of a stage, with what it cannot leave out."""
    name = f"[{stage.verb}.NAME]" if stage.named else f"[{stage.verb}]"
    also = f" and [controls.{stage.verb}.NAME]" if stage.made_of == "activations" else ""
    needed = f" (`{', '.join(stage.needed)}` is needed)" if stage.needed else ""
    return f"{name}{also}{needed}"


def tables() -> dict[str, type]:
    """The configuration of every table of run.toml by its heading."""
    of_models = {heading(stage): stage.load("config") for stage in STAGES if stage.of_each_model}
    others = {heading(stage): stage.load("config") for stage in STAGES if not stage.of_each_model}
    first = {"[model]": ModelConfig, "[corpus]": CorpusConfig}
    return {**first, **of_models, "[controls]": ControlsTable, **others}


RUN_TOML = """## run.toml

One table a stage. `[harvest]` and a `[train]` or a `[baselines]` are needed. A stage whose heading has a NAME below
may have several tables under names of your choice; written without a name, as `[train]`, it is the only one and
called `main`. Beside named tables a value directly in `[train]` is no sweep but what every `[train.NAME]` and
`[controls.train.NAME]` has that does not say otherwise; likewise for the others (but for `match`, which names sweeps
of the same model). `[controls]`, if it is there, trains on every control model what `[controls.train]` or the tables
`[controls.train.NAME]` say, and without them of every sweep of `[train]` the smallest member: one dictionary a site,
with the smallest of `ratios` and the first value of `kinds`, `alphas`, `ks`, `seeds` and `lrs`. Only the sites that
are then trained on are harvested of them. Without `[features]` no evidence is gathered; `[patch.NAME]`,
`[ablate.NAME]` and `[tree.NAME]` are experiments on what features cause, `[explain.NAME]` and `[score.NAME]`
explanations and their scores, as many as you like. What is left out has its default. Relative paths are relative to
where the command is run. `monolex init` writes a first one; a worked example is `monolex/demo/run.toml`.
"""


def text() -> str:
    """The page."""
    parts = ["# Verbs\n\nThe help texts, written by `python docs/verbs.py`; a test keeps them true.\n"]
    for verb in verbs():
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([verb, "--help"])
        plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).strip()
        lines = "\n".join(line.rstrip() for line in plain.splitlines())
        parts.append(f"## monolex {verb}\n\n```text\n{lines}\n```\n")
    return "\n".join([*parts, run_toml()])


def _source(config: type) -> str:
    """Of a config and what it extends."""
    return "".join(inspect.getsource(cls) for cls in config.__mro__ if dataclasses.is_dataclass(cls))


def run_toml() -> str:
    """The reference of run.toml: every table's fields with defaults and help."""
    parts = [RUN_TOML]
    for table, config in tables().items():
        source, lines = _source(config), []
        for field in dataclasses.fields(config):
            about = source.split(f"    {field.name}: ", 1)[1].split('"""')[1]
            about = " ".join(about.split()).replace("|", "\\|")
            default = json.dumps(plain(field.default), ensure_ascii=False).replace("null", "left out")
            lines.append(f"| `{field.name}` | `{default}` | {about} |")
        parts.append(f"### {table}\n\n| key | default | |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("verbs.md").write_text(text(), encoding="utf-8")
