"""A verdict on a claim, and what it is read off."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from monolex.explorer.agent.sources import Said
from monolex.stats import Estimate

Verdict = Literal["confirmed", "contradicted", "undecided", "not measured"]


class VerdictBasis(NamedTuple):
    """One measurement that has something to say of a claim."""

    verdict: Verdict
    """What it says alone."""
    why: str
    """In a few words."""
    estimate: Said
    """The number, its interval and units."""
    beside: dict[str, Any]
    """Control, chance or baseline that it was compared with."""
    source: Said
    """The artefact that all of it is read off."""


class KnownClaim(NamedTuple):
    """What is known of a claim."""

    claim: str
    """The claim in words."""
    verdict: Verdict
    """What all measurements together say."""
    rule: str
    """When it is confirmed, when contradicted."""
    basis: tuple[VerdictBasis, ...]
    """The measurements."""
    note: str = ""
    """Why there is none, or what a reader must know."""
    controls: tuple[Said, ...] = ()
    """The same of control models, where that is not about one of the measurements."""


def agreed(basis: Sequence[VerdictBasis]) -> Verdict:
    """Of several measurements of one thing: what all of them say."""
    if not basis:
        return "not measured"
    first = basis[0].verdict
    return first if all(each.verdict == first for each in basis) else "undecided"


def of_all(basis: Sequence[VerdictBasis]) -> Verdict:
    """Of a claim about every one of several things: false if it is of one of them."""
    verdicts = {each.verdict for each in basis}
    return "contradicted" if "contradicted" in verdicts else agreed(basis)


def beyond(estimate: Estimate, level: float) -> Verdict:
    """Whether a number is above a level for certain: with all of its interval."""
    if estimate.low is None or estimate.high is None:
        return "undecided"
    return "confirmed" if estimate.low > level else "contradicted" if estimate.high < level else "undecided"


def as_estimate(row: Any) -> Estimate:
    """A row of an artefact as the number that it was."""
    return Estimate(row["value"], row["low"], row["high"], row.get("n") or 0, row.get("over") or "", row["reason"])
