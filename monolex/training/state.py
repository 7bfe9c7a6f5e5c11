"""The state of a sweep on disk: every rank writes its part, and any number of ranks read it to go on from there.

    FOLDER/state/state.json                       written last: the request, the step, its files
    FOLDER/state/STEP/RANK-of-RANKS.safetensors

A tensor with a row a feature is written by ranges of its rows, and read by whatever ranges are asked for. The state of
the step before is taken away once that of a step is whole.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monolex import tensor_file
from monolex.artifact import read_json, write_json
from monolex.errors import UserError
from monolex.ranks import here, world

STATE = "state"
INDEX = "state.json"
RANGES = "ranges"
"""Entry of a file's metadata: first row and number of all rows, of tensors that it holds a range of."""


class StatePart(NamedTuple):
    """A tensor of the state, or some of its rows."""

    tensor: Tensor
    """What there is of it."""
    begin: int = 0
    """Number of its first row."""
    rows: int | None = None
    """How many rows there are in all; None where all of it is there."""


def write(folder: Path, request: str, step: int, parts: Mapping[str, StatePart]) -> None:
    """Write this rank's parts of the state; called by all ranks, and whole when it returns to any.

    Raises:
        UserError: the disk is full.
    """
    home = folder / STATE
    name = f"{step}/{here.rank()}-of-{here.size()}.safetensors"
    ranges = {key: [part.begin, part.rows] for key, part in parts.items() if part.rows is not None}
    whole = {key: tensor_file.whole(part.tensor) for key, part in parts.items()}
    entry = tensor_file.write(home / name, whole, {RANGES: json.dumps(ranges)})
    written = world.world().told([name, entry.bytes])
    if here.rank() == 0:
        write_json(home / INDEX, {"request": request, "step": step, "files": dict(written)})
        for path in home.iterdir():
            if path.is_dir() and path.name != str(step):
                shutil.rmtree(path)
    world.wait()


def read(folder: Path) -> "SavedState | None":
    """The state that lies in ``folder``; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    return SavedState(folder / STATE) if (folder / STATE / INDEX).exists() else None


@final
class SavedState:
    """A state as it lies on disk; tensors are read as they are asked for.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, home: Path) -> None:
        raw = read_json(home / INDEX)
        self._home = home
        try:
            self.request: str = raw["request"]
            self.step: int = raw["step"]
            self._files = {home / name: size for name, size in raw["files"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise self._damaged(home / INDEX, error) from error
        self._places: dict[str, list[tuple[int, Path]]] = {}
        self._rows: dict[str, int] = {}
        for path, size in self._files.items():
            if not path.exists() or path.stat().st_size != size:
                raise self._damaged(path, "it is missing or cut short")
            try:
                with safe_open(path, framework="pt") as file:
                    ranges: dict[str, Any] = json.loads(file.metadata()[RANGES])
                    for name in file.keys():  # noqa: SIM118 (no mapping)
                        begin, rows = ranges.get(name, (0, -1))
                        self._places.setdefault(name, []).append((begin, path))
                        self._rows[name] = rows
            except (SafetensorError, KeyError) as error:
                raise self._damaged(path, error) from error

    def names(self, prefix: str) -> list[str]:
        """The tensors whose names begin with ``prefix``, without it."""
        return [name.removeprefix(prefix) for name in self._places if name.startswith(prefix)]

    def tensor(self, name: str) -> Tensor:
        """A tensor that is in one file."""
        with safe_open(self._places[name][0][1], framework="pt") as file:
            # a copy, for Windows replaces no file that is still mapped
            return file.get_tensor(name).clone()

    def rows(self, name: str, wanted: range) -> Tensor:
        """Rows of a tensor that is in ranges, from whichever files they are in."""
        parts = []
        for begin, path in sorted(self._places[name]):
            with safe_open(path, framework="pt") as file:
                stored = file.get_slice(name)
                count = stored.get_shape()[0]
                low, high = max(wanted.start - begin, 0), min(wanted.stop - begin, count)
                if low < high:
                    parts.append(stored[low:high].clone())
        joined = torch.cat(parts) if parts else torch.empty(0)
        if len(joined) != len(wanted):
            raise self._damaged(self._home, f"{name} lacks some of its rows")
        return joined

    def _damaged(self, path: Path, reason: object) -> UserError:
        return UserError(f"{path} is damaged ({reason}); delete {self._home} to train from the beginning")
