"""The stages ``patch``, ``ablate`` and ``tree``: an experiment on a run's dictionaries as an artefact.

An artefact is made piece by piece (a dictionary, a feature, a root) and a piece is kept as it is done, so that a killed
stage loses one of them at most. The numbers are in ``KIND.json``; of curves every pair's are in ``pairs.safetensors``.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from monolex import artifact, runtime
from monolex.activations.stored import stored_model
from monolex.artifact import SUBJECT, Manifest, json_bytes, write_bytes
from monolex.causal.ablate.ablation import ablate_feature
from monolex.causal.chosen_features import RESIDUAL, Root, parents, roots, words
from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.causal.occurrences import occurrences
from monolex.causal.patch import claims
from monolex.causal.patch.claims import Bootstrap, Claim, Measured
from monolex.causal.patch.measure import arrays, as_json, experiment, from_arrays
from monolex.causal.patch.patch import prepare_patch
from monolex.causal.prompts.behaviour import behaviour, demo_table, rows
from monolex.causal.prompts.pairs import PromptPairs
from monolex.causal.prompts.tasks import draw
from monolex.causal.tree.grow import tree as grow
from monolex.config import require
from monolex.dictionaries.listing import RunDictionary, choose, chosen_dictionaries, fits, run_dictionaries
from monolex.errors import UserError
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.pieces import Piece, Work
from monolex.tables import to_table
from monolex.text.vocabulary import Texts

PATCH, PAIRS = "patch.json", "pairs.safetensors"
EXAMPLES = 3


def patch(folder: str | Path, run: str | Path, config: PatchConfig) -> Manifest:
    """Patching curves of a run's dictionaries on one task, with the model's behaviour on it and the paper's claims.

    Writes ``patch.json`` and ``pairs.safetensors`` (every number of every pair, ``MODEL/SITE/NAME/SEARCH.FIELD``).

    Raises:
        UserError: no run, nothing that fits, a task that the tokenizer cannot spell, or a file that cannot be read.
    """
    folder, run = Path(folder), Path(run)
    used = chosen_dictionaries(run, config.sites or RESIDUAL, config.dictionaries, controls=config.controls)
    choose(used, config.exact)
    work = Work(folder, "patch", config, parents(run, used) | _file_parent(config.task))
    if manifest := work.found():
        return manifest
    lm = stored_model(run / "activations", config.patch_device)
    pairs = draw(lm, config)
    how = Bootstrap(config.resamples, config.level, config.patch_seed)

    def piece(dictionary: RunDictionary) -> Piece:
        def patched(path: Path) -> dict[str, Any]:
            weights = dictionary.weights(lm.device)
            ready = prepare_patch(lm, pairs, dictionary.site, weights, batch_tokens=config.batch_tokens)
            result = experiment(ready, config, _fits(dictionary, config.exact))
            write_bytes(path.with_suffix(".safetensors"), save(arrays(result)))
            facts = {"model": dictionary.model, "site": dictionary.site, "name": dictionary.name}
            known = {"d_sae": weights.d_sae, "kind": weights.config.kind, "alpha": weights.config.recipe.get("alpha")}
            return facts | known | as_json(result, config.limit, how)

        return patched

    tolerance = claims.EXACT if lm.dtype in (torch.float32, torch.float64) else claims.ROUGH
    curves = list(work.done({dictionary.key: piece(dictionary) for dictionary in used}).values())
    stored = {d.key: load_file(work.place(d.key).with_suffix(".safetensors")) for d in used}
    entry = {
        **_prompts(lm, pairs, config),
        "curves": curves,
        "claims": to_table(_claims(used, curves, stored, config.against, how, tolerance)),
    }
    flat = {f"{key}/{name}": array for key, arrays in stored.items() for name, array in arrays.items()}
    return work.finish({PATCH: json_bytes(entry), PAIRS: save(flat)}, {"task": config.task, "pairs": len(pairs)})


def ablate(folder: str | Path, run: str | Path, config: AblateConfig) -> Manifest:
    """Ablation histograms of some features of a run; writes ``ablate.json``.

    Raises:
        UserError: no run, or a feature that does not exist or is never active.
    """
    folder, run = Path(folder), Path(run)
    chosen = roots(run, config.features)
    work = Work(folder, "ablate", config, _root_parents(run, chosen))
    if manifest := work.found():
        return manifest
    lm = stored_model(run / "activations", config.ablate_device)

    def piece(root: Root) -> Piece:
        def ablated(_path: Path) -> dict[str, Any]:
            weights = root.dictionary.weights(lm.device)
            drawn = {"count": config.occurrences, "low": config.low, "seed": config.ablate_seed}
            tokens = occurrences(run / "activations", weights, [root.feature], **drawn)[root.feature]
            require(len(tokens.end) > 0, f"feature {root.key} is never active: there is nothing to ablate")
            made = ablate_feature(lm, weights, root.feature, tokens, config, text=_text(lm))
            return {"name": root.dictionary.name, "words": words(root.dictionary, root.feature)} | made.to_json()

        return ablated

    return _finish(work, "ablations", {root.key: piece(root) for root in chosen})


def tree(folder: str | Path, run: str | Path, config: TreeConfig) -> Manifest:
    """Causal trees below some features of a run; writes ``tree.json``.

    Raises:
        UserError: no run, a feature that does not exist or is never active, or earlier sites without one dictionary.
    """
    folder, run = Path(folder), Path(run)
    chosen = roots(run, config.features)
    listed = run_dictionaries(run)
    below = {root.key: _below(listed, root, config) for root in chosen}
    used = [dictionary for path in below.values() for dictionary in path.values()]
    work = Work(folder, "tree", config, _root_parents(run, chosen) | parents(run, used))
    if manifest := work.found():
        return manifest
    lm = stored_model(run / "activations", config.tree_device)

    def piece(root: Root) -> Piece:
        def grown(_path: Path) -> dict[str, Any]:
            path = below[root.key]
            made = grow(
                lm,
                {site: dictionary.weights(lm.device) for site, dictionary in path.items()},
                root.dictionary.site,
                root.feature,
                run / "activations",
                config,
                label=lambda site, feature: words(path[site], feature),
                text=_text(lm),
            )
            names = {site: dictionary.name for site, dictionary in path.items()}
            return {"root": root.key, "dictionaries": names} | made.to_json()

        return grown

    return _finish(work, "trees", {root.key: piece(root) for root in chosen})


def _prompts(lm: LanguageModel, pairs: PromptPairs, config: PatchConfig) -> dict[str, Any]:
    """The prompts and what the model does on them, before anything is patched."""
    table = demo_table(lm, pairs=120) if config.task == "ioi" else []
    return {
        "task": pairs.task,
        "corruption": pairs.corruption,
        "wordings": config.wordings if config.task == "ioi" else "",
        "names": config.names if config.task == "ioi" else "",
        "pairs": len(pairs),
        "left_out": list(pairs.left_out),
        "examples": [list(texts) for texts in pairs.texts[:EXAMPLES]],
        "behaviour": to_table(behaviour(lm, pairs)),
        "by_wording": to_table(rows(lm, pairs)),
        "table": [{"wordings": row.wordings, "names": row.names, **to_table(row.behaviour)} for row in table],
    }


def _claims(
    used: Sequence[RunDictionary],
    made: Sequence[Mapping[str, Any]],
    stored: Mapping[str, Mapping[str, NDArray]],
    against: str,
    how: Bootstrap,
    tolerance: float,
) -> list[Claim]:
    """The paper's statements about the subject's dictionaries, site by site."""
    sites: dict[str, dict[str, Measured]] = {}
    for dictionary, facts in zip(used, made, strict=True):
        if dictionary.model == SUBJECT:
            ends, curves = from_arrays(stored[dictionary.key])
            known = (facts["kind"], facts["alpha"], facts["d_sae"], ends, curves.get("ranking"))
            sites.setdefault(dictionary.site, {})[dictionary.name] = Measured(dictionary.title, *known)
    found = []
    for site, here in sites.items():
        if against in here:
            found += claims.read_off(list(here.values()), here[against], how, tolerance)
        else:
            runtime.log.warning("patch: no dictionary called %r at %s, so nothing is compared with it", against, site)
    return found


def _fits(dictionary: RunDictionary, patterns: Sequence[str]) -> bool:
    """Whether the slow searches run on a dictionary: those of control models are not worth the minutes."""
    return dictionary.model == SUBJECT and (not patterns or fits(dictionary, patterns))


def _below(listed: Sequence[RunDictionary], root: Root, config: TreeConfig) -> dict[str, RunDictionary]:
    """The dictionary of every site that the tree may reach: the root's, and one for each residual site before it."""
    site = Site.parse(root.dictionary.site)
    require(site.kind == "resid_post", f"features = {root.key!r}: a tree grows between residual sites, resid_post.*")
    patterns = config.dictionaries or (root.dictionary.name,)
    path = {root.dictionary.site: root.dictionary}
    for layer in range(site.layer - 1, max(site.layer - 1 - config.depth, -1), -1):
        earlier = str(Site("resid_post", layer))
        at_site = [dictionary for dictionary in listed if dictionary.site == earlier]
        if not at_site and len(path) > 1:
            break  # the tree ends where the run has no dictionaries
        fitting = [dictionary for dictionary in at_site if fits(dictionary, patterns)]
        if len(fitting) != 1:
            what = f"{len(fitting)} dictionaries at {earlier} fit {', '.join(patterns)}"
            example = at_site[0].name if at_site else "those of another run (this one has none there)"
            raise UserError(f"{what}: give --dictionaries that fit one at each site, such as {example}")
        path[earlier] = fitting[0]
    return path


def _root_parents(run: Path, chosen: Sequence[Root]) -> dict[str, str]:
    """With the evidence, of which the words beside a feature are."""
    return parents(run, [root.dictionary for root in chosen], evidence=True)


def _finish(work: Work, name: str, pieces: Mapping[str, Piece]) -> Manifest:
    """Do a piece a root; they are the list ``name`` of ``KIND.json``."""
    entry = {name: list(work.done(pieces).values())}
    return work.finish({f"{work.kind}.json": json_bytes(entry)}, {"features": list(pieces)})


def _file_parent(task: str) -> dict[str, str]:
    """The content of a file of own pairs, which its name alone does not identify."""
    return {"task": artifact.file_hash(Path(task))} if Path(task).is_file() else {}


def _text(lm: LanguageModel) -> Callable[[int], str]:
    texts = Texts(lm)
    return lambda token: texts.of([token])[0][1]
