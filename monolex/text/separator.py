"""The token before every document: which there are, and which is used.

A model has learned what stands before a text. Which of a tokenizer's special tokens that was is not always what the
tokenizer says (an instruction model's beginning-of-sequence token is often its chat's), so a harvest measures it
(`monolex.activations.beginning`) and every text that is encoded afterwards stands behind the same token.
"""

from transformers import PreTrainedTokenizerBase

from monolex.errors import UserError

_CHOSEN, _ORDERED = "monolex_separator", "monolex_separator_ordered"


def separator(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token put before every document, row and prompt; None if there is none.

    The one that :func:`use_separator` has set for this tokenizer, else the first of :func:`candidates`.
    """
    if hasattr(tokenizer, _CHOSEN):
        return getattr(tokenizer, _CHOSEN)
    return next(iter(candidates(tokenizer)), None)


def use_separator(tokenizer: PreTrainedTokenizerBase, token: int | None, *, ordered: bool = False) -> None:
    """From now on texts encoded with this tokenizer object stand behind ``token``; None: behind nothing.

    ``ordered`` says that a corpus asked for it by name, which the next that asks for `auto` does not mean.
    """
    setattr(tokenizer, _CHOSEN, token)
    setattr(tokenizer, _ORDERED, ordered)


def forget_ordered(tokenizer: PreTrainedTokenizerBase) -> None:
    """Leave no separator that a corpus asked for by name; what was measured stays."""
    if getattr(tokenizer, _ORDERED, False):
        delattr(tokenizer, _CHOSEN)
        delattr(tokenizer, _ORDERED)


def candidates(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that a model may have seen before its texts, the likeliest first.

    The token that the tokenizer itself puts first (Llama's ``<s>``), then its beginning-of-sequence token, then its
    end-of-sequence token (Pythia's ``<|endoftext|>`` is both), then ``<|endoftext|>``.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    first = [whole[0]] if whole[:1] != plain[:1] else []
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    named = [tokenizer.bos_token_id, tokenizer.eos_token_id, added.get("<|endoftext|>")]
    return list(dict.fromkeys([*first, *(token for token in named if isinstance(token, int))]))


def named(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The id of the separator that is asked for as the tokenizer spells it; None for `none`.

    Raises:
        UserError: the spelling is no single token.
    """
    if text == "none":
        return None
    token = tokenizer.get_vocab().get(text)
    if token is None:
        usual = ", ".join(f"`{spelled(tokenizer, option)}`" for option in candidates(tokenizer))
        raise UserError(f"separator = {text!r} is no token of the tokenizer: give {usual or 'another'} or `none`")
    return token


def spelled(tokenizer: PreTrainedTokenizerBase, token: int | None) -> str:
    """A token as the tokenizer's vocabulary has it; empty for None."""
    return "" if token is None else str(tokenizer.convert_ids_to_tokens(token))
