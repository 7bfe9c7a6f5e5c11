"""Which dictionaries of a run are explained: trained ones (along training), matched baselines, control models'."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from monolex.artifact import open_artifact
from monolex.config import Kind
from monolex.dictionaries.base import DictionaryConfig, read_config
from monolex.dictionaries.baselines import mean_l0
from monolex.errors import UserError
from monolex.features.listing import SUBJECT, Member, choose, control_runs, fits, members
from monolex.interp.config import ExplainConfig
from monolex.reader import Reader
from monolex.runtime import log
from monolex.sites import Site, select

CHECKPOINTS = "checkpoints"
TOPK = "-topk"
L0_SEED = 0


@dataclass(frozen=True)
class Target:
    """A dictionary whose features are explained."""

    model: str
    """`subject`, or the control's name."""
    member: Member
    """The dictionary; ``NAME@STEP`` along training."""
    activations: Path
    """Stored activations of its model, which the fragments are of."""
    config: DictionaryConfig
    """What it is."""
    step: int | None = None
    """Of a sweep's checkpoint."""
    l0: float | None = None
    """Mean number of active features, where it was measured."""

    @property
    def key(self) -> str:
        """``MODEL/SITE/NAME``."""
        return f"{self.model}/{self.member.title}"

    @property
    def trained(self) -> bool:
        """Whether it is of a sweep, not a baseline."""
        return self.config.kind in typing.get_args(Kind)

    @property
    def method(self) -> str:
        """What is followed across layers: a trained dictionary's name or a baseline's kind, after a control's model."""
        name = self.member.name.partition("@")[0] if self.trained else self.config.kind
        return name if self.model == SUBJECT else f"{self.model} model: {name}"

    def facts(self) -> dict[str, Any]:
        """What every table says of it."""
        c = self.config
        return {
            "model": self.model,
            "site": self.member.site,
            "name": self.member.name,
            "kind": c.kind,
            "method": self.method,
            "layer": Site.parse(self.member.site).layer,
            "d_in": c.d_in,
            "d_sae": c.d_sae,
            "ratio": c.d_sae / c.d_in,
            "alpha": c.recipe.get("alpha"),
            "k": c.k,
            "step": self.step,
            "l0": self.l0,
            "trained": self.trained,
        }


def candidates(run: Path, config: ExplainConfig) -> list[Target]:
    """The dictionaries that ``config`` asks for, by site; the subject's before the control models'.

    Raises:
        UserError: no run, or a name or site that fits nothing.
    """
    found = _of_model(run, SUBJECT, config, strict=True)
    if config.activations:
        elsewhere = Path(config.activations)
        stored = open_artifact(elsewhere, "activations").data
        own = open_artifact(run / "activations", "activations").data
        if stored["model"]["fingerprint"] != own["model"]["fingerprint"]:
            raise UserError(f"activations = {config.activations}: those are of another model than the run's")
        missing = sorted({one.member.site for one in found} - set(stored["sites"]))
        if missing:
            raise UserError(
                f"activations = {config.activations}: no site {missing[0]} there; harvest it or give --sites"
            )
        found = [replace(one, activations=elsewhere) for one in found]
        if config.controls:
            log.info("explain: control models are left out, because --activations are of the subject alone")
    elif config.controls:
        for home in control_runs(run):
            found += _of_model(home, home.name, config, strict=False)
    if not found:
        raise UserError("no dictionary is left to explain; give other --sites or --dictionaries")
    order = {site: i for i, site in enumerate(dict.fromkeys(one.member.site for one in found))}
    return sorted(found, key=lambda one: (order[one.member.site], one.model != SUBJECT))


def _of_model(home: Path, model: str, config: ExplainConfig, *, strict: bool) -> list[Target]:
    """One model's; of a control model, which has fewer, a name that fits nothing is no mistake."""
    here = members(home)
    known = tuple(dict.fromkeys(member.site for member in here))
    if strict:
        sites = select(config.sites, known, str(home))
        named = choose([member for member in here if member.site in sites], config.dictionaries)
    else:
        sites = [site for site in known if not config.sites or any(fnmatchcase(site, name) for name in config.sites)]
        named = [m for m in here if m.site in sites and (not config.dictionaries or fits(m, config.dictionaries))]
    activations = home / "activations"
    return [Target(model, member, activations, read_config(member.folder)) for member in named]


def targets(found: Sequence[Target], config: ExplainConfig) -> list[Target]:
    """Of :func:`candidates` those that are explained: L0s are measured, top-k baselines matched, checkpoints added."""
    groups: dict[tuple[str, str], list[Target]] = {}
    for one in found:
        groups.setdefault((one.model, one.member.site), []).append(one)
    used = [one for group in groups.values() for one in _with_l0(group, config.matched)]
    return [later for one in used for later in (*(_checkpoints(one) if config.checkpoints else ()), one)]


def _with_l0(here: Sequence[Target], matched: bool) -> list[Target]:
    """One site's with the L0 of the trained ones; with ``matched`` only the top-k baselines nearest to one of these."""
    trained = [one for one in here if one.trained]
    if not trained:
        return list(here)
    reader = Reader(trained[0].activations, trained[0].member.site)
    measured = mean_l0(reader, [one.member.weights() for one in trained], L0_SEED)
    known = {one.key: l0 for one, l0 in zip(trained, measured, strict=True)}
    kept = []
    for one in here:
        if matched and one.config.kind.endswith(TOPK):
            ks = [other.config.k or 0 for other in here if other.config.kind == one.config.kind]
            nearest = {min(ks, key=lambda k: abs(k - l0)) for l0 in measured}
            if one.config.k not in nearest:
                continue
        l0 = float(one.config.k) if one.config.activation == "topk" and one.config.k else known.get(one.key)
        kept.append(replace(one, l0=l0))
    return kept


def _checkpoints(target: Target) -> list[Target]:
    """What its sweep kept of a trained dictionary, in the order of training."""
    member = target.member
    if not target.trained:
        return []
    sweep = member.folder.parents[1]
    steps = sorted(int(path.name) for path in (sweep / CHECKPOINTS).glob("*") if path.name.isdecimal())
    found = []
    for step in steps:
        folder = sweep / CHECKPOINTS / str(step) / member.site / member.folder.name
        then = replace(member, name=f"{member.name}@{step}", folder=folder, evidence=None)
        found.append(replace(target, member=then, config=read_config(folder), step=step, l0=None))
    return found


def parents(found: Sequence[Target]) -> dict[str, str]:
    """Content hashes of all activations, sweeps and baselines that are read."""
    folders = {f"{one.model}.activations": one.activations for one in found}
    for one in found:
        source = one.member.folder.parents[1]
        folders[f"{one.model}.{source.parent.name}.{source.name}"] = source
    return {name: open_artifact(folder).content for name, folder in sorted(folders.items())}
