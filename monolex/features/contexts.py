"""Which contexts of a feature are kept: the strongest, some of every strength, some at random, some without it.

A feature's active contexts are ranked by their maximum; equal maxima by the number of the context, the lower first.
Every draw is a hash of seed, feature and context, so it does not depend on how features were gathered.
"""

from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped
from numpy.typing import NDArray

from monolex import runtime
from monolex.config import FeaturesConfig
from monolex.features.evidence import GROUPS
from monolex.features.ragged import Picked, ascending, drawn, largest
from monolex.features.rows import RowTable

QUANTILE, RANDOM, INACTIVE = (GROUPS.index(name) for name in ("quantile", "random", "inactive"))
"""What a draw is for."""
NAMES = tuple(sorted(name for name in GROUPS if name != "negative"))
"""Groups of the positive side in the order in which a store holds them."""
WINDOW = 16
"""Contexts that are tried beyond twice the number wanted before all are looked through for inactive ones."""


class Active(NamedTuple):
    """The active contexts of a block of features: by feature, then by number."""

    offsets: Int64[NDArray, "features+1"]
    """Feature f's are ``offsets[f]:offsets[f + 1]``."""
    context: Shaped[NDArray, "active"]
    """The context."""
    maximum: Float32[NDArray, "active"]
    """The feature's largest activation in it."""


class Chosen(NamedTuple):
    """Contexts of some features, as the store holds them."""

    feature: Int64[NDArray, "chosen"]
    """Feature, counted from the first of the block; ascends."""
    group: Int64[NDArray, "chosen"]
    """Place in :data:`NAMES`; ascends within a feature."""
    part: Int64[NDArray, "chosen"]
    """Quantile."""
    rank: Int64[NDArray, "chosen"]
    """Place in its group and part."""
    context: Int64[NDArray, "chosen"]
    """The context."""
    active: Int64[NDArray, "chosen"]
    """Its place among the active ones; -1 for inactive ones."""


@final
class Chooser:
    """Chooses contexts, a block of features at a time."""

    def __init__(self, table: RowTable, config: FeaturesConfig) -> None:
        used = table.used()
        order = torch.randperm(len(used), generator=runtime.generator("inactive", config.features_seed)).numpy()
        self._config, self._docs, self._order = config, table.fragments.doc, used[order]
        self.n_contexts = len(table.fragments.doc)

    def choose(self, first: int, active: Active) -> Chosen:
        """The contexts of the features from ``first`` on whose active ones are ``active``."""
        pool, places = active, np.arange(len(active.context))
        if self._config.disjoint:
            places = self._one_a_document(active)
            offsets = np.searchsorted(places, active.offsets)
            pool = Active(offsets, active.context[places], active.maximum[places])
        by_group = self._active(first, pool)
        chosen = {name: picked._replace(place=places[picked.place]) for name, picked in by_group.items()}
        parts = {name: np.zeros(len(picked.place), np.int64) for name, picked in chosen.items()}
        # a segment of this group is a quantile of a feature
        quantile = chosen["quantile"]
        parts["quantile"] = quantile.segment % self._config.quantiles
        chosen["quantile"] = quantile._replace(segment=quantile.segment // self._config.quantiles)
        inactive = self._inactive(first, active, list(chosen.values()))
        groups = []
        for number, name in enumerate(NAMES):
            if name == "inactive":
                picked, part, place, context = inactive, np.zeros_like(inactive.place), None, inactive.place
            else:
                picked, part = chosen[name], parts[name]
                place, context = picked.place, active.context[picked.place]
            place = np.full(len(part), -1) if place is None else place
            group = np.full(len(part), number)
            groups.append(Chosen(picked.segment, group, part, picked.rank, context.astype(np.int64), place))
        joined = Chosen(*(np.concatenate(column) for column in zip(*groups, strict=True)))
        order = np.argsort(joined.feature, kind="stable")
        return Chosen(*(column[order] for column in joined))

    def _active(self, first: int, pool: Active) -> dict[str, Picked]:
        """The active groups; ``place`` is the place in ``pool``."""
        config, sizes = self._config, np.diff(pool.offsets)
        feature = np.repeat(np.arange(first, first + len(sizes)), sizes)
        rising = ascending(pool.offsets, pool.maximum)
        cuts = pool.offsets[:-1, None] + sizes[:, None] * np.arange(config.quantiles) // config.quantiles
        quantiles = np.append(cuts.reshape(-1), len(rising))
        luck = drawn(config.features_seed, QUANTILE, feature[rising], pool.context[rising])
        grouped = largest(quantiles, luck, config.per_quantile)
        weak = np.minimum(sizes, config.near_zero)
        owner = np.repeat(np.arange(len(sizes)), weak)
        rank = np.arange(len(owner)) - np.repeat(weak.cumsum() - weak, weak)
        luck = drawn(config.features_seed, RANDOM, feature, pool.context)
        return {
            "near_zero": Picked(rising[pool.offsets[owner] + rank], owner, rank),
            "quantile": grouped._replace(place=rising[grouped.place]),
            "random": largest(pool.offsets, luck, config.random),
            "top": largest(pool.offsets, pool.maximum, config.top),
        }

    def _one_a_document(self, active: Active) -> Int64[NDArray, "kept"]:
        """Of the active contexts of a feature in one document, the place of that with the largest maximum."""
        docs = self._docs[active.context]
        new = np.diff(docs, prepend=-1) != 0
        new[active.offsets[:-1][np.diff(active.offsets) > 0]] = True
        return largest(np.append(np.flatnonzero(new), len(docs)), active.maximum, 1).place

    def _inactive(self, first: int, active: Active, chosen: list[Picked]) -> Picked:
        """Contexts in which a feature is silent, from a random place of a random order on; ``place`` is the context."""
        features, wanted, n = len(active.offsets) - 1, self._config.inactive, len(self._order)
        seen = np.zeros((features, self.n_contexts), bool)
        seen[np.repeat(np.arange(features), np.diff(active.offsets)), active.context] = True
        begin = drawn(self._config.features_seed, INACTIVE, np.arange(first, first + features)) % n
        window = 0 if self._config.disjoint else min(2 * wanted + WINDOW, n)
        tried = self._order[(begin[:, None] + np.arange(window)) % n]
        silent = ~seen[np.arange(features)[:, None], tried]
        rank = silent.cumsum(1) - 1
        kept = silent & (rank < wanted)
        short = np.flatnonzero(kept.sum(1) < min(wanted, n)) if window < n else np.zeros(0, np.int64)
        kept[short] = False
        columns = [(np.nonzero(kept)[0], rank[kept], tried[kept])]
        used = self._documents(active, chosen) if self._config.disjoint else None
        for feature in short.tolist():
            order = np.roll(self._order, -int(begin[feature]))
            order = order[~seen[feature, order]]
            if used is not None:
                order = order[~np.isin(self._docs[order], used[feature])]
                order = order[np.sort(np.unique(self._docs[order], return_index=True)[1])]
            order = order[:wanted]
            columns.append((np.full(len(order), feature), np.arange(len(order)), order))
        segment, rank, context = (np.concatenate(column) for column in zip(*columns, strict=True))
        return Picked(context, segment, rank)

    def _documents(self, active: Active, chosen: list[Picked]) -> list[NDArray]:
        """The documents of the chosen contexts of every feature."""
        owner = np.concatenate([picked.segment for picked in chosen])
        docs = self._docs[active.context[np.concatenate([picked.place for picked in chosen])]]
        order = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[order], np.arange(1, len(active.offsets) - 1))
        return np.split(docs[order], cuts)
