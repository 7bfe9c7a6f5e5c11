"""Which files a corpus is read from, and how each of them is read."""

import errno
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from monolex.config import CorpusConfig, require
from monolex.errors import UserError
from monolex.text.records import FileKind, parse
from monolex.text.report import Report

PROSE_ENDINGS = frozenset((".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".xml"))
SCRIPT_ENDINGS = frozenset((".py", ".pyi", ".js", ".ts", ".rb", ".sh", ".sql", ".r", ".jl", ".lua", ".pl", ".php"))
COMPILED_ENDINGS = frozenset((".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".go", ".rs", ".swift", ".kt", ".hs", ".ml"))
TEXT_ENDINGS = PROSE_ENDINGS | SCRIPT_ENDINGS | COMPILED_ENDINGS
JSONL_ENDINGS = frozenset((".jsonl", ".ndjson"))
DATA_ENDINGS = frozenset((".json", ".csv", ".tsv"))
"""Read where they hold JSON lines, whatever they are called, and never as prose unless that is asked for."""
LONGEST_LINE = 2**26
"""Bytes of a first line that are looked at."""
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
    """The file, or the files of the folder and of those linked in it, that ``corpus`` names.

    ``report`` notes closed folders, and warns of files of data that are left out since they hold no JSON lines.

    Raises:
        UserError: no such path, a folder without a file to read, or a file of data that holds no JSON lines.
    """
    path = Path(config.corpus)
    require(
        path.exists(),
        f"corpus = {config.corpus!r}: no such file or folder; give a path, `stdlib`, or `hf:NAME` for a data set",
    )
    if not path.is_dir():
        return [DocumentSource(path.name, path, _kind(path, config))]
    lines = JSONL_ENDINGS | DATA_ENDINGS
    endings = {"auto": TEXT_ENDINGS | lines, "text": TEXT_ENDINGS}
    closed: list[OSError] = []
    names = walk(path, endings.get(config.corpus_format, lines), frozenset(), closed.append, linked=True)
    for error in closed:
        report.note("undecodable", f"{error.filename}: {error.strerror}")
    if closed and not names:
        raise closed[0]
    left_out = [name for name in names if _ending(path / name) in DATA_ENDINGS and _first_record(path / name) is None]
    names = sorted(set(names) - set(left_out))
    if left_out:
        report.warn(
            f"corpus = {config.corpus!r}: {len(left_out)} files that end in .json, .csv or .tsv are left out, since "
            f"they are not JSON lines (first: {left_out[0]}); write a JSON object a line"
        )
    require(
        len(names) > 0,
        f"corpus = {config.corpus!r}: the folder holds no file to read with corpus_format = "
        f"{config.corpus_format!r}; text files end in .txt, .md, .py and the like, others are JSON lines",
    )
    return [DocumentSource(name, path / name, _kind(path / name, config)) for name in names]


def walk(
    root: Path,
    endings: frozenset[str],
    excluded: frozenset[str],
    closed: Callable[[OSError], None] | None = None,
    *,
    linked: bool = False,
) -> list[str]:
    """Relative paths of the files below ``root`` with one of ``endings``, sorted.

    Hidden files and folders, and folders named in ``excluded``, are left out; ``closed`` is told of a folder that
    cannot be read. ``linked``: folders that are linked there are read too, each folder once.
    """
    names: list[str] = []
    read: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, onerror=closed, followlinks=linked):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in read:
            folders.clear()
            continue
        read.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if name not in excluded and not name.startswith(".")]
        # what lies there in its own right before what is linked, so that it has its own name
        folders.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        relative = Path(folder).relative_to(root)
        wanted = [Path(name) for name in files if not name.startswith(".")]
        if closed is not None and linked:
            # a folder that is linked and gone looks like a file
            for path in (Path(folder, name) for name in wanted if _ending(name) not in endings):
                if path.is_symlink() and not path.exists():
                    closed(FileNotFoundError(errno.ENOENT, "a link to nothing", str(path)))
        names += [(relative / name).as_posix() for name in wanted if _ending(name) in endings]
    return sorted(names)


def _kind(path: Path, config: CorpusConfig) -> FileKind:
    ending = _ending(path)
    if config.corpus_format != "auto":
        return config.corpus_format
    if ending in TEXT_ENDINGS:
        return "text"
    if ending in JSONL_ENDINGS:
        try:
            with path.open("rb") as file:
                first = next((record for line in file if (record := parse(line)) is not None), {})
        except OSError:
            return "jsonl"
    else:
        first = _first_record(path)
        if first is None and ending in DATA_ENDINGS:
            raise UserError(
                f"corpus = {config.corpus!r} is {_described(path)}, neither prose nor JSON lines: write a JSON object "
                f"with a field {config.text_field!r} a line, or read it as it stands by corpus_format = 'text'"
            )
        if first is None:
            return "text"
    return "chat" if "messages" in first else "jsonl"


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _first_record(path: Path) -> dict[str, Any] | None:
    """The JSON object that is the first line which is not blank; None if that is no such thing.

    Empty where the file cannot be opened, which is noted when it is read.
    """
    try:
        with path.open("rb") as file:
            return parse(next((line for line in iter(lambda: file.readline(LONGEST_LINE), b"") if line.strip()), b""))
    except OSError:
        return {}


def _described(path: Path) -> str:
    """What a file of data that holds no JSON lines is."""
    if _ending(path) != ".json":
        return "a table"
    with path.open("rb") as file:
        array = file.read(4096).decode("utf-8-sig", "replace").lstrip().startswith("[")
    return "a JSON array" if array else "JSON over several lines"
