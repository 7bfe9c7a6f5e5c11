"""Evaluate dictionaries: every metric of every dictionary, beside its baselines, its seeds and its control models.

The result is one flat list of rows (model × site × dictionary × metric); a cell that makes no sense has no value but a
reason. Sites are done one after the other and kept as they are done, so a killed evaluation loses one site at most.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from monolex import runtime
from monolex.activations.constant import constant_sites
from monolex.activations.reader import Reader
from monolex.activations.rule import row_rule
from monolex.activations.stored import held_out_rows, stored_model
from monolex.artifact import SUBJECT, WARNINGS, Manifest, json_bytes, open_artifact, relative_place, write_bytes
from monolex.config import EvalConfig
from monolex.dictionaries.base import Dictionary
from monolex.dictionaries.listing import RunDictionary, by_site, given_folders, parents, source_dictionaries
from monolex.errors import UserError
from monolex.evals import doubts, fidelity, reconstruction, similarity
from monolex.evals.intervals import exact, over_seeds
from monolex.evals.recipes import RECIPE, identification, neighbours, seed_groups
from monolex.lock import alone
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.pieces import Piece, Work
from monolex.stats import Estimate, not_applicable

log = logging.getLogger("monolex")

KIND = "eval"
RANDOM = "random directions"
METRICS = "metrics.json"
DENSITIES = "densities.safetensors"
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

Row = dict[str, Any]
Metrics = dict[str, Estimate]
Listed = Mapping[str, Mapping[str, Sequence[RunDictionary]]]
"""Dictionaries by model and site."""


@alone
def evaluate(
    folder: Path,
    activations: Path,
    sources: Sequence[Path],
    controls: Mapping[str, tuple[Path, Sequence[Path]]],
    config: EvalConfig,
) -> Manifest:
    """Evaluate the dictionaries in ``sources``, made from ``activations``, and those of control models.

    ``controls`` maps a control's name (`random`, `shuffled`) to its activations and sources. Writes ``metrics.json``
    and ``densities.safetensors`` (per dictionary ``model/site/name`` the rows each feature fired in, int64). Constant
    sites are left out.

    Raises:
        UserError: an input is not finished or does not fit, a control has another precision than the subject, or there
            is no held-out text.
    """
    models = {SUBJECT: (activations, sources), **controls}
    listed: dict[str, dict[str, list[RunDictionary]]] = {}
    constant: list[str] = []
    for model, paths in models.items():
        reasons = constant_sites(paths[0], split="held_out")
        kept = by_site(source_dictionaries(*paths, model))
        listed[model] = {site: dictionaries for site, dictionaries in kept.items() if site not in reasons}
        constant += [reason if model == SUBJECT else f"{model} model: {reason}" for reason in reasons.values()]
    _require_one_precision({model: paths[0] for model, paths in models.items()})
    folders = {k: v for model, paths in models.items() for k, v in given_folders(model, *paths).items()}
    work = Work(folder, KIND, config, parents(folders))
    if manifest := work.answer():
        return manifest
    if not controls:
        log.warning("eval: no control model is given; numbers stand beside baselines only")
    pieces, sizes = _pieces(work, {model: paths[0] for model, paths in models.items()}, listed, config)
    needs = _needs(folder, {model: paths[0] for model, paths in models.items()}, listed)
    rows = [row for part in work.done(pieces, sizes=sizes, unit="dictionary", needs=needs).values() for row in part]
    rows += _missing_rows(listed, rows)
    rows += _given_up_rows(models, rows)
    counts: dict[str, Tensor] = {}
    for key in pieces:
        counts |= load_tensors(work.place(key).with_suffix(".safetensors").read_bytes())
    every = [dictionary for sites in listed.values() for named in sites.values() for dictionary in named]
    facts = {
        "models": list(listed),
        "sites": {model: list(sites) for model, sites in listed.items()},
        "dictionaries": sum(sizes.values()),
        WARNINGS: [*constant, *doubts.sentences(every, rows)],
    }
    return work.finish({METRICS: json_bytes(rows), DENSITIES: save_tensors(counts)}, facts)


def _require_one_precision(activations: Mapping[str, Path]) -> None:
    """Refuse controls that differ from the subject in more than what they control for."""
    facts = {
        model: open_artifact(path, "activations").data["model"]["model_config"] for model, path in activations.items()
    }
    wanted = facts[SUBJECT]["model_dtype"]
    for model, config in facts.items():
        if config["model_dtype"] != wanted:
            raise UserError(
                f"{activations[model]} are of a model in {config['model_dtype']} and {activations[SUBJECT]} of one in "
                f"{wanted}: harvest the control with model_dtype = {wanted!r}"
            )


def _pieces(
    work: Work, activations: Mapping[str, Path], listed: Listed, config: EvalConfig
) -> tuple[dict[str, Piece], dict[str, int]]:
    """Every site of every model, and how many dictionaries it has; a model is loaded if one of its sites is done."""
    loaded: dict[str, LanguageModel] = {}

    def load(model: str) -> LanguageModel:
        if model not in loaded:
            # one model in memory at a time
            loaded.clear()
            loaded[model] = stored_model(activations[model], config.eval_device)
        return loaded[model]

    def piece(model: str, dictionaries: Sequence[RunDictionary]) -> Piece:
        def evaluated(path: Path) -> list[Row]:
            lm = load(model)
            rows, counts = _evaluate_site(work.folder, activations[model], dictionaries, lm, config, work.advance)
            write_bytes(path.with_suffix(".safetensors"), save_tensors(counts))
            return rows

        return evaluated

    pieces, sizes = {}, {}
    for model, sites in listed.items():
        for site, dictionaries in sites.items():
            key = f"{model}.{site}"
            pieces[key], sizes[key] = piece(model, dictionaries), len(dictionaries)
    return pieces, sizes


def _needs(folder: Path, activations: Mapping[str, Path], listed: Listed) -> dict[str, dict[str, str]]:
    """What every site of every model is evaluated from: a sweep at another site changes nothing of it."""
    needs = {}
    for model, sites in listed.items():
        content = {"activations": open_artifact(activations[model]).content}
        for site, dictionaries in sites.items():
            needs[f"{model}.{site}"] = content | {
                f"{dictionary.name} {relative_place(dictionary.folder, folder)}": dictionary.content
                for dictionary in dictionaries
            }
    return needs


def _missing_rows(listed: Listed, rows: Sequence[Row]) -> list[Row]:
    """Cells of the control models at sites where nothing was trained on them, so that no table leaves them out."""
    missing: list[Row] = []
    for model, sites in listed.items():
        for site in listed[SUBJECT]:
            if site not in sites:
                reason = not_applicable(f"nothing was trained on the {model} model at {site}")
                head = _nameless(model, site) | {"name": "no dictionary", "kind": "missing"}
                missing += _rows(head, dict.fromkeys(_metrics(rows), reason))
    return missing


def _given_up_rows(models: Mapping[str, tuple[Path, Sequence[Path]]], rows: Sequence[Row]) -> list[Row]:
    """Cells of the baselines that came to nothing, with the reason, so that no table leaves them out."""
    missing: list[Row] = []
    for model, (_, sources) in models.items():
        for gone in (gone for source in sources for gone in open_artifact(source).data.get("given_up", ())):
            head = _nameless(model, gone["site"]) | {"name": gone["name"], "kind": gone["name"]}
            missing += _rows(head, dict.fromkeys(_metrics(rows), not_applicable(gone["reason"])))
    return missing


def _metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics of dictionaries by themselves."""
    return list(dict.fromkeys(row["metric"] for row in rows if row["path"] and not row["other"]))


