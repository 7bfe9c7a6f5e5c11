"""What sets how many features are active, step by step: annealed k and p, and the controller of JumpReLU's L0.

The controller has two parts. All thresholds move together, in proportion to how far the batch's L0 is from its target,
which brings L0 there within some tens of steps whatever Adam does (what a penalty alone does under Adam hardly depends
on its size). And the multiplier of L0 in the loss, which decides between features, grows or falls until the thresholds'
own gradients push neither way: the multiplier of the constraint L0 = k.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.ranks.group import ALONE, RankGroup
from monolex.train_config import TrainConfig
from monolex.training.sparse.across import kth_largest

PROPORTIONAL = 0.2
"""Change of the logarithm of all thresholds at a step, over the logarithm of L0 / target."""
INTEGRAL = 0.01
"""That of the multiplier."""
LEAST_THRESHOLD = 0.01
"""A first threshold, over the mean of the positive pre-activations."""
FURTHEST = 1.0
"""Logarithms of L0 / target count up to this."""


def annealed(start: float, end: float, step: int, steps: int, until: float) -> float:
    """From ``start`` at step 0 evenly to ``end``, reached at the fraction ``until`` of the steps."""
    share = min(step / (until * steps), 1.0) if until > 0 else 1.0
    return start + (end - start) * share


def k_at(config: TrainConfig, k: int, step: int, steps: int) -> int:
    """Active features at a step."""
    return k if config.k_start is None else round(annealed(config.k_start, k, step, steps, config.anneal))


def p_at(config: TrainConfig, step: int, steps: int) -> float:
    """Power of the codes in an annealed L1 at a step."""
    return annealed(1.0, config.p_end, step, steps, config.anneal)


def first_threshold(pre: Float[Tensor, "batch features"], k: int, features: RankGroup = ALONE) -> Float[Tensor, ""]:
    """The threshold that keeps k features of a row on average, or as many as are well above 0.

    The ranks of ``features`` have the pre-activations of other features.

    From a threshold of nearly nothing, which is what many active features would ask for, there is no way up by steps in
    the logarithm.
    """
    total, count = features.sum(torch.stack([pre.relu().sum(), (pre > 0).sum()]))
    if features.size > 1:
        kept = kth_largest(pre.flatten(), k * len(pre) + 1, features).value
    else:
        kept = pre.flatten().topk(k * len(pre) + 1, sorted=True).values[-1] if k < pre.shape[1] else pre.min()
    return kept.clamp_min(LEAST_THRESHOLD * total / count.clamp_min(1)).clamp_min(torch.finfo(pre.dtype).tiny)


def first_pressure(threshold: Float[Tensor, ""], d_out: int) -> Float[Tensor, ""]:
    """What a code at the threshold takes off the mean squared error where its direction is what is missing."""
    return threshold.square() / d_out


def hold(
    log_threshold: Float[Tensor, "d_sae"], pressure: Float[Tensor, ""], l0: Float[Tensor, ""], target: float
) -> None:
    """Move thresholds and pressure, in place, by how far ``l0`` is from its target; no number is read by the host."""
    distance = (l0 / target).clamp_min(1e-8).log().clamp(-FURTHEST, FURTHEST).nan_to_num(0.0)
    log_threshold.add_(PROPORTIONAL * distance)
    pressure.mul_((INTEGRAL * distance).exp())
