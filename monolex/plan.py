"""The steps of a run: which stages, asked what, made of which folders, in order.

A run is a folder of artefacts::

    RUN/run.toml  activations/  train/NAME/  baselines/NAME/  features/  eval/  report.html  gallery/
    RUN/{patch,ablate,tree,explain,score}/NAME/
    RUN/controls/CONTROL/{activations/,train/NAME/,baselines/NAME/}
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monolex import stages
from monolex.artifact import model_home, open_artifact
from monolex.config import ModelConfig, identity, require
from monolex.errors import UserError
from monolex.run_toml import MAIN, ControlsConfig, RunConfig, Tables
from monolex.stages import Stage

OUTSIDE = ("model", "corpus", "separator", "init")
"""Parents in a manifest that are no artefacts of the run."""


@dataclass(frozen=True)
class Step:
    """One step of a plan: a stage, and what it is asked."""

    stage: Stage
    """Which stage."""
    name: str
    """As printed: ``train residual``."""
    folder: Path
    """Its artefact."""
    config: Any
    """Its configuration."""
    inputs: Mapping[str, Any]
    """What it is given beside, as its ``made_of`` says."""
    needs: tuple[Path, ...] = ()
    """Artefacts it is made of."""

    @property
    def answered(self) -> bool:
        """Whether the folder holds a finished artefact of this configuration, made of what now lies in the run.

        What comes from outside of the run (model, text) is not looked at.
        """
        configs = [*filter(dataclasses.is_dataclass, self.inputs.values()), self.config]
        wanted = {name: value for config in configs for name, value in identity(config).items()}
        try:
            manifest = open_artifact(self.folder)
            contents = {open_artifact(path).content for path in self.needs}
        except UserError:
            return False
        parents = {content for name, content in manifest.parents.items() if name not in OUTSIDE}
        return manifest.config == wanted and parents <= contents


def plan(run: RunConfig, folder: Path) -> list[Step]:
    """The steps of a run in order; imports of torch wait until a step is done."""
    steps = _of_model("", folder, _text(run, run.model), run.tables)
    subject = {"activations": folder / "activations", "sources": [step.folder for step in steps[1:]]}
    controls: dict[str, tuple[Path, list[Path]]] = {}
    for control in run.controls.models if run.controls else ():
        assert run.controls is not None
        model = dataclasses.replace(run.model, control=control, control_seed=run.controls.control_seed)
        harvest = dataclasses.replace(run.harvest, sites=_control_sites(run.controls, run.harvest.sites))
        tables = {"harvest": {"": harvest}, **run.controls.tables}
        of_control = _of_model(control, model_home(folder, control), _text(run, model), tables)
        controls[control] = (of_control[0].folder, [step.folder for step in of_control[1:]])
        steps += of_control
    decompositions = tuple(step.folder for step in steps)
    of_subject = (subject["activations"], *subject["sources"])
    for stage in stages.STAGES:
        for name, config in {} if stage.of_each_model else run.tables[stage.verb].items():
            inputs: dict[str, Any] = {"run": folder}
            needs = (*decompositions, *(step.folder for step in steps if step.stage.made_of == "dictionaries"))
            if stage.made_of == "dictionaries":
                inputs, needs = subject, of_subject
            elif stage.made_of == "models":
                needs = (*of_subject, *(path for first, rest in controls.values() for path in (first, *rest)))
                inputs = {**subject, "controls": controls}
            elif scores := getattr(config, "scores", ()):
                needs = (*needs, *(folder / "score" / score for score in scores))
            elif stage.made_of == "explanations":
                needs = (folder / "explain" / config.explanations,)
                inputs = {"explanations": needs[0], "run": folder}
            steps.append(_step(stage, (name,), folder, config, inputs, needs))
    return steps


def waits(steps: Sequence[Step]) -> list[list[int]]:
    """For every step the numbers of those that make what it is made of.

    Raises:
        UserError: a sweep that goes on with a dictionary of a later one.
    """
    made_by = {step.folder.resolve(): number for number, step in enumerate(steps)}
    needs = [[made_by[path] for folder in step.needs if (path := folder.resolve()) in made_by] for step in steps]
    for number, step in enumerate(steps):
        if init := getattr(step.config, "init", None):
            path = Path(init).resolve()
            earlier = [made_by[folder] for folder in (path, *path.parents) if folder in made_by]
            require(
                all(other < number for other in earlier),
                f"init = {init!r} of [{step.name.replace(' ', '.', 1)}] is made later; move its table below that one's",
            )
            needs[number] += earlier
    return needs


def _text(run: RunConfig, model: ModelConfig) -> dict[str, Any]:
    """What a stage on text is given: a control model in the subject's precision."""
    return {"model": model, "corpus": run.corpus, "precision": run.precision}


def _step(
    stage: Stage, names: Sequence[str], home: Path, config: Any, inputs: Mapping[str, Any], needs: tuple[Path, ...]
) -> Step:
    """``names``: the control model's, if it is of one, and the table's."""
    said = " ".join([stage.verb, *filter(None, names)])
    return Step(stage, said, home / stage.home / names[-1], config, inputs, needs)


def _of_model(model: str, home: Path, inputs: Mapping[str, Any], tables: Tables) -> list[Step]:
    """Activations, sweeps and baselines of one model; ``model`` is the control's name, empty for the subject."""
    activations = home / "activations"
    steps = []
    for stage in stages.STAGES:
        for name, config in tables[stage.verb].items() if stage.of_each_model else ():
            if stage.made_of == "text":
                steps.append(_step(stage, (model, name), home, config, inputs, ()))
                continue
            sweeps = getattr(config, "match", ())
            for sweep in sweeps:
                _require_sweep(sweep, list(tables["train"]), f"[{'controls.' if model else ''}{stage.verb}.{name}]")
            matched = tuple(home / "train" / sweep for sweep in sweeps)
            if matched:
                config = dataclasses.replace(config, match=tuple(map(str, matched)))
            steps.append(
                _step(stage, (model, name), home, config, {"activations": activations}, (activations, *matched))
            )
    return steps


def _require_sweep(sweep: str, known: Sequence[str], where: str) -> None:
    """Refuse a ``match`` of the table ``where`` with what is not one of the sweeps of its model."""
    beside = f" (values in [train] beside [train.{known[0]}] are what its tables share)" if known else ""
    said = f"the sweeps are {', '.join(known) or 'none'}{beside * (sweep == MAIN)}"
    require(sweep in known, f"match of {where} names {sweep!r}; {said}")


def _control_sites(controls: ControlsConfig, harvested: tuple[str, ...]) -> tuple[str, ...]:
    """What is harvested of the control models: the sites that their tables name, all of them where one names none."""
    configs = [config for tables in controls.tables.values() for config in tables.values()]
    if any(not config.sites for config in configs):
        return harvested
    sites: dict[str, None] = {}
    # transcoders need what they reconstruct too
    targets = [config.target_of(name) for config in configs if hasattr(config, "target_of") for name in config.sites]
    for name in (*(name for config in configs for name in config.sites), *filter(None, targets)):
        kind = name.removesuffix(".*")
        same = [site for site in harvested if name.endswith(".*") and site.rpartition(".")[0] == kind]
        sites |= dict.fromkeys(same or [name])
    return tuple(sites)
