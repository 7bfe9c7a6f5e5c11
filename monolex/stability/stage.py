"""The stage ``stability``: features that come back under other seeds beside those that do not, as an artefact.

Writes ``stability.json``: of every dictionary how often its features come back, and of both groups ablation size,
density, size, share of the reconstruction, and the scores of explanations.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from monolex.activations.stored import stored_model
from monolex.artifact import SUBJECT, Manifest, json_bytes
from monolex.causal.chosen_features import used_folders
from monolex.dictionaries.listing import RunDictionary, choose, parents, run_dictionaries
from monolex.errors import UserError
from monolex.features.evidence import Summary
from monolex.features.known import open_store
from monolex.features.seeds import recipe_of
from monolex.interp.protocol import SAYS_NOTHING
from monolex.interp.records import Scored
from monolex.interp.score.cards import scored
from monolex.interp.score.stage import KIND as SCORE
from monolex.lock import alone
from monolex.pieces import Piece, Work
from monolex.stability.config import StabilityConfig
from monolex.stability.measure import (
    GROUPS,
    Grouped,
    ablations,
    active,
    chance,
    compared,
    distribution,
    grouped,
    reconstruction,
)
from monolex.stats import Bootstrap

KIND, METRIC = "stability", "top_and_random"


@alone
def stability(folder: str | Path, run: str | Path, config: StabilityConfig) -> Manifest:
    """Compare stable and unstable features of the dictionaries of a run that have other seeds.

    Raises:
        UserError: no run, no evidence, no dictionary with other seeds, or scores that are not there.
    """
    folder, run = Path(folder), Path(run)
    used = with_seeds(run, config.dictionaries)
    folders = used_folders(run, used, evidence=True) | {
        f"{SUBJECT}.{SCORE}.{name}": run / SCORE / name for name in config.scores
    }
    work = Work(folder, KIND, config, parents(folders))
    if manifest := work.answer():
        return manifest
    lm = stored_model(run / "activations", config.stability_device)
    explained = scored(run, config.scores) if config.scores else {}

    def piece(dictionary: RunDictionary) -> Piece:
        def measured(_path: Path) -> dict[str, Any]:
            with closing(open_store(dictionary)) as store:
                summaries, seeds, split = store.summaries(), store.meta["other_seeds"], store.meta["split"]
            weights, groups = dictionary.weights(lm.device), grouped(summaries, config)
            done = ablations(lm, weights, run / "activations", groups, config, split, work.advance)
            bootstrap = Bootstrap(config.resamples, config.level, config.stability_seed)
            counted = active(summaries)
            returned = [s.reappears for s in counted if s.reappears is not None]
            values = {
                "kl": {name: [a.kl for a in done[name]] for name in GROUPS},
                "size": {name: [a.size for a in done[name]] for name in GROUPS},
                "density": _of(summaries, groups, "density"),
            }
            values |= _scores(explained.get((dictionary.model, dictionary.site, dictionary.name), {}), groups)
            return {
                "site": dictionary.site,
                "name": dictionary.name,
                "kind": dictionary.config.kind,
                "other_seeds": seeds,
                "rare": len(summaries) - len(counted),
                "times": distribution(counted),
                "reappears": bootstrap.mean(returned, "features")._asdict(),
                "chance": chance(weights, config.stability_seed),
                "features": {name: len(groups.members[name]) for name in GROUPS},
                "reconstruction": {
                    name: estimate._asdict()
                    for name, estimate in reconstruction(weights, run / "activations", groups, config).items()
                },
                "compared": {name: compared(groups_of, config) for name, groups_of in values.items()},
            }

        return measured

    sizes = dict.fromkeys((d.key for d in used), 2 * config.sample)
    entries = work.done({d.key: piece(d) for d in used}, sizes=sizes, unit="feature")
    content = {"stable": config.stable, "unstable": config.unstable, "dictionaries": list(entries.values())}
    return work.finish({f"{KIND}.json": json_bytes(content)}, {"dictionaries": [d.key for d in used]})


def with_seeds(run: Path, patterns: Sequence[str]) -> list[RunDictionary]:
    """The dictionaries of a run whose evidence knows other seeds: those that fit, or the first seed of every recipe.

    Transcoders are left out: what they write is no part of what they read.

    Raises:
        UserError: there is none.
    """
    listed = [d for d in choose(run_dictionaries(run), patterns) if d.evidence is not None and not d.config.target]
    known: dict[str, RunDictionary] = {}
    for dictionary in listed:
        with closing(open_store(dictionary)) as store:
            seeds = store.meta["other_seeds"]
        if seeds:
            family = dictionary.key if patterns else json.dumps(recipe_of(dictionary.config), sort_keys=True)
            known.setdefault(family, dictionary)
    if not known:
        raise UserError("no evidence of a dictionary with other seeds: train one with seeds = [0, 1, 2] and gather it")
    return list(known.values())


def _of(summaries: Sequence[Summary], groups: Grouped, what: str) -> dict[str, list[float]]:
    return {name: [getattr(summaries[i], what) for i in groups.members[name].tolist()] for name in GROUPS}


def _scores(explained: Mapping[int, Sequence[Scored]], groups: Grouped) -> dict[str, dict[str, list[float]]]:
    """Of every explainer and simulator the scores of the features of both groups.

    An explanation that predicts the same everywhere counts as 0, as in all means of scores; one whose predictions
    failed has no score and is left out.
    """
    values: dict[str, dict[str, list[float]]] = {}
    group_of = {feature: name for name in GROUPS for feature in groups.members[name].tolist()}
    for feature, lines in explained.items():
        for row in (line.row for line in lines if feature in group_of):
            cell = row["scores"][METRIC]
            value = 0.0 if cell["reason"] == SAYS_NOTHING else cell["value"]
            if value is not None:
                name = f"score of {row['explainer']} explanations ({row['simulator']})"
                values.setdefault(name, {group: [] for group in GROUPS})[group_of[feature]].append(value)
    return values
