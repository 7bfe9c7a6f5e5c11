"""What training a sweep takes."""

from monolex.config import TrainConfig
from monolex.cost import Cost, Planned, PlannedDictionary
from monolex.kinds import KINDS
from monolex.training.members import SweepMember, members
from monolex.training.optim import recipe


def cost(planned: Planned) -> Cost:
    """Of a sweep on stored activations; its dictionaries are planned from here on."""
    config, sweep = planned.config, planned_members(planned, planned.config)
    home, kept = planned.folder.parents[1], config.keep_checkpoints
    planned.dictionaries[planned.folder] = [
        PlannedDictionary(member.site, member.name, member.d_sae, home, True, kept) for member in sweep
    ]
    return sweep_cost(config, sweep, planned.rows, 4 if planned.harvest.dtype == "fp32" else 2)


def planned_members(planned: Planned, config: TrainConfig) -> tuple[SweepMember, ...]:
    """The members of a sweep that is going to be trained."""
    return members(config, {site: planned.shape.widths[site] for site in planned.sites(config.sites)})


def sweep_cost(config: TrainConfig, sweep: tuple[SweepMember, ...], rows: int, item: int) -> Cost:
    """``rows`` to train on, whose stored numbers take ``item`` bytes."""
    weights = sum(2 * m.d_in * m.d_sae for m in sweep)
    trained = sum((1 if KINDS[m.kind].tied else 2) * m.d_in * m.d_sae for m in sweep)
    steps = config.steps or max(1, int(config.epochs * rows / config.batch_size))
    widths = sum({m.site: m.d_in for m in sweep}.values())
    # The current window and the next, with the order of their rows; or all rows at once.
    windows = (1 if rows <= config.buffer_rows else 2) * min(config.buffer_rows, rows) * (widths * item + 16)
    # Parameters, gradients, two moments; then, without gradients, three copies of the other three on their way to disk.
    step = 16 * trained + max((_work(config, m) for m in sweep), default=0)
    saves = min((steps - 1) // config.save_every, 2)
    memory = max(step, 48 * trained if saves else 0) + windows + 12 * config.batch_size * widths
    # A state is written beside the one before it.
    disk = 4 * weights * (1 + config.keep_checkpoints) + 12 * trained * saves
    # Five products a step: encode, decode, and the gradients of both weights and of the codes.
    return Cost(disk, memory, 5.0 * weights * config.batch_size * steps)


def _work(config: TrainConfig, member: SweepMember) -> int:
    """Bytes of a member's graph: matrices of the batch's codes and of the decoder, float32 (measured)."""
    codes = KINDS[member.kind].matrices + 2 * (recipe(config, member.kind).auxk > 0)
    return 4 * member.d_sae * (codes * config.batch_size + 4 * member.d_in)
