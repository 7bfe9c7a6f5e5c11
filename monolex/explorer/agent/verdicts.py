"""A verdict on a claim, and what it is read off."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from monolex import verdicts
from monolex.explorer.agent.sources import Said
from monolex.verdicts import Verdict

NOT_MEASURED: Verdict = "not measured"
"""Of no measurement."""


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
    return verdicts.agreed((each.verdict for each in basis), NOT_MEASURED)


def of_all(basis: Sequence[VerdictBasis]) -> Verdict:
    """Of a claim about every one of several things: false if it is of one of them."""
    return verdicts.of_every((each.verdict for each in basis), NOT_MEASURED)
