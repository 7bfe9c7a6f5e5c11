"""What is measured of an ablated feature, as data."""

from typing import Any, NamedTuple

from monolex.causal.ablate.interactions import Interaction
from monolex.causal.ablate.measures import Measure
from monolex.causal.ablate.rescue import Rescue
from monolex.causal.config import Positions, To
from monolex.stats import Estimate

DIGITS = 6
"""Significant digits of a number in JSON."""


class Divergence(NamedTuple):
    """KL(base ‖ ablated) of the next token, nats, mean over documents."""

    feature: Estimate
    """The ablation."""
    control_feature: Estimate
    """The matched active feature ablated instead."""
    control_direction: Estimate
    """The random direction taken away instead."""
    p_feature: float | None
    """Paired t-test over documents that the ablation does as much as the first control."""
    p_direction: float | None
    """The same of the second."""


class Example(NamedTuple):
    """An occurrence, as shown."""

    texts: list[str]
    """The last tokens of its context."""
    activation: float
    """On the last of them."""


class Ablation(NamedTuple):
    """All that was measured of one feature."""

    site: str
    """Where it is."""
    kind: str
    """Of its dictionary."""
    feature: int
    """Its number."""
    to: To
    """What its activation became."""
    positions: Positions
    """Where."""
    occurrences: int
    """Tokens at which it was ablated."""
    documents: int
    """Documents they are of."""
    active: int
    """Tokens of the corpus that they were drawn from."""
    maximum: float
    """Its largest activation."""
    without_control: int
    """Occurrences on which no other feature was active with a contribution of a like size."""
    unmoved: int
    """Occurrences whose activation was the same after the ablation (`to` is what it was, or lost in rounding)."""
    size_ratio: float | None
    """Median length of the control feature's own contribution over the ablated one's, before it is scaled to it."""
    size_range: tuple[float, float] | None
    """Smallest and largest of those ratios."""
    control_within: float
    """How far from 1 they may be: so many times, or its inverse."""
    metric_token: str
    """The token whose log-probability interactions are of, the one that loses most probability; empty for a metric of
    one's own."""
    kl: Divergence
    """How much changes in all."""
    measures: dict[str, Measure]
    """By :data:`monolex.causal.ablate.vocabulary_changes.MEASURES`."""
    rescue: list[Rescue]
    """At the feature's site and at those later ones that were asked for; empty outside the residual stream."""
    later: int
    """Later layers at which it could be added back."""
    interactions: list[Interaction]
    """With the features most active beside it."""
    contexts: list[Example]
    """A few occurrences."""
    reasons: dict[str, str]
    """Why something is None or empty: `direct`, `rescue`, `control_feature`, `significant`."""

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, numbers to :data:`DIGITS` significant digits."""
        return _plain(self)


def _plain(value: Any) -> Any:
    """Named tuples, however deep in lists and tables, as tables; numbers rounded."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
