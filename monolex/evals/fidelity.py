"""What a model loses when a site is replaced by a dictionary's reconstruction of it.

A transcoder replaces what it reconstructs by what it makes of the site it reads in the whole model.

At every position but the first (whose activations are far from all others in most models) the activation becomes x̂, or
zero, or the mean: the two ablations are the scale on which a loss means something. Tokens that a harvest leaves out,
separators and those of an extreme norm, are left as they are as well, for no dictionary has learned them; how many is
said. Predictions made at the first position cannot change and are not counted, nor are those at positions the corpus
leaves out. The forward resumes at the site's block, so that earlier layers are computed once for all dictionaries.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from monolex.activations.rule import EVERY_ROW, RowRule
from monolex.config import EvalConfig
from monolex.dictionaries.base import Dictionary
from monolex.evals.intervals import over_documents
from monolex.evals.reconstruction import Advance, row_slices
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.stats import Estimate, not_applicable
from monolex.text.rows import Rows

CLEAN = "clean"
ZERO = "zero-ablation"
MEAN = "mean-ablation"
REFERENCES = (CLEAN, ZERO, MEAN)
METRICS = ("ce", "ce_added", "kl", "perplexity", "loss_recovered_zero", "loss_recovered_mean")
# Below this many nats between an ablated and the whole model, the share of it that is recovered is noise.
LEAST_EFFECT = 0.01

Replace = Callable[[Tensor, Tensor], Tensor]
"""From rows of what is replaced, and of what is read, to what is put in their place."""


class Fidelity(NamedTuple):
    """Sums a document over the counted predictions; :func:`metrics` turns them into numbers."""

    predictions: Float[Tensor, "docs"]
    """Counted predictions of each document."""
    loss: dict[str, Float[Tensor, "docs"]]
    """Σ cross-entropy in nats, by dictionary and for :data:`REFERENCES`."""
    divergence: dict[str, Float[Tensor, "docs"]]
    """Σ KL(clean ‖ replaced) in nats, by the same names."""
    positions: int
    """Positions behind the first ones."""
    spared: int
    """Those of them that were left as they are."""


@torch.no_grad()
def fidelity(
    lm: LanguageModel,
    site: Site | str | tuple[str, str],
    dictionaries: Mapping[str, Dictionary],
    rows: Rows,
    mean: Float[Tensor, "d_in"],
    *,
    rule: RowRule = EVERY_ROW,
    batch: int = 16,
    advance: Advance = lambda _: None,
) -> Fidelity:
    """Loss and divergence of every dictionary and reference over packed ``rows``.

    ``site`` is what is encoded and replaced; of transcoders the one and the other. Tokens that do not count by ``rule``
    are not replaced.
    ``mean`` is the activation that the mean-ablation puts in; ``advance`` is told the share of the rows done. One clean
    forward a batch serves all; the largest tensors are two sets of logits ``[batch, context, vocab]``.
    """
    read, site = map(Site.parse, site if isinstance(site, tuple) else (site, site))
    assert not set(dictionaries) & set(REFERENCES), f"a dictionary is called like a reference: {list(dictionaries)}"
    replacements: dict[str, Replace] = {
        ZERO: lambda y, _: torch.zeros_like(y),
        MEAN: lambda y, _: mean.to(y).expand_as(y),
        **{name: _reconstructor(dictionary) for name, dictionary in dictionaries.items()},
    }
    documents, index = rows.docs.long().unique(return_inverse=True)
    counted = (rows.keep[:, :-1] & (rows.docs[:, 1:] >= 0))[:, 1:]
    sums = {name: torch.zeros(2, len(documents), dtype=torch.float64) for name in (CLEAN, *replacements)}
    spared = 0
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        where = index[part, 1:-1][counted[part]]
        clean = _clean(lm, site, read, rows.tokens[part].long(), rule)
        spared += int((~clean.replaceable[:, 1:]).sum())
        for name, losses in _losses(lm, site, replacements, clean):
            sums[name].index_add_(1, where, losses[:, counted[part]])
        advance(len(rows.tokens[part]) / len(rows))
    predictions = torch.bincount(index[:, 1:-1][counted], minlength=len(documents)).double()
    used = predictions > 0
    loss, divergence = ({name: both[number, used] for name, both in sums.items()} for number in (0, 1))
    return Fidelity(predictions[used], loss, divergence, rows.tokens[:, 1:].numel(), spared)


def metrics(result: Fidelity, name: str, config: EvalConfig) -> dict[str, Estimate]:
    """The numbers of one dictionary or reference, over documents.

    ``ce`` (nats a prediction), ``ce_added`` (over the whole model's), ``kl`` (clean ‖ replaced), ``perplexity``
    = exp(ce), and ``loss_recovered_zero``/``mean`` = (CE_ablated − CE)/(CE_ablated − CE_clean), which has no value
    where the ablation itself costs less than 0.01 nats.
    """
    loss, count = result.loss[name], result.predictions
    ce = over_documents(loss, count, config)
    return {
        "ce": ce,
        "ce_added": over_documents(loss - result.loss[CLEAN], count, config),
        "kl": over_documents(result.divergence[name], count, config),
        "perplexity": perplexity(ce),
        "loss_recovered_zero": loss_recovered(result, name, ZERO, config),
        "loss_recovered_mean": loss_recovered(result, name, MEAN, config),
    }


def perplexity(ce: Estimate) -> Estimate:
    """``exp`` of a cross-entropy; a percentile interval keeps its coverage under a monotone function."""
    if ce.value is None:
        return ce
    if max(ce.value, ce.high or 0) > math.log(torch.finfo(torch.float64).max):
        return not_applicable(f"exp of {ce.value:.0f} nats is beyond float64")
    low, high = (None if end is None else math.exp(end) for end in (ce.low, ce.high))
    return ce._replace(value=math.exp(ce.value), low=low, high=high)


def loss_recovered(result: Fidelity, name: str, ablation: str, config: EvalConfig) -> Estimate:
    """Share of the loss that ``ablation`` adds and replacement ``name`` does not: 1 is the whole model, 0 the ablation.

    No value where the ablation adds almost nothing, as in a model that is at chance anyway.
    """
    if name in REFERENCES:
        return not_applicable("a reference of this scale")
    effect = over_documents(result.loss[ablation] - result.loss[CLEAN], result.predictions, config)
    if effect.value is None:
        return effect
    if effect.value < LEAST_EFFECT:
        return not_applicable(
            f"{ablation} adds {effect.value:.4f} nats, below {LEAST_EFFECT}: the model itself is at chance, "
            "or does not need this site"
        )
    kept = result.loss[ablation] - result.loss[name]
    return over_documents(kept, result.loss[ablation] - result.loss[CLEAN], config)


def replaced_logits(
    lm: LanguageModel,
    site: Site,
    tokens: Int[Tensor, "batch tokens"],
    x: Float[Tensor, "batch tokens width"],
    before: Float[Tensor, "batch tokens d_model"],
) -> Float[Tensor, "batch tokens vocab"]:
    """Logits of a forward with ``x`` at ``site``, of which only the blocks from the site's on are computed.

    ``before`` is the residual stream in front of the site's block.
    """
    mask = torch.ones_like(tokens)  # rows are packed, never padded
    if site.kind == "resid_post":
        logits = hooks.run_from(lm, site.layer + 1, x, tokens, mask=mask).logits
    else:
        logits = hooks.run_from(lm, site.layer, before, tokens, edits={site: lambda _: x}, mask=mask).logits
    assert logits is not None, "run_from gives logits"
    return logits


class _Clean(NamedTuple):
    """A batch of rows in the whole model."""

    tokens: Int[Tensor, "batch tokens"]
    """On the model's device."""
    before: Float[Tensor, "batch tokens d_model"]
    """The residual stream in front of the site's block."""
    y: Float[Tensor, "batch tokens width"]
    """The site's activation."""
    x: Float[Tensor, "batch tokens d_in"]
    """What is read: the same, but for transcoders."""
    log_p: Float[Tensor, "batch tokens vocab"]
    """Log-probabilities, float32."""
    replaceable: Bool[Tensor, "batch tokens"]
    """Where the activation is replaced."""


def _clean(lm: LanguageModel, site: Site, read: Site, tokens: Int[Tensor, "batch tokens"], rule: RowRule) -> _Clean:
    tokens = tokens.to(lm.device)
    before = Site("resid_pre", site.layer)
    wanted = list(dict.fromkeys((before, site, read)))
    captured = hooks.capture(lm, tokens, wanted, mask=torch.ones_like(tokens), logits=True)
    assert captured.logits is not None, "logits were asked for"
    log_p = captured.logits.float()
    for row in log_p:
        row.copy_(F.log_softmax(row, -1))
    y, x = (captured.activations[str(each)] for each in (site, read))
    replaceable = rule.counts(tokens, x)
    replaceable[:, 0] = False
    return _Clean(tokens, captured.activations[str(before)], y, x, log_p, replaceable)


def _losses(
    lm: LanguageModel, site: Site, replacements: Mapping[str, Replace], clean: _Clean
) -> Iterator[tuple[str, Tensor]]:
    """Yield, for the clean forward and every replacement, cross-entropy and KL ``[2, batch, context − 2]``."""
    loss = -clean.log_p[:, 1:-1].gather(2, clean.tokens[:, 2:, None])[..., 0]
    yield CLEAN, torch.stack([loss, torch.zeros_like(loss)]).double().cpu()
    for name, replace in replacements.items():
        replaced = clean.y.clone()
        replaced[clean.replaceable] = replace(clean.y[clean.replaceable], clean.x[clean.replaceable])
        logits = replaced_logits(lm, site, clean.tokens, replaced, clean.before)
        yield name, _compare(clean.log_p, logits, clean.tokens)


def _compare(clean: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy and KL of every prediction but the first position's and the last; one packed row at a time."""
    rows = []
    for log_p, logit, targets in zip(clean[:, 1:-1], logits[:, 1:-1], tokens[:, 2:], strict=True):
        log_q = F.log_softmax(logit.float(), -1)
        loss = -log_q.gather(1, targets[:, None])[:, 0]
        rows.append(torch.stack([loss, (log_p.exp() * (log_p - log_q)).sum(1)]))
    return torch.stack(rows, 1).double().cpu()


def _reconstructor(dictionary: Dictionary) -> Replace:
    def reconstruct(y: Tensor, x: Tensor) -> Tensor:
        rows = x.to(dictionary.W_enc.device)
        parts = [dictionary.reconstruct(rows[part]) for part in row_slices(len(rows), dictionary.d_sae)]
        return torch.cat(parts).to(y) if parts else y

    return reconstruct
