"""Text -> packed rows of token ids with the document of every token.

Documents are joined as the model was trained: the separator (the tokenizer's beginning-of-sequence token, else its
end-of-sequence token) before each, then cut into rows of one length, so that rows cross documents and nothing is
padded. A chat is joined as its template writes it, with no separator but the template's own.

A document is held out by a hash of the seed and its text: copies of one text never lie on both sides, and the choice
depends neither on the order of reading nor on ``max_tokens``.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int32
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from monolex import runtime
from monolex.config import CorpusConfig, require
from monolex.errors import UserError
from monolex.text.documents import Document, Report, documents

log = logging.getLogger("monolex")

BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1_000_000
# Far above the characters of a token in any real text; a long document is first encoded only as far as this reaches.
CHARACTERS_A_TOKEN = 16
CLIP_MARGIN = 256


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed rows of tokens; all three tensors have one shape."""

    tokens: Int32[Tensor, "rows context"]
    """Token ids."""
    docs: Int32[Tensor, "rows context"]
    """Document of every token, numbered over both splits in reading order; -1 at padding."""
    keep: Bool[Tensor, "rows context"]
    """Tokens to learn from: in the position slice, in a wanted role, no padding."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def context_length(self) -> int:
        """Tokens in a row."""
        return self.tokens.shape[1]

    @property
    def n_tokens(self) -> int:
        """Kept tokens."""
        return int(self.keep.sum())

    @property
    def documents(self) -> int:
        """Documents with a kept token."""
        return len(self.docs[self.keep].unique())


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenised corpus."""

    train: Rows
    """Rows to learn from."""
    held_out: Rows
    """Rows of other documents, for evaluation; none if ``held_out = 0``."""
    report: Report
    """What was read and what could not be."""
    digest: str
    """SHA-256 of both splits' tensors, in hexadecimal."""


class Encoded(NamedTuple):
    """One document as tokens."""

    tokens: np.ndarray
    """int32 [tokens], the separator first."""
    keep: np.ndarray
    """bool [tokens]: outside chats all true."""
    draw: float
    """In [0, 1), from the seed and the text; below ``held_out`` means held out."""


