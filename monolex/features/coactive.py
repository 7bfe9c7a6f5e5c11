"""Features that are active together, counted over a sample of rows."""

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from scipy import sparse

from monolex.features import groups
from monolex.runtime import generator

DENSE = 2048
"""Up to this many features the counts are one dense product."""
PAIRS = 5e7
"""Pairs of active codes that are multiplied at most; the sample is cut where it has more."""


def sample_rows(n_rows: int, wanted: int, seed: int) -> Int64[NDArray, "sampled"]:
    """At most ``wanted`` rows at random, ascending."""
    chosen = torch.randperm(n_rows, generator=generator("coactive", seed))[:wanted]
    return np.sort(chosen.numpy())


class Together:
    """How often features of one dictionary are active in the same sampled rows."""

    def __init__(self, codes: sparse.csr_matrix, width: int) -> None:
        self._binary = sparse.csr_matrix(
            (np.ones(codes.nnz, np.float32), codes.indices, codes.indptr), shape=codes.shape
        )
        rows = len(codes.indptr) - 1
        if width > DENSE:
            work = np.cumsum(np.diff(self._binary.indptr).astype(np.float64) ** 2)
            rows = min(rows, max(int(np.searchsorted(work, PAIRS)), 1))
            self._binary = self._binary[:rows]
        self.rows = rows
        self._counts = np.asarray(self._binary.sum(0)).ravel()
        self._dense = None
        if width <= DENSE:
            matrix = self._binary.toarray()
            self._dense = matrix.T @ matrix

    def nearest(
        self, first: int, stop: int, keep: int
    ) -> tuple[Int64[NDArray, "found"], Int64[NDArray, "found"], Int64[NDArray, "found"], Float64[NDArray, "found"]]:
        """For the features from ``first`` to ``stop`` (numbered from 0) the others with the largest Jaccard index.

        Returns feature, other, rows with both, and index, by feature and falling index, ties by number.
        """
        if self._dense is not None:
            both = sparse.coo_matrix(self._dense[first:stop])
        else:
            both = (self._binary[:, first:stop].T @ self._binary).tocoo()
        others = both.row + first != both.col
        feature, other = both.row[others].astype(np.int64), both.col[others].astype(np.int64)
        count = both.data[others].astype(np.float64)
        jaccard = count / (self._counts[first + feature] + self._counts[other] - count)
        order = np.lexsort((other, -jaccard, feature))
        kept = order[groups.places(feature[order], stop - first) < keep]
        return feature[kept], other[kept], count[kept].astype(np.int64), jaccard[kept]
