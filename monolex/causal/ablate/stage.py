"""The stage ``ablate``: ablation histograms of some features of a run, as an artefact, one feature at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monolex.activations.stored import stored_model
from monolex.artifact import Manifest
from monolex.causal.ablate.ablation import ablate_feature
from monolex.causal.ablate.rescue import rescue_sites
from monolex.causal.chosen_features import (
    ChosenFeature,
    chosen_features,
    finish,
    named_sites,
    token_text,
    used_folders,
    words,
)
from monolex.causal.config import AblateConfig
from monolex.causal.occurrences import occurrences
from monolex.config import ModelConfig, require
from monolex.dictionaries.listing import parents
from monolex.lock import alone
from monolex.model.load import n_layers
from monolex.pieces import Piece, Work


@alone
def ablate(folder: str | Path, run: str | Path, config: AblateConfig) -> Manifest:
    """Ablation histograms of some features of a run; writes ``ablate.json``.

    Raises:
        UserError: no run, a feature that does not exist or is never active, or a ``rescue`` that is not behind all.
    """
    folder, run = Path(folder), Path(run)
    chosen = chosen_features(run, config.features)
    used = [target.dictionary for target in chosen]
    work = Work(folder, "ablate", config, parents(used_folders(run, used, evidence=True)))
    if manifest := work.answer():
        return manifest
    lm = stored_model(run / "activations", config.ablate_device)
    _require_later(config, [target.dictionary.site for target in chosen], lm.n_layers)

    def piece(target: ChosenFeature) -> Piece:
        def ablated(_path: Path) -> dict[str, Any]:
            weights = target.dictionary.weights(lm.device)
            drawn = {"count": config.occurrences, "low": config.low, "seed": config.ablate_seed}
            tokens = occurrences(run / "activations", weights, [target.feature], **drawn)[target.feature]
            require(len(tokens.end) > 0, f"feature {target.key} is never active: there is nothing to ablate")
            described = {"text": token_text(lm), "advance": work.advance}
            ablation = ablate_feature(lm, weights, target.feature, tokens, config, **described)
            known = {"name": target.dictionary.name, "words": words(target.dictionary, target.feature)}
            return known | ablation.to_json()

        return ablated

    # occurrences are run twice: beside their controls, and with every partner
    pieces = {target.key: piece(target) for target in chosen}
    used = {target.key: [target.dictionary] for target in chosen}
    return finish(work, "ablations", pieces, used, size=2 * config.occurrences, unit="occurrence")


def check(config: AblateConfig, model: ModelConfig, harvested: Sequence[str]) -> None:
    """Refuse features of sites that are not ``harvested``, and a rescue at layers that are not behind them.

    Raises:
        UserError: as said; or no such model.
    """
    sites = named_sites(config.features, harvested)
    if config.rescue:
        _require_later(config, list(sites.values()), n_layers(model))


def _require_later(config: AblateConfig, sites: Sequence[str], layers: int) -> None:
    for site in sites:
        rescue_sites(site, layers, config.rescue)
