"""Train a sweep into a folder: one pass over the stream, checkpoints, metrics.jsonl, exact resume.

The state from which a killed run resumes (:mod:`monolex.training.state`) is replaced whole, so there is always a
complete one. Batches are a pure function of their number; nothing about the data needs to be saved. On a CPU with the
same number of threads and ranks a resumed run writes the same bytes as an uninterrupted one.

Under torchrun all ranks train (:mod:`monolex.ranks.mesh`); what is logged of all of them is written by rank 0.

    FOLDER/SITE/NAME/           the dictionaries
    FOLDER/members.json         one row a member: what it is, where it lies, its last metrics
    FOLDER/metrics.jsonl        one row a member every `log_every` steps
    FOLDER/checkpoints/STEP/SITE/NAME/
    FOLDER/state/               only until the sweep is done
    FOLDER/last_good/SITE/NAME/      the dictionaries last saved before a loss that was not finite
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monolex import runtime
from monolex.artifact import (
    MANIFEST,
    WARNINGS,
    FileEntry,
    Manifest,
    digest,
    file_hash,
    finish,
    is_done,
    open_artifact,
    read_json,
    request_hash,
    warn_replacing,
    write_json,
)
from monolex.config import identity, located
from monolex.dictionaries.base import CONFIG, WEIGHTS, Dictionary, load
from monolex.dictionaries.doubts import doubts
from monolex.dictionaries.listing import CHECKPOINTS
from monolex.errors import UserError
from monolex.interrupt import interruptible
from monolex.lock import alone
from monolex.ranks import here, world
from monolex.ranks.group import LostRankError
from monolex.ranks.mesh import mesh
from monolex.train_config import TrainConfig
from monolex.training import state
from monolex.training.data import TrainingData, stored_source
from monolex.training.members import members
from monolex.training.sweep import Trainer

KIND = "sweep"
LAST_GOOD = "last_good"
SMALL = 2**25
"""Multiplications of a matrix product below which a second thread costs more than it gains (docs/log.md)."""


@alone
def train(folder: str | Path, activations: str | Path, config: TrainConfig) -> Manifest:
    """Train ``config`` on stored activations; what is done is left alone, what was interrupted is resumed.

    Raises:
        UserError: an unknown site, fewer rows than a batch, k above d_sae, an ``init`` that does not match, a loss
            that is not finite.
    """
    return train_from(folder, stored_source(Path(activations), config), config)


@alone
def train_from(folder: str | Path, data: TrainingData, config: TrainConfig) -> Manifest:
    """Like :func:`train`, from any stream."""
    folder, config = Path(folder), located(config)
    parents = {"activations": data.content}
    start = None
    if config.init is not None:
        start = load(config.init)
        parents["init"] = digest([file_hash(Path(config.init) / name) for name in (WEIGHTS, CONFIG)])
    world.agree(data=digest(parents), configuration=digest([identity(config), config.data_ranks, config.feature_ranks]))
    if is_done(folder, KIND, identity(config), parents):
        runtime.log.info("%s is done", folder)
        return open_artifact(folder, KIND)
    if not data.sites:
        if here.rank() == 0:
            _clear(folder)
        nothing = {"members": [], "steps": 0, "rows": 0, "checkpoints": []}
        return _of_first(folder, lambda: _finish(folder, data, config, parents, {}, nothing))
    return _Run(folder, data, config, parents, start).train()


def checkpoint_steps(steps: int, keep: int) -> list[int]:
    """At most ``keep`` steps between the first and the last, evenly spaced in the logarithm."""
    inner = np.geomspace(1, steps, keep + 2)[1:-1].round().astype(int).tolist()
    return sorted({step for step in inner if step < steps})


class _Run:
    """One run of a sweep in its folder, from its state or from the beginning."""

    def __init__(
        self, folder: Path, data: TrainingData, config: TrainConfig, parents: dict[str, str], start: Dictionary | None
    ) -> None:
        self.folder, self.data, self.config, self.parents = folder, data, config, parents
        self.request = request_hash(KIND, identity(config), parents)
        self.steps = config.steps or max(1, round(config.epochs * data.stream.steps_per_epoch))
        self.kept = checkpoint_steps(self.steps, config.keep_checkpoints)
        self.members = members(config, data.sites, data.targets)
        device = runtime.device(config.train_device)
        self.ranks = mesh(config.data_ranks, config.feature_ranks)
        self.trainer = Trainer(
            self.members, config, self.steps, device=device, start=start, usual=data.usual, mesh=self.ranks
        )

    def train(self) -> Manifest:
        saved = self._saved_state()
        world.wait()  # until all have looked
        if saved is None:
            if here.rank() == 0:
                _clear(self.folder)
        else:
            self.trainer.load_state(saved)
            runtime.log.info("%s: resumed at step %d of %d", self.folder, self.trainer.done, self.steps)
        runtime.log.info(
            "sweep: %d members at %d sites, %s parameters, %d steps of %d rows",
            len(self.members), len(self.data.sites), f"{self.trainer.n_parameters:,}", self.steps,
            self.config.batch_size,
        )  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        largest = max(self.config.batch_size * member.d_in * member.d_sae for member in self.members)
        with runtime.threads(1 if largest < SMALL else 2**16), ExitStack() as opened:
            metrics = None
            if here.rank() == 0:
                log = runtime.Metrics(self.folder / "metrics.jsonl", self.trainer.done)
                metrics = opened.enter_context(closing(log))
            self._loop(metrics)
        return self._finish()

    def _loop(self, metrics: runtime.Metrics | None) -> None:
        """``metrics`` are written by rank 0."""
        trainer, config, every = self.trainer, self.config, world.world()
        batches = self.data.stream.batches(trainer.done)
        with (
            runtime.progress(self.steps * config.batch_size, "train", " rows") as bar,
            interruptible(again=every.size == 1) as interrupted,
        ):
            # Rows of an earlier process count as done but not towards the rate.
            bar.n = bar.initial = trainer.done * config.batch_size
            while trainer.done < self.steps:
                with self._keeping_last_good():
                    trainer.step(next(batches))
                self._after_step(metrics)
                # before the bar, which a closed terminal refuses
                if signal := self._stopped_by(interrupted.number):
                    self._save_state()
                    raise KeyboardInterrupt(signal)
                bar.update(config.batch_size)

    def _stopped_by(self, signal: int | None) -> int:
        """The number of the signal that reached any rank; 0 for none. All ranks stop after the same step."""
        return int(world.world().greatest(torch.tensor(signal or 0)))

    def _after_step(self, metrics: runtime.Metrics | None) -> None:
        done, config = self.trainer.done, self.config
        last = done == self.steps
        if last or done % config.log_every == 0:
            with self._keeping_last_good():
                rows = self.trainer.metrics()
            for row in rows if metrics else ():
                assert metrics is not None
                metrics.write({"step": done, "rows": done * config.batch_size, **row})
        if done in self.kept:
            self._save_dictionaries(self.folder / CHECKPOINTS / str(done))
        if not last and done % config.save_every == 0:
            self._save_state()

    def _save_dictionaries(self, folder: Path) -> dict[str, FileEntry]:
        with self._keeping_last_good():
            self.trainer.verify()
        return self._write_dictionaries(folder)

    def _write_dictionaries(self, folder: Path) -> dict[str, FileEntry]:
        entries = self.trainer.save(folder, self.data.model, self.data.fingerprint)
        return {(folder / name).relative_to(self.folder).as_posix(): entry for name, entry in entries.items()}

    def _save_state(self) -> None:
        with self._keeping_last_good():
            self.trainer.verify()
        state.write(self.folder, self.request, self.trainer.done, self.trainer.state())

    def _saved_state(self) -> state.SavedState | None:
        saved = state.read(self.folder)
        if saved is None or saved.request == self.request:
            return saved
        runtime.log.info("%s: the saved state answers another configuration; starting again", self.folder)
        return None

    def _finish(self) -> Manifest:
        files = self._save_dictionaries(self.folder)
        parameters = self.trainer.n_parameters
        return _of_first(self.folder, lambda: self._finished(files, parameters))

    def _finished(self, files: dict[str, FileEntry], parameters: int) -> Manifest:
        log = self.folder / "metrics.jsonl"
        last = {(r["site"], r["member"]): r for r in runtime.read_jsonl(log) if r["step"] == self.steps}
        table: list[dict[str, Any]] = []
        for member in self.members:
            final = last[member.site, member.name]
            numbers = {name: value for name, value in final.items() if name not in ("step", "rows", "site", "member")}
            facts = {**asdict(member), "prefixes": list(member.prefixes)}
            table.append({"path": f"{member.site}/{member.name}", **facts, **numbers})
        files["members.json"] = write_json(self.folder / "members.json", table)
        for path in [log, *sorted((self.folder / CHECKPOINTS).rglob("*.*"))]:
            if path.is_file() and not path.name.startswith("."):
                name = path.relative_to(self.folder).as_posix()
                files[name] = FileEntry(path.stat().st_size, file_hash(path))
        facts = {
            "members": table,
            "steps": self.steps,
            "rows": self.steps * self.config.batch_size,
            "parameters": parameters,
            "checkpoints": self.kept,
            "ranks": {"all": here.size(), "data": self.config.data_ranks, "feature": self.config.feature_ranks},
            WARNINGS: [f"{row['path']}: {sentence}" for row in table for sentence in _doubts(row, self.config)],
        }
        manifest = _finish(self.folder, self.data, self.config, self.parents, files, facts)
        shutil.rmtree(self.folder / state.STATE, ignore_errors=True)
        return manifest

    @contextmanager
    def _keeping_last_good(self) -> Iterator[None]:
        try:
            yield
        except LostRankError:
            raise
        except UserError as error:
            raise UserError(f"{error}; {self._keep_last_good()}") from error

    def _keep_last_good(self) -> str:
        """Put the dictionaries last saved, checkpoint or state, where no later request clears them; say where."""
        written = [int(path.name) for path in self.folder.glob(f"{CHECKPOINTS}/*")]
        step = max((step for step in written if step < self.trainer.done), default=0)
        saved, target = self._saved_state(), self.folder / LAST_GOOD
        in_state = 0 if saved is None else saved.step
        if max(step, in_state) == 0:
            return "nothing had been saved before"
        if here.rank() == 0:
            shutil.rmtree(target, ignore_errors=True)
        world.wait()
        if saved is not None and in_state >= step:
            self.trainer.load_state(saved)
            self._write_dictionaries(target)
        elif here.rank() == 0:
            shutil.copytree(self.folder / CHECKPOINTS / str(step), target)
        return f"the dictionaries of step {max(step, in_state)} are kept in {target}, for load_dictionary and for init"


def _doubts(row: Mapping[str, Any], config: TrainConfig) -> Iterator[str]:
    """What is doubtful of a member at the end of its training; while k is annealed its last numbers are of several."""
    dead = None if row["dead"] is None else row["dead"] / row["d_sae"]
    return doubts(fvu=row["fvu"], l0=row["l0"], dead=dead, k=row["k"] if config.k_start is None else None)


def _clear(folder: Path) -> None:
    """Remove what an earlier request left but :data:`LAST_GOOD`, so that the folder never mixes two sweeps."""
    manifest = folder / MANIFEST
    if manifest.exists():
        warn_replacing(folder, KIND)
        stale = read_json(manifest)["files"]
        manifest.unlink()
        for name in stale:
            (folder / name).unlink(missing_ok=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    for name in (CHECKPOINTS, state.STATE):
        shutil.rmtree(folder / name, ignore_errors=True)


def _of_first(folder: Path, finished: Callable[[], Manifest]) -> Manifest:
    """What rank 0 finishes, for all of them."""
    if here.rank() == 0:
        finished()
    world.wait()
    return open_artifact(folder, KIND)


def _finish(
    folder: Path,
    data: TrainingData,
    config: TrainConfig,
    parents: Mapping[str, str],
    files: Mapping[str, FileEntry],
    facts: Mapping[str, Any],
) -> Manifest:
    of_data = {"sites": dict(data.sites), "targets": dict(data.targets), "mixing": dict(data.mixing)}
    warnings = [*data.warnings, *facts.get(WARNINGS, ())]
    return finish(folder, KIND, identity(config), parents, files, {**facts, **of_data, WARNINGS: warnings})
