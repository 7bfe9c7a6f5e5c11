"""Harvest the activations of several sites in one pass over a corpus, to shards on disk.

What a row costs is one forward pass, one norm, one cast into a preallocated shard and one write. The stored precision
and where shards end depend only on the request and the recorded batch, and which rows are left out only on all rows,
never on when a run was killed, or on how many ranks do it: a resumed harvest is byte for byte the uninterrupted one.
"""

import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from monolex import artifact, runtime
from monolex.activations import outliers
from monolex.activations.beginning import Beginning, choose, recorded
from monolex.activations.forward import Forward, forward, kept
from monolex.activations.reader import KIND, shard_name
from monolex.activations.stored import in_precision_of, require_measured, settled
from monolex.activations.writer import (
    CORPUS,
    ROW_FIELDS,
    SPLITS,
    STREAMED,
    HarvestProgress,
    ShardWriter,
    forget_progress,
    keeps,
    recorded_progress,
    resume,
)
from monolex.artifact import WARNINGS, Manifest
from monolex.config import CorpusConfig, HarvestConfig, ModelConfig, identity, located
from monolex.errors import UserError
from monolex.lock import alone
from monolex.model import gguf
from monolex.model.language_model import DTYPES, LanguageModel
from monolex.model.load import load
from monolex.model.precision import Precision
from monolex.model.sites import expand
from monolex.model.verify import require_unhooked
from monolex.ranks import here, world
from monolex.runtime import log, size
from monolex.text.corpus import Corpus, build
from monolex.text.rows import Rows
from monolex.text.vocabulary import Texts

