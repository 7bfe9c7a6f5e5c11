"""What an evaluation takes."""

from monolex.cost import Cost, Planned

ROW_BYTES = 20_000
"""Measured on the demo: what the metrics of a dictionary take on disk."""


def cost(planned: Planned) -> Cost:
    """Encoding and decoding held-out rows with every dictionary, and the model's later half once for each."""
    config, corpus, shape = planned.config, planned.corpus, planned.shape
    dictionaries = [dictionary for of_step in planned.dictionaries.values() for dictionary in of_step]
    encode = sum(4.0 * config.rows * shape.widths[d.site] * d.features for d in dictionaries)
    tokens = config.contexts * corpus.context_length
    forward = 2.0 * (shape.block / 2 + shape.vocab * max(shape.widths.values()) / 4) * tokens * len(dictionaries)
    largest = max((d.features for d in dictionaries), default=0)
    memory = (
        4 * shape.parameters + 12 * 8192 * largest + 12 * config.batch_contexts * corpus.context_length * shape.vocab
    )
    return Cost(len(dictionaries) * ROW_BYTES, memory, encode + forward)
