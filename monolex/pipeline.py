"""A run.toml executed: every step of its plan that is not done, then the report.

Every stage asks its own artefact whether it is done (see ``artifact``), so a run that was killed goes on where it was,
and a changed table redoes its stage and those that stand on it.
"""

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from monolex import runtime
from monolex.artifact import MANIFEST, TIMINGS, read_json, require_folder, write_bytes, write_json
from monolex.config import require
from monolex.lock import being_written, writing
from monolex.patterns import require_fitting
from monolex.plan import Step, plan, waits
from monolex.ranks import here, world
from monolex.run_toml import RunConfig, read_run
from monolex.runtime import log, peak_memory, size
from monolex.schedule import Schedule, alone
from monolex.stages import Stage
from monolex.workers import done

if TYPE_CHECKING:
    from monolex.estimate import RunEstimate


def drawn(stage: Stage, folder: Path) -> list[Path]:
    """Draw what there is to draw of the artefact of a stage; the pictures' paths."""
    if not stage.draw:
        return []
    from monolex.report import figures

    return figures.draw(folder)


class PreparedRun(NamedTuple):
    """A run.toml that is checked, and what is to be done for it."""

    config: RunConfig
    """It, with a precision in place of `auto`."""
    steps: list[Step]
    """Its plan."""
    jobs: int
    """Steps that are done at a time."""


def execute(path: Path, folder: Path, *, jobs: int | None = 1) -> Path:
    """Run what is not done of a run.toml, then write the report.

    ``jobs`` steps are done at a time, by processes that share the cores (:mod:`monolex.workers`: a script that asks
    for more than one needs its ``if __name__ == "__main__":``); None chooses by the model
    (:func:`monolex.estimate.jobs_for`).

    Returns:
        The report's path.

    Raises:
        UserError: as the stages, or another process writes into the run, or ``jobs`` is below 1.
    """
    prepared = _prepared(path, folder, jobs)
    with writing(folder):
        return _execute(path, folder, prepared.steps, prepared.jobs)


def dry_run(path: Path, folder: Path, *, jobs: int | None = 1, ranks: int = 1) -> "RunEstimate":
    """What :func:`execute` would take, step by step, or what each of ``ranks`` of torchrun would; nothing is written.

    Raises:
        UserError: as :func:`execute` before it does anything.
    """
    from monolex.estimate import estimate

    require(ranks >= 1, f"ranks = {ranks}: give at least 1")
    return estimate(*_prepared(path, folder, 1 if ranks > 1 else jobs), ranks=ranks)


def _prepared(path: Path, folder: Path, jobs: int | None) -> PreparedRun:
    require(jobs is None or jobs >= 1, f"jobs must be at least 1, not {jobs}")
    require(
        here.size() == 1 or jobs in (None, 1),
        f"jobs = {jobs} is for one process, and {here.size()} ranks share every step under torchrun; leave it out",
    )
    jobs = 1 if here.size() > 1 else jobs
    config = read_run(path)
    require_folder(folder)
    for step in plan(config, folder):  # refuses what does not agree before a model is read
        if check := step.stage.load("check"):
            check(step.config, config.model, config.harvest.sites)
    require_fitting(config)
    config = settled(config, folder)
    steps = plan(config, folder)
    if jobs is None:
        from monolex.estimate import jobs_for

        jobs = jobs_for(config, steps)
    return PreparedRun(config, steps, jobs)


def _execute(path: Path, folder: Path, steps: Sequence[Step], jobs: int) -> Path:
    if here.rank() == 0:
        _keep_toml(path, folder)
    started = time.monotonic()
    needs = waits(steps)
    shares = [1 if lonely else jobs for lonely in alone(needs)]
    last = len(steps) + 1
    work = [
        partial(_do, step, f"[{number}/{last}] {step.name}", share)
        for number, (step, share) in enumerate(zip(steps, shares, strict=True), 1)
    ]
    peak = 0
    for number, (spent, memory) in done(work, Schedule(needs), jobs):
        peak = max(peak, memory)
        if spent is not None and here.rank() == 0:
            _keep_time(steps[number], folder, spent)
    log.info(f"[{last}/{last}] report")
    page = write_report(folder, jobs=jobs) if here.rank() == 0 else folder / "report.html"
    world.wait()
    minutes, most = (time.monotonic() - started) / 60, size(max(peak, peak_memory()))
    beside = "" if jobs == 1 else f" in the largest of {jobs} processes"
    log.info(f"done in {minutes:.1f} minutes, peak memory {most}{beside}")
    return page


def settled(run: RunConfig, folder: Path) -> RunConfig:
    """``run`` with a precision in place of `auto`, the same for the model and its controls.

    Raises:
        UserError: as :func:`monolex.activations.stored.settled`.
    """
    from monolex.activations import stored

    model, precision = stored.settled(run.model, folder / "activations")
    return dataclasses.replace(run, model=model, precision=precision)


def write_report(folder: Path, **options: Any) -> Path:
    """Write RUN/report.html and return its path; what the run's own run.toml does not list is no part of it.

    Explanations and scores are, for commands of their own make them in a run.
    ``options`` are those of :func:`monolex.report.page.report`.

    Raises:
        UserError: as :func:`monolex.report.page.report` and, where there is a run.toml, as :func:`read_run`.
    """
    from monolex.report.page import report

    if writer := being_written(folder):
        log.warning("%s: the report shows what there is now", writer)
    toml = folder / "run.toml"
    if not toml.exists():
        return report(folder, **options)
    listed = [step.folder.relative_to(folder).as_posix() for step in plan(read_run(toml), folder)]
    return report(folder, listed, **options)


def _do(step: Step, said: str, share: int) -> tuple[float | None, int]:
    """Do a step with one ``share``-th of the threads; its seconds, if it did any, and its process's peak memory."""
    import torch

    log.info(said)
    manifest = step.folder / MANIFEST
    before, started = _written(manifest), time.monotonic()
    with runtime.threads(max(1, torch.get_num_threads() // share)):
        step.stage.load("run")(step.folder, config=step.config, **step.inputs)
    if here.rank() == 0:
        drawn(step.stage, step.folder)
    spent = time.monotonic() - started
    return None if _written(manifest) == before else spent, peak_memory()


def _keep_time(step: Step, folder: Path, seconds: float) -> None:
    """Keep how long a step took, for the report."""
    path = folder / TIMINGS
    timings = read_json(path) if path.exists() else {}
    timings[step.folder.relative_to(folder).as_posix()] = round(seconds, 1)
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
