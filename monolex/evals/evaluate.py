"""Evaluate dictionaries: every metric of every dictionary, beside its baselines, its seeds and its control models.

The result is one flat list of rows (model × site × dictionary × metric); a cell that makes no sense has no value but a
reason. Sites are done one after the other and kept as they are done, so a killed evaluation loses one site at most.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from monolex import artifact, pieces, runtime
from monolex.artifact import Manifest
from monolex.config import EvalConfig, identity
from monolex.dictionaries.base import Dictionary, load
from monolex.evals import fidelity, reconstruction, similarity
from monolex.evals.inputs import (
    Entry,
    Inputs,
    describe,
    held_out_rows,
    neighbours,
    open_inputs,
    seed_groups,
    stored_model,
)
from monolex.evals.intervals import over_seeds
from monolex.model import LanguageModel
from monolex.reader import Reader
from monolex.sites import Site
from monolex.stats import Estimate, not_applicable

log = logging.getLogger("monolex")

KIND = "eval"
SUBJECT = "subject"
RANDOM = "random directions"
METRICS = "metrics.json"
DENSITIES = "densities.safetensors"
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

Row = dict[str, Any]
Metrics = dict[str, Estimate]


def evaluate(
    folder: Path,
    subject: Path,
    sources: Sequence[Path],
    controls: Mapping[str, tuple[Path, Sequence[Path]]],
    config: EvalConfig,
) -> Manifest:
    """Evaluate the dictionaries in ``sources``, made from the activations ``subject``, and those of control models.

    ``controls`` maps a control's name (`random`, `shuffled`) to its activations and sources. Writes ``metrics.json``
    and ``densities.safetensors`` (per dictionary ``model/site/name`` the rows each feature fired in, int64).

    Raises:
        UserError: an input is not finished or does not fit, or there is no held-out text.
    """
    given = {SUBJECT: (subject, sources), **controls}
    inputs = [open_inputs(model, *paths, folder) for model, paths in given.items()]
    parents = {name: content for one in inputs for name, content in one.parents.items()}
    if artifact.is_done(folder, KIND, identity(config), parents):
        log.info("eval: %s is done", folder)
        return artifact.open_artifact(folder, KIND)
    if not controls:
        log.warning("eval: no control model is given; numbers stand beside baselines only")
    artifact.warn_replacing(folder, KIND)
    partial = pieces.room(folder, artifact.request_hash(KIND, identity(config), parents))
    (folder / artifact.MANIFEST).unlink(missing_ok=True)
    facts = describe(inputs)
    with runtime.progress(facts["dictionaries"], "eval", "dictionary") as bar:
        for one in inputs:
            _evaluate_model(one, partial, config, bar.update)
    rows, counts = _collect(inputs, partial)
    rows += _missing_rows(inputs, rows)
    files = {
        METRICS: artifact.write_json(folder / METRICS, rows),
        DENSITIES: artifact.write_bytes(folder / DENSITIES, save_tensors(counts)),
    }
    manifest = artifact.finish(folder, KIND, identity(config), parents, files, facts)
    shutil.rmtree(folder / pieces.PARTIAL)
    return manifest


def _collect(inputs: Sequence[Inputs], partial: Path) -> tuple[list[Row], dict[str, Tensor]]:
    rows, counts = [], {}
    for one in inputs:
        for site in one.entries:
            rows += artifact.read_json(partial / f"{one.model}.{site}.json")
            counts |= load_tensors((partial / f"{one.model}.{site}.safetensors").read_bytes())
    return rows, counts


def _missing_rows(inputs: Sequence[Inputs], rows: Sequence[Row]) -> list[Row]:
    """Cells of the control models at sites where nothing was trained on them, so that no table leaves them out."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows if row["path"] and not row["other"]))
    subject, *controls = inputs
    missing: list[Row] = []
    for control in controls:
        for site in subject.entries:
            if site not in control.entries:
                reason = not_applicable(f"nothing was trained on the {control.model} model at {site}")
                head = _nameless(control.model, site) | {"name": "no dictionary", "kind": "missing"}
                missing += _rows(head, dict.fromkeys(metrics, reason))
    return missing


def _evaluate_model(inputs: Inputs, partial: Path, config: EvalConfig, advance: Callable[[int], Any]) -> None:
    """Do the sites of one model that are not done yet; the model is loaded once, and only if there are any."""
    lm = None
    for site, entries in inputs.entries.items():
        done = partial / f"{inputs.model}.{site}.json"
        if done.exists():
            advance(len(entries))
            continue
        lm = lm or stored_model(inputs.activations, config.eval_device)
        rows, counts = _evaluate_site(inputs, site, lm, config, advance)
        artifact.write_bytes(done.with_suffix(".safetensors"), save_tensors(counts))
        artifact.write_json(done, rows)


