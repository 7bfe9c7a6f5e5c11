"""Stored activations in document order, without the rows that are left out for their norm.

Shards are memory-mapped, so that reading costs no more memory than what is asked for. Rows are numbered as if those
left out (`monolex.activations.outliers`) were not there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monolex import artifact
from monolex.activations import outliers
from monolex.config import require
from monolex.errors import UserError
from monolex.model.sites import select

KIND = "activations"
Split = Literal["train", "held_out"]


def shard_name(site: str, split: str, number: int) -> str:
    """Path of a shard inside the artefact; the site ``rows`` holds token, document, position and context."""
    return f"{site}/{split}-{number:05d}.safetensors"


def stamp(request: str, name: str) -> dict[str, str]:
    """What a shard says of itself: of which harvest (the hash of its request) it is which file."""
    return {"shard": f"{request} {name}"}


def stored_sites(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The sites of an activations artefact that ``names`` mean: all for none, `resid_post.*` for those of a kind.

    Raises:
        UserError: not a finished artefact, or a name that matches no stored site.
    """
    return select(names, tuple(artifact.open_artifact(folder, KIND).data["sites"]), str(folder))


@final
class Reader:
    """One site of an activations artefact, memory-mapped.

    Raises:
        UserError: no finished artefact, a damaged or misplaced shard, a site that is not stored, or a split of no rows.
    """

    def __init__(self, folder: str | Path, site: str, split: Split = "train") -> None:
        folder = Path(folder)
        require(split in ("train", "held_out"), f"split = {split!r}: choose train or held_out")
        manifest = artifact.open_artifact(folder, KIND)
        stored: dict[str, Any] = manifest.data["sites"]
        require(site in stored, f"{folder} holds no site {site!r}; it holds {', '.join(stored)}")
        self.folder, self.site = folder, site
        self.split: Split = split
        self.d_in: int = stored[site]["d_in"]
        self.dtype: str = stored[site]["dtype"]
        self.model: dict[str, Any] = manifest.data["model"]
        self.content: str = manifest.content
        self._request = manifest.request
        self.median_norm: float = stored[site]["median_norm"]
        self.norm_limit: float | None = stored[site]["norm_limit"]
        self._bounds = torch.tensor([0, *manifest.data["shards"][split]]).cumsum(0)
        self._left_out = _tensors(folder / outliers.FILE)[split]
        # How many rows that count lie before each that does not: row i stands behind those with at most i before them.
        self._before = self._left_out - torch.arange(len(self._left_out))
        self.n_rows = int(self._bounds[-1]) - len(self._left_out)
        require(self.n_rows > 0, f"{folder} holds no {split} rows; harvest more text or raise held_out")
        self._open: dict[tuple[str, int], dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"Reader({self.folder}, {self.site}, {self.split}: {self.n_rows} rows of {self.d_in}, {self.dtype})"

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """Rows ``start`` to ``stop`` in document order, as float32."""
        return self._range(self.site, "activations", start, stop).float()

    def tokens(self, start: int, stop: int) -> Int[Tensor, "rows"]:
        """Token id of each row."""
        return self._range("rows", "tokens", start, stop)

    def docs(self, start: int, stop: int) -> Int[Tensor, "rows"]:
        """Document id of each row."""
        return self._range("rows", "docs", start, stop)

    def positions(self, start: int, stop: int) -> Int[Tensor, "rows"]:
        """Position of each row's token in its packed row."""
        return self._range("rows", "positions", start, stop)

    def contexts(self, start: int, stop: int) -> Int[Tensor, "rows"]:
        """Number of the packed row that each row came from."""
        return self._range("rows", "contexts", start, stop)

    def chunks(self, size: int = 8192, limit: int | None = None) -> Iterator[tuple[int, Float[Tensor, "rows d_in"]]]:
        """All rows, or the first ``limit``, in document order: pairs of the first row's number and the rows."""
        end = self.n_rows if limit is None else min(limit, self.n_rows)
        for start in range(0, end, size):
            yield start, self.read(start, min(start + size, end))

    def gather(self, index: Int[Tensor, "rows"], *, raw: bool = False) -> Float[Tensor, "rows d_in"]:
        """The rows numbered ``index`` in that order, as float32, or with ``raw`` in the stored precision."""
        index = self._stored(index)
        shards = torch.bucketize(index, self._bounds, right=True) - 1
        used = shards.unique().tolist()
        if len(used) == 1:
            rows = self._shard(self.site, used[0])["activations"][index - self._bounds[used[0]]]
            return rows if raw else rows.float()
        dtypes = {self._shard(self.site, shard)["activations"].dtype for shard in used or [0]}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        out = torch.empty(len(index), self.d_in, dtype=dtype if raw else torch.float32)
        for shard in used:
            where = (shards == shard).nonzero()[:, 0]
            out[where] = self._shard(self.site, shard)["activations"][index[where] - self._bounds[shard]].to(out.dtype)
        return out

    def norms(self) -> Float[Tensor, "rows"]:
        """Norm of every row."""
        return self._range(self.site, "norms", 0, self.n_rows)

    def _stored(self, index: Int[Tensor, "rows"]) -> Int[Tensor, "rows"]:
        """Rows by their number among all that are stored."""
        return index + torch.bucketize(index, self._before, right=True) if len(self._before) else index

    def _range(self, site: str, name: str, start: int, stop: int) -> Tensor:
        assert 0 <= start <= stop <= self.n_rows, (start, stop, self.n_rows)
        begin, end = self._stored(torch.tensor([start, stop])).tolist()
        first = int(torch.bucketize(begin, self._bounds, right=True)) - 1
        parts = []
        for number in range(min(first, len(self._bounds) - 2), len(self._bounds) - 1):
            low = int(self._bounds[number])
            parts.append(self._shard(site, number)[name][max(begin - low, 0) : max(end - low, 0)])
            if end <= int(self._bounds[number + 1]):
                break
        return torch.cat(parts)[self._counting(begin, end)] if len(self._left_out) else torch.cat(parts)

    def _counting(self, begin: int, end: int) -> Bool[Tensor, "stored"]:
        """Which of the stored rows ``begin`` to ``end`` count."""
        counting = torch.ones(end - begin, dtype=torch.bool)
        low, high = torch.bucketize(torch.tensor([begin, end]), self._left_out).tolist()
        counting[self._left_out[low:high] - begin] = False
        return counting

    def _shard(self, site: str, number: int) -> dict[str, Tensor]:
        if (site, number) not in self._open:
            name = shard_name(site, self.split, number)
            self._open[site, number] = _tensors(self.folder / name, stamp(self._request, name))
        return self._open[site, number]


def _tensors(path: Path, expected: dict[str, str] | None = None) -> dict[str, Tensor]:
    """What a file holds, mapped; a file that says that it is another than ``expected`` is refused."""
    try:
        with safe_open(path, framework="pt") as file:
            says, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its manifest and harvest again") from error
    if expected and says and says != expected:
        other = str(says.get("shard")).partition(" ")[2]
        what = "of another harvest" if path.as_posix().endswith(other) else f"the file {other!r}"
        raise UserError(f"{path} is {what}, put in its place; delete its manifest and harvest again")
    return tensors
