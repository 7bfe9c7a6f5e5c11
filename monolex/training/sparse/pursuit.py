"""Matching pursuit inside of a sparse step (:func:`monolex.dictionaries.refined.pursue`): forth and back.

The value of a feature is the product of its row with what those before it left of the activation, so its row learns
twice: from that rest, and from the error but for what later features make of it. Neither is shared by a row's features,
so gradients are summed here, some rows of the batch at a time.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.dictionaries.refined import CHUNK, pursue
from monolex.training.sparse.codes import ActiveCodes, AddedGradients, Passed, no_codes
from monolex.training.sparse.operators import rows_of


def pursued(pre: Float[Tensor, "batch n"], rows: Float[Tensor, "n d"], k: int) -> ActiveCodes:
    """The ``k`` features that a pursuit takes of every row, in that order."""
    features, values = pursue(pre.float(), {"W_enc": rows, "W_dec": rows}, k)
    counts = torch.full((len(pre),), k, device=pre.device)
    return ActiveCodes(counts.cumsum(0) - counts, counts, features.flatten(), values.flatten())


def distinct(codes: ActiveCodes, n: int) -> Tensor:
    """How many features are active, those that a row took twice counted once; float32."""
    active = codes.values > 0
    return torch.tensor(float(len((rows_of(codes) * n + codes.features)[active].unique())), device=codes.values.device)


def by_turns(passed: Passed, rows: Float[Tensor, "n d"]) -> Passed:
    """The same batch, with the gradients of what was taken turn by turn in ``added``, and no codes."""
    centred, codes, out, aux = passed
    n, every = len(rows), torch.arange(len(rows), device=rows.device)
    k = len(codes.values) // len(centred)
    taken, values = codes.features.long().view(-1, k), codes.values.view(-1, k)
    by_row, by_value = torch.zeros_like(rows), rows.new_zeros(n)
    batch = (part.split(CHUNK) for part in (centred, out.error[0], taken, values))
    for left, error, features, value in zip(*batch, strict=True):
        _add_turns(by_row, by_value, (left, error, features, value), rows)
    by_row.index_add_(0, aux.features, aux.dec + aux.enc)
    by_value.index_add_(0, aux.features, aux.pre)
    added = AddedGradients(every, by_row, torch.zeros_like(by_row), by_value)
    return Passed(centred, no_codes(centred), out._replace(slopes=values.new_zeros(0)), added)


def _add_turns(by_row: Tensor, by_value: Tensor, part: tuple[Tensor, ...], rows: Tensor) -> None:
    """Add the gradients by the rows of the features of some rows of the batch, and those by their values."""
    left, error, features, values = part
    lefts = []
    for feature, value in zip(features.unbind(1), values.unbind(1), strict=True):
        lefts.append(left)
        left = torch.addcmul(left, rows[feature], value[:, None], value=-1)
    for turn in reversed(range(len(lefts))):
        feature, value = features[:, turn], values[:, turn, None]
        direction = rows[feature]
        slope = (error * direction).sum(1, keepdim=True) * (value > 0)
        by_row.index_add_(0, feature, (value * error).addcmul_(slope, lefts[turn]))
        by_value.index_add_(0, feature, slope[:, 0])
        # what an earlier turn leaves is less by so much of this direction
        error = torch.addcmul(error, direction, slope, value=-1)
