"""Codes that are chosen by what is left of a row: matching pursuit, and one LISTA step.

Both read what a decoder has written so far, so the codes of a feature depend on all others. Training
(:mod:`monolex.training.losses`) and :mod:`~monolex.dictionaries.base` share what is here, which knows nothing of
``Dictionary``.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex.products import by_rows

WIDEST = 8192
"""Features up to which the products of all encoder and decoder rows are held at once."""
CHUNK = 256
"""Rows that are pursued at once, so that what every turn reads and writes stays in a cache."""


def pursue(
    pre: Float[Tensor, "rows n"], weights: Mapping[str, Tensor], k: int
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Matching pursuit: k times the largest pre-activation of a row, whose reconstruction is then taken off the row.

    The features in the order in which they were taken, and their values; a row of which nothing positive is left has
    values of 0 from there on. With unit decoder rows as encoder and no bias this is the algorithm of Mallat and Zhang
    (1993) with positive codes; a feature may be taken again.
    """
    taken_off = _products(weights, len(pre) * k)
    features, values = pre.new_empty(len(pre), k, dtype=torch.int64), pre.new_empty(len(pre), k)
    for start in range(0, len(pre), CHUNK):
        rows = slice(start, start + CHUNK)
        left = pre[rows].clone()
        for turn in range(k):
            value, feature = left.max(1)
            value = value.relu()
            features[rows, turn], values[rows, turn] = feature, value
            left.addcmul_(taken_off(feature), value[:, None], value=-1)
    return features, values


def pursuit_codes(x: Float[Tensor, "rows d_in"], weights: Mapping[str, Tensor], k: int) -> Float[Tensor, "rows n"]:
    """Codes by :func:`pursue`."""
    pre = by_rows(x - weights["centre"], weights["W_enc"], weights["b_enc"])
    features, values = pursue(pre, weights, k)
    return torch.zeros_like(pre).scatter_add(1, features, values)


def refined(
    first: Float[Tensor, "rows n"], centred: Float[Tensor, "rows d_in"], weights: Mapping[str, Tensor]
) -> Float[Tensor, "rows n"]:
    """Pre-activations after one LISTA step (Gregor and LeCun 2010) from the codes ``first``.

    Each is what its feature says of the row without what all others have written: ``first + W_enc (x - x̂) + b_enc``,
    of rows around the decoder's bias.
    """
    left = centred - first @ weights["W_dec"]
    return first + torch.nn.functional.linear(left, weights["W_enc"], weights["b_enc"])


def lista_codes(
    x: Float[Tensor, "rows d_in"], weights: Mapping[str, Tensor], k: int, threshold: float
) -> Float[Tensor, "rows n"]:
    """The k largest pre-activations of a row, one step of refinement, and what is then above the threshold."""
    centred = x - weights["centre"]
    pre = by_rows(centred, weights["W_enc"], weights["b_enc"])
    values, places = pre.topk(k, dim=1, sorted=False)
    first = torch.zeros_like(pre).scatter(1, places, values.relu())
    return torch.nn.functional.threshold(refined(first, centred, weights), max(threshold, 0.0), 0.0)


def _products(weights: Mapping[str, Tensor], taken: int) -> Callable[[Tensor], Tensor]:
    """What the pre-activations of all features lose by one of every feature that is given."""
    encoder, decoder = weights["W_enc"], weights["W_dec"]
    if len(decoder) <= min(taken, WIDEST):
        every = decoder @ encoder.T
        return lambda feature: every[feature]
    return lambda feature: decoder[feature] @ encoder.T
