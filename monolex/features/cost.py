"""What gathering evidence takes."""

from fnmatch import fnmatchcase

from monolex.cost import Cost, Planned
from monolex.model.sites import select

FEATURE_BYTES = 10_000
"""Measured on the demo: what the evidence of a feature takes on disk."""


def cost(planned: Planned) -> Cost:
    """One pass that encodes all rows with every chosen dictionary; sorting the codes takes about as long again."""
    config, shape, used = planned.config, planned.shape, planned.used
    rows = min(planned.rows, config.feature_rows or planned.rows)
    sites = select(config.sites, tuple(dict.fromkeys(dictionary.site for dictionary in used)), "the run")
    patterns = config.dictionaries or ("*",)
    chosen = [d for d in used if d.site in sites and any(fnmatchcase(d.name, pattern) for pattern in patterns)]
    encode = sum(4.0 * rows * shape.widths[d.site] * d.features for d in chosen)
    weights = max((8 * shape.widths[d.site] * d.features for d in chosen), default=0)
    disk = FEATURE_BYTES * sum(d.features for d in chosen)
    return Cost(disk, 4 * shape.parameters + config.memory_mb * 10**6 + 20 * rows + weights, 2 * encode)
