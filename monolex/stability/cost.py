"""What it takes to compare features that come back with those that do not."""

from collections import defaultdict

from monolex.causal.cost import DICTIONARY_BYTES, FEW, model_memory, unembedded
from monolex.cost import Cost, Planned, PlannedDictionary


def stability(planned: Planned) -> Cost:
    """Two groups of features ablated at their occurrences, of one dictionary for every recipe that has several seeds.

    Which of them have evidence is not planned: all are counted.
    """
    config, shape, flops = planned.config, planned.shape, 0.0
    context = planned.corpus.context_length / 2
    by_recipe: defaultdict[tuple[str, str], list[PlannedDictionary]] = defaultdict(list)
    for dictionary in planned.used:
        if dictionary.trained:
            by_recipe[dictionary.site, dictionary.name.rpartition("-s")[0]].append(dictionary)
    compared = [seeds[0] for seeds in by_recipe.values() if len(seeds) > 1]
    for dictionary in compared:
        blocks = context + FEW * (1 - shape.share(dictionary.site))
        flops += 2 * config.sample * config.occurrences * (2.0 * shape.block * blocks + 2 * unembedded(shape))
        flops += 2.0 * planned.rows * shape.widths.get(dictionary.site, 0) * dictionary.features
    return Cost(DICTIONARY_BYTES * len(compared), model_memory(planned), flops)
