"""run.toml: one table a stage, each that stage's flat config; the plan, its execution, and what is skipped.

A run is a folder of artefacts::

    RUN/run.toml  activations/  train/NAME/  baselines/NAME/  features/  eval/  report.html  gallery/
    RUN/{patch,ablate,tree,explain,score}/NAME/
    RUN/controls/CONTROL/{activations/,train/NAME/,baselines/NAME/}

Every stage asks its own artefact whether it is done (see ``artifact``), so a run that was killed goes on where it was,
and a changed table redoes its stage and those that stand on it.
"""

import dataclasses
import hashlib
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from monolex.artifact import MANIFEST, TIMINGS, open_artifact, read_json, require_folder, write_bytes, write_json
from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.config import (
    BaselineConfig,
    CorpusConfig,
    EvalConfig,
    FeaturesConfig,
    HarvestConfig,
    ModelConfig,
    TrainConfig,
    identity,
)
from monolex.errors import UserError
from monolex.experiments import CAUSAL, INTERP, Experiment, experiment
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.runtime import log, peak_memory, size
from monolex.tables import from_table

T = TypeVar("T")


@dataclass(frozen=True)
class ControlsConfig:
    """Control models: what the same dictionaries look like where there is nothing to find."""

    models: tuple[str, ...] = ("random", "shuffled")
    """Controls of the language model (see ``ModelConfig.control``)."""
    control_seed: int = 0
    """Seed of the control models."""
    train: dict[str, TrainConfig] = field(default_factory=dict)
    """Tables `[controls.train.NAME]`: the sweeps trained on every control model."""
    baselines: dict[str, BaselineConfig] = field(default_factory=dict)
    """Tables `[controls.baselines.NAME]`: what is fitted on every control model."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run.toml."""

    model: ModelConfig
    """Table ``[model]``."""
    corpus: CorpusConfig
    """Table ``[corpus]``."""
    harvest: HarvestConfig
    """Table ``[harvest]``."""
    train: dict[str, TrainConfig]
    """Tables ``[train.NAME]``, one sweep each."""
    baselines: dict[str, BaselineConfig]
    """Tables ``[baselines.NAME]``, one folder of fitted dictionaries each."""
    controls: ControlsConfig | None = None
    """Table ``[controls]``; left out: none."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Table ``[eval]``."""
    features: FeaturesConfig | None = None
    """Table ``[features]``; left out: no evidence is gathered."""
    patch: dict[str, PatchConfig] = field(default_factory=dict)
    """Tables ``[patch.NAME]``, one task each."""
    ablate: dict[str, AblateConfig] = field(default_factory=dict)
    """Tables ``[ablate.NAME]``."""
    tree: dict[str, TreeConfig] = field(default_factory=dict)
    """Tables ``[tree.NAME]``."""
    explain: dict[str, ExplainConfig] = field(default_factory=dict)
    """Tables ``[explain.NAME]``."""
    score: dict[str, ScoreConfig] = field(default_factory=dict)
    """Tables ``[score.NAME]``."""


@dataclass(frozen=True)
class Stage:
    """One step of a plan."""

    name: str
    """As printed: ``train residual``."""
    folder: Path
    """Its artefact."""
    run: Callable[[], Any]
    """Does it, or finds it done."""
    config: Any
    """Its configuration, for the estimate; of a harvest the model's, the corpus' and its own."""
    needs: tuple[Path, ...] = ()
    """Artefacts it is made of."""

    @property
    def answered(self) -> bool:
        """Whether the folder holds a finished artefact of this configuration (its parents are not looked at)."""
        configs = self.config if isinstance(self.config, tuple) else (self.config,)
        wanted = {name: value for config in configs for name, value in identity(config).items()}
        try:
            return open_artifact(self.folder).config == wanted
        except UserError:
            return False


