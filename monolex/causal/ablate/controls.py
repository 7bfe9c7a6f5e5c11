"""What is taken from an activation where a feature is active, and what is taken instead as a control.

An ablation adds ``(c' − c_i) f_i``: a signed length at every position, along one direction. Its controls add the same
lengths at the same positions along another direction: that of another feature active on the token, or a random one.
What is drawn at random belongs to an occurrence, so that it does not matter which others are run together with it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex.activations.rule import EVERY_ROW, RowRule
from monolex.causal.config import AblateConfig, Positions
from monolex.causal.occurrences import Occurrences
from monolex.causal.past import continues
from monolex.causal.suffix import Suffix, at_end, prepare, prepare_last
from monolex.dictionaries.base import Dictionary
from monolex.model.language_model import LanguageModel

NEAREST = 4
"""The control is drawn among this many active features nearest in size."""
RUN_TOGETHER = 4
"""The base, the ablation and its two controls: versions of an occurrence in one forward pass."""


class Draws(NamedTuple):
    """All that is random, by occurrence."""

    control: Float[Tensor, "occurrences"]
    """In [0, 1): which of the nearest active features is the control."""
    direction: Float[Tensor, "occurrences d_in"]
    """The random direction, of length 1."""
    target: Float[Tensor, "occurrences tokens"]
    """What the feature's activation becomes."""


class AblationBatch(NamedTuple):
    """Some occurrences of like length, run up to the site."""

    rows: Int[Tensor, "rows"]
    """Which occurrences."""
    suffix: Suffix
    """Their contexts."""
    codes: Float[Tensor, "rows d_sae"]
    """All features on the token itself, their positive side."""
    lengths: Float[Tensor, "rows tokens"]
    """What the ablation adds along the direction at each of the suffix's tokens, negative where it takes away; 0 where
    the feature is silent."""
    way: Float[Tensor, "d_in"]
    """The feature's direction, of length 1."""
    rule: RowRule = EVERY_ROW
    """Which activations count at the site."""

    def edits(self, ways: Float[Tensor, "versions rows d_in"]) -> Float[Tensor, "versions rows tokens d_in"]:
        """The ablation's lengths along other directions."""
        return self.lengths[..., None] * ways[:, :, None]

    def unmoved(self) -> int:
        """Occurrences whose activation the ablation leaves as it is."""
        x = self.suffix.x
        edited = x + self.edits(self.way.expand(1, len(self.rows), -1))[0].to(x.dtype)
        return int((edited == x).all(-1).all(-1).sum())

    def logits(self, ways: Float[Tensor, "versions rows d_in"]) -> Float[Tensor, "versions_and_base rows vocab"]:
        """Logits of the next token: first those of the base, then those with the lengths along each of ``ways``."""
        x = self.suffix.x
        edits = self.edits(torch.cat([torch.zeros_like(ways[:1]), ways])).to(x.dtype)
        logits = self.suffix.end_logits(x + edits)
        # rows of one matrix product may differ in the last bit: where nothing is added nothing is to change
        return torch.where((edits != 0).any(-1).any(-1)[..., None], logits, logits[:1])


class Control(NamedTuple):
    """Another active feature for each of some occurrences."""

    way: Float[Tensor, "rows d_in"]
    """Its direction, of length 1; 0 where there is none."""
    ratio: Float[Tensor, "rows"]
    """Its own ``‖c_j f_j‖`` over the feature's; NaN where there is none."""


def draws(occurrences: Occurrences, dictionary: Dictionary, config: AblateConfig) -> Draws:
    """The random numbers of every occurrence."""
    like, count, shape = dictionary.W_dec, len(occurrences.end), occurrences.tokens.shape
    which, along, instead = np.random.default_rng(config.ablate_seed).spawn(3)
    target = torch.full(shape, occurrences.mean if config.to == "mean" else 0.0, dtype=torch.float64)
    if config.to == "resample":
        target = occurrences.pool[torch.from_numpy(instead.integers(len(occurrences.pool), size=shape))]
    direction = torch.from_numpy(along.standard_normal((count, dictionary.config.d_in)))
    return Draws(torch.from_numpy(which.random(count)), unit(direction).to(like), target.to(like))


