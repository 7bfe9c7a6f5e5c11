"""What the experiments on causes take: they run parts of the model many times; dictionaries are small beside that."""

from monolex.causal.ablate.rescue import later_sites, rescue_sites
from monolex.causal.chosen_features import named_sites
from monolex.cost import Cost, Planned, Shape
from monolex.dictionaries.listing import name_fits
from monolex.model.sites import Site, select

PROMPT_TOKENS = 20
"""Tokens of an IOI prompt, padding included."""
TABLE_PROMPTS = 6 * 120 * 2
"""Prompts of an IOI experiment's table of what the model does with wordings and names, before anything is patched."""
DRAWN = 90 * 10**6
"""Bytes of what is imported for patching, and of the prompts on which the model's behaviour is measured."""
FEATURE_BYTES, DICTIONARY_BYTES = 100_000, 50_000
"""On disk: what an ablation or a tree takes, and what the curves of a dictionary take."""
INTERACTIONS = 18
"""Versions of an occurrence as it is, with a feature and each of its eight partners ablated, and with their pairs."""
FEW = 8
"""Tokens that a forward pass of fewer takes as long as: it waits for the weights."""
BACKWARD = 5
"""Forward passes that an attribution, and the ablation of all features and of the error, take as long as."""
VOCABULARY = 1500
"""Operations on a token of the vocabulary that comparing two predictions takes, beside the unembedding."""
CHANGE_BYTES = 64
"""Of the changes of a token of the vocabulary in a document: all versions, and what is computed of them."""


def ablate(planned: Planned) -> Cost:
    """At every occurrence the feature, two controls, a rescue at the site and at the chosen layers, and eight pairs.

    Where the token alone is ablated that is after one pass over its context for each of the two parts.
    """
    config, shape, flops = planned.config, planned.shape, 0.0
    context = planned.corpus.context_length / 2
    for site in _sites(planned, latest=False):
        after = len(later_sites(site, shape.layers)) or shape.layers - Site.parse(site).layer
        rescue = rescue_sites(site, shape.layers, config.rescue)
        left = [shape.layers - 1 - Site.parse(name).layer for name in rescue]
        before, few = shape.layers - after, float(FEW)
        if config.positions == "token":
            blocks = 2 * shape.layers * context + 2 * few * before
            blocks += (4 * few + INTERACTIONS) * after + few * sum(left)
        else:
            blocks = context * (2 * before + (8 + INTERACTIONS) * after + 2 * sum(left))
        rows = 7 + INTERACTIONS + 2 * len(rescue)
        flops += config.occurrences * (2.0 * shape.block / shape.layers * blocks + rows * unembedded(shape))
        flops += 2.0 * planned.rows * shape.widths.get(site, 0) * _features(planned, site)
    memory = model_memory(planned) + CHANGE_BYTES * config.occurrences * shape.vocab
    return Cost(FEATURE_BYTES * len(config.features), memory, flops)


def tree(planned: Planned) -> Cost:
    """Every node's contexts through the blocks to the site before it, once for every candidate that is confirmed."""
    config, shape, runs = planned.config, planned.shape, 0.0
    residual = [site for site in planned.sites() if site.startswith("resid_post.")]
    for site in _sites(planned, latest=True):
        last = Site.parse(site).layer
        for generation in range(config.depth + 1):
            earlier = max((at for at in map(_layer, residual) if at < last), default=None)
            nodes = config.contexts * config.children**generation
            runs += nodes * (last + 1)  # up to the node
            if earlier is None or generation == config.depth:
                break
            runs += nodes * (config.confirm + BACKWARD) * (last - earlier)
            last = earlier
    flops = 2.0 * shape.block / shape.layers * runs * planned.corpus.context_length / 2
    return Cost(FEATURE_BYTES * len(config.features), model_memory(planned), flops)


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
            + (search == "sweep") * config.thresholds * features / 4
            for search in config.searches
            if slow or search in ("ranking", "random")
        )
        trials += share * runs
    largest = max((dictionary.features for dictionary in chosen), default=0)
    tokens = config.pairs * PROMPT_TOKENS
    memory = model_memory(planned) + 12 * tokens * largest + DRAWN
    read = tokens * trials + PROMPT_TOKENS * TABLE_PROMPTS * (config.task == "ioi")
    return Cost(DICTIONARY_BYTES * len(chosen), memory, 2.0 * shape.block * read)


def _sites(planned: Planned, *, latest: bool) -> list[str]:
    """The site of every feature; of one that is asked for by a pattern the residual site that takes longest."""
    residual = sorted((site for site in planned.sites() if site.startswith("resid_post.")), key=_layer)
    longest = (residual or planned.sites())[-1 if latest else 0]
    known = named_sites(planned.config.features, planned.sites())
    return [known.get(text, longest) for text in planned.config.features]


def _layer(site: str) -> int:
    return Site.parse(site).layer


def _features(planned: Planned, site: str) -> int:
    """Of the largest dictionary of a site."""
    return max((dictionary.features for dictionary in planned.used if dictionary.site == site), default=0)


def unembedded(shape: Shape) -> float:
    """Operations that give a prediction and compare it with another."""
    return shape.vocab * (2.0 * shape.widths.get("resid_post.0", 0) + VOCABULARY)


def model_memory(planned: Planned) -> int:
    """Peak of running the model: its weights, and what a batch of tokens takes on its way."""
    return planned.item * planned.shape.parameters + 40 * planned.config.batch_tokens * max(
        planned.shape.widths.values()
    )
