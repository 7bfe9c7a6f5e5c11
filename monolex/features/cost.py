"""What gathering evidence takes."""

import re
from collections import Counter
from fnmatch import fnmatchcase

from monolex.cost import Cost, Planned, PlannedDictionary
from monolex.features.spill import CHUNK, CHUNK_ROWS, DENSE_BYTES, ENTRY_BYTES
from monolex.model.sites import select

FEATURE_BYTES = 10_000
"""Measured on the demo: what the evidence of a feature takes on disk."""


CODE, FEATURE = 2e-8, 5e-4
"""Seconds of an active code that is sorted, and of a feature that is gathered, written and given its neighbours."""
IMPORTED = 60 * 10**6
"""Bytes of what is imported for it."""


def cost(planned: Planned) -> Cost:
    """One pass that encodes all rows with every chosen dictionary; sorting the codes takes about as long again."""
    config, shape, used, speed = planned.config, planned.shape, planned.used, planned.speed
    rows = min(planned.rows, config.feature_rows or planned.rows)
    sites = select(config.sites, tuple(dict.fromkeys(dictionary.site for dictionary in used)), "the run")
    patterns = config.dictionaries or ("*",)
    chosen = [d for d in used if d.site in sites and any(fnmatchcase(d.name, pattern) for pattern in patterns)]
    seconds = sum(rows * speed.coded(shape.widths[d.site], d.features) / 2 for d in chosen)
    codes = [rows * active(d) for d in chosen]
    features = sum(d.features for d in chosen)
    # closest rows of the embedding and the unembedding, direct logits, neighbours
    products = sum(2.0 * d.features * shape.widths[d.site] * (3 * shape.vocab + d.features) for d in chosen)
    seconds += speed.product(products) + speed.python(CODE * sum(codes) + FEATURE * features)
    weights = max((8 * shape.widths[d.site] * d.features for d in chosen), default=0)
    together = Counter[str]()
    for dictionary, count in zip(chosen, codes, strict=True):
        together[dictionary.site] += int(1.2 * ENTRY_BYTES * count)
    widest = max((d.features for d in chosen), default=0)
    dense = DENSE_BYTES // 2 * min(max(CHUNK, CHUNK_ROWS * widest), rows * widest)
    working = min(config.memory_mb * 10**6, max(together.values(), default=0) + dense)
    # both embeddings as unit rows of float32, and the way to the logits; a block of cosines
    near = 12 * shape.vocab * min(shape.widths.values()) + 8 * min(widest * shape.vocab, 2**22)
    # an axis may be signed, and its most negative contexts are held while rows go by
    axes = sum(d.features for d in chosen if not d.trained)
    negative = 4 * config.top * min(config.fragment_tokens, rows) * axes
    memory = planned.item * shape.parameters + working + 20 * rows + weights + near + negative + IMPORTED
    memory += max((planned.mapped([d.site], rows) for d in chosen), default=0)
    return Cost(FEATURE_BYTES * features, memory, 0.0, seconds)


def active(dictionary: PlannedDictionary) -> float:
    """Codes above zero of a row, roughly: its k, else a twentieth of a trained one's features, .4 of an axis'."""
    named = re.search(r"-k(\d+)", dictionary.name)
    if named and dictionary.trained:
        return float(min(int(named[1]), dictionary.features))
    return dictionary.features * (0.05 if dictionary.trained or named else 0.4)
