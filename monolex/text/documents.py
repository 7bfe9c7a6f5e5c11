"""Where text comes from: files, folders, JSONL, chats, Hugging Face datasets and the running Python's own library.

Finite sources are first listed as addresses (file, byte offset), then read in a seeded shuffled order, so that any
prefix is a fair sample and memory holds no text but the document at hand. What cannot be read is counted and named in
the :class:`Report`, never fatal.
"""

import dataclasses
import json
import os
import sysconfig
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from monolex.config import CorpusConfig, require
from monolex.errors import UserError
from monolex.text import chats

Fault = Literal["empty", "bad_lines", "undecodable"]
FileKind = Literal["text", "jsonl", "chat"]

PROSE_ENDINGS = frozenset((".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".xml"))
SCRIPT_ENDINGS = frozenset((".py", ".pyi", ".js", ".ts", ".rb", ".sh", ".sql", ".r", ".jl", ".lua", ".pl", ".php"))
COMPILED_ENDINGS = frozenset((".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".go", ".rs", ".swift", ".kt", ".hs", ".ml"))
TEXT_ENDINGS = PROSE_ENDINGS | SCRIPT_ENDINGS | COMPILED_ENDINGS
JSONL_ENDINGS = frozenset((".jsonl", ".ndjson"))

STDLIB_EXCLUDED = frozenset(("test", "tests", "idlelib", "encodings", "lib2to3", "turtledemo", "ensurepip"))
STDLIB_EXCLUDED |= {"site-packages", "dist-packages", "__pycache__", "pydoc_data"}
STREAM_BUFFER = 10_000
NAMED_PROBLEMS = 20


@dataclass
class Report:
    """What reading and packing a corpus met."""

    documents: int = 0
    """Documents read, train and held-out."""
    characters: int = 0
    """Characters of their text."""
    tokens: int = 0
    """Their tokens, separators included."""
    dropped_tokens: int = 0
    """Tokens after the last full row of either split."""
    empty: int = 0
    """Documents without text."""
    bad_lines: int = 0
    """Lines or records without usable text: no JSON, no text field, a malformed chat."""
    undecodable: int = 0
    """Files and folders that cannot be opened, and files that are not UTF-8."""
    problems: list[str] = field(default_factory=list)
    """The first of these by name, e.g. `file.jsonl:17: not JSON`."""
    fields: dict[str, int] = field(default_factory=dict)
    """Fields of the records that lack the text field, with their counts."""
    roles: dict[str, int] = field(default_factory=dict)
    """Messages with text by role (chats only)."""

    def note(self, fault: Fault, what: str) -> None:
        """Count ``fault`` and keep its name if it is among the first."""
        setattr(self, fault, getattr(self, fault) + 1)
        if len(self.problems) < NAMED_PROBLEMS:
            self.problems.append(what)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.documents} documents", f"{self.tokens} tokens"]
        faults = {"empty": self.empty, "bad lines": self.bad_lines, "undecodable": self.undecodable}
        parts += [f"{count} {name}" for name, count in faults.items() if count]
        return ", ".join(parts) + (f" (first: {self.problems[0]})" if self.problems else "")


class Document(NamedTuple):
    """One text to learn from."""

    text: str
    """Never empty, always encodable as UTF-8."""
    where: str
    """File and line, for people."""
    spans: tuple[chats.Span, ...] | None = None
    """Contents of the messages of a chat; None for plain text."""


class DocumentSource(NamedTuple):
    """One file, or one text that lies in memory."""

    name: str
    """For people; also what sources are sorted by."""
    path: Path | None = None
    """None for a text in memory."""
    kind: FileKind = "text"
    """How the file is read."""
    text: str = ""
    """The text in memory."""


def documents(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, report: Report) -> Iterator[Document]:
    """Documents in seeded order; faults go to ``report``.

    Raises:
        UserError: no such path, a folder without text, a chat for a tokenizer without template, or a data set that
            cannot be opened.
    """
    if config.corpus.startswith("hf:"):
        yield from _stream(config, tokenizer, report)
        return
    sources = _stdlib(config) if config.corpus == "stdlib" else _files(config, report)
    if any(source.kind == "chat" for source in sources):
        chats.require_template(tokenizer)
    index = _index(sources, report)
    for row in np.random.default_rng(config.corpus_seed).permutation(len(index)):
        number, offset, line = index[row].tolist()
        document = _read(sources[number], offset, line, config, tokenizer, report)
        if document is not None:
            yield document


def _stdlib(config: CorpusConfig) -> list[DocumentSource]:
    require(
        config.corpus_format in ("auto", "text"),
        f"corpus_format = {config.corpus_format!r}: the stdlib corpus is plain text; leave it at 'auto'",
    )
    from pydoc_data.topics import topics  # most corpora do without its 700 kB

    root = Path(sysconfig.get_paths()["stdlib"])
    modules = [DocumentSource(name, root / name) for name in walk(root, frozenset((".py",)), STDLIB_EXCLUDED)]
    return [DocumentSource(f"topics/{name}", text=topics[name]) for name in sorted(topics)] + modules


def _files(config: CorpusConfig, report: Report) -> list[DocumentSource]:
    path = Path(config.corpus)
    require(
        path.exists(),
        f"corpus = {config.corpus!r}: no such file or folder; give a path, `stdlib`, or `hf:NAME` for a data set",
    )
    if not path.is_dir():
        return [DocumentSource(path.name, path, _kind(path, config))]
    endings = {"auto": TEXT_ENDINGS | JSONL_ENDINGS, "text": TEXT_ENDINGS}
    closed: list[OSError] = []
    names = walk(path, endings.get(config.corpus_format, JSONL_ENDINGS), frozenset(), closed.append)
    for error in closed:
        report.note("undecodable", f"{error.filename}: {error.strerror}")
    if closed and not names:
        raise closed[0]
    require(
        len(names) > 0,
        f"corpus = {config.corpus!r}: the folder holds no file to read with corpus_format = "
        f"{config.corpus_format!r}; text files end in .txt, .md, .py and the like, others in .jsonl",
    )
    return [DocumentSource(name, path / name, _kind(path / name, config)) for name in names]


def walk(
    root: Path, endings: frozenset[str], excluded: frozenset[str], closed: Callable[[OSError], None] | None = None
) -> list[str]:
    """Relative paths of the files below ``root`` with one of ``endings``, sorted.

    Hidden files and folders, and folders named in ``excluded``, are left out; ``closed`` is told of a folder that
    cannot be read.
    """
    names = []
    for folder, folders, files in os.walk(root, onerror=closed):
        folders[:] = [name for name in folders if name not in excluded and not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        wanted = (Path(name) for name in files if not name.startswith("."))
        names += [(relative / name).as_posix() for name in wanted if name.suffix.lower() in endings]
    return sorted(names)


def _kind(path: Path, config: CorpusConfig) -> FileKind:
    if config.corpus_format != "auto":
        return config.corpus_format
    if path.suffix.lower() not in JSONL_ENDINGS:
        return "text"
    try:
        with path.open("rb") as file:
            first = next((record for line in file if (record := _parse(line)) is not None), {})
    except OSError:
        return "jsonl"
    return "chat" if "messages" in first else "jsonl"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


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
        return _checked(Document(source.text, source.name), report)
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
            return _checked(Document(text, source.name), report)
        where = f"{source.name}:{line}"
        record = _parse(raw)
        if record is not None:
            return _from_record(record, source.kind, where, config.text_field, tokenizer, report)
        report.note("bad_lines", f"{where}: not a JSON object")
    return None


def _from_record(
    record: Mapping[str, Any],
    kind: FileKind,
    where: str,
    text_field: str,
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
) -> Document | None:
    if kind == "chat":
        try:
            text, spans = chats.render(tokenizer, record.get("messages"))
        except ValueError as error:
            report.note("bad_lines", f"{where}: {error}")
            return None
        _count((span.role for span in spans), report.roles)
        return _checked(Document(text, where, tuple(spans)), report)
    text = record.get(text_field)
    if isinstance(text, str):
        return _checked(Document(text, where), report)
    if text_field not in record:
        _count(record, report.fields)
    report.note("bad_lines", f"{where}: no text in field {text_field!r}")
    return None


def _count(names: Iterable[str], table: dict[str, int]) -> None:
    for name in names:
        table[name] = table.get(name, 0) + 1


def _checked(document: Document, report: Report) -> Document | None:
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
        document = _from_record(record, kind, f"{name}:{number}", config.text_field, tokenizer, report)
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
