"""The members of a sweep: every combination of site, kind, sparsity, ratio, seed and learning rate.

A member says everything that its numbers depend on beside the batches, so one taken out of a sweep and trained alone
is the same dictionary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from monolex import runtime
from monolex.config import require
from monolex.errors import UserError
from monolex.kinds import KINDS
from monolex.ranks.mesh import Mesh
from monolex.ranks.shares import dealt
from monolex.train_config import TrainConfig
from monolex.training.optim import learning_rate, recipe


@dataclass(frozen=True)
class SweepMember:
    """One dictionary of a sweep."""

    name: str
    """Unique within the site, for example `tied-a8.6e-4-r4-s0`; the learning rate is added where there are several."""
    site: str
    """Where its activations are read."""
    kind: str
    """Key of :data:`monolex.kinds.KINDS`."""
    d_in: int
    """Width of the activations."""
    d_sae: int
    """Number of features."""
    alpha: float | None
    """L1 coefficient of the kinds that take one."""
    k: int | None
    """Active features of the kinds that take that."""
    ratio: float
    """d_sae / d_in as it was asked for."""
    seed: int
    """Seed of the initialisation."""
    lr: float
    """Peak learning rate."""
    d_out: int
    """Width of what is reconstructed."""
    target: str = ""
    """Transcoders: the site that is reconstructed."""
    skip: bool = False
    """Transcoders: whether a linear map stands beside the features."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka: numbers of its first features that reconstruct without the others; the last is all."""

    @property
    def written(self) -> str:
        """The site that is reconstructed."""
        return self.target or self.site


def members(
    config: TrainConfig, sites: Mapping[str, int], targets: Mapping[str, int] | None = None
) -> tuple[SweepMember, ...]:
    """The members of ``config`` at ``sites`` (name to width); ``targets`` are the sites that transcoders reconstruct.

    Raises:
        UserError: k above the number of features, or a value listed twice.
    """
    sweep: dict[tuple[str, str], SweepMember] = {}
    for site, kind, ratio, seed, lr in product(sites, config.kinds, config.ratios, config.seeds, config.lrs or (None,)):
        for alpha, k in _sparsities(config, kind):
            d_sae = max(1, round(ratio * sites[site]))
            require(
                k is None or k <= d_sae,
                f"k = {k} is more than the {d_sae} features of ratio {ratio} at {site}; lower k or raise the ratio",
            )
            require(
                k is None or (config.k_start or 0) <= d_sae,
                f"k_start = {config.k_start} is more than the {d_sae} features of ratio {ratio} at {site}; lower it",
            )
            name = f"{kind}-{f'k{k}' if alpha is None else f'a{short(alpha)}'}-r{short(ratio)}-s{seed}"
            if lr is not None and len(config.lrs) > 1:
                name += f"-lr{short(lr)}"
            target = config.target_of(site)
            if target:
                name += f"-to-{target}{'-skip' if config.skip else ''}"
            rate = learning_rate(recipe(config, kind), d_sae) if lr is None else lr
            prefixes = _prefixes(config, d_sae) if KINDS[kind].loss == "matryoshka" else ()
            if (site, name) in sweep:
                raise UserError(f"the sweep has two members {name} at {site}; list every value once")
            sweep[site, name] = SweepMember(
                name, site, kind, sites[site], d_sae, alpha, k, ratio, seed, rate,
                d_out=(targets or {})[target] if target else sites[site],
                target=target, skip=config.skip, prefixes=prefixes,
            )  # fmt: skip
    return tuple(sweep.values())


def _prefixes(config: TrainConfig, d_sae: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(max(1, round(fraction * d_sae)) for fraction in config.prefixes))


def _sparsities(config: TrainConfig, kind: str) -> list[tuple[float | None, int | None]]:
    """Pairs of alpha and k, one of them None."""
    if KINDS[kind].sparsity == "k":
        return [(None, k) for k in config.ks]
    return [(alpha, None) for alpha in config.alphas]


def short(value: float) -> str:
    """The shortest exact spelling of a number in a name: `8.6e-4`, `0.5`, `4`."""
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return np.format_float_positional(value, trim="-")
    return np.format_float_scientific(value, trim="-", exp_digits=1)


def own_members(sweep: Sequence[SweepMember], mesh: Mesh) -> list[int]:
    """Numbers of the members that this rank trains."""
    if len(sweep) < mesh.groups:
        runtime.log.warning(
            "%d groups of ranks have %d members, so some do nothing; data_ranks and feature_ranks share a member",
            mesh.groups, len(sweep),
        )  # fmt: skip
    for member in sweep:
        require(
            member.d_sae >= mesh.features.size,
            f"{member.name} has {member.d_sae} features for feature_ranks = {mesh.features.size}; lower feature_ranks",
        )
    groups = dealt([(member.d_in + member.d_out) * member.d_sae for member in sweep], mesh.groups)
    return [number for number, group in enumerate(groups) if group == mesh.number]
