"""Tensors written to a safetensors file piece by piece, for those that are too large to be copied, or lie elsewhere.

The library's own writer wants all of a file in memory at once, beside the tensors. What is written here is read by it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from monolex.artifact import FileEntry, replacing

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""As the format calls them."""
ALIGNED = 8
"""Bytes that a header's length is a multiple of."""
BLOCK = 2**22
"""Numbers that are copied at once."""


class Pieces(NamedTuple):
    """A tensor that comes in pieces along its first dimension."""

    shape: tuple[int, ...]
    """Of all of it."""
    dtype: torch.dtype
    """Of every piece."""
    pieces: Iterable[Tensor]
    """In order; taken once, when their turn comes."""


def blocks(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor as pieces on the CPU of some :data:`BLOCK` numbers."""
    rows = max(1, BLOCK // max(1, prod(tensor.shape[1:])))
    for part in tensor.detach().split(rows) if tensor.ndim else (tensor.detach(),):
        yield part.cpu().contiguous()


def whole(tensor: Tensor) -> Pieces:
    """A tensor that is all there."""
    return Pieces(tuple(tensor.shape), tensor.dtype, blocks(tensor))


def write(path: Path, tensors: Mapping[str, Pieces], metadata: Mapping[str, str] | None = None) -> FileEntry:
    """Write a safetensors file under a temporary name and rename it; its size and hash.

    Raises:
        UserError: the disk is full or not writable.
    """
    # the format wants tensors of wider numbers first, so that all are aligned
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        shape, dtype, _ = tensors[name]
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    said = json.dumps(header, separators=(",", ":")).encode()
    said += b" " * (-len(said) % ALIGNED)
    digest = hashlib.sha256()
    with replacing(path) as file:
        for content in _contents(said, [tensors[name] for name in order]):
            file.write(content)
            digest.update(content)
        length = file.tell()
        assert length == 8 + len(said) + end, (path, length, end)
    return FileEntry(length, digest.hexdigest())


def _contents(said: bytes, tensors: Iterable[Pieces]) -> Iterator[bytes | memoryview]:
    yield len(said).to_bytes(8, "little") + said
    for _, dtype, pieces in tensors:
        for piece in pieces:
            assert piece.dtype == dtype, (piece.dtype, dtype)
            if piece.numel():
                yield piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
