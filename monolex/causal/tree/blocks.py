"""What in the stream that enters some blocks moves a feature of the stream that leaves them, and what that one moves.

A :class:`BlockTexts` holds some texts that end at tokens on which the feature is active. Only the blocks between the
two sites, one or several, are run again on edited streams, and the feature is read at the last token of each text.
Versions of texts are folded into the batch in order of length; a version whose edit changes nothing is not run, since
its effect is exactly zero. Effects are base − edited: what the edit takes away from the feature.

Edits hold at every position that counts by the rule of the edited site. Separators and tokens of an extreme norm,
which no dictionary has learned and all others attend to, are left as they are: what is ablated there would outweigh the
rest of the text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.activations.rule import EVERY_ROW, RowRule
from monolex.causal.occurrences import Occurrences
from monolex.causal.suffix import at_end, prepare, until_end
from monolex.config import require
from monolex.dictionaries.base import Dictionary
from monolex.evals.reconstruction import row_slices
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site

CANDIDATES_AT_ONCE = 256
"""Features whose codes over all texts are held in memory together."""


class Readings(NamedTuple):
    """A feature at the last token of some texts, or what edits took from it."""

    code: Float[Tensor, "*edits texts"]
    """Its activation; of signed kinds the positive side."""
    pre: Float[Tensor, "*edits texts"]
    """What its activation function is applied to, which also tells of effects below zero."""


@dataclass(frozen=True, eq=False)
class BlockTexts:
    """Texts on which a feature is active, run up to an earlier site and to its own; made by :func:`block_texts`."""

    lm: LanguageModel
    """The model."""
    target: Dictionary
    """Whose feature is read."""
    feature: int
    """Which one."""
    blocks: range
    """The blocks in between; none where nothing earlier is looked at."""
    tokens: Int[Tensor, "texts tokens"]
    """The texts, padded on the right."""
    end: Int[Tensor, "texts"]
    """Position of every text's last token."""
    x: Float[Tensor, "texts tokens d_model"]
    """The stream that enters the first of them; without blocks the feature's own site."""
    base: Readings
    """The feature without an edit."""
    batch_tokens: int
    """Tokens of a forward."""
    counts: Bool[Tensor, "texts tokens"]
    """Where what enters the first of them counts."""

    def rerun(self, texts: Int[Tensor, "versions"], x: Float[Tensor, "versions tokens d_model"]) -> Readings:
        """:class:`Readings` of ``versions`` of ``texts`` (numbers, repeated at will) with ``x`` entering the blocks."""
        after = f"resid_post.{self.blocks[-1]}"
        tokens = self.tokens[texts, : x.shape[1]]
        mask = until_end(tokens, self.end[texts])
        run = hooks.run_from(self.lm, self.blocks[0], x, tokens, sites=[after], mask=mask, logits=False)
        return read(self.target, self.feature, at_end(run.activations[after], self.end[texts]))


def boundary(site: str) -> int:
    """Number of blocks before a place in the residual stream.

    Raises:
        UserError: the site is not in it, or between attention and MLP.
    """
    parsed = Site.parse(site)
    require(
        parsed.kind in ("resid_pre", "resid_post"),
        f"site {site!r}: a tree goes through the residual stream; give dictionaries of resid_post (or resid_pre)",
    )
    return parsed.layer + (parsed.kind == "resid_post")


@torch.no_grad()
def block_texts(
    lm: LanguageModel,
    target: Dictionary,
    feature: int,
    sites: tuple[str | None, str],
    occurrences: Occurrences,
    batch_tokens: int,
    rule: RowRule = EVERY_ROW,
) -> BlockTexts:
    """Run the texts of ``occurrences``, the first of every document, up to the feature's site, the second of ``sites``.

    The first is the earlier one whose features are going to be ablated, None where none are; of its activations those
    count that ``rule`` says.
    """
    earlier, site = sites
    tokens, end = _one_a_document(occurrences)
    blocks = range(boundary(site if earlier is None else earlier), boundary(site))
    entering = earlier or site
    x = torch.zeros(*tokens.shape, lm.d_model, dtype=lm.dtype, device=lm.device)
    readings = torch.zeros(2, len(end), dtype=torch.float64)
    for part in folds(end, batch_tokens):
        width = int(end[part[-1]]) + 1
        mask = until_end(tokens[part, :width], end[part])
        seen = hooks.capture(lm, tokens[part, :width], [entering, site], mask=mask).activations
        x[part, :width] = seen[entering]
        readings[:, part] = torch.stack(read(target, feature, at_end(seen[site], end[part]))).double().cpu()
    return BlockTexts(
        lm, target, feature, blocks, tokens, end, x, Readings(*readings), batch_tokens, rule.counts(tokens, x)
    )


