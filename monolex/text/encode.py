"""Texts and chats to token ids.

A string such as ``<|endoftext|>`` within a text is encoded as ordinary characters, never as the special token; in a
prompt, which a person writes to the model itself, it is that token.
"""

import re
from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedTokenizerBase

from monolex.text.records import Document

# Far above the characters of a token in any real text; a long document is first encoded only as far as this reaches.
CHARACTERS_A_TOKEN = 16
CLIP_MARGIN = 256


def encode_batch(
    batch: list[Document],
    room: int,
    start: int | None,
    special: re.Pattern[str] | None,
    roles: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
    """Every document with its ids, int32, ``start`` first, and which of them are kept: in a chat those of ``roles``."""
    texts = iter(encode_texts([doc.text for doc in batch if doc.spans is None], room, tokenizer))
    for document in batch:
        if document.spans is not None:
            yield document, *encode_chat(document, special, roles, tokenizer)
            continue
        ids = next(texts)
        tokens = np.array(ids if start is None or not ids else [start, *ids], dtype=np.int32)
        yield document, tokens, np.ones(len(tokens), dtype=bool)


def encode_texts(
    texts: list[str], room: int, tokenizer: PreTrainedTokenizerBase, *, special: bool = False
) -> list[list[int]]:
    """At least the first ``room`` ids of every text; with ``special`` names of special tokens become those tokens."""

    def encode(batch: list[str]) -> list[list[int]]:
        if not batch:
            return []
        return tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=not special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    limit = CHARACTERS_A_TOKEN * (room + CLIP_MARGIN)
    ids = encode([text[:limit] for text in texts])
    short = [i for i, text in enumerate(texts) if len(text) > limit and len(ids[i]) < room + CLIP_MARGIN]
    for number, longer in zip(short, encode([texts[i] for i in short]), strict=True):
        ids[number] = longer
    return ids


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's special tokens."""
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the tokenizer's special tokens as they are spelled; None if it has none."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


def encode_chat(
    document: Document, special: re.Pattern[str] | None, roles: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a rendered chat, and which of them carry a character of a wanted role's content.

    The template's special strings become tokens. Those that a message quotes do not: they are encoded apart, which
    changes nothing around them, since the tokenizer would have cut there too.
    """
    assert document.spans is not None, f"{document.where} is no chat"
    text = document.text
    quoted = [m.span() for s in document.spans for m in (special.finditer(text, s.start, s.end) if special else ())]
    edges = [0, *(edge for span in quoted for edge in span), len(text)]
    wanted = np.zeros(len(text) + 1, dtype=np.int64)
    for span in document.spans:
        wanted[span.start + 1 : span.end + 1] = span.role in roles
    before = wanted.cumsum()
    ids, keep = [], []
    for number, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        out = tokenizer(
            text[begin:end],
            add_special_tokens=False,
            split_special_tokens=number % 2 == 1,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids += out["input_ids"]
        offsets = np.array(out["offset_mapping"], dtype=np.int64).reshape(-1, 2) + begin
        keep.append(before[offsets[:, 1]] > before[offsets[:, 0]])
    return np.array(ids, dtype=np.int32), np.concatenate(keep)
