"""Which dictionaries of a run are explained: trained ones (along training), matched baselines, control models'."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monolex.activations.reader import Reader
from monolex.artifact import SUBJECT, model_home, open_artifact
from monolex.dictionaries.baselines import mean_l0
from monolex.dictionaries.listing import RunDictionary, checkpoints, chosen_dictionaries, source_folders
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig
from monolex.kinds import TOPK
from monolex.model.sites import Site
from monolex.runtime import log

L0_SEED = 0


@dataclass(frozen=True)
class Target:
    """A dictionary whose features are explained."""

    dictionary: RunDictionary
    """Which; ``NAME@STEP`` along training."""
    activations: Path
    """Stored activations of its model, which the fragments are of."""
    l0: float | None = None
    """Mean number of active features, where it was measured."""

    @property
    def method(self) -> str:
        """What is followed across layers: a trained dictionary's name or a baseline's kind, after a control's model."""
        d = self.dictionary
        name = d.name.partition("@")[0] if d.trained else d.config.kind
        return name if d.model == SUBJECT else f"{d.model} model: {name}"

    def facts(self) -> dict[str, Any]:
        """What every table says of it."""
        d, c = self.dictionary, self.dictionary.config
        return {
            "model": d.model,
            "site": d.site,
            "name": d.name,
            "kind": c.kind,
            "method": self.method,
            "layer": Site.parse(d.site).layer,
            "d_in": c.d_in,
            "d_sae": c.d_sae,
            "ratio": c.d_sae / c.d_in,
            "alpha": c.recipe.get("alpha"),
            "k": c.k,
            "step": d.step,
            "l0": self.l0,
            "trained": d.trained,
        }


def candidates(run: Path, config: ExplainConfig) -> list[Target]:
    """The dictionaries that ``config`` asks for, by site; the subject's before the control models'.

    Raises:
        UserError: no run, or a name or site that fits nothing.
    """
    controls = config.controls and not config.activations
    chosen = chosen_dictionaries(run, config.sites, config.dictionaries, controls=controls)
    if not config.activations:
        return [Target(dictionary, model_home(run, dictionary.model) / "activations") for dictionary in chosen]
    elsewhere = Path(config.activations)
    stored = open_artifact(elsewhere, "activations").data
    harvested = open_artifact(run / "activations", "activations").data
    if stored["model"]["fingerprint"] != harvested["model"]["fingerprint"]:
        raise UserError(f"activations = {config.activations}: those are of another model than the run's")
    missing = sorted({dictionary.site for dictionary in chosen} - set(stored["sites"]))
    if missing:
        raise UserError(f"activations = {config.activations}: no site {missing[0]} there; harvest it or give --sites")
    if config.controls:
        log.info("explain: control models are left out, because --activations are of the subject alone")
    return [Target(dictionary, elsewhere) for dictionary in chosen]


def targets(wanted: Iterable[Target], config: ExplainConfig) -> list[Target]:
    """Of :func:`candidates` those that are explained: L0s are measured, top-k baselines matched, checkpoints added."""
    groups: dict[tuple[str, str], list[Target]] = {}
    for target in wanted:
        groups.setdefault((target.dictionary.model, target.dictionary.site), []).append(target)
    used = [target for group in groups.values() for target in _with_l0(group, config.matched)]
    if not config.checkpoints:
        return used
    return [
        replace(target, dictionary=dictionary, l0=None if dictionary.step is not None else target.l0)
        for target in used
        for dictionary in (*checkpoints(target.dictionary), target.dictionary)
    ]


def _with_l0(group: Sequence[Target], matched: bool) -> list[Target]:
    """One site's with the L0 of the trained ones; with ``matched`` only the top-k baselines nearest to one of these."""
    trained = [target for target in group if target.dictionary.trained]
    if not trained:
        return list(group)
    reader = Reader(trained[0].activations, trained[0].dictionary.site)
    measured = mean_l0(reader, [target.dictionary.weights() for target in trained], L0_SEED)
    known = {target.dictionary.key: l0 for target, l0 in zip(trained, measured, strict=True)}
    kept = []
    for target in group:
        config = target.dictionary.config
        if matched and config.kind.endswith(TOPK):
            ks = [other.dictionary.config.k or 0 for other in group if other.dictionary.config.kind == config.kind]
            nearest = {min(ks, key=lambda k: abs(k - l0)) for l0 in measured}
            if config.k not in nearest:
                continue
        l0 = float(config.k) if config.activation == "topk" and config.k else known.get(target.dictionary.key)
        kept.append(replace(target, l0=l0))
    return kept


def target_folders(wanted: Sequence[Target]) -> dict[str, Path]:
    """All activations, sweeps and baselines that are read, for :func:`~monolex.dictionaries.listing.parents`."""
    folders = {f"{target.dictionary.model}.activations": target.activations for target in wanted}
    folders |= source_folders(target.dictionary for target in wanted)
    return dict(sorted(folders.items()))
