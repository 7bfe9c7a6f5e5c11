"""Files of JSON as other tools have them: whole, or a value a line, plain or compressed."""

import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monolex.errors import UserError

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def documents(path: Path) -> list[tuple[str, Any]]:
    """What lies in a file: pairs of a place in it, empty where it is one value, and the value.

    Raises:
        UserError: no such file, no file of JSON by its ending, or a damaged one.
    """
    if not path.name.endswith(ENDINGS):
        raise UserError(f"{path} does not end as a file of JSON does ({', '.join(ENDINGS)}); give one that does")
    text = _text(path)
    if ".jsonl" not in path.name:
        return [("", _parsed(text, str(path)))]
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    return [(f"line {number}", _parsed(line, f"{path}, line {number}")) for number, line in lines]


def compact(value: Any) -> bytes:
    """JSON without spaces, every letter as it is. NaN is refused."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def compressed_lines(rows: Iterable[Any]) -> bytes:
    """Rows as lines of JSON, compressed; the same rows give the same bytes."""
    return gzip.compress(b"".join(compact(row) + b"\n" for row in rows), mtime=0)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; give the files in it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}); fetch it again") from error