def _evaluate_site(
    folder: Path,
    activations: Path,
    listed: Sequence[RunDictionary],
    lm: LanguageModel,
    config: EvalConfig,
    advance: Callable[[int], Any],
) -> tuple[list[Row], dict[str, Tensor]]:
    """All rows of one site and the firing counts of its dictionaries."""
    model, site = listed[0].model, listed[0].site
    device = runtime.device(config.eval_device)
    dictionaries = {dictionary.name: dictionary.weights(device) for dictionary in listed}

    third = _whole(len(listed) / 3, advance)
    measured: dict[str, reconstruction.Reconstruction] = {}
    metrics: dict[str, Metrics] = {}
    references: list[Row] = []
    writes = {name: dictionary.config.target or site for name, dictionary in dictionaries.items()}
    for written in dict.fromkeys(writes.values()):
        chosen = {name: dictionary for name, dictionary in dictionaries.items() if writes[name] == written}
        share = len(chosen) / len(listed)
        part, faithful = _measured(
            activations, site, written, chosen, lm, config, lambda done, share=share: third(done * share)
        )
        measured |= part
        for name, dictionary in chosen.items():
            metrics[name] = {
                **reconstruction.metrics(measured[name], config),
                "negative_bias": reconstruction.negative_bias(dictionary, config),
                **similarity.decoder_metrics(dictionary, config),
                **_token_cosines(dictionary, Site.parse(written), lm, config),
                **_fidelity_metrics(faithful, name, config),
            }
            third(1 / len(listed))
        references += _reference_rows(model, site, "" if written == site else written, faithful, config)
    heads = {dictionary.name: identification(dictionary, folder) for dictionary in listed}
    rows = [row for name in heads for row in _rows(heads[name], metrics[name])] + references
    rows += _pair_rows(listed, heads, dictionaries, config)
    rows += _seed_rows(listed, heads, dictionaries, metrics, config)
    return rows, {f"{model}/{site}/{name}": result.counts for name, result in measured.items()}


