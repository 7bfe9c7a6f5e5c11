"""GGUF files: models as llama.cpp and its kin have them on disk, mostly quantised.

transformers reads them and dequantises every weight. What rounding took of the model they were made from is gone: how
far the two are apart is not known here and never said.
"""

import hashlib
import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

from monolex.errors import UserError

SUFFIX: Final = ".gguf"
_PACKAGES: Final = ("gguf", "accelerate")
_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")
_ENCODING: Final = re.compile(r"[.-]((?:I?Q\d\w*|TQ\d\w*|B?F16|F32|MXFP4\w*))$", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Whether a path is called as GGUF files are; it need not exist."""
    return path.suffix.lower() == SUFFIX


def require_readable(path: Path) -> None:
    """Check what can be known of a file before it is read.

    Raises:
        UserError: there is no such file, it is none of its kind or a part of several, or a package is missing.
    """
    said = f"model = {str(path)!r}"
    if not path.is_file():
        raise UserError(f"{said}: there is no such file")
    if _PART.search(path.stem):
        raise UserError(f"{said} is one of several parts: merge them by llama.cpp's `gguf-split --merge` first")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{said} does not begin as a GGUF file does: it may be damaged, or of another kind")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{said}: reading GGUF files needs {' and '.join(missing)}: pip install 'monolex[gguf]'")


def title(path: Path) -> str:
    """What pages call the model: the file's name, the encoding of its weights in brackets."""
    stem = path.name[: -len(SUFFIX)]
    encoding = _ENCODING.search(stem)
    return f"{stem[: encoding.start()]} ({encoding[1]})" if encoding else stem


def facts(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: SHA-256 of its bytes, their number, and how its tensors are encoded."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    encodings = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
    return {"sha256": sha256, "bytes": path.stat().st_size, "encodings": dict(encodings.most_common())}


def sentence(stored: dict[str, Any]) -> str:
    """What people are told of a model from such a file, by its :func:`facts`."""
    counts = ", ".join(f"{count} tensors {name}" for name, count in stored["encodings"].items())
    return (
        f"dequantised from GGUF ({counts}), SHA-256 {stored['sha256'][:12]}; how far that is from the weights before "
        "they were quantised is not known"
    )
