"""run.toml: one table a stage, each that stage's flat config, and what they must agree on."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monolex import stages
from monolex.config import CorpusConfig, HarvestConfig, ModelConfig, require
from monolex.errors import UserError
from monolex.stages import Stage
from monolex.tables import from_table
from monolex.train_config import SOME_KINDS, TrainConfig, shared_with

Tables = dict[str, dict[str, Any]]
"""Configurations by the verb of their stage, then by name; the name of a stage's only table is empty."""
CONTROLS = ("random", "shuffled")
MAIN = "main"
"""Name of a stage's table ``[VERB]`` that holds no named ones."""


@dataclass(frozen=True)
class ControlsTable:
    """Values directly in the table ``[controls]``."""

    models: tuple[str, ...] = CONTROLS
    """Controls of the language model (see ``ModelConfig.control``)."""
    control_seed: int = 0
    """Seed of the control models."""


@dataclass(frozen=True)
class ControlsConfig(ControlsTable):
    """Control models: what the same dictionaries look like where there is nothing to find."""

    tables: Tables = field(default_factory=dict)
    """Tables `[controls.train.NAME]` and `[controls.baselines.NAME]`: what is made of every control model; of the
    sweeps, where they are left out, the smallest member of each of the subject's."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run.toml."""

    model: ModelConfig
    """Table ``[model]``."""
    corpus: CorpusConfig
    """Table ``[corpus]``."""
    tables: Tables
    """Tables of the stages."""
    controls: ControlsConfig | None = None
    """Table ``[controls]``; left out: none."""
    precision: Any = None
    """What `auto` chose for the model (:class:`~monolex.model.precision.Precision`), where ``model`` says no longer
    `auto` but did."""

    @property
    def harvest(self) -> HarvestConfig:
        """Table ``[harvest]``."""
        return self.tables["harvest"][""]


def read_run(path: Path) -> RunConfig:
    """Parse a run.toml.

    Raises:
        UserError: no such file, not TOML, an unknown table or key, or a value out of range.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a run.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = r"; write a path with backslashes in single quotes, 'C:\texts'" if "\\" in str(error) else ""
        raise UserError(f"{path} is not valid TOML: {error}{hint}") from error
    return run_config(content, path)


def run_config(content: Mapping[str, Any], path: Path) -> RunConfig:
    """The tables of a run.toml that lies, or will lie, at ``path``.

    Raises:
        UserError: an unknown table or key, or a value out of range.
    """
    of_models = [stage.verb for stage in stages.STAGES if stage.of_each_model]
    others = [stage.verb for stage in stages.STAGES if not stage.of_each_model]
    known = ("model", "corpus", *of_models, "controls", *others)
    for name, value in content.items():
        if name not in known or not isinstance(value, dict):
            raise UserError(f"{path}: unknown entry {name!r}; a run has the tables {', '.join(known)}")
    tables: Tables = {}
    shared: dict[str, dict[str, Any]] = {}
    for stage in stages.STAGES:
        shared[stage.verb], tables[stage.verb] = _stage_tables(stage, content, {}, "")
    run = RunConfig(
        model=from_table(ModelConfig, content.get("model", {}), "[model]"),
        corpus=from_table(CorpusConfig, content.get("corpus", {}), "[corpus]"),
        tables=tables,
        controls=_controls(content["controls"], shared, tables["train"]) if "controls" in content else None,
    )
    _check(run, str(path))
    return run


def _stage_tables(
    stage: Stage, content: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values directly in a stage's table, which hold for all tables in it, and its configurations by name.

    A table that holds no named ones is the only one itself.
    """
    where, config = f"{prefix}{stage.verb}", stage.load("config")
    table = content.get(stage.verb, {})
    if not stage.named:
        present = stage.always or stage.verb in content
        return {}, {"": from_table(config, table, f"[{where}]")} if present else {}
    direct = {key: value for key, value in table.items() if not isinstance(value, dict)}
    inner = {name: value for name, value in table.items() if isinstance(value, dict)}
    common = {**defaults, **direct}
    if not inner:
        values = {**_shared(config, defaults, direct), **direct}
        return common, {MAIN: from_table(config, values, f"[{where}]")} if stage.verb in content else {}
    shared = {name: _shared(config, common, mine) for name, mine in inner.items()}
    taken = set().union(*shared.values()) & set(SOME_KINDS)
    # what none of the tables takes is wrong where it stands
    from_table(config, {name: value for name, value in direct.items() if name not in taken}, f"[{where}]")
    named = {}
    for name, mine in inner.items():
        if not name.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"[{where}] holds {name!r}; write named tables, such as [{where}.residual]")
        named[name] = from_table(config, {**shared[name], **mine}, f"[{where}.{name}]")
    return common, named


def _shared(config: type, shared: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """What a table takes of the values that several share: kinds of dictionary differ in that."""
    return shared_with(shared, table) if config is TrainConfig else dict(shared)


def _controls(
    table: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]], sweeps: Mapping[str, TrainConfig]
) -> ControlsConfig:
    """``sweeps``: those of the subject, of which the smallest members are trained where the table names none."""
    fitted = [stage for stage in stages.STAGES if stage.made_of == "activations"]
    tables: Tables = {}
    for stage in fitted:
        # `match` names sweeps of the subject; those of the controls may be called otherwise
        common = {key: value for key, value in shared[stage.verb].items() if key != "match"}
        tables[stage.verb] = _stage_tables(stage, table, common, "controls.")[1]
    tables["train"] = tables["train"] or {name: sweep.smallest for name, sweep in sweeps.items()}
    rest = {key: value for key, value in table.items() if key not in tables}
    plain = from_table(ControlsTable, rest, "[controls]", others=tables)
    return ControlsConfig(plain.models, plain.control_seed, tables)


def _check(run: RunConfig, path: str) -> None:
    """What the tables of a run must agree on."""
    if run.controls:
        for control in run.controls.models:
            known = f"choose from {', '.join(CONTROLS)}"
            require(control in CONTROLS, f"{path}: [controls] models holds {control!r}; {known}")
        require(
            bool(run.controls.tables["train"]),
            f"{path}: [controls] has nothing to train; add a table [train] or [controls.train] that says what",
        )
    for stage in stages.STAGES:
        for name, config in run.tables[stage.verb].items():
            for key, what in stage.needed.items():
                require(bool(getattr(config, key)), f"{path}: [{stage.verb}.{name}] needs {key}, {what}")
    for name, config in run.tables["score"].items():
        require(
            config.explanations in run.tables["explain"],
            f"{path}: [score.{name}] explanations = {config.explanations!r}: name one of the tables [explain.NAME]",
        )
    require(
        run.corpus.held_out != 0,
        f"{path}: [corpus] held_out = 0 leaves nothing to evaluate on; keep some documents apart",
    )
    require(
        bool(run.tables["train"] or run.tables["baselines"]),
        f"{path}: nothing to evaluate; add a [train] or a [baselines] table",
    )
