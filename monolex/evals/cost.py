"""What an evaluation takes."""

from monolex.cost import Cost, Planned, PlannedDictionary
from monolex.evals.evaluate import RESIDUAL
from monolex.evals.fidelity import REFERENCES
from monolex.evals.reconstruction import CODES_AT_ONCE

ROW_BYTES = 20_000
"""Measured on the demo: what the metrics of a dictionary take on disk."""
METRICS = 0.04
"""Seconds of intervals over documents and features, a dictionary."""
STATISTICS = 1.7
"""Time of what is measured of reconstructions, over that of encoding, counting and decoding alone."""
MATCH = 1.3e-10
"""Seconds of matching a trained dictionary with two others, over the cube of its features."""
IMPORTED = 60 * 10**6
"""Bytes of what is imported for it."""


def cost(planned: Planned) -> Cost:
    """Encoding and decoding held-out rows with every dictionary, and the model's later part once for each."""
    config, corpus, shape, speed = planned.config, planned.corpus, planned.shape, planned.speed
    dictionaries = [dictionary for of_step in planned.dictionaries.values() for dictionary in of_step]
    rows = min(config.rows, max(corpus.max_tokens - planned.training_rows, 1))
    tokens = min(config.contexts, max(rows // corpus.context_length, 1)) * corpus.context_length
    token, prediction = speed.token(shape.block), speed.prediction(shape.vocab, max(shape.widths.values()))
    replaced = 0.0
    for dictionary in dictionaries:
        replaced += shape.share(dictionary.site) * token + prediction
    sites = {(dictionary.home, dictionary.site) for dictionary in dictionaries}
    for _, site in sites:
        replaced += token + prediction + (len(REFERENCES) - 1) * (shape.share(site) * token + prediction)
    seconds = tokens * replaced + speed.python(METRICS) * len(dictionaries)
    seconds += sum(_of(d, rows, tokens, planned) for d in dictionaries)
    largest = max((d.features for d in dictionaries), default=0)
    codes = 4 * 4 * min(CODES_AT_ONCE, rows * largest)
    logits = 4 * 4 * min(config.batch_contexts * corpus.context_length, tokens) * shape.vocab
    cosines = 4 * min(2**24, largest * shape.vocab)
    held = planned.mapped((d.site for d in dictionaries), rows) + 8 * rows * max(shape.widths.values())
    memory = planned.item * shape.parameters + max(codes, logits, cosines) + held + IMPORTED
    return Cost(len(dictionaries) * ROW_BYTES, memory, 0.0, seconds)


def _of(dictionary: PlannedDictionary, rows: int, tokens: int, planned: Planned) -> float:
    """Seconds of a dictionary's reconstructions and similarities."""
    shape, speed, features = planned.shape, planned.speed, dictionary.features
    width = shape.widths[dictionary.site]
    products = 2.0 * features * features * width * (3 if dictionary.trained else 1)
    if dictionary.site.rpartition(".")[0] in RESIDUAL:
        products += 2 * 2.0 * features * width * shape.vocab
    matched = speed.python(MATCH * features**3) * dictionary.trained
    return (STATISTICS * rows + tokens) * speed.coded(width, features) + speed.product(products) + matched
