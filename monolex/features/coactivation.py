"""Which features are active together, counted over a random sample of rows."""

from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from monolex import runtime
from monolex.config import FeaturesConfig
from monolex.features.ragged import Picked, largest

PAIRS = 2 * 10**8
"""Pairs of active features that are counted at most; fewer rows are taken where there would be more."""
DENSE = 2**23
"""Numbers that the sample, and the counts of all pairs, may have as dense matrices, which are often quicker."""
DENSE_GAIN = 400
"""How much longer a sparse product takes for a pair than a dense one for a multiplication."""


@final
class Sample:
    """The codes of random rows as they come by: ``coactive_rows`` of them, or as many as keep to :data:`PAIRS`."""

    def __init__(self, rows: int, config: FeaturesConfig) -> None:
        order = torch.randperm(rows, generator=runtime.generator("coactive", config.features_seed))
        self._rows, self._rank = (part.numpy() for part in order[: config.coactive_rows].sort())
        self._sizes: list[NDArray] = []
        self._parts: list[NDArray] = []
        self._ranks: list[NDArray] = []
        self._pairs = 0

    def add(self, start: int, counts: Int32[NDArray, "rows"], features: Int32[NDArray, "codes"]) -> None:
        """Look at the codes of the rows from ``start`` on (``counts`` of each) and keep those of sampled rows."""
        low, high = np.searchsorted(self._rows, [start, start + len(counts)])
        chosen = self._rows[low:high] - start
        sizes = counts[chosen].astype(np.int64)
        begins = counts.cumsum(dtype=np.int64) - counts
        shift = begins[chosen] - (sizes.cumsum() - sizes)
        self._parts.append(features[np.repeat(shift, sizes) + np.arange(sizes.sum())])
        self._sizes.append(sizes)
        self._ranks.append(self._rank[low:high])
        self._pairs += int((sizes**2).sum())
        if self._pairs > 2 * PAIRS:
            self._shrink()

    def matrix(self, d_sae: int) -> csr_matrix:
        """The sampled rows with ones where a feature is active."""
        self._shrink()
        sizes, features = self._sizes[0], self._parts[0]
        offsets = np.concatenate([[0], sizes.cumsum()])
        ones = np.ones(len(features), np.float32)
        return csr_matrix((ones, features, offsets), shape=(len(sizes), d_sae))

    def _shrink(self) -> None:
        """Keep the rows of lowest rank that have :data:`PAIRS` pairs; those of a higher rank are out for good."""
        sizes, ranks, features = (np.concatenate(part) for part in (self._sizes, self._ranks, self._parts))
        order = np.argsort(ranks)
        fits = max(1, int(np.searchsorted((sizes[order] ** 2).cumsum(), PAIRS, side="right")))
        if fits < len(ranks):
            limit = ranks[order[fits]]
            kept, allowed = ranks < limit, self._rank < limit
            features, sizes, ranks = features[np.repeat(kept, sizes)], sizes[kept], ranks[kept]
            self._rows, self._rank = self._rows[allowed], self._rank[allowed]
        self._parts, self._sizes, self._ranks = [features], [sizes], [ranks]
        self._pairs = int((sizes**2).sum())


class Partners(NamedTuple):
    """Features most often active together with some others."""

    picked: Picked
    """Whose partner (``segment``, from the first asked for), and at which rank."""
    other: Int64[NDArray, "picked"]
    """The partner."""
    both: Int64[NDArray, "picked"]
    """Sampled rows in which both are active."""
    jaccard: Float64[NDArray, "picked"]
    """Those over the sampled rows in which either is."""


@final
class Pairs:
    """Counts of co-activation in a sample."""

    def __init__(self, sample: Sample, d_sae: int) -> None:
        self._sample = sample.matrix(d_sae)
        self.rows = len(self._sample.indptr) - 1
        self._turned = self._sample.T.tocsr()
        self._counts = np.diff(self._turned.indptr)
        self._both = None
        pairs = int((np.diff(self._sample.indptr).astype(np.int64) ** 2).sum())
        if pairs * DENSE_GAIN > self.rows * d_sae**2 and max(self.rows, d_sae) * d_sae <= DENSE:
            dense = self._sample.toarray()
            self._both = dense.T @ dense

    def partners(self, first: int, last: int, k: int) -> Partners:
        """The ``k`` partners of features ``first`` to ``last`` with the largest Jaccard index; none that never met."""
        if self._both is not None:
            both = csr_matrix(self._both[first:last])
        else:
            both = self._turned[first:last] @ self._sample
            both.sort_indices()
        feature = np.repeat(np.arange(first, last), np.diff(both.indptr))
        apart = both.indices != feature
        feature, other, together = feature[apart], both.indices[apart].astype(np.int64), both.data[apart]
        together = together.astype(np.int64)
        jaccard = together / (self._counts[feature] + self._counts[other] - together)
        picked = largest(np.searchsorted(feature, np.arange(first, last + 1)), jaccard, k)
        return Partners(picked, other[picked.place], together[picked.place], jaccard[picked.place])
