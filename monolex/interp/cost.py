"""What explaining and scoring take. Measured on two cores, and divided by all features that are asked for, of which
many are silent and skipped."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from monolex.artifact import CONTROLS
from monolex.cost import Cost, Planned, PlannedDictionary
from monolex.dictionaries.listing import name_fits
from monolex.interp.config import ExplainConfig
from monolex.interp.examples.draw import KEPT, PEAKS
from monolex.kinds import TOPK
from monolex.model.sites import select

EXPLAINED_BYTES, SCORED_BYTES = 25_000, 6_000
"""Measured on the demo: what the explanations of a feature, and an explanation's scores, take on disk."""
PATTERN_TOKENS = {"paper": 60, "modern": 180}
"""Tokens that the model reads to find the pattern of a feature, by mode."""
LEARN = {"paper": 0.004, "modern": 0.006}
"""Seconds of Python that an explanation takes without a language model."""
LOGITS = 2e-8
"""Seconds a weight of the unembedding, for the tokens that a dictionary's features promote."""
SIMULATE = 0.006
"""Seconds that scoring an explanation by rules takes."""
SCORED = 90_000
"""Bytes of memory of an explanation that is scored, with its feature's examples."""
IMPORTED = 60 * 10**6
"""Bytes of what is imported for them."""


def explain(planned: Planned) -> Cost:
    """Encoding all fragments, learning in Python, and for patterns short texts through the model."""
    config, corpus, shape = planned.config, planned.corpus, planned.shape
    chosen, features = explained(config, planned.used), features_explained(config, planned.used)
    fragments = min(config.fragments, corpus.max_tokens // config.fragment_tokens)
    if config.mode == "paper" and corpus.document_tokens:  # one of a document
        fragments = min(fragments, -(-corpus.max_tokens // corpus.document_tokens))
    tokens = fragments * config.fragment_tokens
    speed = planned.speed
    encode = sum(tokens * speed.coded(shape.widths[d.site], d.features) for d in chosen)
    patterns = 2.0 * shape.block * PATTERN_TOKENS[config.mode] * features * ("pattern" in config.explainers)
    widest = max((dictionary.features for dictionary in chosen), default=0)
    # at once: the codes of one pass, and of every fragment and feature the maximum and whether it varies
    looked = min(config.features, widest) if config.pick == "first" or config.mode == "paper" else widest
    memory = (
        planned.item * shape.parameters + IMPORTED + 4 * min(tokens * widest, KEPT) + 5 * min(fragments * looked, PEAKS)
    )
    width = min(shape.widths.values())
    memory += 24 * shape.vocab * width  # the way to the logits, in float32
    memory += planned.mapped((d.site for d in chosen), min(tokens, planned.rows))
    learned = LEARN[config.mode] * features * len(config.explainers)
    seconds = encode + speed.python(learned + LOGITS * shape.vocab * width * len(chosen))
    return Cost(EXPLAINED_BYTES * features, memory, patterns, seconds)


def score(planned: Planned) -> Cost:
    """Of rules; what a language model takes depends on where it runs."""
    source = planned.earlier[planned.needs[0]]
    features = features_explained(source.config, source.used)
    explanations = features * len(source.config.explainers)
    memory = 8 * planned.config.resamples * features + SCORED * explanations + IMPORTED
    return Cost(SCORED_BYTES * explanations, memory, 0.0, planned.speed.python(SIMULATE * explanations))


def features_explained(config: ExplainConfig, used: Sequence[PlannedDictionary]) -> int:
    """Features, at most."""
    return sum(min(config.features, dictionary.features) for dictionary in explained(config, used))


def explained(config: ExplainConfig, used: Sequence[PlannedDictionary]) -> list[PlannedDictionary]:
    """What is explained; of the top-k baselines as many of a kind and site as there are trained dictionaries there."""
    sites = select(config.sites, tuple(dict.fromkeys(dictionary.site for dictionary in used)), "the run")
    fitting = [d for d in used if d.site in sites and name_fits(d.site, d.name, config.dictionaries or ("*",))]
    if not config.controls:
        fitting = [dictionary for dictionary in fitting if dictionary.home.parent.name != CONTROLS]
    trained = Counter((dictionary.home, dictionary.site) for dictionary in fitting if dictionary.trained)
    seen: Counter[tuple[Path, str, str]] = Counter()
    chosen: list[PlannedDictionary] = []
    for dictionary in fitting:
        kind, topk, _ = dictionary.name.rpartition(f"{TOPK}-k")
        if topk and config.matched and (most := trained[dictionary.home, dictionary.site]):
            seen[dictionary.home, dictionary.site, kind] += 1
            if seen[dictionary.home, dictionary.site, kind] > most:
                continue
        chosen += [dictionary] * (1 + dictionary.checkpoints * config.checkpoints)
    return chosen
