"""Texts through the model: tokens as a document begins in the corpus, and activations of many texts at once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from monolex.errors import UserError
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel
from monolex.text.encode import encode_texts, special_ids
from monolex.text.separator import separator


class Tokenised(NamedTuple):
    """Texts as tokens."""

    tokens: list[list[int]]
    """Ids of every text, without the separator that is put before it (once, where a text begins with it already)."""
    separator: int | None
    """That separator, as the corpus has it before every document; None if the tokenizer knows none."""
    truncated: int
    """Texts cut at the model's last position."""
    notes: tuple[str, ...] = ()
    """What was read as special tokens, in sentences."""


class Batch(NamedTuple):
    """Some texts' activations."""

    numbers: list[int]
    """Which texts."""
    tokens: Int[Tensor, "texts tokens"]
    """Their ids."""
    x: Mapping[str, Float[Tensor, "texts tokens d_in"]]
    """By site; separators are left out and the ends of shorter texts filled."""
    real: Bool[Tensor, "texts tokens"]
    """Which positions are of the text."""


def tokenizer_of(lm: LanguageModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        UserError: it has none.
    """
    if lm.tokenizer is None:
        raise UserError(f"{lm.name} has no tokenizer, so no text can be given to it; wrap it with one")
    return lm.tokenizer


def tokenise(lm: LanguageModel, texts: Sequence[str], *, literal: bool = False) -> Tokenised:
    """Texts as prompts: a special token's name, such as ``<|im_start|>``, is that token; cut at the last position.

    ``literal``: it is ordinary characters, as within the texts of a corpus.
    """
    tokenizer = tokenizer_of(lm)
    first = separator(tokenizer)
    room = lm.max_context - (first is not None)
    ids = encode_texts(list(texts), room + 1, tokenizer, special=not literal)
    led = [first is not None and tokens[:1] == [first] for tokens in ids]
    ids = [tokens[1:] if begins else tokens for tokens, begins in zip(ids, led, strict=True)]
    tokens = [of_text[:room] for of_text in ids]
    special = special_ids(tokenizer)
    count = sum(token in special for of_text in tokens for token in of_text)
    said = [f"{count} of the tokens are special ones; with literal their names are ordinary text"] if count else []
    if any(led):
        said.append(f"{sum(led)} of the texts begin with the separator, which is put before a text once, not twice")
    return Tokenised(tokens, first, sum(len(of_text) > room for of_text in ids), tuple(said))


def activations(lm: LanguageModel, texts: Tokenised, sites: Sequence[str], batch_tokens: int) -> Iterator[Batch]:
    """Activations of texts at ``sites``, texts of like length together, at most ``batch_tokens`` (and one text) a time.

    What fills a shorter text's end comes after it, which a causal model does not see.
    """
    order = sorted(range(len(texts.tokens)), key=lambda number: len(texts.tokens[number]))
    start = [] if texts.separator is None else [texts.separator]
    while order:
        longest = len(texts.tokens[order[-1]])
        numbers = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // (longest + len(start)))))]
        lengths = torch.tensor([len(texts.tokens[number]) for number in numbers])
        ids = torch.tensor([start + _filled(texts.tokens[number], longest) for number in numbers])
        real = torch.arange(longest) < lengths[:, None]
        mask = torch.cat([real.new_ones(len(real), len(start)), real], 1)
        seen = capture(lm, ids, sites, mask=mask).activations
        yield Batch(numbers, ids[:, len(start) :], {site: x[:, len(start) :] for site, x in seen.items()}, real)


def _filled(tokens: list[int], length: int) -> list[int]:
    return tokens + [0] * (length - len(tokens))
