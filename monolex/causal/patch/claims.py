"""What the paper says of its curves, read off ours: confirmed, contradicted or undecided, with the numbers.

Ratios compare two curves at an equal KL, a share of the base's; their intervals resample the same prompt pairs for
both. A claim is confirmed if the whole interval is on its side of 1, contradicted if it is on the other. The sets were
chosen on the very pairs that they are measured on and a bootstrap does not choose anew, so that all curves are a little
better, and surer, than they would be on other prompts.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolex import stats
from monolex.causal.patch.curves import PROMPTS, Curve, Floors, needed
from monolex.kinds import BASELINES, KINDS
from monolex.stats import Estimate

Verdict = Literal["confirmed", "contradicted", "undecided"]
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


class Bootstrap(NamedTuple):
    """How intervals are drawn."""

    resamples: int = 1000
    """Resamples."""
    level: float = 0.95
    """Coverage."""
    seed: int = 0
    """Seed."""


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


class Measured(NamedTuple):
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
    dictionaries: Sequence[Measured], baseline: Measured, how: Bootstrap, tolerance: float = EXACT
) -> list[Claim]:
    """All statements about the trained ones among the dictionaries of a site, and about the baseline's floor."""
    trained = [one for one in dictionaries if one.kind in KINDS and one.name != baseline.name]
    found = [floor(baseline.name, baseline.ends, False, how, tolerance)] if baseline.kind in COMPLETE else []
    for one in trained:
        found.append(floor(one.name, one.ends, True, how, tolerance))
        if one.ranking is not None and baseline.ranking is not None:
            parts = (one.name, one.ranking, baseline.name, baseline.ranking, one.ends)
            found += compare(*parts, "features", FEWER, how)
            found += compare(*parts, "edit", SMALLER, how)
    for kind in dict.fromkeys((one.kind, one.d_sae) for one in trained if one.alpha is not None):
        found += _finer([one for one in trained if (one.kind, one.d_sae) == kind], how)
    return found


def _finer(alike: Sequence[Measured], how: Bootstrap) -> list[Claim]:
    """Of dictionaries of one kind and width every sparser one against the least sparse."""
    dense = min(alike, key=lambda one: one.alpha or 0)
    found = []
    for one in sorted(alike, key=lambda one: one.alpha or 0):
        if (one.alpha or 0) > (dense.alpha or 0) and one.ranking is not None and dense.ranking is not None:
            found += compare(one.name, one.ranking, dense.name, dense.ranking, one.ends, "features", FINER, how)
    return found


def compare(
    name: str,
    curve: Curve,
    against: str,
    reference: Curve,
    ends: Floors,
    what: Literal["features", "edit"],
    statement: str,
    how: Bootstrap,
) -> list[Claim]:
    """Whether a curve needs fewer features (or a smaller edit) than another at equal KL."""
    found = []
    for share in LEVELS:
        own, other = (needed(one, ends, share, how.resamples, how.seed)[what == "edit"] for one in (curve, reference))
        estimate, verdict = _ratio(own, other, len(ends.none.kl), how.level, name, against)
        found.append(Claim(statement, name, against, share, estimate, verdict))
    return found


def floor(name: str, ends: Floors, expected: bool, how: Bootstrap, tolerance: float = EXACT) -> Claim:
    """Whether patching every feature leaves a KL (``expected`` of autoencoders) or none (of complete bases).

    None is a share of the base's KL below ``tolerance``, which the model's precision decides.
    """
    estimate = stats.ratio(ends.all.kl, ends.none.kl, PROMPTS, **how._asdict())
    statement = FLOOR if expected else NO_FLOOR
    if estimate.low is None or estimate.high is None or estimate.low <= tolerance < estimate.high:
        return Claim(statement, name, "", None, estimate, "undecided")
    leaves = estimate.low > tolerance
    return Claim(statement, name, "", None, estimate, "confirmed" if leaves == expected else "contradicted")


def _ratio(own: NDArray, other: NDArray, pairs: int, level: float, name: str, against: str) -> tuple[Estimate, Verdict]:
    """The ratio of two needs, whose first entries are of all pairs and the others of resamples.

    A need that is never met counts as more than any number, so that a ratio or the end of its interval may be infinite:
    then there is a verdict without a number.
    """
    unmet = {name: np.isnan(own[0]), against: np.isnan(other[0])}
    if other[0] == 0:
        return Estimate(None, n=pairs, over=PROMPTS, reason="nothing needs to be patched"), "undecided"
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.where(np.isnan(own), np.inf, own) / np.where(np.isnan(other), np.inf, other)
    # 0 / 0 and ∞ / ∞ say nothing; where they are many, neither does the rest
    compared = drawn[1:][~np.isnan(drawn[1:])]
    if len(compared) < (len(drawn) - 1) * (1 + level) / 2:
        low, high = 0.0, np.inf
    else:
        low, high = np.quantile(compared, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    verdict: Verdict = "confirmed" if high < 1 else "contradicted" if low > 1 else "undecided"
    if any(unmet.values()):
        who = " and ".join(one for one, never in unmet.items() if never)
        return Estimate(None, n=pairs, over=PROMPTS, reason=f"{who} never gets there: the floor is above"), verdict
    if not (np.isfinite(low) and np.isfinite(high)):
        reason = "in too many resamples one of the two never gets there: no interval"
        return Estimate(float(drawn[0]), n=pairs, over=PROMPTS, reason=reason), verdict
    return Estimate(float(drawn[0]), float(low), float(high), pairs, PROMPTS), verdict
