"""Where text comes from: files, folders, JSONL, chats, Hugging Face datasets and the running Python's own library.

Finite sources are first listed as addresses (file, byte offset), then read in a seeded shuffled order, so that any
prefix is a fair sample and memory holds no text but the document at hand.
"""

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from monolex.config import CorpusConfig, require
from monolex.errors import UserError
from monolex.text import chats
from monolex.text.records import Document, FileKind, checked, from_record, parse
from monolex.text.report import Report
from monolex.text.sources import DocumentSource, files_of, stdlib

STREAM_BUFFER = 10_000


def documents(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, report: Report) -> Iterator[Document]:
    """Documents in seeded order; faults go to ``report``.

    Raises:
        UserError: no such path, a folder without text, a chat for a tokenizer without template, or a data set that
            cannot be opened.
    """
    if config.corpus.startswith("hf:"):
        yield from _stream(config, tokenizer, report)
        return
    sources = stdlib(config) if config.corpus == "stdlib" else files_of(config, report)
    if any(source.kind == "chat" for source in sources):
        chats.require_template(tokenizer)
    index = _index(sources, report)
    for row in np.random.default_rng(config.corpus_seed).permutation(len(index)):
        number, offset, line = index[row].tolist()
        document = _read(sources[number], offset, line, config, tokenizer, report)
        if document is not None:
            yield document


def _index(sources: list[DocumentSource], report: Report) -> np.ndarray:
    """``[documents, 3]``: number of the source, byte offset of the line, line number (0 for a whole text)."""
    rows = array("q")
    for number, source in enumerate(sources):
        if source.kind == "text" or source.path is None:
            rows.extend((number, 0, 0))
            continue
        try:
            with source.path.open("rb") as file:
                offset = 0
                for line, raw in enumerate(file, start=1):
                    if raw.strip():
                        rows.extend((number, offset, line))
                    offset += len(raw)
        except OSError as error:
            report.note("undecodable", f"{source.name}: {error.strerror}")
    return np.frombuffer(rows, dtype=np.int64).reshape(-1, 3) if rows else np.empty((0, 3), np.int64)


def _read(
    source: DocumentSource,
    offset: int,
    line: int,
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
) -> Document | None:
    if source.path is None:
        return checked(Document(source.text, source.name), report)
    try:
        with source.path.open("rb") as file:
            file.seek(offset)
            raw = file.readline() if line else file.read()
        text = "" if line else raw.decode("utf-8-sig")
    except OSError as error:
        report.note("undecodable", f"{source.name}: {error.strerror}")
    except UnicodeDecodeError as error:
        report.note("undecodable", f"{source.name}: not UTF-8 at byte {error.start}")
    else:
        if not line:
            return checked(Document(text, source.name), report)
        where = f"{source.name}:{line}"
        record = parse(raw)
        if record is not None:
            return from_record(record, source.kind, where, config.text_field, tokenizer, report)
        report.note("bad_lines", f"{where}: not a JSON object")
    return None


def _stream(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, report: Report) -> Iterator[Document]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"corpus = {config.corpus!r}: data sets need an extra; run pip install 'monolex[data]'"
        ) from error
    name = config.corpus.removeprefix("hf:")
    try:
        stream = datasets.load_dataset(name, config.subset, split=config.dataset_split, streaming=True)
        first = next(iter(stream), {})
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"corpus = {config.corpus!r} cannot be opened; check its name, subset and dataset_split: {reason}"
        ) from error
    kind = _stream_kind(first, config)
    if kind == "chat":
        chats.require_template(tokenizer)
    shuffled = stream.shuffle(seed=config.corpus_seed, buffer_size=STREAM_BUFFER)
    for number, record in enumerate(shuffled):
        document = from_record(record, kind, f"{name}:{number}", config.text_field, tokenizer, report)
        if document is not None:
            yield document


def _stream_kind(first: Mapping[str, Any], config: CorpusConfig) -> FileKind:
    chat = config.corpus_format == "chat" or (
        config.corpus_format == "auto" and config.text_field not in first and "messages" in first
    )
    wanted = "messages" if chat else config.text_field
    require(
        wanted in first or not first,
        f"{'corpus_format' if chat else 'text_field'} = {'chat' if chat else wanted!r}: {config.corpus} has no field "
        f"{wanted!r}; its fields are {', '.join(first)}",
    )
    return "chat" if chat else "jsonl"
