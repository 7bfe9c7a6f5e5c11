"""The command line: a verb is a function; its config dataclasses are the flags, their field strings the help.

Importing this module, and ``--help``, need no torch. A :class:`UserError`, or what the system has against a file,
becomes one line on stderr and exit code 2.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from monolex import __version__
from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.config import (
    BaselineConfig,
    CorpusConfig,
    EvalConfig,
    FeaturesConfig,
    HarvestConfig,
    ModelConfig,
    TrainConfig,
)
from monolex.errors import UserError
from monolex.features.query import FindConfig
from monolex.interp.config import ExplainConfig, FigureConfig, ScoreConfig
from monolex.runtime import setup_logging

arg = tyro.conf.arg
Positional = tyro.conf.Positional
Activations = Annotated[Positional[Path], arg(metavar="ACTIVATIONS")]
Out = Annotated[Positional[Path], arg(metavar="OUT")]


def run(
    config: Annotated[Positional[Path], arg(metavar="RUN.TOML")],
    out: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Do all that a run.toml says, from harvest to experiments, explanations and report; what is done is skipped.

    Args:
        config: Path of the run.toml, or of a run's folder.
        out: Folder of the run; by default the run.toml's own name without its ending, beside it.
        dry_run: Print the plan with disk, memory and rough minutes, and do nothing.
    """
    from monolex.pipeline import execute

    config = config / "run.toml" if config.is_dir() else config
    folder = out or (config.parent if config.name == "run.toml" else config.with_suffix(""))
    page = execute(config, folder, dry_run=dry_run)
    if page:
        _say(f"look at {page} in a browser, or try: monolex show {folder}")


def demo(out: Path = Path("demo-run"), dry_run: bool = False) -> None:
    """The whole pipeline on the bundled model over the text of this Python installation; a few minutes on two cores.

    Args:
        out: Folder of the run.
        dry_run: Print the plan and do nothing.
    """
    from monolex.pipeline import demo_toml, execute

    kept = out / "run.toml"
    if kept.exists() and kept.read_bytes() != demo_toml().read_bytes():
        raise UserError(f"{kept} is not the demo's: go on with it by `monolex run {out}`, or give another --out")
    page = execute(demo_toml(), out, dry_run=dry_run)
    if page:
        _say(f"open {page} in a browser: every dictionary beside its baselines and controls")
        _say(f"`monolex show {out}` prints the tables; {out / 'run.toml'} is where to change things")


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
    from monolex.activations import harvest

    harvest(out, model, corpus, config)
    _say(f"look at it with: monolex show {out}")


def train(activations: Activations, out: Out, config: TrainConfig) -> None:
    """Train a sweep of sparse dictionaries in one pass over stored activations.

    Args:
        activations: Folder that `monolex harvest` wrote.
        out: Folder of the sweep.
        config: What is trained.
    """
    from monolex.training.trainer import train

    train(out, activations, config)
    _say(f"look at it with: monolex show {out}")


def baselines(activations: Activations, out: Out, config: BaselineConfig) -> None:
    """Fit PCA, ICA, NMF, random directions and the neuron basis on stored activations.

    Args:
        activations: Folder that `monolex harvest` wrote.
        out: Folder of the baselines.
        config: What is fitted.
    """
    from monolex.dictionaries.baselines import fit_folder

    fit_folder(out, activations, config)
    _say(f"look at it with: monolex show {out}")