def separator(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token put before every document, as in the model's training; None if the tokenizer has none.

    The token that the tokenizer itself puts first (Llama's ``<s>``), else its beginning-of-sequence token, else its
    end-of-sequence token (Pythia's ``<|endoftext|>`` is both).
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    if whole[:1] != plain[:1]:
        return whole[0]
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((token for token in named if isinstance(token, int)), None)


def build(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, *, max_context: int | None = None) -> Corpus:
    """Read, encode, split and pack the corpus that ``config`` names; log one line about it.

    A string such as ``<|endoftext|>`` within a text is encoded as ordinary characters, never as the special token
    (added tokens that the tokenizer does not call special, such as Pythia's runs of spaces, stay what they are).

    Args:
        max_context: positions that the model has.

    Raises:
        UserError: ``context_length`` beyond ``max_context``, nothing to read, no token kept in a split, or fewer than
            two different documents where some are to be held out.
    """
    require(
        max_context is None or config.context_length <= max_context,
        f"context_length = {config.context_length} is beyond the model's {max_context} positions; lower it",
    )
    report = Report()
    encoded = list(_encode(documents(config, tokenizer, report), config, tokenizer, report))
    if not encoded:
        raise _nothing_read(config, report)
    held = _held_out(np.array([document.draw for document in encoded]), config)
    filler = separator(tokenizer) or 0
    train = _pack(encoded, np.flatnonzero(~held), filler, config, report)
    held_out = _pack(encoded, np.flatnonzero(held), filler, config, report)
    for split in (train, held_out):
        _require_kept(split, config, report)
    log.info("corpus %s: %s; %d rows to train on, %d held out", config.corpus, report, len(train), len(held_out))
    share = held_out.n_tokens / (train.n_tokens + held_out.n_tokens)
    if config.held_out > 0 and not 0.5 <= share / config.held_out <= 2:
        log.warning(
            "held_out = %g of the documents is %.0f %% of the tokens: documents are few or long; set document_tokens "
            "to take less of each, or read more",
            config.held_out, 100 * share,
        )  # fmt: skip
    return Corpus(train, held_out, report, rows_digest(train, held_out))


def _nothing_read(config: CorpusConfig, report: Report) -> UserError:
    if report.fields:
        return UserError(
            f"text_field = {config.text_field!r}: no line of {config.corpus} has such a field; "
            f"the fields there are {', '.join(sorted(report.fields))}"
        )
    return UserError(f"corpus = {config.corpus!r} holds no text ({report}); give another path or corpus_format")


def _require_kept(rows: Rows, config: CorpusConfig, report: Report) -> None:
    if len(rows) == 0 or rows.n_tokens > 0:
        return
    if report.roles and not set(config.roles) & set(report.roles):
        raise UserError(f"roles = {list(config.roles)}: the chats have only {', '.join(sorted(report.roles))}")
    raise UserError(
        f"positions = {config.positions!r} and roles = {list(config.roles)} keep no token of a split with {len(rows)} "
        "rows; read more text or lower context_length"
    )


def _encode(
    stream: Iterable[Document], config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, report: Report
) -> Iterator[Encoded]:
    start = separator(tokenizer)
    special = _special_pattern(tokenizer)
    with runtime.progress(config.max_tokens, "corpus", "tok") as bar:
        for batch in _batches(stream, min(BATCH_CHARACTERS, CHARACTERS_A_TOKEN * config.max_tokens)):
            room = _room(config, report)
            for document, tokens, keep in _encode_batch(batch, room, start, special, config.roles, tokenizer):
                if len(tokens) == 0:
                    report.note("empty", f"{document.where}: the tokenizer makes no token of it")
                    continue
                room = _room(config, report)
                report.documents += 1
                report.characters += len(document.text)
                report.tokens += min(room, len(tokens))
                bar.update(min(room, len(tokens)))
                yield Encoded(tokens[:room], keep[:room], _draw(config.corpus_seed, document.text))
                if report.tokens >= config.max_tokens:
                    return


def _room(config: CorpusConfig, report: Report) -> int:
    """How many tokens of the next document are taken."""
    left = config.max_tokens - report.tokens
    return left if config.document_tokens is None else min(left, config.document_tokens)


def _batches(stream: Iterable[Document], limit: int) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in stream:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or characters >= limit:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode_batch(
    batch: list[Document],
    room: int,
    start: int | None,
    special: re.Pattern[str] | None,
    roles: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
    texts = iter(encode_texts([doc.text for doc in batch if doc.spans is None], room, tokenizer))
    for document in batch:
        if document.spans is not None:
            yield document, *_encode_chat(document, special, roles, tokenizer)
            continue
        ids = next(texts)
        tokens = np.array(ids if start is None or not ids else [start, *ids], dtype=np.int32)
        yield document, tokens, np.ones(len(tokens), dtype=bool)


def encode_texts(texts: list[str], room: int, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """At least the first ``room`` ids of every text, no special token among them."""

    def encode(batch: list[str]) -> list[list[int]]:
        if not batch:
            return []
        return tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=True,
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


def _special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


def _encode_chat(
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


def _draw(seed: int, text: str) -> float:
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _held_out(draws: np.ndarray, config: CorpusConfig) -> np.ndarray:
    """bool [documents]; where the draw leaves one side empty, the nearest document moves there."""
    if config.held_out == 0:
        return np.zeros(len(draws), dtype=bool)
    require(
        bool(draws.min() < draws.max()),
        f"held_out = {config.held_out}: {config.corpus} has only one document within max_tokens = "
        f"{config.max_tokens}, so none can be kept apart; set held_out = 0 or read more",
    )
    held = draws < config.held_out
    if not held.any():
        return draws == draws.min()
    return draws < draws.max() if held.all() else held


def _pack(encoded: list[Encoded], chosen: np.ndarray, filler: int, config: CorpusConfig, report: Report) -> Rows:
    """Rows of the documents numbered ``chosen``; a last partial row is dropped, or padded where it is the only one."""
    length = config.context_length
    empty = [np.empty(0, np.int32)]
    tokens = np.concatenate([encoded[i].tokens for i in chosen] or empty)
    keep = np.concatenate([encoded[i].keep for i in chosen] or [np.empty(0, bool)])
    docs = np.concatenate([np.full(len(encoded[i].tokens), i, dtype=np.int32) for i in chosen] or empty)
    rows = len(tokens) // length
    if rows == 0 and len(tokens) > 0:
        rows, missing = 1, (0, length - len(tokens))
        tokens = np.pad(tokens, missing, constant_values=filler)
        keep = np.pad(keep, missing, constant_values=False)
        docs = np.pad(docs, missing, constant_values=-1)
    report.dropped_tokens += len(tokens) - rows * length
    kept_positions = np.zeros(length, dtype=bool)
    kept_positions[list(config.position_slice())] = True
    shaped = [torch.from_numpy(x[: rows * length].reshape(rows, length)) for x in (tokens, docs, keep)]
    return Rows(shaped[0], shaped[1], shaped[2] & torch.from_numpy(kept_positions))


def rows_digest(*splits: Rows) -> str:
    """SHA-256 of tokens, documents and kept places, in hexadecimal."""
    digest = hashlib.sha256()
    for rows in splits:
        for tensor in (rows.tokens, rows.docs, rows.keep):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
