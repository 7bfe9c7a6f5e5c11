"""Text -> packed rows of token ids with the document of every token.

Documents are joined as the model was trained: the separator (`monolex.text.separator`) before each, then cut into rows
of one length, so that rows cross documents and nothing is padded. A row that begins within a document gets a separator
of its own in front: many models gather their attention at a row's first position, whose activations are then far from
all others, and it should be this token's and no word's. A chat is joined as its template writes it.

A document is held out by a hash of the seed and its text: copies of one text never lie on both sides, and the choice
depends neither on the order of reading nor on ``max_tokens``.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from monolex import runtime
from monolex.config import CorpusConfig, require
from monolex.errors import UserError
from monolex.text.documents import documents
from monolex.text.encode import CHARACTERS_A_TOKEN, encode_batch, special_pattern
from monolex.text.records import Document
from monolex.text.report import Report
from monolex.text.rows import Rows, rows_digest
from monolex.text.separator import forget_ordered, named, separator, use_separator

log = logging.getLogger("monolex")
BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1_000_000
SHORT = 0.9
"""Share of the tokens of ``max_tokens`` below which a corpus is said to end early."""


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


def build(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, *, max_context: int | None = None) -> Corpus:
    """Read, encode, split and pack the corpus that ``config`` names; log one line about it.

    Documents stand behind ``config.separator``; for `auto` behind the tokenizer's own, or the one measured before
    (:mod:`monolex.activations.beginning`).

    A string such as ``<|endoftext|>`` within a text is encoded as ordinary characters, never as the special token
    (added tokens that the tokenizer does not call special, such as Pythia's runs of spaces, stay what they are).

    Args:
        max_context: positions that the model has.

    Raises:
        UserError: an unknown separator, ``context_length`` beyond ``max_context``, nothing to read, no token kept in a
            split, or fewer than two different documents where some are to be held out.
    """
    require(
        max_context is None or config.context_length <= max_context,
        f"context_length = {config.context_length} is beyond the model's {max_context} positions; lower it",
    )
    if config.separator == "auto":
        forget_ordered(tokenizer)
    else:
        use_separator(tokenizer, named(tokenizer, config.separator), ordered=True)
    report = Report()
    encoded = list(_encode(documents(config, tokenizer, report), config, tokenizer, report))
    if not encoded:
        raise _nothing_read(config, report)
    held = _held_out(np.array([document.draw for document in encoded]), config)
    start = separator(tokenizer)
    train = _pack(encoded, np.flatnonzero(~held), start, config, report)
    held_out = _pack(encoded, np.flatnonzero(held), start, config, report)
    for split in (train, held_out):
        _require_kept(split, config, report)
    log.info("corpus %s: %s; %d rows to train on, %d held out", config.corpus, report, len(train), len(held_out))
    if report.tokens < SHORT * config.max_tokens:
        part = "" if config.document_tokens is None else f" (the first {config.document_tokens:,} of every document)"
        report.warn(
            f"corpus = {config.corpus!r} ends at {report.tokens:,} of max_tokens = {config.max_tokens:,}{part}: "
            "whatever is made of it saw no more text"
        )
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
    special = special_pattern(tokenizer)
    with runtime.progress(config.max_tokens, "corpus", "tok") as bar:
        for batch in _batches(stream, min(BATCH_CHARACTERS, CHARACTERS_A_TOKEN * config.max_tokens)):
            room = _room(config, report)
            for document, tokens, keep in encode_batch(batch, room, start, special, config.roles, tokenizer):
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


def _pack(encoded: list[Encoded], chosen: np.ndarray, start: int | None, config: CorpusConfig, report: Report) -> Rows:
    """Rows of the documents numbered ``chosen``; a last partial row is dropped, or padded where it is the only one.

    A separator in front of a row is of the document that goes on there, and never kept.
    """
    length = config.context_length
    empty = [np.empty(0, np.int32)]
    tokens = np.concatenate([encoded[i].tokens for i in chosen] or empty)
    keep = np.concatenate([encoded[i].keep for i in chosen] or [np.empty(0, bool)])
    docs = np.concatenate([np.full(len(encoded[i].tokens), i, dtype=np.int32) for i in chosen] or empty)
    if start is not None and config.row_separator:
        inside = _fronts(tokens == start, length)
        tokens, keep, docs = (
            np.insert(tokens, inside, start),
            np.insert(keep, inside, False),
            np.insert(docs, inside, docs[inside]),
        )
    rows = len(tokens) // length
    if rows == 0 and len(tokens) > 0:
        rows, missing = 1, (0, length - len(tokens))
        tokens = np.pad(tokens, missing, constant_values=start or 0)
        keep = np.pad(keep, missing, constant_values=False)
        docs = np.pad(docs, missing, constant_values=-1)
    report.dropped_tokens += len(tokens) - rows * length
    kept_positions = np.zeros(length, dtype=bool)
    kept_positions[list(config.position_slice())] = True
    shaped = [torch.from_numpy(x[: rows * length].reshape(rows, length)) for x in (tokens, docs, keep)]
    return Rows(shaped[0], shaped[1], shaped[2] & torch.from_numpy(kept_positions))


def _fronts(begins: np.ndarray, length: int) -> np.ndarray:
    """Where a separator goes in, so that each row of ``length`` begins with one: places in the tokens without them."""
    inside, at = [], 0
    while at < len(begins):
        if begins[at]:
            at += length
        else:
            inside.append(at)
            at += length - 1
    return np.array(inside, dtype=np.int64)
