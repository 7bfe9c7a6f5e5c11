"""The evidence of a feature recomputed from dense codes, one number at a time: slow, and plain to see through."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monolex import runtime
from monolex.config import FeaturesConfig
from monolex.features.evidence import BINS, GROUPS, TOKEN_BINS
from monolex.features.rows import RowTable, tabulate
from monolex.features.store import FeatureStore
from monolex.text.rows import Rows

MASK = 2**64 - 1


@dataclass
class MemorySource:
    """Rows in memory: which of the packed ones, and their activations."""

    packed: Rows
    contexts: list[int]
    positions: list[int]
    x: Tensor
    config: FeaturesConfig
    site: str = "resid_post.1"

    def __post_init__(self) -> None:
        contexts, positions = (np.array(part, np.int32) for part in (self.contexts, self.positions))
        self.table: RowTable = tabulate(self.packed, contexts, positions, self.config.fragment_tokens)

    def chunks(self, size: int) -> Iterator[Tensor]:
        yield from self.x.split(size)


def packed_rows(rows: int = 12, width: int = 10, tokens: int = 9, seed: int = 0) -> Rows:
    """Rows of a few tokens in documents of uneven length; the last row ends in padding."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(3, 3 + tokens, (rows, width)).astype(np.int32)
    docs = np.repeat(np.arange(rows * width), draw.integers(1, 14, rows * width))[: rows * width]
    docs = docs.reshape(rows, width).astype(np.int32)
    docs[-1, -3:] = -1
    keep = torch.from_numpy((docs >= 0) & (draw.random((rows, width)) < 0.9))
    return Rows(torch.from_numpy(ids), torch.from_numpy(docs), keep)


def source(config: FeaturesConfig, d_in: int, seed: int = 0, packed: Rows | None = None) -> MemorySource:
    """Small whole numbers as activations, so that sums of products are exact in any order."""
    packed = packed or packed_rows(seed=seed)
    contexts, positions = (part.tolist() for part in packed.keep.nonzero(as_tuple=True))
    n = min(config.feature_rows or len(contexts), len(contexts))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (len(contexts), d_in), generator=generator).float()
    return MemorySource(packed, contexts[:n], positions[:n], x[:n], config)


