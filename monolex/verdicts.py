"""What numbers say of a claim: one comparison by its interval, several together, and beside control models."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from monolex.stats import Estimate, benjamini_hochberg

Verdict = Literal["confirmed", "contradicted", "undecided", "cannot say", "no claim", "not measured"]
"""The first three are of what was compared; the others say why nothing was."""
Interval = Estimate | Mapping[str, Any]
"""An estimate, or one as an artefact holds it."""
SIGNIFICANT = 0.05
"""Corrected p below which a difference is not called chance."""


def beyond(estimate: Interval, level: float = 0.0) -> Verdict:
    """Whether an estimate is above a level: with its whole interval or, the other way, with none of it.

    >>> beyond({"low": 0.1, "high": 0.3}), beyond({"low": -0.1, "high": 0.3}), beyond({"low": None, "high": None})
    ('confirmed', 'undecided', 'undecided')
    """
    return below({"low": level, "high": level}, estimate)


def below(a: Interval, b: Interval) -> Verdict:
    """Whether ``a`` is below ``b``: intervals apart, or apart the other way.

    >>> below({"low": 0, "high": 1}, {"low": 2, "high": 3}), below({"low": 0, "high": 1}, {"low": 1, "high": 3})
    ('confirmed', 'undecided')
    """
    (low, high), (other_low, other_high) = _ends(a), _ends(b)
    if low is None or high is None or other_low is None or other_high is None:
        return "undecided"
    return "confirmed" if high < other_low else "contradicted" if low > other_high else "undecided"


def opposite(verdict: Verdict) -> Verdict:
    """What numbers say of the contrary claim.

    >>> opposite("confirmed"), opposite("undecided")
    ('contradicted', 'undecided')
    """
    return "contradicted" if verdict == "confirmed" else "confirmed" if verdict == "contradicted" else verdict


def agreed(verdicts: Iterable[Verdict], nothing: Verdict = "cannot say") -> Verdict:
    """What several come to: theirs where all agree, and otherwise undecided; ``nothing`` of none.

    >>> agreed(["confirmed", "confirmed"]), agreed(["confirmed", "contradicted"]), agreed([])
    ('confirmed', 'undecided', 'cannot say')
    """
    known = set(verdicts)
    return known.pop() if len(known) == 1 else "undecided" if known else nothing


def of_every(verdicts: Iterable[Verdict], nothing: Verdict = "cannot say") -> Verdict:
    """Of a claim about every one of several things: contradicted if it is of one of them.

    >>> of_every(["confirmed", "contradicted"]), of_every(["confirmed", "undecided"])
    ('contradicted', 'undecided')
    """
    known = set(verdicts)
    return "contradicted" if "contradicted" in known else agreed(known, nothing)


def beside_controls(verdict: Verdict, controls: Iterable[Verdict]) -> Verdict:
    """At most undecided, where the same is not confirmed against every control model.

    >>> beside_controls("confirmed", ["confirmed", "contradicted"]), beside_controls("confirmed", [])
    ('undecided', 'confirmed')
    """
    held_back = verdict == "confirmed" and any(each != "confirmed" for each in controls)
    return "undecided" if held_back else verdict


def corrected(ablations: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """The p of every ablation of an experiment against its matched feature, corrected (Benjamini-Hochberg) for all."""
    plain = [ablation["kl"]["p_feature"] for ablation in ablations]
    q = benjamini_hochberg(np.array([np.nan if p is None else p for p in plain], dtype=np.float64))
    return [None if np.isnan(each) else float(each) for each in q]


def changes_more(kl: Mapping[str, Any], q: float | None) -> Verdict:
    """Whether an ablation changes predictions more than that of a matched feature: ``kl`` of both, and corrected p."""
    effect, control = kl["feature"]["value"], kl["control_feature"]["value"]
    if q is None or q >= SIGNIFICANT or effect is None or control is None:
        return "undecided"
    return "confirmed" if effect > control else "contradicted"


def _ends(estimate: Interval) -> tuple[float | None, float | None]:
    ends = estimate._asdict() if isinstance(estimate, Estimate) else estimate
    return ends["low"], ends["high"]