@torch.no_grad()
def batches(
    lm: LanguageModel,
    dictionary: Dictionary,
    feature: int,
    occurrences: Occurrences,
    target: Float[Tensor, "occurrences tokens"],
    config: AblateConfig,
) -> Iterator[AblationBatch]:
    """The occurrences, longest contexts first, so many at a time that four versions of them fill a forward pass.

    Where the token alone is edited those of one length go together, after what the model keeps of the tokens before.
    """
    norm = dictionary.W_dec[feature].norm()
    wanted = torch.tensor([feature], device=dictionary.W_dec.device)
    for rows, suffix in _prepared(lm, dictionary.config.site, occurrences, config):
        code = active_codes(dictionary, suffix, wanted, config.positions, occurrences.rule)[..., 0]
        stop = int(occurrences.end[rows[0]]) + 1
        lengths = (target[rows, stop - code.shape[1] : stop].to(code.device) - code) * (code > 0) * norm
        codes = dictionary.encode(at_end(suffix.x, suffix.end)).clamp_min(0)
        yield AblationBatch(rows, suffix, codes, lengths, unit(dictionary.W_dec[feature]), occurrences.rule)


def _prepared(
    lm: LanguageModel, site: str, occurrences: Occurrences, config: AblateConfig
) -> Iterator[tuple[Int[Tensor, "rows"], Suffix]]:
    """Occurrences that are run together, the longest context first, and their suffix."""
    end = occurrences.end
    order = end.argsort(descending=True, stable=True)
    alone = config.positions == "token" and continues(lm, occurrences.tokens[order[:1], : int(end[order[0]]) + 1])
    while len(order):
        width = int(end[order[0]]) + 1
        together = max(1, config.batch_tokens // (RUN_TOGETHER * width))
        if alone:
            together = min(together, int((end[order] == end[order[0]]).sum()))
        rows, order = order[:together], order[together:]
        tokens = occurrences.tokens[rows, :width]
        yield rows, prepare_last(lm, site, tokens) if alone else prepare(lm, site, tokens, end[rows])


def active_codes(
    dictionary: Dictionary,
    suffix: Suffix,
    features: Int[Tensor, "features"],
    positions: Positions,
    rule: RowRule = EVERY_ROW,
) -> Float[Tensor, "rows tokens features"]:
    """Codes at the positions that are meant and count, their positive side as for occurrences; 0 at all others."""
    x, end = suffix.x, suffix.end
    if positions == "all":
        before = (torch.arange(x.shape[1], device=end.device) <= end[:, None]) & rule.counts(suffix.tokens, x)
        return dictionary.encode_some(x, features).clamp_min(0) * before[..., None]
    codes = torch.zeros(*x.shape[:2], len(features), dtype=dictionary.W_dec.dtype, device=x.device)
    codes[torch.arange(len(x)), end] = dictionary.encode_some(at_end(x, end), features).clamp_min(0)
    return codes


def matched(
    batch: AblationBatch, dictionary: Dictionary, feature: int, drawn: Float[Tensor, "rows"], within: float
) -> Control:
    """For each occurrence another feature active on the token, one of the :data:`NEAREST` in the length of ``c f``.

    One that is more than ``within`` times as long, or as short, is no control.
    """
    sizes = batch.codes * dictionary.W_dec.norm(dim=1)
    size = sizes[:, feature, None]
    apart = (sizes.log() - size.log()).abs()
    # a hair more than the bound itself, so that rounding of the logarithm leaves what is exactly there
    apart = apart.masked_fill((sizes <= 0) | (size <= 0) | (apart > math.log(within) + 1e-6), torch.inf)
    apart[:, feature] = torch.inf
    nearest = apart.topk(min(NEAREST, apart.shape[1]), dim=1, largest=False)
    count = nearest.values.isfinite().sum(1)
    place = torch.minimum((drawn.to(size) * count).long(), count - 1).clamp_min(0)
    chosen = nearest.indices.gather(1, place[:, None])[:, 0]
    none = count == 0
    way = unit(dictionary.W_dec[chosen]).masked_fill(none[:, None], 0)
    ratio = sizes.gather(1, chosen[:, None])[:, 0] / size[:, 0]
    return Control(way, ratio.masked_fill(none, torch.nan))


def unit(x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
    """Scaled to length 1; 0 stays 0."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-30)
