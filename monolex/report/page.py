"""One self-contained HTML file of a run, from artefacts only.

The page puts the whole run first (a frontier a site, a table at equal L0) and then every site with all its
dictionaries; baselines and control models stand in the same charts and tables, and a cell without a number says why.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from monolex import stages
from monolex.artifact import CONTROLS, MANIFEST, TIMINGS, WARNINGS, Manifest, open_artifact, read_json, write_bytes
from monolex.errors import UserError
from monolex.interp.score import cards as results
from monolex.pages import html
from monolex.pages.eval_charts import EvaluatedDictionary, Looks, entries
from monolex.report import eval_section, features_section, run_facts
from monolex.report.findings import findings
from monolex.report.gallery import CARDS
from monolex.report.norms_section import norms
from monolex.report.section import chapters

PAGE = "report.html"


def report(run: str | Path, listed: Collection[str] | None = None, *, cards: int = CARDS, jobs: int = 1) -> Path:
    """Write ``RUN/report.html`` and return its path. Missing baselines, controls and features are left out.

    Every dictionary whose features were gathered in ``RUN/features`` gets a page ``RUN/gallery/SITE/NAME.html``.

    Args:
        cards: features on the page of a gallery, the most interesting ones.
        jobs: pages of galleries that are written at a time, by processes (:mod:`monolex.workers`).
        listed: paths in the run of the artefacts that its run.toml asks for; None if there is no run.toml. Others that
            lie there are shown only if they were measured, or if their stage is ``shown_apart``.

    Raises:
        UserError: the run has not been evaluated, or an artefact of it is damaged.
    """
    run = Path(run)
    evaluation = open_artifact(run / "eval", "eval")
    everything = entries(read_json(run / "eval" / "metrics.json"))
    if not everything:
        raise UserError(f"{run / 'eval' / 'metrics.json'} holds no rows; evaluate at least one dictionary")
    looks = Looks(everything)
    counts = fire_counts(run / "eval" / "densities.safetensors")
    names = dict.fromkeys(e.site for e in everything if e.site)
    measured = measured_folders(everything)
    wanted = None if listed is None else {*listed, *measured}
    manifests = {n: m for n, m in finished(run) if wanted is None or n in wanted or stages.shown_apart(m.kind)}
    seen = {}
    if features := manifests.get("features"):
        scored = results.scored(run, [n.partition("/")[2] for n, m in manifests.items() if m.kind == "score"])
        features_section.write_galleries(run, features, cards, scored, jobs)
        seen = features_section.section(run, features, cards, scored)
    timings = read_json(run / TIMINGS) if (run / TIMINGS).exists() else {}
    of_norms = norms(manifests.get("activations"))
    content = html.page(
        "report.html",
        run=run.resolve().name,
        overview=eval_section.overview(everything, looks),
        sites=[
            eval_section.section(i, site, everything, looks, counts)
            | {"features": seen.get(site), "norms": of_norms.get(site)}
            for i, site in enumerate(names, 1)
        ],
        **run_facts.subject(manifests.get("activations"), everything),
        worth_seeing=features_section.worth_seeing(seen),
        findings=findings(run, everything, manifests),
        chapters=chapters(run, manifests, listed),
        warnings=warnings_of(manifests),
        notice=evaluation_notice(evaluation, measured, manifests, listed),
        facts=[*run_facts.facts(manifests.get("activations")), *run_facts.measured(evaluation, everything)],
        problems=run_facts.problems(manifests.get("activations")),
        stages=[run_facts.stage(name, manifest, timings) for name, manifest in manifests.items()],
        versions=run_facts.versions(manifests.values()),
        toml=run_facts.toml(run / "run.toml"),
    )
    write_bytes(run / PAGE, content.encode())
    return run / PAGE


def warnings_of(manifests: Mapping[str, Manifest]) -> list[tuple[str, str]]:
    """Every warning once, behind the artefacts that say it."""
    said: dict[str, list[str]] = {}
    for name, manifest in manifests.items():
        for text in manifest.data.get(WARNINGS, ()):
            said.setdefault(text, []).append(name)
    return [(", ".join(names), text) for text, names in said.items()]


def fire_counts(path: Path) -> dict[str, list[int]]:
    """How often each feature fired, by the key of its dictionary."""
    try:
        return {name: counts.tolist() for name, counts in load_file(path).items()} if path.exists() else {}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); evaluate again") from error


def finished(run: Path, *, damaged: bool = True) -> Iterator[tuple[str, Manifest]]:
    """Finished artefacts of the run by their path in it, in the order in which they were made.

    Raises:
        UserError: one is damaged or of another version; without ``damaged`` it is left out.
    """
    of_models = [_pattern(stage) for stage in stages.STAGES if stage.of_each_model]
    others = [_pattern(stage) for stage in stages.STAGES if not stage.of_each_model]
    for pattern in (*of_models, *(f"{CONTROLS}/*/{pattern}" for pattern in of_models), *others):
        for path in sorted(run.glob(f"{pattern}/{MANIFEST}")):
            try:
                manifest = open_artifact(path.parent)
            except UserError:
                if damaged:
                    raise
                continue
            yield path.parent.relative_to(run).as_posix(), manifest


def _pattern(stage: stages.Stage) -> str:
    return f"{stage.home}/*" if stage.named else stage.home


def measured_folders(everything: Sequence[EvaluatedDictionary]) -> dict[str, None]:
    """Sweeps and baselines whose dictionaries were measured, by their path in the run."""
    paths = (Path("eval", entry.head["path"]).parents[1] for entry in everything if entry.head["path"])
    return dict.fromkeys(Path(os.path.normpath(path)).as_posix() for path in paths)


def evaluation_notice(
    evaluation: Manifest, measured: Collection[str], manifests: Mapping[str, Manifest], listed: Collection[str] | None
) -> str:
    """What the numbers do not agree with, in one sentence; empty where they are of what lies beside them."""
    contents = set(evaluation.parents.values())
    sources = {name: m for name, m in manifests.items() if m.kind in ("sweep", "baselines")}
    # a source all of whose members were given up (an ICA that did not converge) has nothing to be measured
    of_run = {name for name, m in sources.items() if m.data.get("members") or not m.data.get("given_up")}
    homes = {name.removesuffix("activations") for name, manifest in manifests.items() if manifest.kind == "activations"}
    inputs = of_run & set(measured) | {f"{h}activations" for h in homes if any(m.startswith(h) for m in measured)}
    # What was measured from outside the run is not the run's to keep.
    kept = {name for name in measured if not name.startswith("../")}
    differences = {
        "made again since": {name for name in inputs if manifests[name].content not in contents},
        "no longer there": kept - sources.keys(),
        "not measured": of_run - set(measured),
        "no longer in run.toml": set() if listed is None else kept & of_run - set(listed),
    }
    said = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in differences.items() if names)
    return f"The evaluation is not of what lies in this run now ({said}): run it again." if said else ""
