"""What L1, annealed or not, adds to a loss and to the slope of every active code."""

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.kinds import KINDS
from monolex.ranks.group import ALONE, RankGroup
from monolex.training.losses import LEAST, SOFTENING
from monolex.training.members import SweepMember
from monolex.training.records import StepSettings


def penalty(
    codes: Float[Tensor, "*codes"], member: SweepMember, settings: StepSettings, batch: int, group: RankGroup = ALONE
) -> tuple[Float[Tensor, "*slopes"], Float[Tensor, ""]]:
    """Slopes by the codes of a batch (one number for all where they are alike), and the addition to the loss.

    ``codes`` are all that are active, or a matrix of all, in which the slope of one that is not is 0 or to be ignored;
    the ranks of ``group`` have others.
    """
    assert member.alpha is not None, member
    coefficient, l1 = member.alpha / batch, group.sum(codes.sum(dtype=torch.float32))
    if KINDS[member.kind].loss != "p-anneal":
        return torch.full_like(l1, coefficient), coefficient * l1
    active = codes > 0
    count = group.sum(active.sum())
    softened = codes.float() + (SOFTENING * l1 / count.clamp_min(1)).clamp_min(1e-30)
    powers = (softened ** (settings.p - 1)).mul_(active)
    whole, raised = group.sum(torch.stack([(softened * active).sum(), (powers * softened).sum()]))
    rescaled = whole / raised.clamp_min(LEAST)
    return powers.mul_(coefficient * settings.p * rescaled), coefficient * whole
