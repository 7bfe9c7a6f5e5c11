"""The examples of a dictionary's features: as arrays, and spelled out as fragments with activations."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray

from monolex.interp.examples.choose import GROUPS
from monolex.interp.examples.fragments import CorpusFragments
from monolex.interp.records import Examples, Fragment

Spelled = Mapping[int, tuple[tuple[int, ...], tuple[str, ...]]]
"""Token ids and their texts by the number of a fragment."""


class FeatureMoments(NamedTuple):
    """Of a feature's activations over all tokens of all fragments (paper, C.4)."""

    mean: Float64[NDArray, "features"]
    """First moment."""
    variance: Float64[NDArray, "features"]
    """Mean square less squared mean."""
    skew: Float64[NDArray, "features"]
    """Third moment about zero over variance^1.5; NaN where the variance is 0."""
    kurtosis: Float64[NDArray, "features"]
    """Fourth moment about zero over variance²; NaN where the variance is 0."""


def moments_of(mean_powers: Float64[NDArray, "4 features"]) -> FeatureMoments:
    """Out of the means of the activations' first to fourth powers."""
    mean, square, cube, fourth = mean_powers
    variance = np.maximum(square - mean**2, 0)
    spread = np.where(variance > 0, variance, np.nan)
    return FeatureMoments(mean, variance, cube / spread**1.5, fourth / spread**2)


@dataclass(frozen=True, eq=False)
class DrawnExamples:
    """Examples of the features of a dictionary that were chosen, as arrays."""

    looked_at: int
    """Features with examples and those that were skipped."""
    skipped: Mapping[str, int]
    """Features without examples, by reason."""
    features: Int64[NDArray, "features"]
    """Numbers of the features with examples."""
    owner: Int64[NDArray, "examples"]
    """Place in ``features`` of every example; ascends."""
    group: Int64[NDArray, "examples"]
    """Place in :data:`~monolex.interp.examples.choose.GROUPS`."""
    fragment: Int64[NDArray, "examples"]
    """Number of the fragment."""
    activations: Float32[NDArray, "examples tokens"]
    """The feature's activation on each of its tokens."""
    moments: FeatureMoments
    """Of every feature with examples."""
    rare: int = 0
    """Features with examples whose random fragments are partly among the strongest, for want of others (``paper``)."""

    def spelled_out(self, fragments: CorpusFragments, texts: Mapping[int, str]) -> list[Examples]:
        """The examples of every feature; ``texts`` of the tokens."""
        bounds = np.searchsorted(self.owner, np.arange(len(self.features) + 1))
        # a fragment is an example of many features: its texts are looked up once and shared
        spelled: dict[int, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        for number in np.unique(self.fragment).tolist():
            ids = tuple(fragments.tokens[number].tolist())
            spelled[number] = ids, tuple(texts[token] for token in ids)
        return [
            self._examples(int(feature), range(bounds[place], bounds[place + 1]), fragments, spelled)
            for place, feature in enumerate(self.features)
        ]

    def _examples(self, feature: int, rows: Iterable[int], fragments: CorpusFragments, spelled: Spelled) -> Examples:
        groups: dict[str, list[Fragment]] = {name: [] for name in GROUPS}
        for row in rows:
            number = int(self.fragment[row])
            doc, start = int(fragments.doc[number]), int(fragments.start[number])
            groups[GROUPS[self.group[row]]].append(Fragment(doc, start, *spelled[number], self.activations[row]))
        maximum = max(fragment.maximum for fragment in groups["explain"])
        return Examples(feature, **{name: tuple(group) for name, group in groups.items()}, maximum=maximum)
