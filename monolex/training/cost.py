"""What training a sweep takes."""

import dataclasses
from dataclasses import replace

import torch

from monolex import runtime
from monolex.cost import Cost, Planned, PlannedDictionary
from monolex.kinds import KINDS
from monolex.model.sites import Site
from monolex.speed import Speed
from monolex.train_config import TrainConfig
from monolex.training.check import read_of
from monolex.training.members import SweepMember, members
from monolex.training.optim import recipe
from monolex.training.sparse.available import parts_for
from monolex.training.sparse.compiled import Compiled
from monolex.training.sparse.step import LOSSES
from monolex.training.sweep import Trainer
from monolex.training.traffic import largest_share, step_traffic

BATCHES = (64, 512)
"""Sizes of a batch of which a step is timed."""
MOST_WEIGHTS = 2_000_000
"""Weights of a matrix of the largest dictionary that is trained for that."""
GATHER = 2e-9
"""Seconds a byte of a batch: shuffled, gathered and brought to float32."""
WRITE, LINE = 0.05, 2e-4
"""Seconds of writing a dictionary, and of a line of its metrics."""
LOADED = 60 * 10**6
"""Bytes of what is imported and set up for training."""

LISTED = 0.75
"""Matrices of a batch's codes that finding the active ones takes without a compiler."""
COMPILER = 105 * 10**6
"""Bytes of numba and of what it has compiled."""


def cost(planned: Planned) -> Cost:
    """Of a sweep on stored activations; its dictionaries are planned from here on."""
    config, sweep = planned.config, planned_members(planned, planned.config)
    home, kept = planned.folder.parents[1], config.keep_checkpoints
    planned.dictionaries[planned.folder] = [
        PlannedDictionary(member.site, member.name, member.d_sae, home, True, kept) for member in sweep
    ]
    spent = sweep_cost(config, sweep, planned.training_rows, planned.stored, planned.speed, planned.ranks)
    if planned.rows < planned.training_rows:
        # all rows of every pass come from the model: its weights, and windows in its precision
        passed = (max(Site.parse(site).layer for m in sweep for site in (m.site, m.written)) + 1) / planned.shape.layers
        tokens = _steps(config, planned.training_rows) * config.batch_size
        flops = 2.0 * planned.shape.block * passed * tokens
        # every rank runs the model on its share of a window and tells the others
        widths = {site: planned.shape.widths[site] for m in sweep for site in (m.site, m.written)}
        told = tokens * sum(widths.values()) * planned.item * (planned.ranks - 1) // planned.ranks
        spent = dataclasses.replace(
            spent,
            flops=spent.flops + flops,
            memory=spent.memory + planned.shape.parameters * planned.item,
            traffic=spent.traffic + told,
        )
    mapped = planned.mapped((site for member in sweep for site in (member.site, member.written)), planned.rows)
    return dataclasses.replace(spent, memory=spent.memory + mapped + LOADED)


def planned_members(planned: Planned, config: TrainConfig) -> tuple[SweepMember, ...]:
    """The members of a sweep that is going to be trained."""
    sites, widths = planned.sites(config.sites), planned.shape.widths
    stored = planned.sites()
    read = sites if config.sites else read_of(stored, config)
    targets = {config.target_of(site) for site in read}.intersection(stored)
    return members(config, {site: widths[site] for site in read}, {site: widths[site] for site in targets})


