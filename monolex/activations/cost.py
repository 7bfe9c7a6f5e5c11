"""What harvesting takes."""

from monolex.cost import Cost, Planned
from monolex.model.sites import Site, expand

READ = 1e-5
"""Seconds a token: its text read, encoded and packed (measured on the demo)."""
WRITE = 1.5e-9
"""Seconds a byte: cast, hashed and written."""


def cost(planned: Planned) -> Cost:
    """The model's weights, some shards, a batch of activations; the blocks' forward pass over every token."""
    config, corpus, shape = planned.config, planned.corpus, planned.shape
    item = 4 if config.dtype == "fp32" else 2
    sites = [Site.parse(str(site)) for site in expand(config.sites, shape.layers)]
    width = sum(shape.widths[str(site)] for site in sites)
    stored = planned.rows + corpus.max_tokens - planned.training_rows
    disk = stored * (width * item + 5) + corpus.max_tokens * 9
    tokens = config.batch_rows * corpus.context_length
    # captured activations, and what a block holds at once: its hidden state, an MLP of four times the width, a copy
    batch = min(tokens, stored) * planned.item * (width + 12 * max(shape.widths.values()))
    # a shard is filled while another is written, as a copy in bytes
    shards = min(3 * config.shard_mb * 10**6, disk)
    memory = shape.parameters * planned.item + shards + batch + corpus.max_tokens * 12
    seconds = planned.speed.python(READ * corpus.max_tokens + WRITE * disk)
    passed = (max(site.layer for site in sites) + 1) / shape.layers
    return Cost(disk, memory, 2.0 * shape.block * passed * stored, seconds)