HEADROOM: Final = 2
"""How far the first batch's largest value must stay below a precision's for `auto` to choose it."""
AUTOMATIC: Final = ("fp16", "bf16", "fp32")
BYTES: Final = {"auto": 2, "fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True, eq=False)
class _Job:
    """Everything a harvest reads and nothing it changes."""

    folder: Path
    lm: LanguageModel
    sites: tuple[str, ...]
    corpus: Corpus
    begins: Beginning
    rows: dict[str, Rows]
    streamed: Rows | None
    """Training rows that are not stored, for whoever reads them through the model."""
    keep: dict[str, Bool[Tensor, "rows context"]]
    config: HarvestConfig


class _Batch(NamedTuple):
    """A forward pass that is due."""

    split: str
    shard: int
    part: Int[Tensor, "batch"]


@alone
def harvest(
    folder: str | Path,
    model: ModelConfig,
    corpus: CorpusConfig,
    config: HarvestConfig,
    *,
    lm: LanguageModel | None = None,
    precision: Precision | None = None,
) -> Manifest:
    """Store the activations of ``config.sites`` over a corpus in ``folder``; returns at once if that is done.

    Rows are those that ``positions`` and ``roles`` keep, less separators (``drop_bos``) and rows whose norm at any site
    exceeds ``max_norm`` times the median norm of all training rows at that site. ``auto`` stores a site in the first of
    fp16, bf16 and fp32 that holds the first batch, and a later shard that does not fit in fp32. A harvest that was
    killed goes on at its last whole shard, with the ``batch_rows`` it began with.

    Args:
        lm: the loaded model that ``model`` names; None loads it.
        precision: what `auto` chose where ``model`` is no longer `auto` but has been; None if it never was.

    Raises:
        UserError: the model, the corpus or a site cannot be had, hooks change what the model computes, the disk is too
            small, or the model gives NaN.
    """
    folder, model, corpus = Path(folder), located(model), located(corpus)
    artifact.require_folder(folder)
    if model.model_dtype == "auto":
        model, precision = (in_precision_of(lm, model), None) if lm else settled(model, folder)
    lm = lm or load(model)
    require_measured(lm, model, precision)
    require_unhooked(lm)
    if lm.tokenizer is None:
        raise UserError(f"{lm.name} has no tokenizer, which a corpus needs: give it one when wrapping it")
    sites = tuple(map(str, expand(config.sites, lm.n_layers)))
    widths = [lm.width(site) for site in sites]
    begins = recorded(folder, lm, corpus) or choose(lm, corpus, model)
    text = build(corpus, lm.tokenizer, max_context=lm.max_context)
    wanted = {**identity(model), **identity(corpus), **identity(config)}
    parents = {"model": lm.fingerprint, "corpus": text.digest, "separator": artifact.digest(begins.token)}
    world.agree(data=artifact.digest(parents), configuration=artifact.digest(wanted))
    if artifact.is_done(folder, KIND, wanted, parents):
        forget_progress(folder)
        log.info("harvest: %s is done", folder)
        return artifact.open_artifact(folder, KIND)
    sample, streamed = (text.train, None) if config.store else _apart(text.train, config.sample_tokens)
    rows = {"train": sample, "held_out": text.held_out}
    keep = {split: kept(lm, rows[split], config.drop_bos) for split in SPLITS}
    job = _Job(folder, lm, sites, text, begins, rows, streamed, keep, config)
    progress = resume(folder, artifact.request_hash(KIND, wanted, parents), config.batch_rows)
    _require_space(job, widths, progress)
    _run(job, progress)
    if here.rank() == 0:
        data = _facts(job, model, precision, progress, _leave_out(job, progress))
        artifact.finish(folder, KIND, wanted, parents, progress.files, data)
        forget_progress(folder)
        _tell(data, folder)
    world.wait()
    return artifact.open_artifact(folder, KIND)


def disk_need(widths: Sequence[int], rows: int, tokens: int, dtype: str) -> int:
    """Bytes of an artefact: ``rows`` activation rows at sites of these ``widths``, from ``tokens`` packed tokens.

    ``dtype`` is that of :class:`~monolex.config.HarvestConfig`; `auto` is taken for two bytes a value, which it mostly
    is: a site that neither fp16 nor bf16 holds takes four.
    """
    row = sum(widths) * BYTES[dtype] + (len(ROW_FIELDS) + len(widths)) * 4
    return rows * row + tokens * (4 + 4 + 1)


def _require_space(job: _Job, widths: Sequence[int], progress: HarvestProgress) -> None:
    rows = sum(int(keep.sum()) for keep in job.keep.values())
    if not bool(job.keep["train"].any()):
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
    if CORPUS not in progress.files and here.rank() == 0:
        progress.files[CORPUS] = artifact.write_bytes(job.folder / CORPUS, save(_packed(job)))
    shard_batches = _shard_batches(job, progress.batch_rows)
    due = list(_due(job, progress, shard_batches))
    first: tuple[_Batch, Forward] | None = None
    if not progress.sites:
        if here.rank() == 0:
            batch = next(batch for batch in due if _has_rows(job, batch))
            first = batch, _forward(job, batch)
            progress.sites = _decide(job, first[1])
        progress.sites = world.world().told(progress.sites)[0]
    due = [batch for batch in due if batch.shard % here.size() == here.rank()]
    capacity = shard_batches * progress.batch_rows * job.corpus.train.context_length
    total = sum(len(batch.part) for batch in due) * job.corpus.train.context_length
    with ShardWriter(job.folder, progress, capacity) as writer, runtime.progress(total, "harvest", "tok") as bar:
        for number, batch in enumerate(due):
            if _has_rows(job, batch):
                seen = first[1] if first and first[0] is batch else _forward(job, batch)
                first = None
                _store(job, writer, batch, seen)
            bar.update(len(batch.part) * job.corpus.train.context_length)
            progress.seconds = before + time.monotonic() - start
            if number + 1 == len(due) or due[number + 1][:2] != batch[:2]:
                writer.flush(batch.split, batch.shard)
    world.wait()
    merges = here.rank() == 0 and here.size() > 1
    of_others = recorded_progress(job.folder, progress.request) if merges else None
    if of_others is not None:
        progress.add(of_others)


def _has_rows(job: _Job, batch: _Batch) -> bool:
    return bool(job.keep[batch.split][batch.part].any())


def _apart(rows: Rows, tokens: int) -> tuple[Rows, Rows | None]:
    """Packed rows with about so many tokens, evenly spread, and the others; None where there are no others."""
    count = min(-(-tokens // rows.context_length), len(rows))
    stored = torch.zeros(len(rows), dtype=torch.bool)
    stored[torch.arange(count) * len(rows) // max(count, 1)] = True
    return rows.where(stored), None if bool(stored.all()) else rows.where(~stored)


def _packed(job: _Job) -> dict[str, Tensor]:
    names = ("tokens", "docs", "keep")
    parts = {**job.rows, **({STREAMED: job.streamed} if job.streamed else {})}
    return {f"{split}.{name}": getattr(part, name).contiguous() for split, part in parts.items() for name in names}


def _shard_batches(job: _Job, batch_rows: int) -> int:
    """Forward passes in a shard; the same on every machine."""
    width = sum(job.lm.width(site) for site in job.sites)
    batch_bytes = batch_rows * job.corpus.train.context_length * width * BYTES[job.config.dtype]
    return max(job.config.shard_mb * 1_000_000 // batch_bytes, 1)


def _due(job: _Job, progress: HarvestProgress, shard_batches: int) -> Iterator[_Batch]:
    """The forward passes that are not on disk yet, in order."""
    for split in SPLITS:
        for number, part in enumerate(torch.arange(len(job.rows[split])).split(progress.batch_rows)):
            shard = number // shard_batches
            if shard not in progress.shards[split] and len(part) > 0:
                yield _Batch(split, shard, part)


def _forward(job: _Job, batch: _Batch) -> Forward:
    return forward(job.lm, job.rows[batch.split], job.keep[batch.split], batch.part, job.sites)


def _decide(job: _Job, seen: Forward) -> dict[str, dict[str, Any]]:
    """Stored precision of every site, from the first batch where it is not ordered."""
    facts = {}
    for site, values in seen.values.items():
        peak = HEADROOM * seen.peaks[site]
        automatic = next(name for name in AUTOMATIC if name == "fp32" or keeps(values, peak, DTYPES[name]))
        chosen = job.config.dtype == "auto"
        dtype = automatic if chosen else job.config.dtype
        facts[site] = {"d_in": values.shape[1], "dtype": dtype, "chosen": chosen, "peak": 0.0, "widened": []}
    return facts


def _store(job: _Job, writer: ShardWriter, batch: _Batch, seen: Forward) -> None:
    """Hand the rows of one forward pass to the writer."""
    keep, rows = job.keep[batch.split][batch.part], job.rows[batch.split]
    context, position = keep.nonzero(as_tuple=True)
    columns = {
        "tokens": rows.tokens[batch.part][keep],
        "docs": rows.docs[batch.part][keep],
        "positions": position,
        "contexts": batch.part[context],
    }
    writer.add(columns, seen.values, seen.peaks)


def _leave_out(job: _Job, progress: HarvestProgress) -> dict[str, Bool[Tensor, "rows"]]:
    """Which of all stored rows are left out, by split; writes their list and completes the facts of every site."""
    norms = {site: {split: _stored(job, progress, site, split, "norms") for split in SPLITS} for site in job.sites}
    limits = {site: outliers.limit(by_split["train"], job.config.max_norm) for site, by_split in norms.items()}
    left_out = {
        split: torch.stack([outliers.beyond(norms[site][split], limits[site]) for site in job.sites]).any(0)
        for split in SPLITS
    }
    for site in job.sites:
        progress.sites[site] |= outliers.site_facts(norms[site]["train"], left_out["train"], limits[site])
    numbers = {split: rows.nonzero()[:, 0] for split, rows in left_out.items()}
    progress.files[outliers.FILE] = artifact.write_bytes(job.folder / outliers.FILE, save(numbers))
    return left_out


def _stored(job: _Job, progress: HarvestProgress, part: str, split: str, name: str) -> Tensor:
    """A column of all stored rows of a split, in order."""
    columns = []
    for number in range(len(progress.rows(split))):
        with safe_open(job.folder / shard_name(part, split, number), framework="pt") as shard:
            columns.append(shard.get_tensor(name))
    return torch.cat(columns) if columns else torch.empty(0, dtype=torch.float32 if name == "norms" else torch.int32)


def _facts(
    job: _Job,
    model: ModelConfig,
    precision: Precision | None,
    progress: HarvestProgress,
    left_out: Mapping[str, Bool[Tensor, "rows"]],
) -> dict[str, Any]:
    """What the manifest tells about the artefact."""
    lm = job.lm
    described = {
        "name": lm.name,
        "title": lm.title,
        "fingerprint": lm.fingerprint,
        "architecture": lm.architecture,
        "precision": precision and precision._asdict(),
        "gguf": gguf.facts(file) if gguf.is_gguf(file := Path(model.model).expanduser()) else None,
    }
    dropped = {
        split: {
            "bos": int((job.rows[split].keep & ~job.keep[split]).sum()),
            "position_or_role": int((~job.rows[split].keep).sum()),
            "norm": int(left_out[split].sum()),
        }
        for split in SPLITS
    }
    tokens = torch.cat([_stored(job, progress, "rows", split, "tokens")[left_out[split]] for split in SPLITS])
    shards = {split: progress.rows(split) for split in SPLITS}
    rows = {split: sum(shards[split]) - dropped[split]["norm"] for split in SPLITS}
    warnings = outliers.sentences(progress.sites, dropped["train"]["norm"], sum(shards["train"]))
    return {
        "model": {**described, "model_config": dataclasses.asdict(model)},
        "corpus": {
            "digest": job.corpus.digest,
            "report": job.corpus.report.to_json(),
            "separator": job.begins._asdict(),
        },
        "sites": progress.sites,
        "rows": rows,
        "streamed": 0 if job.streamed is None else job.streamed.n_tokens,
        "shards": shards,
        "dropped": dropped,
        "outlier_tokens": outliers.token_counts(tokens, lambda ids: dict(Texts(lm).of(ids))),
        WARNINGS: [*job.corpus.report.warnings, *warnings],
        "seconds": round(progress.seconds, 1),
    }


def _tell(data: Mapping[str, Any], folder: Path) -> None:
    """What a harvest came to, in the log."""
    log.info("harvest: %s rows of %d sites in %s", data["rows"], len(data["sites"]), folder)
    for site, facts in data["sites"].items():
        if facts["outliers"]["rows"]:
            log.info(
                "%s: %d training rows beyond %.4g (the median norm is %.4g) hold %.1f %% of the squared norm",
                site, facts["outliers"]["rows"], facts["norm_limit"], facts["median_norm"],
                100 * facts["outliers"]["share"],
            )  # fmt: skip
    if data["outlier_tokens"]:
        named = ", ".join(f"{entry['text']!r} {entry['count']}" for entry in data["outlier_tokens"])
        log.info("left out for their norm at some site: %s", named)
