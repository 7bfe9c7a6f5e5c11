"""Harvest the activations of several sites in one pass over a corpus, to shards on disk.

What a row costs is one forward pass, one cast into a preallocated shard and one write. Which rows are dropped, the
stored precision and where shards end depend only on the request and the recorded batch, never on when a run was killed:
a resumed harvest is byte for byte the uninterrupted one.
"""

import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save
from torch import Tensor

from monolex import artifact, runtime
from monolex.activations.forward import Forward, forward, kept
from monolex.activations.reader import KIND
from monolex.activations.writer import CORPUS, PROGRESS, ROW_FIELDS, SPLITS, HarvestProgress, ShardWriter, resume
from monolex.artifact import Manifest
from monolex.config import CorpusConfig, HarvestConfig, ModelConfig, identity, located
from monolex.errors import UserError
from monolex.model.language_model import LanguageModel
from monolex.model.load import load
from monolex.model.sites import expand
from monolex.runtime import log, size
from monolex.text.corpus import Corpus, build
from monolex.text.rows import Rows

FP16_MAX: Final = torch.finfo(torch.float16).max
HEADROOM: Final = 8
"""How far the sampled maximum must stay below fp16's for `auto` to choose fp16."""
BYTES: Final = {"auto": 2, "fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True, eq=False)
class _Job:
    """Everything a harvest reads and nothing it changes."""

    folder: Path
    lm: LanguageModel
    sites: tuple[str, ...]
    corpus: Corpus
    rows: dict[str, Rows]
    keep: dict[str, Bool[Tensor, "rows context"]]
    config: HarvestConfig


class _Batch(NamedTuple):
    """A forward pass that is due."""

    split: str
    shard: int
    part: Int[Tensor, "batch"]


def harvest(
    folder: str | Path,
    model: ModelConfig,
    corpus: CorpusConfig,
    config: HarvestConfig,
    *,
    lm: LanguageModel | None = None,
) -> Manifest:
    """Store the activations of ``config.sites`` over a corpus in ``folder``; returns at once if that is done.

    Rows are those that ``positions`` and ``roles`` keep, less document separators (``drop_bos``) and rows whose norm at
    any site exceeds ``max_norm`` times the median norm of the first batch at that site. ``auto`` stores a site in fp16
    if eight times the largest value of the first batch fits, else in bf16. A harvest that was killed goes on at its
    last whole shard, with the ``batch_rows`` it began with.

    Args:
        lm: the loaded model that ``model`` names; None loads it.

    Raises:
        UserError: the model, the corpus or a site cannot be had, the disk is too small, the model gives NaN, or a
            value does not fit into the stored precision.
    """
    folder, model, corpus = Path(folder), located(model), located(corpus)
    artifact.require_folder(folder)
    lm = lm or load(model)
    if lm.tokenizer is None:
        raise UserError(f"{lm.name} has no tokenizer, which a corpus needs: give it one when wrapping it")
    sites = tuple(map(str, expand(config.sites, lm.n_layers)))
    widths = [lm.width(site) for site in sites]
    text = build(corpus, lm.tokenizer, max_context=lm.max_context)
    wanted = {**identity(model), **identity(corpus), **identity(config)}
    parents = {"model": lm.fingerprint, "corpus": text.digest}
    if artifact.is_done(folder, KIND, wanted, parents):
        (folder / PROGRESS).unlink(missing_ok=True)
        log.info("harvest: %s is done", folder)
        return artifact.open_artifact(folder, KIND)
    rows = {"train": text.train, "held_out": text.held_out}
    keep = {split: kept(lm, rows[split], config.drop_bos) for split in SPLITS}
    job = _Job(folder, lm, sites, text, rows, keep, config)
    progress = resume(folder, artifact.request_hash(KIND, wanted, parents), config.batch_rows)
    _require_space(job, widths, progress)
    _run(job, progress)
    data = _facts(job, model, progress)
    manifest = artifact.finish(folder, KIND, wanted, parents, progress.files, data)
    (folder / PROGRESS).unlink(missing_ok=True)
    log.info("harvest: %s rows of %d sites in %s", data["rows"], len(sites), folder)
    return manifest


def disk_need(widths: Sequence[int], rows: int, tokens: int, dtype: str) -> int:
    """Bytes of an artefact: ``rows`` activation rows at sites of these ``widths``, from ``tokens`` packed tokens.

    ``dtype`` is that of :class:`~monolex.config.HarvestConfig`; both precisions that `auto` chooses take two bytes.
    """
    row = sum(widths) * BYTES[dtype] + len(ROW_FIELDS) * 4
    return rows * row + tokens * (4 + 4 + 1)


def _require_space(job: _Job, widths: Sequence[int], progress: HarvestProgress) -> None:
    rows = sum(int(keep.sum()) for keep in job.keep.values())
    if rows == 0:
        raise UserError("no row is left to harvest: drop_bos, positions and roles leave nothing of the corpus")
    tokens = sum(part.tokens.numel() for part in job.rows.values())
    need = disk_need(widths, rows, tokens, job.config.dtype)
    existing = next(path for path in (job.folder, *job.folder.resolve().parents) if path.exists())
    precision = "fp16 or bf16" if job.config.dtype == "auto" else job.config.dtype
    count, free = len(widths), size(shutil.disk_usage(existing).free)
    log.info("harvest: %d sites x %d rows, %s in %s; %s free", count, rows, size(need), precision, free)
    written = sum(entry.bytes for entry in progress.files.values())
    runtime.require_disk(job.folder, max(need - written, 0), f"harvesting {rows} rows of {count} sites")


def _run(job: _Job, progress: HarvestProgress) -> None:
    start, before = time.monotonic(), progress.seconds
    if CORPUS not in progress.files:
        progress.files[CORPUS] = artifact.write_bytes(job.folder / CORPUS, save(_packed(job.rows)))
    shard_batches = _shard_batches(job, progress.batch_rows)
    due = list(_due(job, progress, shard_batches))
    first: dict[int, Forward] = {}
    if not progress.sites:
        number = next(i for i, batch in enumerate(due) if bool(job.keep[batch.split][batch.part].any()))
        first[number] = _forward(job, due[number])
        progress.sites = _decide(job, first[number])
    capacity = shard_batches * progress.batch_rows * job.corpus.train.context_length
    total = sum(len(batch.part) for batch in due) * job.corpus.train.context_length
    with ShardWriter(job.folder, progress, capacity) as writer, runtime.progress(total, "harvest", "tok") as bar:
        for number, batch in enumerate(due):
            if bool(job.keep[batch.split][batch.part].any()):
                seen = first.pop(number, None) or _forward(job, batch)
                _store(job, writer, progress, batch, seen)
            bar.update(len(batch.part) * job.corpus.train.context_length)
            progress.seconds = before + time.monotonic() - start
            if number + 1 == len(due) or due[number + 1][:2] != batch[:2]:
                writer.flush(batch.split)


def _packed(rows: Mapping[str, Rows]) -> dict[str, Tensor]:
    names = ("tokens", "docs", "keep")
    return {f"{split}.{name}": getattr(part, name).contiguous() for split, part in rows.items() for name in names}


def _shard_batches(job: _Job, batch_rows: int) -> int:
    """Forward passes in a shard; the same on every machine."""
    width = sum(job.lm.width(site) for site in job.sites)
    batch_bytes = batch_rows * job.corpus.train.context_length * width * BYTES[job.config.dtype]
    return max(job.config.shard_mb * 1_000_000 // batch_bytes, 1)


def _due(job: _Job, progress: HarvestProgress, shard_batches: int) -> Iterator[_Batch]:
    """The forward passes that are not on disk yet, in order."""
    for split in SPLITS:
        done = len(progress.shards[split]) * shard_batches
        for number, part in enumerate(torch.arange(len(job.rows[split])).split(progress.batch_rows)):
            if number >= done and len(part) > 0:
                yield _Batch(split, number // shard_batches, part)


def _forward(job: _Job, batch: _Batch) -> Forward:
    return forward(job.lm, job.rows[batch.split], job.keep[batch.split], batch.part, job.sites)


def _decide(job: _Job, seen: Forward) -> dict[str, dict[str, Any]]:
    """Stored precision and median norm of every site, from the first batch."""
    facts = {}
    for site, values in seen.values.items():
        fits = seen.peaks[site] * HEADROOM <= FP16_MAX
        automatic = "fp16" if fits else "bf16"
        facts[site] = {
            "d_in": values.shape[1],
            "dtype": automatic if job.config.dtype == "auto" else job.config.dtype,
            "sampled_max": seen.peaks[site],
            "median_norm": float(_norms(values).median()),
        }
    return facts


def _store(job: _Job, writer: ShardWriter, progress: HarvestProgress, batch: _Batch, seen: Forward) -> None:
    """Hand the rows of one forward pass to the writer, less the outliers."""
    keep, rows = job.keep[batch.split][batch.part], job.rows[batch.split]
    context, position = keep.nonzero(as_tuple=True)
    columns = {
        "tokens": rows.tokens[batch.part][keep],
        "docs": rows.docs[batch.part][keep],
        "positions": position,
        "contexts": batch.part[context],
    }
    values, outliers = seen.values, 0
    if job.config.max_norm is not None:
        normal = _normal(values, progress.sites, job.config.max_norm)
        columns = {name: column[normal] for name, column in columns.items()}
        values = {site: x[normal.to(x.device)] for site, x in values.items()}
        outliers = int((~normal).sum())
    for site, x in values.items():
        if progress.sites[site]["dtype"] == "fp16" and seen.peaks[site] > FP16_MAX:
            _require_fits(site, x)
    writer.add(columns, values, outliers)


def _require_fits(site: str, values: Float[Tensor, "rows d_in"]) -> None:
    # The peak may have been that of a row left out since.
    if not bool(values.half().isfinite().all()):
        peak = float(values.abs().max())
        raise UserError(f'{site} reaches {peak:.4g}, beyond the {FP16_MAX:.0f} of fp16: set dtype = "bf16"')


def _normal(
    values: Mapping[str, Float[Tensor, "rows d_in"]], facts: Mapping[str, dict[str, Any]], factor: float
) -> Bool[Tensor, "rows"]:
    """Rows whose norm is at most ``factor`` times the median at every site."""
    each = [(_norms(x) <= factor * facts[site]["median_norm"]).cpu() for site, x in values.items()]
    return torch.stack(each).all(0)


def _norms(values: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows"]:
    return torch.linalg.vector_norm(values, dim=1, dtype=torch.float32)


def _facts(job: _Job, model: ModelConfig, progress: HarvestProgress) -> dict[str, Any]:
    """What the manifest tells about the artefact."""
    lm = job.lm
    described = {"name": lm.name, "fingerprint": lm.fingerprint, "architecture": lm.architecture}
    dropped = {
        split: {
            "bos": int((job.rows[split].keep & ~job.keep[split]).sum()),
            "position_or_role": int((~job.rows[split].keep).sum()),
            "norm": progress.outliers[split],
        }
        for split in SPLITS
    }
    return {
        "model": {**described, "model_config": dataclasses.asdict(model)},
        "corpus": {"digest": job.corpus.digest, "report": job.corpus.report.to_json()},
        "sites": progress.sites,
        "rows": {split: sum(counts) for split, counts in progress.shards.items()},
        "shards": progress.shards,
        "dropped": dropped,
        "seconds": round(progress.seconds, 1),
    }