def read_run(path: Path) -> RunConfig:
    """Parse a run.toml.

    Raises:
        UserError: no such file, not TOML, an unknown table or key, or a value out of range.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a run.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    known = ("model", "corpus", "harvest", "train", "baselines", "controls", "eval", "features", *CAUSAL, *INTERP)
    for name, value in table.items():
        if name not in known or not isinstance(value, dict):
            raise UserError(f"{path}: unknown entry {name!r}; a run has the tables {', '.join(known)}")
    defaults, sweeps = _named(TrainConfig, table.get("train", {}), "train", {})
    _, fitted = _named(BaselineConfig, table.get("baselines", {}), "baselines", {})
    causal = {name: _named(cls, table.get(name, {}), name, {})[1] for name, cls in (CAUSAL | INTERP).items()}
    run = RunConfig(
        model=from_table(ModelConfig, table.get("model", {}), "[model]"),
        corpus=from_table(CorpusConfig, table.get("corpus", {}), "[corpus]"),
        harvest=from_table(HarvestConfig, table.get("harvest", {}), "[harvest]"),
        train=sweeps,
        baselines=fitted,
        controls=_controls(table["controls"], defaults) if "controls" in table else None,
        eval=from_table(EvalConfig, table.get("eval", {}), "[eval]"),
        features=from_table(FeaturesConfig, table["features"], "[features]") if "features" in table else None,
        **causal,
    )
    if run.controls and not run.controls.train:
        raise UserError(f"{path}: [controls] needs a table [controls.train.NAME] that says what is trained on them")
    for control in run.controls.models if run.controls else ():
        if control not in ("random", "shuffled"):
            raise UserError(f"{path}: [controls] models holds {control!r}; choose from random, shuffled")
    for kind, tables in (("ablate", run.ablate), ("tree", run.tree)):
        for name, config in tables.items():
            if not config.features:
                raise UserError(
                    f"{path}: [{kind}.{name}] needs features, a list of SITE/NAME:NUMBER or SITE/NAME@TOKEN"
                )
    for name, config in run.score.items():
        if config.explanations not in run.explain:
            raise UserError(
                f"{path}: [score.{name}] explanations = {config.explanations!r}: name one of the tables [explain.NAME]"
            )
    if run.corpus.held_out == 0:
        raise UserError(f"{path}: [corpus] held_out = 0 leaves nothing to evaluate on; keep some documents apart")
    if not run.train and not run.baselines:
        raise UserError(f"{path}: nothing to evaluate; add a [train.NAME] or a [baselines.NAME] table")
    return run


def plan(run: RunConfig, folder: Path) -> list[Stage]:
    """The stages of a run in order; imports of torch wait until a stage runs."""
    stages = [_harvest("harvest", folder / "activations", run.model, run.corpus, run.harvest)]
    stages += _decompositions("", folder, run.train, run.baselines)
    sources = [stage.folder for stage in stages[1:]]
    controls: dict[str, tuple[Path, list[Path]]] = {}
    for control in run.controls.models if run.controls else ():
        assert run.controls is not None
        home = folder / "controls" / control
        seed = run.controls.control_seed
        model = from_table(ModelConfig, {**_table(run.model), "control": control, "control_seed": seed}, control)
        harvest = dataclasses.replace(run.harvest, sites=_control_sites(run.controls, run.harvest.sites))
        stages.append(_harvest(f"harvest {control}", home / "activations", model, run.corpus, harvest))
        made = _decompositions(f"{control} ", home, run.controls.train, run.controls.baselines)
        stages += made
        controls[control] = (home / "activations", [stage.folder for stage in made])
    stages.append(_eval(folder / "eval", folder / "activations", sources, controls, run.eval))
    if run.features is not None:
        stages.append(_features(folder / "features", folder / "activations", sources, run.features))
    others = [stage.folder for stage in stages if stage.folder.name != "eval"]
    for kind in CAUSAL:
        for name, config in getattr(run, kind).items():
            stages.append(_experiment(kind, folder / kind / name, folder, config, others))
    for name, config in run.explain.items():
        stages.append(_experiment("explain", folder / "explain" / name, folder, config, others))
    for name, config in run.score.items():
        given = (folder / "explain" / config.explanations,)
        stages.append(_experiment("score", folder / "score" / name, folder, config, given))
    return stages


def _decompositions(
    prefix: str, home: Path, sweeps: Mapping[str, TrainConfig], baselines: Mapping[str, BaselineConfig]
) -> list[Stage]:
    """The sweeps and the baselines of one model, whose activations lie in ``home``."""
    activations = home / "activations"
    stages = [_train(f"train {prefix}{n}", home / "train" / n, activations, config) for n, config in sweeps.items()]
    for name, config in baselines.items():
        for matched in config.match:
            if matched not in sweeps:
                raise UserError(f"match of [baselines.{name}] names {matched!r}; the sweeps are {', '.join(sweeps)}")
        matched = [home / "train" / name for name in config.match]
        stages.append(_baselines(f"baselines {prefix}{name}", home / "baselines" / name, activations, config, matched))
    return stages


def _control_sites(controls: ControlsConfig, harvested: tuple[str, ...]) -> tuple[str, ...]:
    """What is harvested of the control models: the sites that their tables name, all of them where one names none."""
    tables = [*controls.train.values(), *controls.baselines.values()]
    if any(not config.sites for config in tables):
        return harvested
    found: dict[str, None] = {}
    for name in (name for config in tables for name in config.sites):
        kind = name.removesuffix(".*")
        same = [site for site in harvested if name.endswith(".*") and site.rpartition(".")[0] == kind]
        found |= dict.fromkeys(same or [name])
    return tuple(found)


def _named(
    cls: type[T], table: Mapping[str, Any], where: str, defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, T]]:
    """The values directly in a table, which hold for all tables in it, and those by name."""
    common = {**defaults, **{key: value for key, value in table.items() if not isinstance(value, dict)}}
    from_table(cls, common, f"[{where}]")
    found = {}
    for name, inner in table.items():
        if isinstance(inner, dict):
            if not name.replace("-", "").replace("_", "").isalnum():
                raise UserError(f"[{where}] holds {name!r}; write named tables, such as [{where}.residual]")
            found[name] = from_table(cls, {**common, **inner}, f"[{where}.{name}]")
    return common, found


def _controls(table: Mapping[str, Any], defaults: Mapping[str, Any]) -> ControlsConfig:
    rest = {key: value for key, value in table.items() if key not in ("train", "baselines")}
    _, sweeps = _named(TrainConfig, table.get("train", {}), "controls.train", defaults)
    _, fitted = _named(BaselineConfig, table.get("baselines", {}), "controls.baselines", {})
    return dataclasses.replace(from_table(ControlsConfig, rest, "[controls]"), train=sweeps, baselines=fitted)


def execute(path: Path, folder: Path, *, dry_run: bool = False) -> Path | None:
    """Run what is not done of a run.toml, then write the report; with ``dry_run`` only log the plan.

    Returns:
        The report's path; None after a dry run.
    """
    config = read_run(path)
    stages = plan(config, folder)
    if dry_run:
        from monolex.estimate import describe

        log.info(describe(config, stages))
        return None
    require_folder(folder)
    _keep_toml(path, folder)
    started = time.monotonic()
    for number, stage in enumerate(stages, 1):
        log.info(f"[{number}/{len(stages) + 1}] {stage.name}")
        _timed(stage, folder)
    log.info(f"[{len(stages) + 1}/{len(stages) + 1}] report")
    page = write_report(folder)
    spent = time.monotonic() - started
    log.info(f"done in {spent / 60:.1f} minutes, peak memory {size(peak_memory())}")
    return page


def write_report(folder: Path, **options: Any) -> Path:
    """Write RUN/report.html and return its path; what the run's own run.toml does not list is no part of it.

    Explanations and scores are, for commands of their own make them in a run.
    ``options`` are those of :func:`monolex.report.report`.

    Raises:
        UserError: as :func:`monolex.report.report` and, where there is a run.toml, as :func:`read_run`.
    """
    from monolex.report import report

    toml = folder / "run.toml"
    if not toml.exists():
        return report(folder, **options)
    listed = [stage.folder.relative_to(folder).as_posix() for stage in plan(read_run(toml), folder)]
    return report(folder, listed, **options)


def demo_toml() -> Path:
    """The bundled demo's run.toml."""
    return Path(__file__).parent / "demo" / "run.toml"


