"""Dictionaries nobody trained by gradient descent: neurons, random directions, PCA, ICA and NMF.

Each is a plain :class:`~monolex.dictionaries.base.Dictionary`, so whatever is measured of a trained one is measured of
these too. Kinds of one family share one fit: the three of PCA one pass over the rows, the three of ICA one FastICA.
``-pm`` holds both directions of every axis with a ReLU, which reconstructs what the signed axes do; ``-topk`` keeps
only the k largest of those (paper, appendix G), k being given or measured as the L0 of the dictionaries of a sweep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from monolex import runtime
from monolex.activations.constant import constant_sites
from monolex.activations.reader import Reader, stored_sites
from monolex.artifact import WARNINGS, Manifest, open_artifact
from monolex.config import BaselineConfig, require
from monolex.dictionaries.axes import ActivationRows, sample
from monolex.dictionaries.base import Dictionary, load
from monolex.dictionaries.families import BUILDERS, GivenUp
from monolex.errors import UserError
from monolex.kinds import BASELINES, FAMILIES, TOPK
from monolex.lock import alone
from monolex.pieces import FILES, Piece, Work

DEFAULT_K = 32
MATCH_ROWS = 8192
"""Training rows over which the L0 of a matched dictionary is measured."""


def fit(reader: ActivationRows, config: BaselineConfig) -> dict[str, Dictionary]:
    """The dictionaries asked for, by name: the kind, and for ``-topk`` kinds one for every k, as ``pca-topk-k32``.

    Those of an ICA that did not converge within its budget are left out, with a warning in the log.

    Raises:
        UserError: too few rows, or a number of features that the site cannot have.
    """
    config = _with_ks(reader, config, ())
    _check(reader, config)
    fitted, given_up = _fit(reader, config)
    for family, reason in given_up.items():
        runtime.log.warning("%s of %s is left out: %s", family, reader.site, reason)
    return fitted


def _fit(reader: ActivationRows, config: BaselineConfig) -> tuple[dict[str, Dictionary], dict[str, str]]:
    """The dictionaries by name, and by family why it has none."""
    fitted: dict[str, Dictionary] = {}
    given_up: dict[str, str] = {}
    for family in dict.fromkeys(BASELINES[kind].name for kind in config.kinds):
        try:
            fitted |= BUILDERS[family](reader, config)
        except GivenUp as why:
            given_up[family] = str(why)
    return fitted, given_up


@alone
def fit_folder(folder: str | Path, activations: str | Path, config: BaselineConfig) -> Manifest:
    """Fit on the training rows of the artefact ``activations`` and write the artefact ``folder``, unless it is done.

    Constant sites are left out.

    Raises:
        UserError: a site is not stored, a sweep is not finished or was made from other activations, or as :func:`fit`.
    """
    folder, activations = Path(folder), Path(activations)
    source = open_artifact(activations, "activations")
    sweeps = [Path(name) for name in config.match]
    parents = {"activations": source.content, **_matched(sweeps, activations, source.content)}
    constant = constant_sites(activations, config.sites)
    sites = [site for site in stored_sites(activations, config.sites) if site not in constant]
    readers = {site: Reader(activations, site) for site in sites}
    return fit_readers(folder, readers, parents, config, sweeps, list(constant.values()))


def matched_ks(reader: ActivationRows, sweeps: Sequence[Path], seed: int) -> tuple[int, ...]:
    """The mean L0 over a sample of rows, rounded and at least 1, of every dictionary of ``sweeps`` at this site."""
    members = [(sweep, row) for sweep in sweeps for row in open_artifact(sweep, "sweep").data["members"]]
    matched = [load(sweep / row["path"]) for sweep, row in members if row["site"] == reader.site]
    return tuple(sorted({max(1, round(l0)) for l0 in mean_l0(reader, matched, seed)}))


def mean_l0(reader: ActivationRows, dictionaries: Sequence[Dictionary], seed: int) -> list[float]:
    """The mean L0 of dictionaries over the same sample of rows."""
    chunks = sample(reader, MATCH_ROWS, seed).split(1024) if dictionaries else ()
    rows = max(1, sum(map(len, chunks)))
    return [sum(int(dictionary.encode(x).count_nonzero()) for x in chunks) / rows for dictionary in dictionaries]


def _matched(sweeps: Sequence[Path], activations: Path, content: str) -> dict[str, str]:
    """Content hashes of the sweeps that are matched."""
    parents = {}
    for number, sweep in enumerate(sweeps):
        trained = open_artifact(sweep, "sweep")
        if trained.parents["activations"] != content:
            raise UserError(f"match: {sweep} was not trained on {activations}; name a sweep that was")
        parents[f"match.{number}"] = trained.content
    return parents


@alone
def fit_readers(
    folder: Path,
    readers: Mapping[str, ActivationRows],
    parents: Mapping[str, str],
    config: BaselineConfig,
    sweeps: Sequence[Path] = (),
    warnings: Sequence[str] = (),
) -> Manifest:
    """Fit on every reader and write ``SITE/NAME/`` dictionaries and the manifest, unless it is done.

    A killed run continues at the first site that it had not finished. ``manifest.data["members"]`` lists ``path``,
    ``site``, ``kind``, ``k`` and ``d_sae`` of every dictionary, ``data["given_up"]`` the families left out and why, and
    ``data["warnings"]`` holds ``warnings`` beside those.

    Raises:
        UserError: as :func:`fit`, before anything is fitted.
    """
    work = Work(folder, "baselines", config, parents)
    if manifest := work.answer():
        return manifest
    configs = {site: _with_ks(reader, config, sweeps) for site, reader in readers.items()}
    for site, reader in readers.items():
        _check(reader, configs[site])
    fitted = work.done({site: _fit_site(work, reader, configs[site]) for site, reader in readers.items()}, unit="site")
    facts = {name: [member for entry in fitted.values() for member in entry[name]] for name in ("members", "given_up")}
    left_out = [f"{gone['site']}/{gone['name']} is left out: {gone['reason']}" for gone in facts["given_up"]]
    return work.finish({}, {**facts, WARNINGS: [*warnings, *left_out]})


def _with_ks(reader: ActivationRows, config: BaselineConfig, sweeps: Sequence[Path]) -> BaselineConfig:
    """The config with the k of this site: those asked for and those matched."""
    if not any(kind.endswith(TOPK) for kind in config.kinds):
        return config
    matched = matched_ks(reader, sweeps, config.baseline_seed)
    features = _topk_features(reader, config)
    # d_in of the 2 d_in directions of PCA and ICA are the whole basis, which `pca` and `ica` are
    most = min([reader.d_in, *features.values()])
    if beyond := [k for k in matched if k > most]:
        runtime.log.info("%s: no top-k baseline is matched to an L0 of %s, above %d", reader.site, beyond, most)
    ks = config.ks if config.ks is not None else () if matched else (DEFAULT_K,)
    return replace(config, ks=tuple(sorted({*ks, *(k for k in matched if k <= most)})))


def _topk_features(reader: ActivationRows, config: BaselineConfig) -> dict[str, int]:
    """Directions that each `-topk` kind of the config chooses its k from."""
    kinds = sorted(kind for kind in config.kinds if kind.endswith(TOPK))
    return {kind: BASELINES[kind].directions(reader.d_in, config.ratio) for kind in kinds}


def _fit_site(work: Work, reader: ActivationRows, config: BaselineConfig) -> Piece:
    def piece(_path: Path) -> dict[str, Any]:
        members, files = [], {}
        fitted, given_up = _fit(reader, config)
        for name, dictionary in fitted.items():
            path = f"{reader.site}/{name}"
            for file, entry in dictionary.save(work.file(path)).items():
                files[f"{path}/{file}"] = asdict(entry)
            c = dictionary.config
            members.append({"path": path, "site": reader.site, "kind": c.kind, "k": c.k, "d_sae": c.d_sae})
        gone = [{"site": reader.site, "name": family, "reason": reason} for family, reason in given_up.items()]
        return {"members": members, "given_up": gone, FILES: files}

    return piece


def _check(reader: ActivationRows, config: BaselineConfig) -> None:
    """Refuse in the first second what would fail after minutes."""
    site, d_in = reader.site, reader.d_in
    families = {BASELINES[kind].name for kind in config.kinds}
    for name in (family.rows for family in FAMILIES.values() if family.name in families and family.rows):
        require(
            min(getattr(config, name), reader.n_rows) >= 2,
            f"{name} = {getattr(config, name)} and {site} stores {reader.n_rows} rows: a fit needs at least 2 rows",
        )
    for kind, features in _topk_features(reader, config).items():
        require(bool(config.ks), f"ks is empty: {kind} needs at least one")
        for k in config.ks or ():
            fits = f"choose k ≤ {features} or leave out {kind}"
            require(k <= features, f"ks holds {k} but {kind} of {site} has {features} features; {fits}")
    most = min(2 * d_in, config.nmf_rows, reader.n_rows)
    require(
        "nmf" not in families or config.nmf_features <= most,
        f"nmf_features = {config.nmf_features}: {site} allows at most {most} (its rows, and twice its width {d_in})",
    )
