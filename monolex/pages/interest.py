"""Which features to look at first: a rule of thumb over a store's numbers, and no measure of quality.

``interest = enough · sparse · (1 + explained) / 2 · (1 + peaked) / 2``, each between 0 and 1:

- *enough*: evidence to judge by, ``min(1, n_active / 30)``;
- *sparse*: 1 up to a density of 1 %, falling with its logarithm to 0 at 10 %;
- *explained*: the larger of two shares of its activation, that of its first token and that of the first token before;
- *peaked*: ``1 − mean_active / max``: few strong activations rather than many alike.

A feature that depends on its context in a subtler way than by one token ranks behind one that is explained so, which
is why :func:`varied` takes some of every kind.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from monolex.features.evidence import Summary
from monolex.features.store import FeatureStore

ENOUGH = 30
SPARSE, DENSE = 0.01, 0.1
ALONE = 0.8
"""Share of the activation from which on one token makes a feature's kind."""
FeatureKind = Literal["single-token", "preceding-token", "mixed", "dead"]


class RankedFeature(NamedTuple):
    """A feature and how much there is to see in it."""

    summary: Summary
    """Its numbers."""
    before_share: float
    """Share of its activation that comes after the one token it comes after most."""
    interest: float
    """From 0 to 1."""
    kind: FeatureKind
    """By the share of one token: of the token itself, else of the one before."""

    @property
    def id(self) -> int:
        """Number of the feature."""
        return self.summary.id


def ranked(store: FeatureStore) -> list[RankedFeature]:
    """All features of a store by falling interest, equal ones by number."""
    masses = dict(store.rows("SELECT feature, mass FROM before WHERE rank = 0"))
    rows = store.meta["rows"]
    judged = (judge(s, masses.get(s.id, 0.0) / (s.mean * rows) if s.mean else 0.0) for s in store.summaries())
    return sorted(judged, key=lambda feature: (-feature.interest, feature.id))


def judge(summary: Summary, before_share: float) -> RankedFeature:
    """Interest and kind of one feature."""
    if not summary.n_active:
        return RankedFeature(summary, 0.0, 0.0, "dead")
    share = summary.top_share or 0.0
    enough = min(1.0, summary.n_active / ENOUGH)
    fall = math.log(DENSE / summary.density) / math.log(DENSE / SPARSE)
    sparse = min(1.0, max(0.0, fall))
    peaked = 1 - (summary.mean_active or 0.0) / summary.max
    kind = "single-token" if share >= ALONE else "preceding-token" if before_share >= ALONE else "mixed"
    interest = enough * sparse * (1 + max(share, before_share)) / 2 * (1 + peaked) / 2
    return RankedFeature(summary, before_share, interest, kind)


def varied(features: Sequence[RankedFeature], count: int) -> list[RankedFeature]:
    """The ``count`` most interesting alive features, a third of every kind where there are as many."""
    alive = [feature for feature in features if feature.kind != "dead"]
    quota = count // 3
    chosen = [feature for kind in ("single-token", "preceding-token", "mixed") for feature in _of(alive, kind)[:quota]]
    rest = [feature for feature in alive if feature not in chosen]
    return sorted([*chosen, *rest[: count - len(chosen)]], key=lambda feature: (-feature.interest, feature.id))


def _of(features: Sequence[RankedFeature], kind: str) -> list[RankedFeature]:
    return [feature for feature in features if feature.kind == kind and feature.interest > 0]
