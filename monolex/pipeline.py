"""A run.toml executed: every step of its plan that is not done, then the report.

Every stage asks its own artefact whether it is done (see ``artifact``), so a run that was killed goes on where it was,
and a changed table redoes its stage and those that stand on it.
"""

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import MANIFEST, TIMINGS, read_json, require_folder, write_bytes, write_json
from monolex.lock import being_written, writing
from monolex.plan import Step, plan
from monolex.run_toml import RunConfig, read_run
from monolex.runtime import log, peak_memory, size
from monolex.stages import Stage


def drawn(stage: Stage, folder: Path) -> list[Path]:
    """Draw what there is to draw of the artefact of a stage; the pictures' paths."""
    if not stage.draw:
        return []
    from monolex.report import figures

    return figures.draw(folder)


def execute(path: Path, folder: Path, *, dry_run: bool = False) -> Path | None:
    """Run what is not done of a run.toml, then write the report; with ``dry_run`` only log the plan.

    Returns:
        The report's path; None after a dry run.

    Raises:
        UserError: as the stages, or another process writes into the run.
    """
    config = read_run(path)
    require_folder(folder)
    for step in plan(config, folder):  # refuses what does not agree before a model is read
        if check := step.stage.load("check"):
            check(step.config, config.model, config.harvest.sites)
    config = settled(config, folder)
    steps = plan(config, folder)
    if dry_run:
        from monolex.estimate import describe

        log.info(describe(config, steps))
        return None
    with writing(folder):
        return _execute(path, folder, steps)


def _execute(path: Path, folder: Path, steps: Sequence[Step]) -> Path:
    _keep_toml(path, folder)
    started = time.monotonic()
    for number, step in enumerate(steps, 1):
        log.info(f"[{number}/{len(steps) + 1}] {step.name}")
        _timed(step, folder)
    log.info(f"[{len(steps) + 1}/{len(steps) + 1}] report")
    page = write_report(folder)
    spent = time.monotonic() - started
    log.info(f"done in {spent / 60:.1f} minutes, peak memory {size(peak_memory())}")
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


def demo_toml() -> Path:
    """The bundled demo's run.toml."""
    return Path(__file__).parent / "demo" / "run.toml"


def _timed(step: Step, folder: Path) -> None:
    """Do a step and, if it did anything, keep how long it took for the report."""
    manifest = step.folder / MANIFEST
    before, started = _written(manifest), time.monotonic()
    step.stage.load("run")(step.folder, config=step.config, **step.inputs)
    drawn(step.stage, step.folder)
    if _written(manifest) != before:
        path = folder / TIMINGS
        timings = read_json(path) if path.exists() else {}
        timings[step.folder.relative_to(folder).as_posix()] = round(time.monotonic() - started, 1)
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
