"""Which tokens of a batch are padding: what a mask says, or the pad token where it can mean nothing else.

Only padding *before* a token matters, since a causal model does not see what comes after: rows that are filled on the
right alone need no mask, and the forward is then the very one that it would be without.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from monolex.errors import UserError
from monolex.text.separator import separator

if TYPE_CHECKING:
    from monolex.model.language_model import LanguageModel

Mask = Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None
"""1 for a token of the text, 0 for padding; None: padding is told by the pad token, and refused where it cannot be."""


def forward_inputs(lm: "LanguageModel", tokens: Int[Tensor, "batch tokens"], mask: Mask) -> dict[str, Tensor]:
    """What a forward of ``tokens`` is given beside them: nothing, or mask and positions that leave padding out.

    Raises:
        UserError: as :func:`real_tokens`, or a model that reads padded rows otherwise than single ones.
    """
    real = real_tokens(lm, tokens, mask)
    after_padding = real & ((~real).cumsum(1) > 0)
    if not bool(after_padding.any()):
        return {}
    if lm.structure.unpadded:
        raise UserError(f"{lm.name} cannot be given padding before a text ({lm.structure.unpadded}): pad on the right")
    attention = real.long().to(lm.device)
    return {"attention_mask": attention, "position_ids": (attention.cumsum(1) - 1).clamp_min(0)}


def real_tokens(lm: "LanguageModel", tokens: Int[Tensor, "batch tokens"], mask: Mask) -> Bool[Tensor, "batch tokens"]:
    """Which ``tokens`` are no padding, where padding on the right may be left in.

    Without a mask those are hidden that a row begins with and that are the tokenizer's pad token (or the model's, if
    there is no tokenizer; its end-of-text token, if there is no pad token). Where that token also begins texts, a
    single one is taken for such a beginning.

    Raises:
        UserError: a mask of another shape or with a row of padding alone, or rows that begin with a pad token that may
            also belong to the text.
    """
    if mask is None:
        return _told_by_the_pad_token(lm, tokens)
    if mask.shape != tokens.shape or mask.is_floating_point() or not bool(((mask == 0) | (mask == 1)).all()):
        what = f"{mask.dtype} {list(mask.shape)}"
        raise UserError(f"mask is {what}: give 1 for tokens and 0 for padding, {list(tokens.shape)} like the tokens")
    real = mask.bool()
    empty = (~real.any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise UserError(f"mask hides all of row {empty[0]}: leave rows without a token out")
    return real


def continued_tokens(
    lm: "LanguageModel", tokens: Int[Tensor, "batch tokens"], mask: Mask
) -> Bool[Tensor, "batch tokens"]:
    """The same for prompts that are continued: every row has to end in a token of its own.

    Raises:
        UserError: as :func:`real_tokens`; rows that end in padding, or in a pad token that may be padding.
    """
    real = real_tokens(lm, tokens, mask)
    ends, width = ~real[:, -1], tokens.shape[1]
    pad = pad_token(lm) if mask is None else None
    if pad is not None and not (width == 1 and ambiguous_pad(lm, pad)):
        ends = tokens[:, -1] == pad
        if len(tokens) == 1 and ambiguous_pad(lm, pad):  # a single prompt needs no padding: it may end in a separator
            ends &= tokens[:, -2] == pad
    wrong = ends.nonzero()[:, 0].tolist()
    if wrong:
        raise UserError(
            f"row {wrong[0]} of the tokens ends in padding, after which nothing can be written: pad on the left and "
            "give mask=, 1 for tokens and 0 for padding"
        )
    return real


def pad_token(lm: "LanguageModel") -> int | None:
    """The token that pads; None if there is none."""
    source: Any = lm.tokenizer if lm.tokenizer is not None else lm.hf.config.get_text_config()
    candidates = (getattr(source, "pad_token_id", None), getattr(source, "eos_token_id", None))
    return next((token for token in candidates if isinstance(token, int)), None)


def ambiguous_pad(lm: "LanguageModel", pad: int) -> bool:
    """Whether the pad token has another meaning, so that it may stand in a text."""
    source: Any = lm.tokenizer if lm.tokenizer is not None else lm.hf.config.get_text_config()
    others = (*(getattr(source, f"{name}_token_id", None) for name in ("bos", "eos", "unk")), _lead(lm))
    return any(pad in other if isinstance(other, list) else pad == other for other in others)


def _lead(lm: "LanguageModel") -> int | None:
    """The token that stands before every text."""
    if lm.tokenizer is not None:
        return separator(lm.tokenizer)
    return getattr(lm.hf.config.get_text_config(), "bos_token_id", None)


def _told_by_the_pad_token(lm: "LanguageModel", tokens: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    pad = pad_token(lm)
    real = torch.ones_like(tokens, dtype=torch.bool)
    if pad is None or not bool((tokens[:, 0] == pad).any()):
        return real
    first = (tokens == pad).cumprod(1).bool()
    runs, length, lead = first.sum(1), tokens.shape[1], _lead(lm)
    if ambiguous_pad(lm, pad):
        # behind padding of a kind of its own the text's beginning is seen; a single beginning is no padding
        beginning = tokens.gather(1, runs.clamp_max(length - 1)[:, None])[:, 0]
        certain = (runs == 1) if pad == lead else (runs < length) & (beginning == lead if lead is not None else False)
        unclear = ((runs > 0) & ~certain).nonzero()[:, 0].tolist()
        if unclear:
            raise UserError(
                f"row {unclear[0]} of the tokens begins with {int(runs[unclear[0]])} times token {pad}, which may pad "
                "it or belong to it: give mask=, 1 for tokens and 0 for padding"
            )
        if pad == lead:
            return real
    if bool((runs == length).any()):
        raise UserError(f"row {int((runs == length).int().argmax())} of the tokens is padding alone (token {pad})")
    return ~first