def read(target: Dictionary, feature: int, x: Float[Tensor, "rows d_in"]) -> Readings:
    """A feature on some rows of its site."""
    chosen = torch.tensor([feature], device=target.W_enc.device)
    code = target.encode_some(x, chosen)[:, 0].clamp_min(0)
    return Readings(code, target.pre_activations(x, chosen)[:, 0])


def folds(end: Int[Tensor, "texts"], batch_tokens: int) -> Iterator[Int[Tensor, "part"]]:
    """Numbers of all texts, shortest first, in parts of at most ``batch_tokens`` tokens when padded to their longest.

    A part has at least one text, however long.
    """
    order = end.argsort(stable=True)
    lengths = (end[order] + 1).tolist()
    start = 0
    for stop, length in enumerate(lengths):
        if stop > start and (stop + 1 - start) * length > batch_tokens:
            yield order[start:stop]
            start = stop
    if lengths:
        yield order[start:]


def codes(
    texts: BlockTexts, source: Dictionary, text: int, features: Int[Tensor, "chosen"] | None = None
) -> Float[Tensor, "tokens chosen"]:
    """Positive codes of the stream that enters the blocks, over one text; 0 where it does not count."""
    x = texts.x[text, : int(texts.end[text]) + 1]
    active = source.encode(x) if features is None else source.encode_some(x, features)
    return active.clamp_min(0) * texts.counts[text, : len(x), None]


class Attribution(NamedTuple):
    """What one backward pass says of every feature of the stream that enters the blocks."""

    estimate: Float[Tensor, "d_sae"]
    """Effect of its ablation on the pre-activation, mean over texts, were the blocks linear."""
    active: Bool[Tensor, "d_sae"]
    """Whether it is active anywhere in the texts."""


