"""Dictionaries nobody trained by gradient descent: neurons, random directions, PCA, ICA and NMF.

Each is a plain :class:`~monolex.dictionaries.base.Dictionary`, so whatever is measured of a trained one is measured of
these too. Kinds of one family share one fit: the three of PCA one pass over the rows, the three of ICA one FastICA.
``-pm`` holds both directions of every axis with a ReLU, which reconstructs what the signed axes do; ``-topk`` keeps
only the k largest of those (paper, appendix G).
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monolex import runtime
from monolex.artifact import (
    MANIFEST,
    FileEntry,
    Manifest,
    finish,
    is_done,
    open_artifact,
    read_json,
    request_hash,
    warn_replacing,
    write_json,
)
from monolex.config import BaselineConfig, identity, require
from monolex.dictionaries.axes import ActivationRows
from monolex.dictionaries.base import Dictionary
from monolex.dictionaries.families import FAMILIES, random_width
from monolex.reader import Reader, stored_sites

PROGRESS = "progress.json"


def fit(reader: ActivationRows, config: BaselineConfig) -> dict[str, Dictionary]:
    """The dictionaries asked for, by name: the kind, and for ``-topk`` kinds one for every k, as ``pca-topk-k32``.

    Raises:
        UserError: too few rows, or a number of features that the site cannot have.
    """
    _check(reader, config)
    families = dict.fromkeys(kind.partition("-")[0] for kind in config.kinds)
    fitted: dict[str, Dictionary] = {}
    for family in families:
        fitted |= FAMILIES[family](reader, config)
    return fitted


def fit_folder(folder: str | Path, activations: str | Path, config: BaselineConfig) -> Manifest:
    """Fit on the training rows of the artefact ``activations`` and write the artefact ``folder``, unless it is done.

    Raises:
        UserError: a site is not stored, or as :func:`fit`.
    """
    folder, activations = Path(folder), Path(activations)
    source = open_artifact(activations, "activations")
    parents = {"activations": source.content}
    if is_done(folder, "baselines", identity(config), parents):
        runtime.log.info("baselines: %s is done", folder)
        return open_artifact(folder, "baselines")
    sites = stored_sites(activations, config.sites)
    return fit_readers(folder, {site: Reader(activations, site) for site in sites}, parents, config)


def fit_readers(
    folder: Path, readers: Mapping[str, ActivationRows], parents: Mapping[str, str], config: BaselineConfig
) -> Manifest:
    """Fit on every reader and write ``SITE/NAME/`` dictionaries and the manifest.

    A killed run continues at the first site that it had not finished. ``manifest.data["members"]`` lists ``path``,
    ``site``, ``kind``, ``k`` and ``d_sae`` of every dictionary.

    Raises:
        UserError: as :func:`fit`, before anything is fitted.
    """
    for reader in readers.values():
        _check(reader, config)
    request = request_hash("baselines", identity(config), parents)
    # an older answer must not pass for whole while its files are being replaced
    warn_replacing(folder, "baselines")
    (folder / MANIFEST).unlink(missing_ok=True)
    done = _finished_sites(folder, request)
    for site, reader in readers.items():
        if site not in done:
            done[site] = _fit_site(folder, reader, config)
            write_json(folder / PROGRESS, {"request": request, "sites": done})
    members = [member for site in readers for member in done[site]["members"]]
    files = {name: FileEntry(**entry) for site in readers for name, entry in done[site]["files"].items()}
    manifest = finish(folder, "baselines", identity(config), parents, files, {"members": members})
    (folder / PROGRESS).unlink()
    return manifest


def _finished_sites(folder: Path, request: str) -> dict[str, Any]:
    progress = read_json(folder / PROGRESS) if (folder / PROGRESS).exists() else {}
    if progress.get("request") != request:
        return {}
    return {site: entry for site, entry in progress["sites"].items() if _whole(folder, entry["files"])}


def _whole(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    return all((folder / name).exists() and (folder / name).stat().st_size == e["bytes"] for name, e in files.items())


def _fit_site(folder: Path, reader: ActivationRows, config: BaselineConfig) -> dict[str, Any]:
    members, files = [], {}
    for name, dictionary in fit(reader, config).items():
        path = f"{reader.site}/{name}"
        for file, entry in dictionary.save(folder / path).items():
            files[f"{path}/{file}"] = asdict(entry)
        c = dictionary.config
        members.append({"path": path, "site": reader.site, "kind": c.kind, "k": c.k, "d_sae": c.d_sae})
    return {"members": members, "files": files}


def _check(reader: ActivationRows, config: BaselineConfig) -> None:
    """Refuse in the first second what would fail after minutes."""
    site, d_in = reader.site, reader.d_in
    families = {kind.partition("-")[0] for kind in config.kinds}
    for families_of, name in (({"random", "pca"}, "fit_rows"), ({"ica"}, "ica_rows"), ({"nmf"}, "nmf_rows")):
        rows = min(getattr(config, name), reader.n_rows)
        require(
            rows >= 2 or not families & families_of,
            f"{name} = {getattr(config, name)} and {site} stores {reader.n_rows} rows: a fit needs at least 2 rows",
        )
    features = {"random-topk": random_width(d_in, config), "pca-topk": 2 * d_in, "ica-topk": 2 * d_in}
    for kind in sorted(set(config.kinds) & set(features)):
        require(len(config.ks) > 0, f"ks is empty: {kind} needs at least one")
        for k in config.ks:
            fits = f"choose k ≤ {features[kind]} or leave out {kind}"
            require(k <= features[kind], f"ks holds {k} but {kind} of {site} has {features[kind]} features; {fits}")
    most = min(2 * d_in, config.nmf_rows, reader.n_rows)
    require(
        "nmf" not in families or config.nmf_features <= most,
        f"nmf_features = {config.nmf_features}: {site} allows at most {most} (its rows, and twice its width {d_in})",
    )
