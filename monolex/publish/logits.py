"""How features move the logits of the whole vocabulary directly, as histograms: from the weights and the model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.dictionaries.base import Dictionary
from monolex.features.weights import centred_unembedding, way_to_logits
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.publish.batch import LogitsHistogram

BARS = 50
"""Bins from the smallest to the largest change."""


@torch.no_grad()
def logits_histograms(
    lm: LanguageModel, site: str, dictionary: Dictionary, features: Sequence[int]
) -> list[LogitsHistogram] | None:
    """Of every one of some features how many tokens have their logit changed by how much, per unit of activation.

    The changes are those of which a store has the largest (:mod:`monolex.features.weights`). None where directions of
    this site have no direct way to the logits.
    """
    way = way_to_logits(lm, Site.parse(dictionary.config.target or site), dictionary)
    if way.through is None:
        return None
    logits = way.through(dictionary.W_dec[list(features)]) @ centred_unembedding(lm, dictionary).T
    return histograms(logits)


def histograms(rows: Float[Tensor, "features vocabulary"]) -> list[LogitsHistogram]:
    """A histogram of every row, in :data:`BARS` equal bins between its smallest and its largest value."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    width = ((high - low) / BARS).clamp_min(1e-12)
    bins = ((rows - low) / width).long().clamp_(0, BARS - 1)
    bins += BARS * torch.arange(len(rows), device=rows.device)[:, None]
    heights = torch.bincount(bins.flatten(), minlength=BARS * len(rows)).view(len(rows), BARS)
    values = low + width * (torch.arange(BARS, device=rows.device) + 0.5)
    return [LogitsHistogram(*pair) for pair in zip(values.tolist(), heights.tolist(), strict=True)]
