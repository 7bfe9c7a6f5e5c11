"""What harvesting takes."""

from monolex.config import ModelConfig
from monolex.cost import Cost, Planned
from monolex.model.sites import expand


def cost(planned: Planned) -> Cost:
    """The model's weights, some shards, a batch of activations; the blocks' forward pass over every token."""
    model: ModelConfig = planned.inputs["model"]
    config, corpus, shape = planned.config, planned.corpus, planned.shape
    item, weights = (4 if config.dtype == "fp32" else 2), (4 if model.model_dtype == "fp32" else 2)
    width = sum(shape.widths[str(site)] for site in expand(config.sites, shape.layers))
    batch = config.batch_rows * corpus.context_length * (4 * width + 16 * max(shape.widths.values()))
    memory = shape.parameters * weights + 3 * config.shard_mb * 10**6 + batch + corpus.max_tokens * 12
    return Cost(corpus.max_tokens * (width * item + 14), memory, 2.0 * shape.block * corpus.max_tokens)
