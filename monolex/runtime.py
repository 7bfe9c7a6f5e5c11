"""Device, seeds, logging, progress bars, metrics.jsonl, memory and disk: what every stage needs of the machine.

torch is imported by the functions that use it: the command line imports this module and answers ``--help`` without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from monolex import bars, windows
from monolex.artifact import write_bytes
from monolex.errors import UserError
from monolex.ranks import here

if TYPE_CHECKING:
    import torch

log = logging.getLogger("monolex")


def device(name: str = "auto") -> torch.device:
    """The torch device called ``name``; ``auto`` prefers CUDA, then MPS, then the CPU. Ranks take their GPUs by number.

    Raises:
        UserError: the device does not exist here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and here.size() > 1:
        name = f"cuda:{here.local_rank()}"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device = {name!r} is not available here; use `auto` or `cpu`") from error
    return chosen


@contextmanager
def threads(most: int) -> Iterator[None]:
    """At most ``most`` threads for torch's CPU kernels inside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(most, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generator(*parts: Any, on: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a hash of ``parts``, so that streams with different names never share numbers."""
    import torch

    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator(device=on).manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))


def progress(total: int | None, desc: str, unit: str = "it") -> tqdm:
    """A progress bar on stderr with rate and time left; used as a context manager with ``.update(n)``.

    Where stderr is no terminal a line is written at most every five seconds. Of several ranks the first has one.
    """
    quiet = not sys.stderr.isatty()
    bar = tqdm(
        total=total,
        desc=desc,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=not quiet,
        mininterval=5.0 if quiet else 0.1,
        maxinterval=30.0,
        leave=not bars.shared(),
        disable=here.rank() > 0,
        position=bars.next_line(),
    )
    bars.add(bar)
    return bar


def setup_logging() -> None:
    """Send the log of the command line to stderr, without breaking progress bars."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            clear = bars.CLEAR_BELOW if bars.shared() else ""
            tqdm.write(clear + self.format(record), file=sys.stderr)

    handler = Handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO if here.rank() == 0 else logging.ERROR)
    log.propagate = False


class Metrics:
    """metrics.jsonl: one JSON object a line, appended; a resumed run first drops what lies beyond its step."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        kept = [row for row in read_jsonl(path) if row["step"] <= resume_step] if path.exists() else []
        write_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file: TextIO = path.open("a", encoding="utf-8", newline="\n")

    def write(self, row: dict[str, Any]) -> None:
        """Append ``row``, which must have an integer ``step``.

        Raises:
            UserError: the disk is full.
        """
        line = json.dumps(row) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise unwritable(Path(self._file.name), len(line), error.strerror) from error

    def close(self) -> None:
        self._file.close()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; a last line cut short by a kill is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


def require_disk(
    folder: Path, needed: int, what: str, fix: str = "lower max_tokens, store fewer sites or choose another folder"
) -> None:
    """Refuse work whose output cannot fit; ``fix`` is what the user may do about it.

    Raises:
        UserError: fewer than ``needed`` bytes (and a tenth more) are free where ``folder`` lies.
    """
    existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed * 1.1 > free:
        raise UserError(f"{what} needs {size(needed)} but {existing} has {size(free)} free; {fix}")


def unwritable(path: Path, size_bytes: int, reason: object) -> UserError:
    """What to say where ``size_bytes`` could not be written to ``path``."""
    folder = next(p for p in path.absolute().parents if p.exists())
    room = f"{folder} has {size(shutil.disk_usage(folder).free)} free"
    return UserError(f"cannot write {size(size_bytes)} to {path}: {reason}; {room}: make room or choose another folder")


def size(count: float) -> str:
    """Bytes for a person: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def free_memory(where: torch.device) -> int:
    """Bytes that are free on ``where``."""
    import torch

    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return windows.free_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage on Linux also counts the process that this one was started from
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return windows.peak_memory()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
