"""The ``features`` stage: the evidence of every feature of the dictionaries of some folders, one pass a site.

    FOLDER/SITE/NAME.sqlite   one store a dictionary (see :mod:`monolex.features.store`)

A killed run continues at the first site that it had not finished.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from monolex import artifact, runtime
from monolex.artifact import MANIFEST, FileEntry, Manifest
from monolex.config import FeaturesConfig, identity
from monolex.dictionaries.base import CONFIG, WEIGHTS, Dictionary, load
from monolex.errors import UserError
from monolex.evals.inputs import Entry, open_inputs, stored_model
from monolex.features import spill
from monolex.features.coactive import sample_rows
from monolex.features.gather import gather
from monolex.features.rows import RowSource, StoredRows, table
from monolex.features.store import BINS, TOKEN_BINS
from monolex.model import LanguageModel
from monolex.sites import select

KIND = "features"
PROGRESS = "progress.json"


def features(
    folder: str | Path,
    activations: str | Path,
    sources: Sequence[str | Path],
    config: FeaturesConfig,
    *,
    lm: LanguageModel | None = None,
) -> Manifest:
    """Gather the evidence of the dictionaries in ``sources``, made from ``activations``, unless it is done.

    ``manifest.data["stores"]`` lists path, site, name, kind, d_sae, rows, bytes and alive features of each. ``lm`` is
    the loaded model that the activations are of; None loads it.

    Raises:
        UserError: an input is not finished or does not fit, or a name or site matches nothing.
    """
    folder, activations = Path(folder), Path(activations)
    inputs = open_inputs("subject", activations, [Path(source) for source in sources], folder)
    chosen = _chosen(inputs.entries, config)
    if artifact.is_done(folder, KIND, identity(config), inputs.parents):
        runtime.log.info("features: %s is done", folder)
        return artifact.open_artifact(folder, KIND)
    request = artifact.request_hash(KIND, identity(config), inputs.parents)
    artifact.warn_replacing(folder, KIND)
    (folder / MANIFEST).unlink(missing_ok=True)
    done = _finished(folder, request)
    for site, entries in chosen.items():
        if site not in done:
            lm = lm or stored_model(activations, config.features_device)
            done[site] = _site(folder, StoredRows(activations, site, config), entries, lm, inputs.manifest, config)
            artifact.write_json(folder / PROGRESS, {"request": request, "sites": done})
    stores = [store for site in chosen for store in done[site]["stores"]]
    files = {name: FileEntry(**entry) for site in chosen for name, entry in done[site]["files"].items()}
    manifest = artifact.finish(folder, KIND, identity(config), inputs.parents, files, {"stores": stores})
    (folder / PROGRESS).unlink()
    return manifest


def gather_stores(
    source: RowSource,
    dictionaries: Mapping[str, Dictionary],
    lm: LanguageModel,
    config: FeaturesConfig,
    where: Callable[[str], Path],
    facts: Callable[[str], Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """One pass over ``source`` for all ``dictionaries`` of its site; returns the meta of every store by name.

    ``source`` may read stored activations or run the model (:mod:`monolex.features.rows`); ``where`` gives the path of
    a store and ``facts`` what its meta says of the dictionary.
    """
    device = runtime.device(config.features_device)
    rows = table(source, config.fragment_tokens)
    sampled = sample_rows(source.n_rows, config.coactive_rows, config.features_seed)
    shared = {
        "site": source.site,
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "config": identity(config),
        "bins": BINS,
        "token_bins": TOKEN_BINS,
    }
    made = {}
    with spill.scratch(where(next(iter(dictionaries))).parent) as folder:
        placed = {name: dictionary.to(device) for name, dictionary in dictionaries.items()}
        memory = config.memory_mb * 1_000_000
        codes = spill.encode(source, placed, sampled, Path(folder), memory=memory, device=device)
        for name, dictionary in dictionaries.items():
            meta = {"name": name, "kind": dictionary.config.kind, "d_sae": dictionary.d_sae, **shared}
            meta |= {"signed": dictionary.signed, **facts(name)}
            made[name] = gather(where(name), dictionary, codes.pop(name), rows, lm, config, meta)
    return made


def _site(
    folder: Path,
    source: RowSource,
    entries: Sequence[Entry],
    lm: LanguageModel,
    activations: Manifest,
    config: FeaturesConfig,
) -> dict[str, Any]:
    """The stores of one site and their files."""
    by_name = {entry.name.replace("/", "_"): entry for entry in entries}

    def where(name: str) -> Path:
        return folder / source.site / f"{name}.sqlite"

    def facts(name: str) -> dict[str, Any]:
        home = by_name[name].folder
        content = artifact.digest([artifact.file_hash(home / file) for file in (WEIGHTS, CONFIG)])
        relative = os.path.relpath(home, where(name).parent)
        return {"dictionary": relative, "content": content, "activations": activations.content, "split": config.split}

    dictionaries = {name: load(entry.folder) for name, entry in by_name.items()}
    made = gather_stores(source, dictionaries, lm, config, where, facts)
    stores, files = [], {}
    for name, meta in made.items():
        path = where(name).relative_to(folder).as_posix()
        entry = FileEntry(where(name).stat().st_size, artifact.file_hash(where(name)))
        files[path] = asdict(entry)
        known = {key: meta[key] for key in ("site", "name", "kind", "d_sae", "rows", "alive")}
        stores.append({"path": path, **known, "bytes": entry.bytes})
    return {"stores": stores, "files": files}


def _chosen(entries: Mapping[str, Sequence[Entry]], config: FeaturesConfig) -> dict[str, list[Entry]]:
    """The dictionaries asked for, by site."""
    sites = select(config.sites, tuple(entries), "the sources")
    names = dict.fromkeys(entry.name for site in sites for entry in entries[site])
    for pattern in config.dictionaries:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"dictionaries holds {pattern!r}, which matches none of {', '.join(names)}")
    patterns = config.dictionaries or ("*",)
    found = {site: [e for e in entries[site] if any(fnmatchcase(e.name, p) for p in patterns)] for site in sites}
    return {site: chosen for site, chosen in found.items() if chosen}


def _finished(folder: Path, request: str) -> dict[str, Any]:
    """Sites that an interrupted run of this request had finished."""
    progress = artifact.read_json(folder / PROGRESS) if (folder / PROGRESS).exists() else {}
    if progress.get("request") != request:
        return {}

    def whole(files: Mapping[str, Any]) -> bool:
        return all((folder / n).exists() and (folder / n).stat().st_size == e["bytes"] for n, e in files.items())

    return {site: made for site, made in progress["sites"].items() if whole(made["files"])}
