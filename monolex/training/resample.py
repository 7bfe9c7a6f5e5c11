"""Dead features that start anew from rows which are badly reconstructed (Bricken et al. 2023; late code of the paper).

A row is drawn with a probability that goes with the square of its squared error. Its direction becomes the feature's
decoder row and, at a fifth of the usual length, its encoder's (at the usual length where features compete for k places,
or it would win none); what Adam remembers of the feature is forgotten.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monolex.dictionaries.base import Dictionary
from monolex.ranks.group import ALONE, RankGroup
from monolex.training.optim import MOMENTS
from monolex.training.records import PER_FEATURE, Params, StepBatch
from monolex.training.sparse.across import among_largest
from monolex.training.steps import centred_input, left_to_codes, unit

SHORT = 0.2
"""Length of a new encoder row over the mean of the live ones where L1 decides what is active."""


@torch.no_grad()
def resample(
    params: Params,
    moments: Mapping[Tensor, dict[str, Tensor]],
    batch: StepBatch,
    squares: Float[Tensor, "batch"],
    dead: Bool[Tensor, "d_sae"],
    generator: torch.Generator,
    length: float = SHORT,
    features: RankGroup = ALONE,
) -> None:
    """Start the ``dead`` features anew, in place; the ranks of ``features`` have others of the dictionary.

    ``squares`` are the squared errors of the rows of ``batch``, ``length`` that of new encoder rows over the mean of
    the live ones.
    """
    counts = torch.cat(features.alike(dead.sum()[None])).tolist()
    weights = squares.cpu().double().square()
    if sum(counts) == 0 or not bool(weights.sum() > 0):
        return
    drawn = torch.multinomial(weights, sum(counts), replacement=True, generator=generator)
    chosen = drawn.split(counts)[features.index].to(dead.device)
    centred = centred_input(params, batch.x)
    params["W_dec"][dead] = unit(left_to_codes(params, centred, batch.y)[chosen])
    if "W_enc" in params:
        live = torch.cat(features.parts(params["W_enc"][~dead].norm(dim=1)))
        params["W_enc"][dead] = unit(centred[chosen]) * (length * live.mean() if len(live) else 1.0)
    for name in ("b_enc", "b_mag", "r_mag"):
        if name in params:
            params[name][dead] = 0
    if "log_threshold" in params:
        thresholds = torch.cat(features.parts(params["log_threshold"][~dead]))
        if len(thresholds):
            params["log_threshold"][dead] = thresholds.median()
    for parameter in PER_FEATURE:
        if parameter in params and params[parameter] in moments:
            for name in MOMENTS:
                moments[params[parameter]][name][dead] = 0


def resampling_steps(steps: int, times: int) -> frozenset[int]:
    """After which steps: ``times`` of them, evenly over the first four fifths of the run."""
    return frozenset(round(0.8 * steps * (number + 1) / times) for number in range(times)) - {0}


def reconstructed(part: Dictionary, x: Float[Tensor, "rows d_in"], k: int | None, features: RankGroup) -> Tensor:
    """What a dictionary makes of ``x``, of which every rank of ``features`` has a part."""
    codes = part.encode(x)
    if features.size == 1:
        return part.decode(codes, x)
    if part.config.activation == "topk":
        assert k is not None, part
        values, places = codes.topk(min(k, part.d_sae), dim=1)
        table = values.new_zeros(len(x), k)
        table[:, : values.shape[1]] = values
        kept = table.mul_(among_largest(table, k, features))[:, : values.shape[1]]
        codes = torch.zeros_like(codes).scatter_(1, places, kept)
    return features.sum(codes @ part.W_dec) + part.decode(torch.zeros_like(codes), x)
