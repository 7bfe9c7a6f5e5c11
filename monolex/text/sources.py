"""Which files a corpus is read from, and how each of them is read."""

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from monolex.config import CorpusConfig, require
from monolex.text.records import FileKind, parse
from monolex.text.report import Report

PROSE_ENDINGS = frozenset((".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".xml"))
SCRIPT_ENDINGS = frozenset((".py", ".pyi", ".js", ".ts", ".rb", ".sh", ".sql", ".r", ".jl", ".lua", ".pl", ".php"))
COMPILED_ENDINGS = frozenset((".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".go", ".rs", ".swift", ".kt", ".hs", ".ml"))
TEXT_ENDINGS = PROSE_ENDINGS | SCRIPT_ENDINGS | COMPILED_ENDINGS
JSONL_ENDINGS = frozenset((".jsonl", ".ndjson"))
STDLIB_EXCLUDED = frozenset(("test", "tests", "idlelib", "encodings", "lib2to3", "turtledemo", "ensurepip"))
STDLIB_EXCLUDED |= {"site-packages", "dist-packages", "__pycache__", "pydoc_data"}


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


def stdlib(config: CorpusConfig) -> list[DocumentSource]:
    """Topics of the running Python's help, then the modules of its standard library.

    Raises:
        UserError: another format than plain text is asked for.
    """
    require(
        config.corpus_format in ("auto", "text"),
        f"corpus_format = {config.corpus_format!r}: the stdlib corpus is plain text; leave it at 'auto'",
    )
    from pydoc_data.topics import topics  # most corpora do without its 700 kB

    root = Path(sysconfig.get_paths()["stdlib"])
    modules = [DocumentSource(name, root / name) for name in walk(root, frozenset((".py",)), STDLIB_EXCLUDED)]
    return [DocumentSource(f"topics/{name}", text=topics[name]) for name in sorted(topics)] + modules


def files_of(config: CorpusConfig, report: Report) -> list[DocumentSource]:
    """The file, or the files of the folder, that ``corpus`` names; ``report`` notes closed folders.

    Raises:
        UserError: no such path, or a folder without a file to read.
    """
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
            first = next((record for line in file if (record := parse(line)) is not None), {})
    except OSError:
        return "jsonl"
    return "chat" if "messages" in first else "jsonl"
