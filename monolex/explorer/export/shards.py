"""Data as scripts: a page that is opened from a disk may load a script, and may read no other file.

A shard is one call, ``monolexShard("NAME", "DATA")``; DATA is JSON, deflated (RFC 1951) and in base64, which takes a
quarter of its room and which browsers since 2023 undo by themselves.
"""

import base64
import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

from monolex.artifact import FileEntry
from monolex.errors import UserError

FOLDER = "data"
"""Of an export, where its shards lie."""
_CALL = re.compile(r'monolexShard\("([\w/.-]+)", "([A-Za-z0-9+/=]*)"\);\n')


def shard_path(name: str) -> str:
    """Path of a shard from the root of an export."""
    return f"{FOLDER}/{name}.js"


def packed(name: str, value: Any) -> bytes:
    """The script of a shard."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL + 1)
    data = deflate.compress(text.encode()) + deflate.flush()
    return f'monolexShard("{name}", "{base64.b64encode(data).decode()}");\n'.encode()


def unpacked(script: bytes) -> tuple[str, Any]:
    """Name and value of a shard.

    Raises:
        ValueError: it is none.
    """
    call = _CALL.fullmatch(script.decode())
    if call is None:
        raise ValueError("no shard of an export")
    return call[1], json.loads(zlib.decompress(base64.b64decode(call[2]), -zlib.MAX_WBITS))


def write(root: Path, path: str, content: bytes) -> tuple[str, FileEntry]:
    """Write a file of an export that is being made; its path from the root, size and hash.

    Its folder has a temporary name until all is written, so files are not renamed one by one.

    Raises:
        UserError: the disk is full or not writable.
    """
    file = root / path
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; free some space or choose another folder") from error
    return path, FileEntry(len(content), hashlib.sha256(content).hexdigest())
