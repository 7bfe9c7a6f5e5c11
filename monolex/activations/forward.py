"""Activations of packed rows, straight from the model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.errors import UserError
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel
from monolex.text.rows import Rows
from monolex.text.separator import separator


class Forward(NamedTuple):
    """Kept activations of some packed rows."""

    values: dict[str, Float[Tensor, "kept d_in"]]
    """By site, in document order, in the model's dtype and where the model put them."""
    peaks: dict[str, float]
    """Largest absolute value of each site."""


def kept(lm: LanguageModel, rows: Rows, drop_bos: bool) -> Bool[Tensor, "rows context"]:
    """Which tokens of ``rows`` become activation rows."""
    bos = separator(lm.tokenizer) if drop_bos and lm.tokenizer is not None else None
    return rows.keep if bos is None else rows.keep & (rows.tokens != bos)


def forward(
    lm: LanguageModel, rows: Rows, keep: Bool[Tensor, "rows context"], part: Int[Tensor, "batch"], sites: Sequence[str]
) -> Forward:
    """Activations of the kept tokens of the packed rows numbered ``part``; at least one token must be kept.

    Raises:
        UserError: the model gives NaN or infinity.
    """
    tokens = rows.tokens[part].long()
    seen = capture(lm, tokens, sites, mask=torch.ones_like(tokens)).activations  # rows are packed, never padded
    index = keep[part].flatten().nonzero()[:, 0]
    values, peaks = {}, {}
    for site, x in seen.items():
        values[site] = x.detach().flatten(0, 1)[index.to(x.device)]
        low, high = torch.aminmax(values[site])
        peaks[site] = max(-float(low), float(high))
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            wrong = int((~values[site].isfinite()).any(1).int().argmax())
            row = int(part[index[wrong] // rows.context_length])
            raise UserError(
                f"{lm.name} gives NaN or infinity at {site}, first in packed row {row}: "
                f"its model_dtype is {lm.dtype}, use bf16 or fp32"
            )
    return Forward(values, peaks)