def _measured(
    activations: Path,
    site: str,
    written: str,
    dictionaries: Mapping[str, Dictionary],
    lm: LanguageModel,
    config: EvalConfig,
    advance: Callable[[float], None],
) -> tuple[dict[str, reconstruction.Reconstruction], fidelity.Fidelity | None]:
    """Reconstruction and fidelity of dictionaries that read ``site`` and reconstruct ``written``."""
    reader = Reader(activations, site, "held_out")
    target = None if written == site else Reader(activations, written, "held_out")
    device = runtime.device(config.eval_device)
    measured = reconstruction.reconstructions(
        dictionaries, reader, config.rows, target=target, device=device, advance=advance
    )
    if not config.contexts:
        advance(1)
        return measured, None
    mean = next(iter(measured.values())).mean
    contexts = held_out_rows(activations, config.contexts)
    faithful = fidelity.fidelity(
        lm, (site, written), dictionaries, contexts, mean,
        rule=row_rule(activations, site), batch=config.batch_contexts, advance=advance,
    )  # fmt: skip
    return measured, faithful


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


def _reference_rows(
    model: str, site: str, target: str, result: fidelity.Fidelity | None, config: EvalConfig
) -> list[Row]:
    """The model as it is and with the site, or a transcoder's target, ablated: the scale of fidelity."""
    rows: list[Row] = []
    of, nameless = f" of {target}" if target else "", _nameless(model, site) | {"target": target or None}
    for name in fidelity.REFERENCES if result else ():
        identification = nameless | {"name": name + of, "kind": "reference"}
        rows += _rows(identification, _fidelity_metrics(result, name, config))
    if result:
        spared = exact(result.spared / result.positions, result.positions, "positions", "a share of the positions")
        rows += _rows(nameless | {"name": fidelity.CLEAN + of, "kind": "reference"}, {"spared": spared})
    return rows


def _nameless(model: str, site: str) -> Row:
    return {"model": model, "site": site, **dict.fromkeys(("name", *RECIPE, "path"))}


def _pair_rows(
    listed: Sequence[RunDictionary],
    heads: Mapping[str, Row],
    dictionaries: Mapping[str, Dictionary],
    config: EvalConfig,
) -> list[Row]:
    """Similarity of neighbours in the sweep, and of every trained dictionary to random directions (the floor)."""
    pairs = [(a.name, b.name, dictionaries[b.name]) for a, b in neighbours(listed)]
    for a in listed:
        if a.trained:
            pairs.append((a.name, RANDOM, similarity.random_like(dictionaries[a.name], config.eval_seed)))
    rows: list[Row] = []
    for name, other, b in pairs:
        rows += _rows(heads[name], similarity.pair_metrics(dictionaries[name], b, config), other)
    return rows


def _seed_rows(
    listed: Sequence[RunDictionary],
    heads: Mapping[str, Row],
    dictionaries: Mapping[str, Dictionary],
    metrics: Mapping[str, Metrics],
    config: EvalConfig,
) -> list[Row]:
    """Overlap between the seeds of each recipe, and its metrics as means over seeds."""
    rows: list[Row] = []
    for group in seed_groups(listed):
        first = heads[group[0].name]
        name = first["name"].replace(f"-s{first['seed']}", "-s*")
        identification = {**first, "name": name, "seed": None, "path": None}
        rows += _rows(identification, similarity.seed_overlap([dictionaries[member.name] for member in group]))
        if len(group) > 1:
            rows += _rows(identification, _over_seeds([metrics[member.name] for member in group], config))
    return rows


def _over_seeds(members: Sequence[Metrics], config: EvalConfig) -> Metrics:
    result = {}
    for metric in members[0]:
        missing = next((member[metric] for member in members if member[metric].value is None), None)
        values = [value for member in members if (value := member[metric].value) is not None]
        result[metric] = missing or over_seeds(values, config)
    return result
