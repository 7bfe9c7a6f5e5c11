"""The stage ``patch``: a task's curves of every dictionary of a run, as an artefact, one dictionary at a time.

The numbers are in ``patch.json``; every pair's are in ``pairs.safetensors``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from monolex import artifact, runtime
from monolex.activations.constant import constant_sites
from monolex.activations.rule import RowRule, row_rule
from monolex.activations.stored import stored_model
from monolex.artifact import SUBJECT, WARNINGS, Manifest, json_bytes, write_bytes
from monolex.causal.chosen_features import used_folders
from monolex.causal.config import PatchConfig
from monolex.causal.patch import claims
from monolex.causal.patch.claims import Claim, PatchedDictionary
from monolex.causal.patch.measure import arrays, as_json, from_arrays, measure_patch
from monolex.causal.patch.patch import Patch, prepare_patch
from monolex.causal.prompts.behaviour import behaviour, by_wording, demo_table
from monolex.causal.prompts.pairs import PromptPairs
from monolex.causal.prompts.tasks import draw
from monolex.config import require
from monolex.dictionaries.base import Dictionary
from monolex.dictionaries.listing import RunDictionary, choose, chosen_dictionaries, fits, parents
from monolex.lock import alone
from monolex.model.files import is_demo
from monolex.model.language_model import LanguageModel
from monolex.pieces import Piece, Work
from monolex.runtime import generator
from monolex.stats import Bootstrap
from monolex.tables import to_table

PATCH, PAIRS = "patch.json", "pairs.safetensors"
EXAMPLES = 3
LEAST_CHOSEN = 2
RESIDUAL = ("resid_post.*",)
"""Sites of an experiment that names none."""


@alone
def patch(folder: str | Path, run: str | Path, config: PatchConfig) -> Manifest:
    """Patching curves of a run's dictionaries on one task, with the model's behaviour on it and the paper's claims.

    Writes ``patch.json`` and ``pairs.safetensors`` (every number of every pair, ``MODEL/SITE/NAME/SEARCH.FIELD``).

    Raises:
        UserError: no run, nothing that fits, a task that the tokenizer cannot spell, or a file that cannot be read.
    """
    folder, run = Path(folder), Path(run)
    fitting = chosen_dictionaries(run, config.sites or RESIDUAL, config.dictionaries, controls=config.controls)
    used = [dictionary for dictionary in fitting if not dictionary.config.target]
    transcoders = [dictionary.key for dictionary in fitting if dictionary.config.target]
    require(bool(used), f"{', '.join(transcoders)} reconstruct another site than they read: patch with an autoencoder")
    choose(used, config.exact)
    work = Work(folder, "patch", config, parents(used_folders(run, used)) | _file_parent(config.task))
    if manifest := work.answer():
        return manifest
    lm = stored_model(run / "activations", config.patch_device)
    pairs = draw(lm, config)
    chosen, held_out = halves(pairs, config)
    bootstrap = Bootstrap(config.resamples, config.level, config.patch_seed)
    # of the model that is patched: what counts in a control model's activations says nothing of this one's
    rules = {site: row_rule(run / "activations", site) for site in {dictionary.site for dictionary in used}}

    def piece(dictionary: RunDictionary) -> Piece:
        def patched(path: Path) -> dict[str, Any]:
            weights = dictionary.weights(lm.device)
            where = (lm, dictionary.site, weights, rules[dictionary.site], config.batch_tokens)
            others = None if held_out is None else _ready(held_out, *where)
            result = measure_patch(_ready(chosen, *where), config, _fits(dictionary, config.exact), others)
            _warn_unmoved(dictionary, result.unmoved, len(held_out or pairs))
            write_bytes(path.with_suffix(".safetensors"), save(arrays(result)))
            facts = {"model": dictionary.model, "site": dictionary.site, "name": dictionary.name}
            known = {"d_sae": weights.d_sae, "kind": weights.config.kind, "alpha": weights.config.recipe.get("alpha")}
            return facts | known | as_json(result, config.limit, bootstrap)

        return patched

    tolerance = claims.EXACT if lm.dtype in (torch.float32, torch.float64) else claims.ROUGH
    shared = {"model": lm.fingerprint, "prompts": pairs.content}
    needs = {d.key: {**shared, "dictionary": d.content, "rule": artifact.digest(rules[d.site])} for d in used}
    curves = list(work.done({dictionary.key: piece(dictionary) for dictionary in used}, needs=needs).values())
    stored = {d.key: load_file(work.place(d.key).with_suffix(".safetensors")) for d in used}
    entry = {
        **_prompts(lm, pairs, config),
        "chosen_on": len(chosen),
        "measured_on": len(held_out or pairs),
        "curves": curves,
        "claims": to_table(_claims(used, curves, stored, config.against, bootstrap, tolerance)),
    }
    flat = {f"{key}/{name}": array for key, arrays in stored.items() for name, array in arrays.items()}
    constant = constant_sites(run / "activations", config.sites or RESIDUAL)
    warnings = [*constant.values(), *(f"{key} is left out: it reconstructs another site" for key in transcoders)]
    if config.held_out and held_out is None:
        warnings.append(f"{len(pairs)} pairs of prompts are too few to hold some out: sets were chosen on all of them")
    facts = {"task": config.task, "pairs": len(pairs), WARNINGS: warnings}
    return work.finish({PATCH: json_bytes(entry), PAIRS: save(flat)}, facts)


def _ready(
    pairs: PromptPairs, lm: LanguageModel, site: str, dictionary: Dictionary, rule: RowRule, batch_tokens: int
) -> Patch:
    return prepare_patch(lm, pairs, site, dictionary, rule=rule, batch_tokens=batch_tokens)


def _warn_unmoved(dictionary: RunDictionary, unmoved: int, pairs: int) -> None:
    if unmoved:
        said = f"changes nothing in {unmoved} of {pairs} pairs, with all its features"
        runtime.log.warning("patch: %s %s", dictionary.key, said)


def halves(pairs: PromptPairs, config: PatchConfig) -> tuple[PromptPairs, PromptPairs | None]:
    """Pairs on which sets are chosen, and those on which they are measured; None where these are the same.

    Which are which is drawn; at least :data:`LEAST_CHOSEN` and one must be left to choose and to measure on.
    """
    count = round(config.held_out * len(pairs))
    if count == 0 or len(pairs) - count < LEAST_CHOSEN:
        return pairs, None
    order = torch.randperm(len(pairs), generator=generator("held-out pairs", config.prompt_seed))
    return pairs.select(order[count:].sort().values), pairs.select(order[:count].sort().values)


def _prompts(lm: LanguageModel, pairs: PromptPairs, config: PatchConfig) -> dict[str, Any]:
    """The prompts and what the model does on them, before anything is patched."""
    table = demo_table(lm, pairs=120) if config.task == "ioi" and is_demo(lm.hf.name_or_path) else []
    return {
        "task": pairs.task,
        "corruption": pairs.corruption,
        "wordings": config.wordings if config.task == "ioi" else "",
        "names": config.names if config.task == "ioi" else "",
        "pairs": len(pairs),
        "left_out": list(pairs.left_out),
        "examples": [list(texts) for texts in pairs.texts[:EXAMPLES]],
        "behaviour": to_table(behaviour(lm, pairs)),
        "by_wording": to_table(by_wording(lm, pairs)),
        "table": [{"wordings": row.wordings, "names": row.names, **to_table(row.behaviour)} for row in table],
    }


def _claims(
    used: Sequence[RunDictionary],
    curves: Sequence[Mapping[str, Any]],
    stored: Mapping[str, Mapping[str, NDArray]],
    against: str,
    bootstrap: Bootstrap,
    tolerance: float,
) -> list[Claim]:
    """The paper's statements about the subject's dictionaries, site by site."""
    sites: dict[str, dict[str, PatchedDictionary]] = {}
    for dictionary, facts in zip(used, curves, strict=True):
        if dictionary.model == SUBJECT:
            ends, by_search = from_arrays(stored[dictionary.key])
            known = (facts["kind"], facts["alpha"], facts["d_sae"], ends, by_search.get("ranking"))
            sites.setdefault(dictionary.site, {})[dictionary.name] = PatchedDictionary(dictionary.title, *known)
    statements = []
    for site, patched in sites.items():
        if against in patched:
            statements += claims.read_off(list(patched.values()), patched[against], bootstrap, tolerance)
        else:
            runtime.log.warning("patch: no dictionary called %r at %s, so nothing is compared with it", against, site)
    return statements


def _fits(dictionary: RunDictionary, patterns: Sequence[str]) -> bool:
    """Whether the slow searches run on a dictionary: those of control models are not worth the minutes."""
    return dictionary.model == SUBJECT and (not patterns or fits(dictionary, patterns))


def _file_parent(task: str) -> dict[str, str]:
    """The content of a file of own pairs, which its name alone does not identify."""
    return {"task": artifact.file_hash(Path(task))} if Path(task).is_file() else {}
