"""``monolex features``: the evidence of every feature of many dictionaries, each site's rows encoded once for all.

Of every dictionary one store is written, ``SITE/NAME.sqlite``. Sites are done one after the other and kept as they are
done, so a killed stage loses one site at most.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from monolex import artifact, runtime
from monolex.activations.constant import constant_sites
from monolex.activations.reader import Reader
from monolex.activations.rule import USUAL, RowFilter
from monolex.activations.stored import packed_rows, stored_model
from monolex.artifact import SUBJECT, WARNINGS, FileEntry, Manifest
from monolex.config import FeaturesConfig, identity, require
from monolex.dictionaries.base import WEIGHTS, Dictionary
from monolex.dictionaries.listing import RunDictionary, by_site, given_folders, parents, source_dictionaries
from monolex.errors import UserError
from monolex.features import weights
from monolex.features.evidence import BINS, TOKEN_BINS
from monolex.features.gather import Gathered, gather, optional
from monolex.features.rows import ModelRows, RowSource, RowTable, StoredRows
from monolex.features.seeds import other_seeds, reappearance
from monolex.features.spill import Codes, spill
from monolex.features.store_writer import StoreWriter
from monolex.lock import alone
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site, select
from monolex.pieces import FILES, Piece, Work
from monolex.text.rows import Rows, rows_digest
from monolex.text.vocabulary import Texts

KIND = "features"
SPILL = ".spill-"

Facts = dict[str, Any]


@alone
def features(
    folder: str | Path,
    activations: str | Path,
    sources: Sequence[Path],
    config: FeaturesConfig,
    *,
    lm: LanguageModel | None = None,
) -> Manifest:
    """Gather the evidence of the dictionaries in ``sources``, made from the artefact ``activations``, into ``folder``.

    ``manifest.data["stores"]`` lists path, site, name, kind, d_sae, rows, bytes and alive features of every store.

    Args:
        lm: the model that the activations are of; None loads it.

    Raises:
        UserError: an input is not finished or does not fit, a name that matches nothing, or too little disk.
    """
    folder, activations, sources = Path(folder), Path(activations), list(map(Path, sources))
    constant = constant_sites(activations, split=config.split)
    listed = by_site(source_dictionaries(activations, sources))
    chosen = _chosen(listed, constant, config)
    parent = artifact.open_artifact(activations, "activations")
    work = Work(folder, KIND, config, parents(given_folders(SUBJECT, activations, sources)))
    if manifest := work.answer():
        return manifest
    for stale in folder.glob(f"{SPILL}*"):
        shutil.rmtree(stale, ignore_errors=True)

    def piece(site: str) -> Piece:
        def gathered(_path: Path) -> Facts:
            nonlocal lm
            lm = lm or stored_model(activations, config.features_device)
            reader = Reader(activations, site, config.split)
            source = StoredRows(reader, packed_rows(activations, config.split), config)
            job = _Job(source, lm, Texts(lm), config, parent.content, work.advance)
            return _site(work, chosen[site], listed[site], job)

        return gathered

    rows = min(parent.data["rows"][config.split], config.feature_rows or 2**62)
    sizes = {site: 2 * rows * len(listed) for site, listed in chosen.items()}
    entries = work.done({site: piece(site) for site in chosen}, sizes=sizes, unit="row")
    stores = [store for entry in entries.values() for store in entry["stores"]]
    return work.finish({}, {"stores": stores, WARNINGS: list(constant.values())})


def features_from(
    folder: str | Path,
    lm: LanguageModel,
    rows: Rows,
    dictionaries: Mapping[str, Dictionary],
    config: FeaturesConfig,
    *,
    row_filter: RowFilter = USUAL,
) -> dict[str, Path]:
    """Gather the evidence of dictionaries of one site straight from the model; returns their stores ``NAME.sqlite``.

    The rows are the kept tokens of ``rows`` that count by ``row_filter``, up to ``feature_rows``.

    Raises:
        UserError: no dictionary, dictionaries of different sites, no kept token, or too little disk.
    """
    sites = sorted({dictionary.config.site for dictionary in dictionaries.values()})
    require(len(sites) == 1, f"dictionaries of {len(sites)} sites ({', '.join(sites)}): give those of one site")
    source = ModelRows(lm, rows, sites[0], config, row_filter=row_filter)
    return from_source(Path(folder), source, lm, dictionaries, config, rows_digest(rows))


def from_source(
    folder: Path,
    source: RowSource,
    lm: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    config: FeaturesConfig,
    content: str = "",
) -> dict[str, Path]:
    """Gather the evidence of dictionaries over any rows; ``content`` is a hash of those. Returns the stores."""
    device = runtime.device(config.features_device)
    on_device = {name: dictionary.to(device) for name, dictionary in dictionaries.items()}
    paths = {name: folder / f"{name}.sqlite" for name in on_device}
    with runtime.progress(2 * len(source.table) * len(on_device), "features", "row") as bar:
        job = _Job(source, lm, Texts(lm), config, content, bar.update)
        for name, codes in _spilled(folder, on_device, job):
            _store(paths[name], name, on_device[name], codes, job, {})
    return paths


@dataclass(frozen=True, eq=False)
class _Job:
    """What all dictionaries of a site share."""

    source: RowSource
    lm: LanguageModel
    texts: Texts
    config: FeaturesConfig
    content: str
    advance: Callable[[int], Any]


def _chosen(
    listed: Mapping[str, Sequence[RunDictionary]], constant: Collection[str], config: FeaturesConfig
) -> dict[str, list[RunDictionary]]:
    """The dictionaries that the configuration names, by site, but for those of constant sites."""
    known = tuple(dict.fromkeys((*listed, *constant)))
    sites = [site for site in select(config.sites, known, "the given sources") if site not in constant]
    dictionaries = [d for site in sites for d in listed[site]]
    for pattern in config.dictionaries:
        names = dict.fromkeys(dictionary.name for dictionary in dictionaries)
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"dictionaries holds {pattern!r}, which matches none of {', '.join(names)}")
    patterns = config.dictionaries or ("*",)
    return by_site(d for d in dictionaries if any(fnmatchcase(d.name, pattern) for pattern in patterns))


def _site(work: Work, chosen: Sequence[RunDictionary], listed: Sequence[RunDictionary], job: _Job) -> Facts:
    """Write the stores of the ``chosen`` of the dictionaries of one site; returns their table rows and files."""
    device = runtime.device(job.config.features_device)
    dictionaries = {dictionary.name: dictionary.weights(device) for dictionary in chosen}
    others = {dictionary.name: other_seeds(dictionary, listed) for dictionary in chosen}
    home, stores, files = {dictionary.name: dictionary.folder for dictionary in chosen}, [], {}
    for name, codes in _spilled(work.folder, dictionaries, job):
        path = f"{job.source.site}/{name}.sqlite"
        where, store = home[name], work.file(path)
        facts = {
            "dictionary": artifact.relative_place(where, (work.folder / path).parent),
            "dictionary_content": artifact.file_hash(where / WEIGHTS),
        }
        alive = _store(store, name, dictionaries[name], codes, job, facts, others[name])
        entry = FileEntry(store.stat().st_size, artifact.file_hash(store))
        files[path] = dataclasses.asdict(entry)
        known = {"path": path, "site": job.source.site, "name": name, "kind": dictionaries[name].config.kind}
        sizes = {"d_sae": dictionaries[name].d_sae, "rows": len(job.source.table), "bytes": entry.bytes}
        stores.append({**known, **sizes, "alive": alive})
    return {"stores": stores, FILES: files}


def _spilled(folder: Path, dictionaries: Mapping[str, Dictionary], job: _Job) -> Iterator[tuple[str, Codes]]:
    """The codes of every dictionary; what lies on disk for them goes when the last was used, or anything fails."""
    folder.mkdir(parents=True, exist_ok=True)
    device = runtime.device(job.config.features_device)
    # Windows removes no file that is still mapped; what is left of one goes when the stage is next run
    with tempfile.TemporaryDirectory(dir=folder, prefix=SPILL, ignore_cleanup_errors=True) as scratch:
        count = len(dictionaries)
        codes = spill(
            Path(scratch), job.source, dictionaries, job.config, device, lambda rows: job.advance(rows * count)
        )
        for name in dictionaries:
            yield name, codes.pop(name)


def _store(
    path: Path,
    name: str,
    dictionary: Dictionary,
    codes: Codes,
    job: _Job,
    facts: Facts,
    others: Sequence[RunDictionary] = (),
) -> int:
    """Write one store; returns how many of its features are alive. ``others`` are the same under other seeds."""
    done, rows = 0, len(job.source.table)

    def advance(features: int) -> None:
        nonlocal done
        job.advance(rows * (done + features) // dictionary.d_sae - rows * done // dictionary.d_sae)
        done += features

    with StoreWriter(path) as writer:
        gathered = gather(writer, codes, job.source.table, job.config, advance)
        reason = _write_rest(writer, dictionary, gathered, job, others)
        seeds = [other.config.recipe["seed"] for other in others]
        writer.finish(_meta(name, dictionary, gathered, job, reason) | {"other_seeds": seeds} | facts)
    return gathered.alive


def _write_rest(
    writer: StoreWriter, dictionary: Dictionary, gathered: Gathered, job: _Job, others: Sequence[RunDictionary]
) -> str:
    """What comes from weights, the contexts and the texts; returns why there are no direct logits, if so."""
    lm, table, config = job.lm, job.source.table, job.config
    site = Site.parse(dictionary.config.target or job.source.site)  # what is written reaches the logits from there
    weights.neighbours(writer, dictionary, config.neighbours)
    way = weights.way_to_logits(lm, site, dictionary)
    tokens = weights.direct_logits(writer, dictionary, lm, way, config.direct)
    near = [weights.closest(dictionary, site, lm, matrix) for matrix in (lm.embedding, lm.unembedding)]
    for side in near:
        tokens.update(side.token[side.token >= 0].tolist())
    *numbers, histogram = gathered.summaries
    columns = [*numbers, *(column for side in near for column in side), *reappearance(dictionary, others)]
    blobs = (row.tobytes() for row in histogram)
    ids = range(dictionary.d_sae)
    writer.insert("feature", zip(ids, *map(optional, columns), blobs, strict=True), 24)
    tokens.update(table.vocabulary[gathered.tokens].tolist())
    tokens.update(_write_contexts(writer, table, gathered))
    writer.insert("vocabulary", job.texts.of(tokens), 2)
    return way.reason


def _write_contexts(writer: StoreWriter, table: RowTable, gathered: Gathered) -> set[int]:
    """Write the contexts that are referred to; returns their tokens."""
    ids = np.flatnonzero(gathered.contexts)
    held = [np.ascontiguousarray(table.tokens_of(number), np.int32) for number in ids.tolist()]
    doc, row, start = (column[ids].tolist() for column in table.fragments[:3])
    writer.insert("context", zip(ids.tolist(), doc, row, start, [t.tobytes() for t in held], strict=True), 5)
    return set(np.unique(np.concatenate(held)).tolist()) if held else set()


def _meta(name: str, dictionary: Dictionary, gathered: Gathered, job: _Job, reason: str) -> Facts:
    lm = job.lm
    return {
        "name": name,
        "site": job.source.site,
        "kind": dictionary.config.kind,
        "target": dictionary.config.target,
        "d_sae": dictionary.d_sae,
        "signed": dictionary.signed,
        "negative": dictionary.signed,
        "rows": len(job.source.table),
        "alive": gathered.alive,
        "coactive_rows": gathered.coactive_rows,
        "direct_reason": reason,
        "bins": BINS,
        "token_bins": TOKEN_BINS,
        "model": lm.title,
        "fingerprint": lm.fingerprint,
        "tokenizer_size": None if lm.tokenizer is None else len(lm.tokenizer),
        "activations": job.content,
        "split": job.config.split,
        "config": identity(job.config),
        "dictionary": None,
        "dictionary_content": None,
    }
