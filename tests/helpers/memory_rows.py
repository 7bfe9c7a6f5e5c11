"""Activations in memory with the interface of a reader: what fitting needs and no more."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class MemoryRows:
    """Rows of one site, served as :class:`monolex.activations.reader.Reader` serves those of an artefact."""

    def __init__(self, rows: Tensor, site: str = "resid_post.0") -> None:
        self.rows = rows
        self.site = site
        self.n_rows, self.d_in = rows.shape
        self.model: dict[str, Any] = {"name": "tiny", "fingerprint": "f" * 64}
        self.served = 0

    def chunks(self, size: int = 8192, limit: int | None = None) -> Iterator[tuple[int, Tensor]]:
        start = 0
        for chunk in self.rows[:limit].split(size):
            self.served += len(chunk)
            yield start, chunk
            start += len(chunk)

    def gather(self, index: Tensor) -> Tensor:
        self.served += len(index)
        return self.rows[index]


def gaussian_rows(n_rows: int, d_in: int, seed: int = 0) -> Tensor:
    """Correlated rows with a mean away from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d_in, d_in, generator=generator)
    return torch.randn(n_rows, d_in, generator=generator) @ mixing + torch.randn(d_in, generator=generator)


def skewed_sources(n_rows: int, count: int, seed: int = 0) -> Tensor:
    """Independent sources of unit variance with one heavy tail, the positive one."""
    uniform = torch.rand(n_rows, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -torch.log1p(-uniform) - 1


def skewed_rows(n_rows: int, d_in: int, seed: int = 0) -> Tensor:
    """Mixed sources with a mean away from zero: rows that have independent axes, as those of a normal law have not."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d_in, d_in, generator=generator)
    return skewed_sources(n_rows, d_in, seed).float() @ mixing + torch.randn(d_in, generator=generator)
