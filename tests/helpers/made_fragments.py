"""Fragments and examples made by hand."""

from collections.abc import Sequence

import numpy as np

from monolex.interp.records import Examples, Fragment

WORDS = (" the", " cat", " sat", " on", " a", " mat", ".", "\n", " def", " x", "(", "42", ")", " Paris", "ing", " HTTP")


def fragment(texts: Sequence[str], activations: Sequence[float], doc: int = 0, row: int = 0) -> Fragment:
    """One fragment; token ids are places in no vocabulary."""
    assert len(texts) == len(activations)
    return Fragment(doc, row, tuple(range(len(texts))), tuple(texts), np.array(activations, np.float32))


def random_fragments(count: int, rule, seed: int = 0, length: int = 16, first_doc: int = 0) -> list[Fragment]:
    """Random words, with activations ``rule(texts, at)``."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        texts = [WORDS[i] for i in rng.integers(len(WORDS), size=length)]
        made.append(fragment(texts, [rule(texts, at) for at in range(length)], first_doc + number, number))
    return made


def examples(rule, feature: int = 0, seed: int = 0, count: int = 5) -> Examples:
    """``count`` fragments with any activation in the groups that have it, and as many without in the silent ones."""
    drawn = random_fragments(40 * count, rule, 7919 * feature + seed)
    active = [one for one in drawn if one.maximum > 0][: 3 * count]
    silent = [one for one in drawn if one.maximum <= 0][: 2 * count]
    assert len(active) == 3 * count and len(silent) == 2 * count
    explain, top, random = (tuple(active[i * count : (i + 1) * count]) for i in range(3))
    largest = max(one.maximum for one in explain)
    return Examples(feature, explain, tuple(silent[:count]), top, random, tuple(silent[count:]), largest)