def attribute(texts: BlockTexts, source: Dictionary) -> Attribution:
    """The effect of ablating each feature, to first order: ``Σ_t c_j(t) f_j · ∂pre/∂x_t``."""
    total = torch.zeros(source.d_sae, dtype=torch.float64)
    active = torch.zeros(source.d_sae, dtype=torch.bool)
    # every block keeps what its gradient needs
    for part in folds(texts.end, max(1, texts.batch_tokens // len(texts.blocks))):
        x = texts.x[part, : int(texts.end[part[-1]]) + 1].detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(texts.rerun(part, x).pre.sum(), x)
        for text, slope in zip(part.tolist(), gradient, strict=True):
            text_codes = codes(texts, source, text)
            along = slope[: len(text_codes)].to(text_codes.dtype) @ source.W_dec.T
            total += (text_codes * along).sum(0).double().cpu()
            active |= (text_codes > 0).any(0).cpu()
    return Attribution(total / len(texts.end), active)


def ablate_each(texts: BlockTexts, source: Dictionary, features: Int[Tensor, "features"]) -> Readings:
    """What the feature loses when each of ``features`` is ablated in every text, as float64 ``[features, texts]``."""
    parts = [_ablate(texts, source, part) for part in features.split(CANDIDATES_AT_ONCE)]
    return Readings(*(torch.cat(both) for both in zip(*parts, strict=True)))


@torch.no_grad()
def _ablate(texts: BlockTexts, source: Dictionary, features: Int[Tensor, "features"]) -> Readings:
    features = features.to(source.W_dec.device)
    candidate_codes = source.W_dec.new_zeros(*texts.tokens.shape, len(features))
    for text, end in enumerate(texts.end.tolist()):
        candidate_codes[text, : end + 1] = codes(texts, source, text, features)
    taken = torch.zeros(2, len(features), len(texts.end), dtype=torch.float64)
    column, text = (candidate_codes > 0).any(1).T.nonzero().cpu().T
    for part in folds(texts.end[text], texts.batch_tokens):
        where, which = text[part], column[part]
        width = int(texts.end[where[-1]]) + 1
        removed = candidate_codes[where, :width, which][..., None] * source.W_dec[features[which]][:, None]
        edited = texts.x[where, :width] - removed.to(texts.x.dtype)
        taken[:, which, where] = _lost(texts, where, edited)
    return Readings(*taken)


class Wholes(NamedTuple):
    """What the feature loses when a part of the stream that is no single feature goes, ``[texts]`` each."""

    error: Readings
    """The reconstruction error: the stream becomes ``decode(encode(x))``."""
    features: Readings
    """All features at once: only the reconstruction error and the decoder's bias stay."""


@torch.no_grad()
def ablate_wholes(texts: BlockTexts, source: Dictionary) -> Wholes:
    """The two ablations between which every single feature's stands, where activations count."""
    taken = torch.zeros(2, 2, len(texts.end), dtype=torch.float64)
    for part in folds(texts.end, texts.batch_tokens):
        x = texts.x[part, : int(texts.end[part[-1]]) + 1]
        flat = x.flatten(0, 1)
        rebuilt = torch.cat([source.reconstruct(flat[rows]) for rows in row_slices(len(flat), source.d_sae)])
        rebuilt = rebuilt.view(x.shape)
        counts = texts.counts[part, : x.shape[1], None]
        for number, removed in enumerate((x.to(rebuilt.dtype) - rebuilt, rebuilt - source.weights["b_dec"])):
            taken[number, :, part] = _lost(texts, part, torch.where(counts, x - removed.to(x.dtype), x))
    return Wholes(Readings(*taken[0]), Readings(*taken[1]))


class Outputs(NamedTuple):
    """What ablating a feature takes from the tokens that may follow its texts, in float64."""

    logit: Float[Tensor, "texts vocab"]
    """From their logits."""
    log_probability: Float[Tensor, "texts vocab"]
    """From their log-probabilities, in nats."""
    base: Float[Tensor, "texts vocab"]
    """Log-probabilities without an edit."""


@torch.no_grad()
def ablate_target(texts: BlockTexts, site: str, rule: RowRule = EVERY_ROW) -> Outputs:
    """The total effect of the texts' own feature, ablated wherever its site's activations count by ``rule``, through
    all blocks behind it."""
    chosen = torch.tensor([texts.feature], device=texts.target.W_dec.device)
    taken = torch.zeros(3, len(texts.end), texts.lm.unembedding.shape[0], dtype=torch.float64)
    for part in folds(texts.end, max(1, texts.batch_tokens // 2)):
        suffix = prepare(texts.lm, site, texts.tokens[part, : int(texts.end[part[-1]]) + 1], texts.end[part])
        counts = rule.counts(suffix.tokens, suffix.x)
        code = texts.target.encode_some(suffix.x, chosen).clamp_min(0) * counts[..., None]
        edited = suffix.x - (code @ texts.target.W_dec[chosen]).to(suffix.x.dtype)
        logits = suffix.end_logits(torch.stack([suffix.x, edited])).double().cpu()
        base, left = logits.log_softmax(-1)
        taken[:, part] = torch.stack([logits[0] - logits[1], base - left, base])
    return Outputs(*taken)


def _lost(texts: BlockTexts, numbers: Int[Tensor, "versions"], x: Tensor) -> Float[Tensor, "2 versions"]:
    left = torch.stack(texts.rerun(numbers, x)).double().cpu()
    return torch.stack(texts.base)[:, numbers] - left


def _one_a_document(occurrences: Occurrences) -> tuple[Int[Tensor, "texts tokens"], Int[Tensor, "texts"]]:
    """The first text of every document, since others of it say the same again."""
    _, document = occurrences.doc.unique(return_inverse=True)
    same = document[:, None] == document
    first = ~same.tril(-1).any(1)
    end = occurrences.end[first]
    return occurrences.tokens[first, : int(end.max()) + 1], end