def sweep_cost(
    config: TrainConfig,
    sweep: tuple[SweepMember, ...],
    rows: int,
    item: int,
    speed: Speed | None = None,
    ranks: int = 1,
) -> Cost:
    """``rows`` to train on, whose stored numbers take ``item`` bytes.

    Memory and traffic are those of the rank with most to do.
    """
    speed = speed or Speed(measured=False)
    mine, batch = largest_share(config, sweep, ranks) if ranks > 1 else (sweep, config.batch_size)
    weights = sum((m.d_in + m.d_out) * m.d_sae + m.skip * m.d_in * m.d_out for m in sweep)
    trained, owned = (sum(_trained(m) for m in members) for members in (sweep, mine))
    steps = _steps(config, rows)
    widths = sum(({m.site: m.d_in for m in sweep} | {m.written: m.d_out for m in sweep}).values())
    # The current window and the next, with the order of their rows; or all rows at once.
    windows = (1 if rows <= config.buffer_rows else 2) * min(config.buffer_rows, rows) * (widths * item + 16)
    # Parameters, gradients, two moments; a dictionary is copied once as it is saved.
    step = 16 * owned + max((_work(config, m, batch) for m in mine), default=0)
    saves = min((steps - 1) // config.save_every, 2)
    memory = step + windows + 12 * config.batch_size * widths
    # A state is written beside the one before it.
    disk = 4 * weights * (1 + config.keep_checkpoints) + 12 * trained * saves
    each = sum(step_seconds(config, member, speed) for member in sweep)
    gathered = GATHER * config.batch_size * widths * item
    written = speed.python(WRITE * len(sweep) + LINE * len(sweep) * steps / config.log_every)
    memory += COMPILER if _compiled(config) else 0
    sent = steps * sum(step_traffic(config, member, batch) for member in mine) if ranks > 1 else 0
    return Cost(disk, memory, 0.0, steps * (each + speed.python(gathered)) + written, sent)


def _steps(config: TrainConfig, rows: int) -> int:
    return config.steps or max(1, int(config.epochs * rows / config.batch_size))


def step_seconds(config: TrainConfig, member: SweepMember, speed: Speed) -> float:
    """Seconds of one step of one member: one of its kind and width is trained on noise for a moment.

    What goes with the batch and what does not (Adam, above all) are told apart by two sizes of it; wider dictionaries
    than a tenth of a second allows are taken to go with their width.
    """
    wide = max(1, min(member.d_sae, MOST_WEIGHTS // member.d_in))
    prefixes = tuple(dict.fromkeys(max(1, prefix * wide // member.d_sae) for prefix in member.prefixes))
    narrower = replace(member, d_sae=wide, prefixes=prefixes)
    small, large = (_step(config, narrower, batch, speed) for batch in BATCHES)
    slope = max(large - small, 0.0) / (BATCHES[1] - BATCHES[0])
    return max(small + slope * (config.batch_size - BATCHES[0]), 0.2 * small) * member.d_sae / wide


def _step(config: TrainConfig, member: SweepMember, batch: int, speed: Speed) -> float:
    member = replace(member, k=min(member.k, member.d_sae) if member.k else None)
    revives = recipe(config, member.kind).auxk > 0
    size = (member.d_in + member.d_out) / 2 * member.d_sae
    flops = 10.0 * size * batch * (1 + revives / 2) + 30.0 * size
    # the trainer of a step is made when its time is asked for first
    alone: list[Trainer] = []

    def work() -> None:
        if not alone:
            plain = {"dead_after": 1, "init": None, "preprocess": "none", "k_start": None}
            narrow = replace(config, batch_size=batch, buffer_rows=max(config.buffer_rows, batch), **plain)
            alone.append(Trainer([member], narrow, 1000, device=runtime.device(config.train_device)))
        rows = {member.written: torch.randn(batch, member.d_out), member.site: torch.randn(batch, member.d_in)}
        alone[0].step(rows)

    shape = (member.d_in, member.d_out, member.d_sae, batch)
    key = ("step", member.kind, *shape, member.skip, revives, config.train_device)
    return speed.timed(key, work, flops)


def _work(config: TrainConfig, member: SweepMember, batch: int) -> int:
    """Bytes of a member's graph: matrices of the batch's codes and of the decoder, float32 (measured).

    A sparse step has the pre-activations, and those of dead features again, and without a compiler what is active as a
    mask and as lists; what reads back has two more matrices. A ReLU takes it only once it is sparse.
    """
    wide = max(member.d_in, member.d_out)
    if KINDS[member.kind].sparsity == "k" and KINDS[member.kind].loss in LOSSES:
        back = 2 * KINDS[member.kind].reads_back
        matrices = 1 + back + (recipe(config, member.kind).auxk > 0) + (0 if _compiled(config) else LISTED)
        nested = len(member.prefixes) * member.d_out * batch
        return int(4 * (member.d_sae * (matrices * batch + wide) + nested))
    codes = KINDS[member.kind].matrices + 2 * (recipe(config, member.kind).auxk > 0)
    return 4 * member.d_sae * (codes * batch + 4 * wide)


def _compiled(config: TrainConfig) -> bool:
    """Whether numba's compiler is loaded for it."""
    return parts_for(runtime.device(config.train_device)) is Compiled


def _trained(member: SweepMember) -> int:
    """Numbers that training moves, or keeps beside those."""
    decoder, encoder = member.d_out * member.d_sae, member.d_in * member.d_sae
    return decoder + (0 if KINDS[member.kind].tied else encoder) + member.skip * member.d_in * member.d_out
