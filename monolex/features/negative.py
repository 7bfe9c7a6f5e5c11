"""The most negative contexts of every feature of a signed dictionary (PCA, ICA), kept exactly while its rows go by.

Of the positive side everything is asked, so its codes are sorted (:mod:`monolex.features.spill`); of the negative side
only the contexts with the smallest minima are. A context is done when its last row went by, and then takes the place of
the weakest that is kept or is forgotten: nothing is sorted or spilled, and the side costs a pass over codes that are
there already.

Memory: 4 bytes for each feature, kept context and token of the longest context (4 MB for 768 features, 20 contexts and
64 tokens), whatever the number of rows.
"""

from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numpy.typing import NDArray

from monolex.config import FeaturesConfig
from monolex.features.rows import RowTable


class MostNegative(NamedTuple):
    """The most negative contexts of some features: by feature, then by rank."""

    feature: Int64[NDArray, "kept"]
    """Feature."""
    rank: Int64[NDArray, "kept"]
    """Place among those of its feature, the most negative first; equal minima by the number of the context."""
    context: Int64[NDArray, "kept"]
    """The context."""
    positions: list[bytes]
    """uint16, of each: positions in the fragment at which the code is below zero."""
    activations: list[bytes]
    """float32, of each: the codes there."""


@final
class NegativeSide:
    """Keeps the ``top`` most negative contexts of every feature, one a document where ``disjoint`` asks for that."""

    def __init__(self, table: RowTable, d_sae: int, config: FeaturesConfig) -> None:
        self._table, self._disjoint = table, config.disjoint
        shape, longest = (d_sae, config.top), int(table.fragments.length.max(initial=0))
        self._minima, self._contexts = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        self._codes = np.zeros((*shape, longest), np.float32)
        self.smallest = np.zeros(d_sae, np.float32)
        """The smallest code of every feature; 0 where none is below zero."""
        self._open: list[NDArray] = []
        self._rows = 0

    def add(self, codes: Float32[NDArray, "rows d_sae"]) -> None:
        """Look at the codes of the next rows; the context that the last of them is in may go on in the next call."""
        first = self._rows
        self._rows += len(codes)
        fragment = self._table.fragment[first : self._rows]
        edges = np.flatnonzero(np.diff(fragment, prepend=self._table.fragment[first - 1] if first else -1))
        if len(edges):
            self._close(codes[: edges[0]], first + int(edges[0]))
            if edges[-1] > edges[0]:
                self._take(codes[edges[0] : edges[-1]], first + int(edges[0]))
            codes = codes[edges[-1] :]
        self._open.append(codes.copy())  # a view would hold on to the whole chunk

    def finish(self) -> None:
        """The last row was added."""
        self._close(np.zeros((0, len(self.smallest)), np.float32), self._rows)

    def block(self, first: int, last: int) -> MostNegative:
        """Those of features ``first`` to ``last``."""
        feature, rank = np.nonzero(self._contexts[first:last] >= 0)
        codes = self._codes[first:last][feature, rank]
        owner, position = np.nonzero(codes)
        ends = np.searchsorted(owner, np.arange(len(feature)), side="right")
        cuts = list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)) if len(ends) else []
        positions, values = position.astype(np.uint16), codes[owner, position]
        return MostNegative(
            first + feature,
            rank,
            self._contexts[first:last][feature, rank].astype(np.int64),
            [positions[a:b].tobytes() for a, b in cuts],
            [values[a:b].tobytes() for a, b in cuts],
        )

    def _close(self, codes: Float32[NDArray, "rows d_sae"], end: int) -> None:
        """The context that is open ends with ``codes``, before row ``end``."""
        whole = np.concatenate([*self._open, codes])
        self._open = []
        if len(whole):
            self._take(whole, end - len(whole))

    def _take(self, codes: Float32[NDArray, "rows d_sae"], first: int) -> None:
        """Codes of whole contexts; ``first`` is their first row."""
        fragment = self._table.fragment[first : first + len(codes)]
        begins = np.flatnonzero(np.diff(fragment, prepend=-1))
        whole = _Whole(codes, first, begins, np.append(begins[1:], len(codes)), fragment[begins])
        # a call a context: four times as quick as numpy's reduceat along rows
        cuts = zip(begins.tolist(), whole.ends.tolist(), strict=True)
        minima = np.stack([codes[low:high].min(0) for low, high in cuts], axis=1)
        np.minimum(self.smallest, minima.min(1), out=self.smallest)
        if self._minima.shape[1]:
            # most contexts are weaker than all that most features keep
            features = np.flatnonzero((minima < self._minima[:, -1:]).any(1))
            self._merge(features, minima[features], whole)

    def _merge(
        self, features: Int64[NDArray, "features"], minima: Float32[NDArray, "features contexts"], whole: "_Whole"
    ) -> None:
        """Keep the most negative of the ``features``' contexts that are kept and of those that are new."""
        kept = self._minima.shape[1]
        old, numbers = self._minima[features], self._contexts[features]
        origin = np.broadcast_to(np.arange(len(whole.context)), minima.shape)
        if self._disjoint:
            minima, origin = self._one_a_document(old, numbers, minima, whole)
        values = np.concatenate([old, np.minimum(minima, 0)], axis=1)
        # those that are kept stand before later ones: equal minima stay in the order of their contexts
        order = np.argsort(values, axis=1, kind="stable")[:, :kept]
        values = np.take_along_axis(values, order, 1)
        numbers = np.take_along_axis(np.concatenate([numbers, whole.context[origin]], axis=1), order, 1)
        codes = self._codes[features[:, None], np.minimum(order, kept - 1)]
        feature, rank = np.nonzero((order >= kept) & (values < 0))
        place = origin[feature, order[feature, rank] - kept]
        codes[feature, rank] = 0
        sizes = whole.ends[place] - whole.begins[place]
        owner = np.repeat(np.arange(len(place)), sizes)
        at = np.repeat(whole.begins[place] - (sizes.cumsum() - sizes), sizes) + np.arange(len(owner))
        position = self._table.position[whole.first + at]
        codes[feature[owner], rank[owner], position] = np.minimum(whole.codes[at, features[feature[owner]]], 0)
        self._minima[features], self._codes[features] = values, codes
        self._contexts[features] = np.where(values < 0, numbers, -1)

    def _one_a_document(
        self, old: NDArray, numbers: NDArray, minima: Float32[NDArray, "features contexts"], whole: "_Whole"
    ) -> tuple[Float32[NDArray, "features documents"], Int64[NDArray, "features documents"]]:
        """Of the contexts of each document the most negative, and which that is; ``old`` is 0 where one replaces it."""
        docs = self._table.fragments.doc[whole.context]
        begins = np.flatnonzero(np.diff(docs, prepend=-1))
        cuts = list(zip(begins.tolist(), [*begins[1:].tolist(), len(docs)], strict=True))
        origin = np.stack([low + minima[:, low:high].argmin(1) for low, high in cuts], axis=1)
        best = np.take_along_axis(minima, origin, 1)
        # documents follow each other, so that only the first can have a context that is kept
        same = (numbers >= 0) & (self._table.fragments.doc[numbers] == docs[0])
        before = np.where(same, old, 0).min(1)
        best[best[:, 0] >= before, 0] = 0
        old[same & (best[:, :1] < 0)] = 0
        return best, origin


class _Whole(NamedTuple):
    """Whole contexts that went by, one after the other."""

    codes: Float32[NDArray, "rows d_sae"]
    """Codes of their rows."""
    first: int
    """Number of the first row."""
    begins: Int64[NDArray, "contexts"]
    """Where each begins among the rows."""
    ends: Int64[NDArray, "contexts"]
    """Where it ends."""
    context: Int32[NDArray, "contexts"]
    """Its number."""