def mixed(x: int) -> int:
    """The finaliser of splitmix64."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def drawn(seed: int, purpose: str, feature: int, number: int = 0) -> int:
    golden = 0x9E3779B97F4A7C15
    start = mixed((seed * golden + GROUPS.index(purpose)) & MASK)
    base = mixed((feature * golden + start) & MASK)
    return mixed((base + number * golden) & MASK) >> 2


class Naive:
    """Everything a store should hold of the codes ``(rows, d_sae)`` of some rows."""

    def __init__(
        self, packed: Rows, contexts: list[int], positions: list[int], codes: Tensor, config: FeaturesConfig
    ) -> None:
        self.config, self.codes = config, codes.clamp_min(0).double().tolist()
        self.below = codes.clamp_max(0).double().tolist()
        self.n, self.d_sae = codes.shape
        self.packed, self.contexts, self.positions = packed, contexts, positions
        self.fragments = self._fragments()
        self.of_row = [self._fragment_of(r, p) for r, p in zip(contexts, positions, strict=True)]
        order = torch.randperm(self.n, generator=runtime.generator("coactive", config.features_seed))
        self.sampled = order[: config.coactive_rows].tolist()
        used = sorted(set(self.of_row))
        order = torch.randperm(len(used), generator=runtime.generator("inactive", config.features_seed))
        self.order = [used[i] for i in order.tolist()]

    def _fragments(self) -> list[tuple[int, int, int, int]]:
        """Document, row, start and length of each."""
        found: list[list[int]] = []
        for row, docs in enumerate(self.packed.docs.tolist()):
            for position, doc in enumerate(docs):
                if position % self.config.fragment_tokens == 0 or doc != docs[position - 1]:
                    found.append([doc, row, position, 0])
                found[-1][3] += 1
        return [(doc, row, start, length) for doc, row, start, length in found]

    def _fragment_of(self, row: int, position: int) -> int:
        inside = [
            i
            for i, (_, r, start, length) in enumerate(self.fragments)
            if r == row and start <= position < start + length
        ]
        assert len(inside) == 1
        return inside[0]

    def column(self, feature: int) -> list[float]:
        return [row[feature] for row in self.codes]

    def tokens(self, feature: int, *, before: bool = False) -> list[tuple[int, int, float, list[int]]]:
        """Token, active rows, mass and histogram, by falling mass."""
        column = self.column(feature)
        largest = max(column)
        mass, count, bins = defaultdict(float), defaultdict(int), defaultdict(lambda: [0] * TOKEN_BINS)
        for value, row, position in zip(column, self.contexts, self.positions, strict=True):
            at = position - before
            if value <= 0 or at < 0 or self.packed.docs[row, at] != self.packed.docs[row, position]:
                continue
            token = int(self.packed.tokens[row, at])
            mass[token] += value
            count[token] += 1
            bins[token][self.bin(value, largest) // (BINS // TOKEN_BINS)] += 1
        ranked = sorted(mass, key=lambda token: (-mass[token], token))
        return [(token, count[token], mass[token], bins[token]) for token in ranked]

    @staticmethod
    def bin(value: float, largest: float) -> int:
        return min(BINS - 1, math.floor(value / largest * BINS))

    def numbers(self, feature: int) -> dict[str, Any]:
        column = self.column(feature)
        active = [value for value in column if value > 0]
        mean = sum(active) / self.n
        variance = sum(v**2 for v in active) / self.n - mean**2
        varies = len(set(column)) > 1
        tokens, histogram = self.tokens(feature), [0] * BINS
        for value in active:
            histogram[self.bin(value, max(active))] += 1
        return {
            "n_active": len(active),
            "fragments": len(self.maxima(feature)),
            "density": len(active) / self.n,
            "max": max([0.0, *active]),
            "min": min(row[feature] for row in self.below),
            "mean": mean,
            "variance": variance if varies else 0.0,
            "skew": sum(v**3 for v in active) / self.n / variance**1.5 if varies else None,
            "kurtosis": sum(v**4 for v in active) / self.n / variance**2 if varies else None,
            "mean_active": sum(active) / len(active) if active else None,
            "distinct_tokens": len(tokens),
            "top_token": tokens[0][0] if tokens else None,
            "top_share": tokens[0][2] / sum(active) if tokens else None,
            "histogram": histogram,
        }

    def maxima(self, feature: int) -> dict[int, float]:
        """Of every active fragment its maximum; with ``disjoint`` only the strongest of each document."""
        found: dict[int, float] = {}
        for value, fragment in zip(self.column(feature), self.of_row, strict=True):
            if value > 0:
                found[fragment] = max(value, found.get(fragment, 0.0))
        return found

    def groups(self, feature: int) -> dict[tuple[str, int], list[int]]:
        """Fragments by group and part."""
        config, seed = self.config, self.config.features_seed
        active = self.maxima(feature)
        pool = self._one_a_document(active)
        rising = sorted(pool, key=lambda f: (pool[f], f))
        n, q = len(pool), config.quantiles
        found: dict[tuple[str, int], list[int]] = {("near_zero", 0): rising[: config.near_zero]}
        found["top", 0] = sorted(pool, key=lambda f: (-pool[f], f))[: config.top]
        found["random", 0] = sorted(pool, key=lambda f: (-drawn(seed, "random", feature, f), f))[: config.random]
        for part in range(q):
            some = rising[part * n // q : (part + 1) * n // q]
            luck = sorted(some, key=lambda f: -drawn(seed, "quantile", feature, f))
            found["quantile", part] = luck[: config.per_quantile]
        begin = drawn(seed, "inactive", feature) % len(self.order)
        docs = {self.fragments[f][0] for group in found.values() for f in group}
        silent = []
        for fragment in self.order[begin:] + self.order[:begin]:
            doc = self.fragments[fragment][0]
            if fragment in active or (config.disjoint and doc in docs):
                continue
            silent.append(fragment)
            docs.add(doc)
        found["inactive", 0] = silent[: config.inactive]
        minima: dict[int, float] = {}
        for row, fragment in zip(self.below, self.of_row, strict=True):
            if row[feature] < 0:
                minima[fragment] = max(-row[feature], minima.get(fragment, 0.0))
        weak = self._one_a_document(minima)
        found["negative", 0] = sorted(weak, key=lambda f: (-weak[f], f))[: config.top]
        return {key: group for key, group in found.items() if group}

    def _one_a_document(self, strength: dict[int, float]) -> dict[int, float]:
        """With ``disjoint``, of the fragments of each document the strongest."""
        if not self.config.disjoint:
            return strength
        best: dict[int, int] = {}
        for fragment in sorted(strength, key=lambda f: (-strength[f], f)):
            best.setdefault(self.fragments[fragment][0], fragment)
        return {fragment: strength[fragment] for fragment in best.values()}

    def coactive(self, feature: int) -> list[tuple[int, int, float]]:
        """Other features, rows with both, Jaccard index."""
        sampled = [{f for f, value in enumerate(self.codes[row]) if value > 0} for row in self.sampled]
        found = []
        for other in range(self.d_sae):
            both = sum(feature in active and other in active for active in sampled)
            either = sum(feature in active or other in active for active in sampled)
            if other != feature and both:
                found.append((other, both, both / either))
        return sorted(found, key=lambda row: (-row[2], row[0]))[: self.config.neighbours]


def close(found: Any, expected: Any) -> bool:
    """Equal; floating-point numbers to 1e-6 of themselves."""
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float) and found is not None:
        return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-15)
    return bool(found == expected)


def check(store: FeatureStore, naive: Naive, feature: int) -> None:
    """Every number that comes from codes is that of the reference: counts and orders exactly, values to 1e-6."""
    evidence = store.feature(feature)
    numbers = naive.numbers(feature)
    assert evidence.histogram.tolist() == numbers.pop("histogram")
    for name, expected in numbers.items():
        assert close(getattr(evidence.summary, name), expected), (feature, name, expected, evidence.summary)
    keep = naive.config.tokens
    found = [(t.token, t.n_active, t.mass, t.histogram.tolist()) for t in evidence.tokens]
    assert close(found, naive.tokens(feature)[:keep]), (feature, found)
    found = [(t.token, t.n_active, t.mass) for t in evidence.before]
    assert close(found, [row[:3] for row in naive.tokens(feature, before=True)[:keep]]), (feature, found)
    found = [(other.feature, other.both, other.value) for other in evidence.coactive]
    assert close(found, naive.coactive(feature)), (feature, found)
    groups = naive.groups(feature)
    held = [(c.group, c.part, c.rank, c.id) for group in evidence.examples.values() for c in group]
    expected = [(*key, rank, fragment) for key, group in groups.items() for rank, fragment in enumerate(group)]
    assert sorted(held) == sorted(expected), feature
    places = list(zip(naive.contexts, naive.positions, strict=True))
    sides = [dict(zip(places, (row[feature] for row in side), strict=True)) for side in (naive.codes, naive.below)]
    for context in (context for group in evidence.examples.values() for context in group):
        doc, row, start, length = naive.fragments[context.id]
        assert (context.doc, context.row, context.start, len(context.tokens)) == (doc, row, start, length)
        assert list(context.tokens) == naive.packed.tokens[row, start : start + length].tolist()
        column = sides[context.group == "negative"]
        assert list(context.activations) == [column.get((row, start + i), 0.0) for i in range(length)]


def everything(store: FeatureStore) -> dict[str, list[tuple]]:
    """All rows of all tables but ``meta``."""
    names = [name for (name,) in store.rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return {name: sorted(store.rows(f"SELECT * FROM {name}")) for name in names if name != "meta"}