def evaluate(
    activations: Activations,
    out: Out,
    sources: Annotated[Positional[tuple[Path, ...]], arg(metavar="SOURCE...")],
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
    from monolex.evals.evaluate import evaluate as measure

    measure(out, activations, sources, dict(map(_control, controls)), config)
    _say(f"look at it with: monolex show {out}")


def find(run: Annotated[Positional[Path], arg(metavar="RUN")], config: FindConfig, json: Path | None = None) -> None:
    """Find features of a run: by a prompt, by a token, by their numbers, or by two sets of texts.

    Args:
        run: Folder that `monolex run` wrote.
        config: What is looked for.
        json: Also write the answer to this file, every number in full.
    """
    from monolex.artifact import write_json
    from monolex.features.find import find

    found = find(run, config)
    if json is not None:
        write_json(json, found.to_json())
    _say(str(found))


def features(
    activations: Activations,
    out: Out,
    sources: Annotated[Positional[tuple[Path, ...]], arg(metavar="SOURCE...")],
    config: FeaturesConfig,
) -> None:
    """Gather the evidence of every feature: contexts, histograms, tokens, neighbours; one SQLite file a dictionary.

    Args:
        activations: Folder that `monolex harvest` wrote.
        out: Folder of the evidence.
        sources: Folders that `monolex train` and `monolex baselines` wrote.
        config: What is gathered.
    """
    from monolex.features.stage import features

    features(out, activations, sources, config)
    _say(f"look at it with: monolex show {out}")


def patch(run: Annotated[Positional[Path], arg(metavar="RUN")], config: PatchConfig, out: Path | None = None) -> None:
    """Patch features of a prompt with a donor's: KL over features and edit size, for every dictionary and baseline.

    Args:
        run: Folder that `monolex run` wrote.
        config: Which task, dictionaries and searches.
        out: Folder of the result; by default RUN/patch/TASK.
    """
    _experiment("patch", run, config, out or run / "patch" / Path(config.task).stem)


def ablate(run: Annotated[Positional[Path], arg(metavar="RUN")], config: AblateConfig, out: Path | None = None) -> None:
    """Take a feature away where it is active: which tokens the model then predicts less, beside controls.

    Args:
        run: Folder that `monolex run` wrote.
        config: Which features, and how.
        out: Folder of the result; by default one in RUN/ablate that is called as the features.
    """
    _experiment("ablate", run, config, out or run / "ablate" / _slug(config.features))


def tree(run: Annotated[Positional[Path], arg(metavar="RUN")], config: TreeConfig, out: Path | None = None) -> None:
    """Grow the tree of the features of earlier layers that cause a feature.

    Args:
        run: Folder that `monolex run` wrote.
        config: Which roots, and how far.
        out: Folder of the result; by default one in RUN/tree that is called as the roots.
    """
    _experiment("tree", run, config, out or run / "tree" / _slug(config.features))


def explain(
    run: Annotated[Positional[Path], arg(metavar="RUN")], config: ExplainConfig, out: Path | None = None
) -> None:
    """Explain features of a run: by rules that need no language model, or by asking one.

    Args:
        run: Folder that `monolex run` wrote.
        config: Which features, from which text, and by what.
        out: Folder of the result; by default RUN/explain/MODE.
    """
    _experiment("explain", run, config, out or run / "explain" / config.mode)


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
        from monolex.interp.simulators import checked

        found = checked(config)
        _say(found.table())
        return int(found.first < len(found.features))
    if run is None:
        raise UserError("RUN is missing: give the folder of a run, or --sanity")
    from monolex.interp.stored import chosen

    name = chosen(run, config.explanations).name
    _experiment("score", run, config, out or run / "score" / f"{name}-{config.simulator}")
    return 0


def _slug(features: Sequence[str]) -> str:
    """A name for a folder out of what is asked for."""
    first = re.sub(r"[^\w.-]+", "-", features[0]).strip("-.") if features else ""
    return (first or "features") + (f"-and-{len(features) - 1}" if len(features) > 1 else "")


def _experiment(kind: str, run: Path, config: Any, out: Path) -> None:
    from monolex.experiments import experiment
    from monolex.show import show

    pictures = experiment(kind, out, run, config)
    _say(show(out))
    for picture in pictures:
        _say(f"look at {picture}")


def figure(run: Annotated[Positional[Path], arg(metavar="RUN")], config: FigureConfig, out: Path | None = None) -> None:
    """Make figures and tables of the paper out of a run's scores: the numbers as JSON, and what they look like.

    Args:
        run: Folder with the scores that `monolex score` made.
        config: Which figure, of which scores.
        out: Folder of the files; by default RUN/figures.
    """
    from monolex.figures import paper

    for path in paper(run, config, out):
        _say(f"look at {path}")


def report(run: Annotated[Positional[Path], arg(metavar="RUN")], cards: int = 300) -> None:
    """Write RUN/report.html, one page that opens from disk, and the galleries of features beside it.

    Args:
        run: Folder that `monolex run` wrote.
        cards: Features on the page of a gallery, the most interesting ones; a card takes some 30 kB.
    """
    from monolex.pipeline import write_report

    _say(f"open {write_report(run, cards=cards)} in a browser")


def show(
    path: Annotated[Positional[Path], arg(metavar="PATH")], verify: bool = False, feature: int | None = None
) -> None:
    """Print what lies at a path: a run, an artefact, a dictionary, a shard, a store of features, a metrics.jsonl.

    Args:
        path: Anything monolex wrote.
        feature: Of a store (.sqlite), everything that is known of the feature of this number.
        verify: Of an artefact, or of all artefacts of a run, recompute every hash and say which are whole.
    """
    from monolex.show import check, show, show_feature

    if feature is not None:
        _say(show_feature(path, feature))
        return
    for text in check(path) if verify else [show(path)]:
        _say(text)


VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "run": run,
    "harvest": harvest,
    "train": train,
    "baselines": baselines,
    "eval": evaluate,
    "features": features,
    "find": find,
    "patch": patch,
    "ablate": ablate,
    "tree": tree,
    "explain": explain,
    "score": score,
    "figure": figure,
    "report": report,
    "show": show,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, what the verb gives, 2 for a user's mistake, 130 after Ctrl-C."""
    # Spinning threads cost 25 times the work where a core is shared (docs/log.md); read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        _say(__version__)
        return 0
    setup_logging()
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="monolex",
            description=f"Learn the monosemantic lexicon of a language model. `--version` prints {__version__}.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    except UserError as error:
        sys.stderr.write(f"monolex: {error}\n")
        return 2
    except BrokenPipeError:
        # Whoever read our output has had enough; Python must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        sys.stderr.write(f"monolex: {_refused(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("monolex: stopped; the same command goes on from here\n")
        return 130
    return code or 0


def _control(text: str) -> tuple[str, tuple[Path, list[Path]]]:
    """``NAME=ACTIVATIONS,SOURCE[,SOURCE...]`` in parts."""
    name, equals, paths = text.partition("=")
    activations, *sources = map(Path, paths.split(","))
    if not (name and equals and sources):
        raise UserError(f"--controls {text!r}: write NAME=ACTIVATIONS,SOURCE, as random=acts-random,sweep-random")
    return name, (activations, sources)


def _refused(error: OSError) -> str:
    """What the system, or a library in its name, has against a file, and what to do, in one sentence."""
    if error.strerror is None:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, PermissionError):
        fix = "change its permissions or choose another path"
    elif error.errno == errno.ENOSPC:
        fix = "free some space or choose another folder"
    else:
        fix = "check the path or choose another one"
    return f"{error.filename or 'a file'}: {error.strerror}; {fix}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