def _timed(stage: Stage, folder: Path) -> None:
    """Run a stage and, if it did anything, keep how long it took for the report."""
    manifest = stage.folder / MANIFEST
    before, started = _written(manifest), time.monotonic()
    stage.run()
    if _written(manifest) != before:
        path = folder / TIMINGS
        timings = read_json(path) if path.exists() else {}
        timings[stage.folder.relative_to(folder).as_posix()] = round(time.monotonic() - started, 1)
        write_json(path, timings)


def _written(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _keep_toml(path: Path, folder: Path) -> None:
    """Copy a run.toml into the run; another one that lies there is kept under a name of its own."""
    kept, content = folder / "run.toml", path.read_bytes()
    if kept.exists():
        before = kept.read_bytes()
        if before == content:
            return
        aside = folder / f"run-{hashlib.sha256(before).hexdigest()[:8]}.toml"
        write_bytes(aside, before)
        log.warning("%s differs from %s, which takes its place; it is kept as %s", kept, path, aside.name)
    write_bytes(kept, content)


def _table(config: Any) -> Mapping[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _harvest(name: str, folder: Path, model: ModelConfig, corpus: CorpusConfig, config: HarvestConfig) -> Stage:
    def run() -> None:
        from monolex.activations import harvest

        harvest(folder, model, corpus, config)

    return Stage(name, folder, run, (model, corpus, config))


def _train(name: str, folder: Path, activations: Path, config: TrainConfig) -> Stage:
    def run() -> None:
        from monolex.training.trainer import train

        train(folder, activations, config)

    return Stage(name, folder, run, config, (activations,))


def _baselines(name: str, folder: Path, activations: Path, config: BaselineConfig, matched: Sequence[Path]) -> Stage:
    def run() -> None:
        from monolex.dictionaries.baselines import fit_folder

        fit_folder(folder, activations, config, matched)

    return Stage(name, folder, run, config, (activations, *matched))


def _eval(
    folder: Path,
    activations: Path,
    sources: list[Path],
    controls: Mapping[str, tuple[Path, list[Path]]],
    config: EvalConfig,
) -> Stage:
    def run() -> None:
        from monolex.evals.evaluate import evaluate

        evaluate(folder, activations, sources, controls, config)

    needs = [activations, *sources, *(path for made, inner in controls.values() for path in (made, *inner))]
    return Stage("eval", folder, run, config, tuple(needs))


def _features(folder: Path, activations: Path, sources: list[Path], config: FeaturesConfig) -> Stage:
    def run() -> None:
        from monolex.features.stage import features

        features(folder, activations, sources, config)

    return Stage("features", folder, run, config, (activations, *sources))


def _experiment(kind: str, folder: Path, run: Path, config: Experiment, needs: Sequence[Path]) -> Stage:
    return Stage(f"{kind} {folder.name}", folder, lambda: experiment(kind, folder, run, config), config, tuple(needs))
