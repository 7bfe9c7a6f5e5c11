"""One line of JSON, or one record of a data set, as a document."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from monolex.text import chats
from monolex.text.report import Report

FileKind = Literal["text", "jsonl", "chat"]


class Document(NamedTuple):
    """One text to learn from."""

    text: str
    """Never empty, always encodable as UTF-8."""
    where: str
    """File and line, for people."""
    spans: tuple[chats.Span, ...] | None = None
    """Contents of the messages of a chat; None for plain text."""


def parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is no such thing."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def from_record(
    record: Mapping[str, Any],
    kind: FileKind,
    where: str,
    text_field: str,
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
) -> Document | None:
    """The document of a record; None, and a note in ``report``, where it has no usable text."""
    if kind == "chat":
        try:
            text, spans = chats.render(tokenizer, record.get("messages"))
        except ValueError as error:
            report.note("bad_lines", f"{where}: {error}")
            return None
        _count((span.role for span in spans), report.roles)
        return checked(Document(text, where, tuple(spans)), report)
    text = record.get(text_field)
    if isinstance(text, str):
        return checked(Document(text, where), report)
    if text_field not in record:
        _count(record, report.fields)
    report.note("bad_lines", f"{where}: no text in field {text_field!r}")
    return None


def checked(document: Document, report: Report) -> Document | None:
    """``document`` itself; None, and a note in ``report``, if it is empty or no Unicode text."""
    if not document.text.strip() or document.spans == ():
        report.note("empty", f"{document.where}: empty")
        return None
    try:
        document.text.encode()
    except UnicodeEncodeError:
        # JSON may spell half a surrogate pair, which no tokenizer takes.
        report.note("bad_lines", f"{document.where}: half a surrogate pair, which is no text")
        return None
    return document


def _count(names: Iterable[str], table: dict[str, int]) -> None:
    for name in names:
        table[name] = table.get(name, 0) + 1
