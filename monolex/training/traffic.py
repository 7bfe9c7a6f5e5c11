"""What a rank sends to others in a step of a sweep, by arithmetic (docs/scale.md).

Of a sum over n ranks, as a ring does it, a rank sends 2 (n - 1) / n of its size; of what is gathered, n - 1 times what
it has. What dead features cost, and metrics, which are small, are left out.
"""

from dataclasses import replace
from typing import NamedTuple

from monolex.config import require
from monolex.kinds import KINDS
from monolex.ranks.shares import dealt
from monolex.train_config import TrainConfig
from monolex.training.members import SweepMember
from monolex.training.sparse.across import HALF

FLOAT = 4
ENTRY = 12
"""Bytes of a code that is told: its feature, its value, its slope."""
FIRST_ENTRY = 8
"""Bytes of a code that is refined: its feature and its value."""


class RankShare(NamedTuple):
    """The sweep as the rank with most to do has it."""

    members: tuple[SweepMember, ...]
    """Of its group, with the features that are its own."""
    batch: int
    """Rows of its part."""


def largest_share(config: TrainConfig, sweep: tuple[SweepMember, ...], ranks: int) -> RankShare:
    """What of a sweep the rank with most to do has, of so many.

    Raises:
        UserError: they are no multiple of what a member takes.
    """
    each = config.data_ranks * config.feature_ranks
    require(
        ranks % each == 0,
        f"ranks = {ranks} is no multiple of data_ranks = {config.data_ranks} times feature_ranks = "
        f"{config.feature_ranks}; give one that is",
    )
    sizes = [(member.d_in + member.d_out) * member.d_sae for member in sweep]
    groups = dealt(sizes, ranks // each)
    loads = [sum(size for size, group in zip(sizes, groups, strict=True) if group == n) for n in range(ranks // each)]
    mine = loads.index(max(loads))
    members = tuple(
        replace(
            member,
            d_sae=-(-member.d_sae // config.feature_ranks),
            prefixes=tuple(-(-end // config.feature_ranks) for end in member.prefixes),
        )
        for member, group in zip(sweep, groups, strict=True)
        if group == mine
    )
    return RankShare(members, config.batch_size // config.data_ranks)


def step_traffic(config: TrainConfig, member: SweepMember, batch: int) -> int:
    """Bytes a rank sends in a step of ``member``, of which it has a share, on ``batch`` rows of its own."""
    data, features = config.data_ranks, config.feature_ranks
    every, prefixes = data * features, max(1, len(member.prefixes))
    sent = _summed(features, (prefixes * batch * member.d_out + member.d_in) * FLOAT)
    codes = batch * (member.k or 0)
    if member.k is None:
        # a ReLU's codes are many at first: gradients are summed as matrices
        sent += _summed(data, member.d_sae * (member.d_in + member.d_out + 1) * FLOAT)
        sent += (data - 1) * batch * member.d_out * FLOAT
        return int(sent)
    if KINDS[member.kind].loss == "topk":
        sent += (features - 1) * codes * FLOAT
    elif KINDS[member.kind].loss != "jumprelu":
        sent += 2 * _summed(every, 2**HALF * FLOAT)
    gathered = prefixes * batch * (member.d_out + 1) * FLOAT + 8 * batch + codes / features * ENTRY
    if KINDS[member.kind].loss == "lista":
        # the first codes, what they leave, and its slopes, which every rank has of the whole batch
        sent += (features - 1) * codes * FLOAT + _summed(features, (1 + data) * batch * member.d_in * FLOAT)
        gathered += batch * member.d_in * FLOAT + 8 * batch + codes / features * FIRST_ENTRY
    return int(sent + (data - 1) * gathered)


def _summed(ranks: int, size: float) -> float:
    return 2 * (ranks - 1) / ranks * size
