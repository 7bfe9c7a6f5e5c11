"""What the experiments on causes take: they run parts of the model many times; dictionaries are small beside that."""

from monolex.cost import Cost, Planned
from monolex.dictionaries.listing import name_fits
from monolex.model.sites import select

PROMPT_TOKENS = 20
"""Tokens of an IOI prompt, padding included."""
FEATURE_BYTES, DICTIONARY_BYTES = 100_000, 50_000
"""On disk: what an ablation or a tree takes, and what the curves of a dictionary take."""


def ablate(planned: Planned) -> Cost:
    """The feature, two controls, a rescue by layer twice, and eight pairs, at every occurrence."""
    config, shape = planned.config, planned.shape
    runs = (3 + 2 * shape.layers + 16) * config.occurrences * len(config.features)
    flops = 2.0 * shape.block * runs * planned.corpus.context_length / 2
    return Cost(FEATURE_BYTES * len(config.features), _memory(planned), flops)


def tree(planned: Planned) -> Cost:
    """Every node's contexts through one block, once for every candidate that is confirmed."""
    config, shape = planned.config, planned.shape
    nodes = len(config.features) * sum(config.children**level for level in range(config.depth))
    runs = nodes * config.contexts * config.confirm
    flops = 2.0 * shape.block / shape.layers * runs * planned.corpus.context_length / 2
    return Cost(FEATURE_BYTES * len(config.features), _memory(planned), flops)


def patch(planned: Planned) -> Cost:
    """Every chosen dictionary's searches, each trial the layers above its site."""
    config, shape, used = planned.config, planned.shape, planned.used
    residual = tuple(dict.fromkeys(d.site for d in used if d.site.startswith("resid_post.")))
    sites = select(config.sites or ("resid_post.*",), residual, "the run") if residual else ()
    chosen = [d for d in used if d.site in sites and name_fits(d.site, d.name, config.dictionaries or ("*",))]
    trials = 0.0
    for dictionary in chosen:
        features = dictionary.features
        share = 1 - (int(dictionary.site.rpartition(".")[2]) + 1) / shape.layers
        slow = name_fits(dictionary.site, dictionary.name, config.exact or ("*",))
        # attribution runs forth and back five times; a sweep visits what is left, greedy all but what is chosen
        runs = 15 + sum(
            2 * config.points
            + {"effects": features, "greedy": config.limit * features, "swaps": 500, "sweep": 0}.get(search, 0)
            + (search == "sweep") * config.thresholds * features / 2
            for search in config.searches
            if slow or search in ("ranking", "random")
        )
        trials += share * runs
    largest = max((dictionary.features for dictionary in chosen), default=0)
    tokens = config.pairs * PROMPT_TOKENS
    memory = _memory(planned) + 12 * tokens * largest
    return Cost(DICTIONARY_BYTES * len(chosen), memory, 2.0 * shape.block * tokens * trials)


def _memory(planned: Planned) -> int:
    return 4 * planned.shape.parameters + 40 * planned.config.batch_tokens * max(planned.shape.widths.values())