def _evaluate_site(
    inputs: Inputs, site: str, lm: LanguageModel, config: EvalConfig, advance: Callable[[int], Any]
) -> tuple[list[Row], dict[str, Tensor]]:
    """All rows of one site and the firing counts of its dictionaries."""
    entries = inputs.entries[site]
    device = runtime.device(config.eval_device)
    dictionaries = {entry.name: load(entry.folder, device) for entry in entries}

    third = _whole(len(entries) / 3, advance)
    reader = Reader(inputs.activations, site, "held_out")
    measured = reconstruction.reconstructions(dictionaries, reader, config.rows, device=device, advance=third)
    faithful = None
    if config.contexts:
        mean = next(iter(measured.values())).mean
        contexts = held_out_rows(inputs, config.contexts)
        faithful = fidelity.fidelity(lm, site, dictionaries, contexts, mean, batch=config.batch_contexts, advance=third)
    found: dict[str, Metrics] = {}
    for name, dictionary in dictionaries.items():
        found[name] = {
            **reconstruction.metrics(measured[name], config),
            "negative_bias": reconstruction.negative_bias(dictionary, config),
            **similarity.decoder_metrics(dictionary, config),
            **_token_cosines(dictionary, Site.parse(site), lm, config),
            **_fidelity_metrics(faithful, name, config),
        }
        third(1 / len(entries))
    if faithful is None:
        third(1)
    rows = [row for entry in entries for row in _rows(entry.row, found[entry.name])]
    rows += _reference_rows(inputs.model, site, faithful, config)
    rows += _pair_rows(entries, dictionaries, config)
    rows += _seed_rows(entries, dictionaries, found, config)
    return rows, {f"{inputs.model}/{site}/{name}": result.counts for name, result in measured.items()}


def _whole(size: float, advance: Callable[[int], Any]) -> Callable[[float], None]:
    """A function of shares of ``size`` that advances by whole numbers (a sum of floats may overshoot the total)."""
    exact, shown = 0.0, 0

    def add(share: float) -> None:
        nonlocal exact, shown
        exact += share * size
        whole = int(exact + 1e-6)
        advance(whole - shown)
        shown = whole

    return add


def _rows(identification: Row, metrics: Mapping[str, Estimate], other: str = "") -> list[Row]:
    return [{**identification, "other": other, "metric": name, **e._asdict()} for name, e in metrics.items()]


def _fidelity_metrics(result: fidelity.Fidelity | None, name: str, config: EvalConfig) -> Metrics:
    if result is None:
        return dict.fromkeys(fidelity.METRICS, not_applicable("contexts = 0: not asked for"))
    return fidelity.metrics(result, name, config)


def _token_cosines(dictionary: Dictionary, site: Site, lm: LanguageModel, config: EvalConfig) -> Metrics:
    """Largest cosine of each direction to a row of the embedding and of the unembedding, where they share a space."""
    names = ("embedding_cosine", "unembedding_cosine")
    if site.kind not in RESIDUAL:
        return dict.fromkeys(names, not_applicable(f"{site.kind} is not in the space of the residual stream"))
    matrices = (lm.embedding, lm.unembedding)
    with torch.no_grad():
        cosines = [similarity.cosine_to_rows(dictionary, matrix, config) for matrix in matrices]
    return dict(zip(names, cosines, strict=True))


def _reference_rows(model: str, site: str, result: fidelity.Fidelity | None, config: EvalConfig) -> list[Row]:
    """The model as it is and with the site ablated: the scale beside which fidelity is read."""
    rows: list[Row] = []
    for name in fidelity.REFERENCES if result else ():
        identification = _nameless(model, site) | {"name": name, "kind": "reference"}
        rows += _rows(identification, _fidelity_metrics(result, name, config))
    return rows


def _nameless(model: str, site: str) -> Row:
    blank = dict.fromkeys(("name", "kind", "d_sae", "alpha", "k", "ratio", "seed", "lr", "path"))
    return {"model": model, "site": site, **blank}


def _pair_rows(entries: Sequence[Entry], dictionaries: Mapping[str, Dictionary], config: EvalConfig) -> list[Row]:
    """Similarity of neighbours in the sweep, and of every trained dictionary to random directions (the floor)."""
    pairs = [(a, b.name, dictionaries[b.name]) for a, b in neighbours(entries)]
    for a in entries:
        if a.trained:
            pairs.append((a, RANDOM, similarity.random_like(dictionaries[a.name], config.eval_seed)))
    rows: list[Row] = []
    for a, name, b in pairs:
        rows += _rows(a.row, similarity.pair_metrics(dictionaries[a.name], b, config), other=name)
    return rows


def _seed_rows(
    entries: Sequence[Entry], dictionaries: Mapping[str, Dictionary], found: Mapping[str, Metrics], config: EvalConfig
) -> list[Row]:
    """Overlap between the seeds of each recipe, and its metrics as means over seeds."""
    rows: list[Row] = []
    for group in seed_groups(entries):
        first = group[0].row
        name = first["name"].replace(f"-s{first['seed']}", "-s*")
        identification = {**first, "name": name, "seed": None, "path": None}
        rows += _rows(identification, similarity.seed_overlap([dictionaries[e.name] for e in group]))
        if len(group) > 1:
            rows += _rows(identification, _over_seeds([found[entry.name] for entry in group], config))
    return rows


def _over_seeds(members: Sequence[Metrics], config: EvalConfig) -> Metrics:
    result = {}
    for metric in members[0]:
        missing = next((member[metric] for member in members if member[metric].value is None), None)
        values = [value for member in members if (value := member[metric].value) is not None]
        result[metric] = missing or over_seeds(values, config)
    return result
