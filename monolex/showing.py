"""Verbs that show what a run holds, or hand it on: figures, pages, servers, exports, formats of other tools; toy data.

Importing this module needs no torch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from monolex.explorer.export.config import ExportConfig
from monolex.interp.config import FigureConfig
from monolex.publish.config import ImportConfig, PublishConfig
from monolex.ranks import here
from monolex.said import VerbAnswer, say, say_json
from monolex.stage_verbs import Out, Positional, Run, arg, shown
from monolex.toy.config import ToyConfig


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


def toy(out: Out, config: ToyConfig) -> VerbAnswer:
    """Learn features that are known: which kinds of dictionary give back what was put in, and where each fails.

    What is done is kept cell by cell, so that a killed one goes on where it was.

    Args:
        out: Folder of the numbers, the pictures and the page.
        config: Which data, experiments and sizes.
    """
    from monolex.report.toy import draw
    from monolex.toy.stage import toy

    toy(out, config)
    if here.rank() > 0:  # rank 0 draws
        return VerbAnswer(list, dict)
    page, *pictures = draw(out)
    answer = shown(out)
    told = f"open {page} in a browser"
    return VerbAnswer(lambda: [*answer.lines(), told], lambda: {**answer.data(), "page": page, "pictures": pictures})


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


def export(
    run: Run,
    out: Annotated[Positional[Path], arg(metavar="DIR")],
    config: ExportConfig,
    jobs: int | None = None,
) -> VerbAnswer:
    """Write the pages of `monolex serve` as files that open from a disk and from any server: nothing of them is live.

    Labels, notes and pins of its dictionaries are part of it, as they are now; the report, one page already, is not.

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
    told = [
        f"{written.features:,} features in {written.files:,} files, {size(written.bytes)}",
        f"open {written.folder / 'index.html'} in a browser, or put the folder on any server",
    ]
    return VerbAnswer(lambda: told, written._asdict)


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


ANSWERS: dict[str, Callable[..., VerbAnswer]] = {
    "toy": toy,
    "figure": figure,
    "report": report,
    "export": export,
    "publish": publish,
    "import": adopt,
    "show": show,
}
"""Those that print an answer, by name."""
SERVERS: dict[str, Callable[..., Any]] = {"serve": serve, "mcp": mcp}
"""Those that go on until they are ended."""
