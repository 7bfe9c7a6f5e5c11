"""The verbs of stages: the flags that stages of a kind share, and what is said of what they made."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from monolex.said import VerbAnswer
from monolex.stages import Stage

arg = tyro.conf.arg
Positional = tyro.conf.Positional
Activations = Annotated[Positional[Path], arg(metavar="ACTIVATIONS")]
Out = Annotated[Positional[Path], arg(metavar="OUT")]
Run = Annotated[Positional[Path], arg(metavar="RUN")]
Sources = Annotated[Positional[tuple[Path, ...]], arg(metavar="SOURCE...")]
HELP = {
    "activations": "Folder that `monolex harvest` wrote.",
    "sources": "Folders that `monolex train` and `monolex baselines` wrote.",
    "run": "Folder that `monolex run` wrote.",
}


def of_stage(stage: Stage) -> Callable[..., Any]:
    """The verb of a stage: its own command, or one with the flags that every stage of its ``made_of`` has."""
    if command := stage.load("command"):
        return command

    def on_activations(activations: Activations, out: Out, config: Any) -> VerbAnswer:
        stage.load("run")(out, activations=activations, config=config)
        return made(stage, out)

    def on_dictionaries(activations: Activations, out: Out, sources: Sources, config: Any) -> VerbAnswer:
        stage.load("run")(out, activations=activations, sources=sources, config=config)
        return made(stage, out)

    def on_run(run: Run, config: Any, out: Path | None = None) -> VerbAnswer:
        folder = out or run / stage.home / config.folder_name
        stage.load("run")(folder, run=run, config=config)
        return made(stage, folder)

    verb = {"activations": on_activations, "dictionaries": on_dictionaries, "run": on_run}[stage.made_of]
    out = f"Folder of the result; {stage.default_out}." if stage.default_out else f"Folder of the {stage.makes}."
    said = {**HELP, "out": out, "config": stage.asks}
    function = inspect.unwrap(verb)
    function.__annotations__["config"] = stage.load("config")
    flags = [flag for flag in function.__annotations__ if flag != "return"]
    function.__doc__ = "\n".join([stage.about, "", "Args:", *(f"    {flag}: {said[flag]}" for flag in flags)])
    return function


def made(stage: Stage, out: Path) -> VerbAnswer:
    """What came of a stage, or how to look at it."""
    if stage.made_of not in ("run", "explanations"):
        return shown(out)._replace(lines=lambda: [f"look at it with: monolex show {out}"])
    from monolex.pipeline import drawn

    pictures, answer = drawn(stage, out), shown(out)
    return VerbAnswer(
        lambda: [*answer.lines(), *(f"look at {picture}" for picture in pictures)],
        lambda: {**answer.data(), "pictures": pictures},
    )


def shown(out: Path) -> VerbAnswer:
    """What ``monolex show`` says of an artefact."""
    from monolex.show.data import data
    from monolex.show.path import show

    return VerbAnswer(lambda: [show(out)], lambda: data(out))
