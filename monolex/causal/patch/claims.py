"""What the paper says of its curves, read off ours: confirmed, contradicted or undecided, with the numbers.

Ratios compare two curves at an equal KL, a share of the base's; their intervals resample the same prompt pairs for
both. A claim is confirmed if the whole interval is on its side of 1, contradicted if it is on the other. The sets were
chosen on other pairs than those they are measured on, unless ``held_out = 0`` or there were too few: a bootstrap does
not choose anew, so that curves measured where their sets were chosen are better, and surer, than on other prompts.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolex.causal.patch.curves import PROMPTS, Curve, Floors, needed
from monolex.kinds import BASELINES, KINDS
from monolex.stats import Bootstrap, Estimate
from monolex.verdicts import Verdict, below, beyond, opposite

LEVELS = (0.9, 0.75, 0.5, 0.25)
"""Shares of the base's KL at which curves are compared."""
EXACT = 1e-4
"""Share of the base's KL below which a floor counts as none, of a model in float32."""
ROUGH = 1e-2
"""The same in half precision."""
COMPLETE = [kind for kind, family in BASELINES.items() if kind.removeprefix(family.name) in family.complete]
"""Baselines that reconstruct everything, so that patching all of their features must reach the donor."""

FEWER = "fewer features than the baseline at equal KL"
SMALLER = "smaller edit than the baseline at equal KL"
FINER = "the sparser dictionary needs fewer features at equal KL"
FLOOR = "patching all features of an autoencoder leaves a KL"
NO_FLOOR = "patching all features of the baseline leaves no KL"


class Claim(NamedTuple):
    """One statement about one dictionary."""

    statement: str
    """The paper's, in a few words."""
    dictionary: str
    """Of which it is asked."""
    against: str
    """What it is compared with; empty for a floor."""
    level: float | None
    """Share of the base's KL at which they are compared; None for a floor."""
    estimate: Estimate
    """A ratio to ``against``, or the floor as a share of the base's KL."""
    verdict: Verdict
    """What the numbers say."""


class PatchedDictionary(NamedTuple):
    """A dictionary of which the claims are asked."""

    name: str
    """Unique."""
    kind: str
    """Of dictionary."""
    alpha: float | None
    """L1 coefficient; None of kinds without one."""
    d_sae: int
    """Features."""
    ends: Floors
    """References."""
    ranking: Curve | None
    """Its curve by integrated gradients, if that was asked for."""


def read_off(
    dictionaries: Sequence[PatchedDictionary],
    baseline: PatchedDictionary,
    bootstrap: Bootstrap,
    tolerance: float = EXACT,
) -> list[Claim]:
    """All statements about the trained ones among the dictionaries of a site, and about the baseline's floor."""
    trained = [sparse for sparse in dictionaries if sparse.kind in KINDS and sparse.name != baseline.name]
    claims = [floor(baseline.name, baseline.ends, False, bootstrap, tolerance)] if baseline.kind in COMPLETE else []
    for sparse in trained:
        claims.append(floor(sparse.name, sparse.ends, True, bootstrap, tolerance))
        claims += compare(sparse, baseline, "features", FEWER, bootstrap)
        claims += compare(sparse, baseline, "edit", SMALLER, bootstrap)
    for kind in dict.fromkeys((sparse.kind, sparse.d_sae) for sparse in trained if sparse.alpha is not None):
        claims += _finer([sparse for sparse in trained if (sparse.kind, sparse.d_sae) == kind], bootstrap)
    return claims


def _finer(alike: Sequence[PatchedDictionary], bootstrap: Bootstrap) -> list[Claim]:
    """Of dictionaries of one kind and width every sparser one against the least sparse."""
    dense, *sparser = sorted(alike, key=lambda sparse: sparse.alpha or 0)
    return [
        claim
        for sparse in sparser
        if (sparse.alpha or 0) > (dense.alpha or 0)
        for claim in compare(sparse, dense, "features", FINER, bootstrap)
    ]


def compare(
    sparse: PatchedDictionary,
    reference: PatchedDictionary,
    what: Literal["features", "edit"],
    statement: str,
    bootstrap: Bootstrap,
) -> list[Claim]:
    """Whether a dictionary needs fewer features (or a smaller edit) than another at equal KL; none without curves."""
    if sparse.ranking is None or reference.ranking is None:
        return []
    ends, claims = sparse.ends, []
    for share in LEVELS:
        needs = (needed(curve, ends, share, bootstrap) for curve in (sparse.ranking, reference.ranking))
        need, other = (by_size[what == "edit"] for by_size in needs)
        estimate, verdict = _ratio(need, other, len(ends.none.kl), bootstrap.level, sparse.name, reference.name)
        claims.append(Claim(statement, sparse.name, reference.name, share, estimate, verdict))
    return claims


def floor(name: str, ends: Floors, expected: bool, bootstrap: Bootstrap, tolerance: float = EXACT) -> Claim:
    """Whether patching every feature leaves a KL (``expected`` of autoencoders) or none (of complete bases).

    None is a share of the base's KL below ``tolerance``, which the model's precision decides.
    """
    estimate = bootstrap.ratio(ends.all.kl, ends.none.kl, PROMPTS)
    statement = FLOOR if expected else NO_FLOOR
    verdict = beyond(estimate, tolerance)
    return Claim(statement, name, "", None, estimate, verdict if expected else opposite(verdict))


def _ratio(
    need: NDArray, other: NDArray, pairs: int, level: float, name: str, against: str
) -> tuple[Estimate, Verdict]:
    """The ratio of two needs, whose first entries are of all pairs and the others of resamples.

    A need that is never met counts as more than any number, so that a ratio or the end of its interval may be infinite:
    then there is a verdict without a number.
    """
    unmet = {name: np.isnan(need[0]), against: np.isnan(other[0])}
    if other[0] == 0:
        return Estimate(None, n=pairs, over=PROMPTS, reason="nothing needs to be patched"), "undecided"
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.where(np.isnan(need), np.inf, need) / np.where(np.isnan(other), np.inf, other)
    # 0 / 0 and ∞ / ∞ say nothing; where they are many, neither does the rest
    compared = drawn[1:][~np.isnan(drawn[1:])]
    if len(compared) < (len(drawn) - 1) * (1 + level) / 2:
        low, high = 0.0, np.inf
    else:
        low, high = np.quantile(compared, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    verdict = below({"low": low, "high": high}, {"low": 1, "high": 1})
    if any(unmet.values()):
        who = " and ".join(dictionary for dictionary, never in unmet.items() if never)
        return Estimate(None, n=pairs, over=PROMPTS, reason=f"{who} never gets there: the floor is above"), verdict
    if not (np.isfinite(low) and np.isfinite(high)):
        reason = "in too many resamples one of the two never gets there: no interval"
        return Estimate(float(drawn[0]), n=pairs, over=PROMPTS, reason=reason), verdict
    return Estimate(float(drawn[0]), float(low), float(high), pairs, PROMPTS), verdict
