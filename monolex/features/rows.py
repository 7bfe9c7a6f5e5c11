"""What is read: activations of one site in document order, with the token, document and context of every row.

Rows come from stored activations or straight from the model; both give the same numbers where they are stored in the
model's precision. Contexts are *fragments*: packed rows cut at multiples of a length and wherever a document ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from monolex.config import FeaturesConfig
from monolex.corpus import Rows
from monolex.errors import UserError
from monolex.features.store import Fragments
from monolex.model import LanguageModel
from monolex.reader import Reader, forward, kept


class RowSource(Protocol):
    """Activations of one site in document order and the packed rows that they come from."""

    @property
    def site(self) -> str: ...
    @property
    def d_in(self) -> int: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def packed(self) -> Rows: ...
    def places(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Packed row and position of every row."""
        ...

    def chunks(self, size: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All rows in order, at most ``size`` at a time."""
        ...


class StoredRows:
    """The first rows of a split of stored activations.

    Raises:
        UserError: the site is not stored, or the artefact is damaged.
    """

    def __init__(self, folder: Path, site: str, config: FeaturesConfig) -> None:
        self._reader = Reader(folder, site, config.split)
        self.site, self.d_in = site, self._reader.d_in
        self.n_rows = min(self._reader.n_rows, config.feature_rows or self._reader.n_rows)
        path = folder / "corpus.safetensors"
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); delete its manifest and harvest again") from error
        self.packed = Rows(*(tensors[f"{config.split}.{name}"] for name in ("tokens", "docs", "keep")))

    def places(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Packed row and position of every row."""
        of = self._reader
        return of.contexts(0, self.n_rows).numpy(), of.positions(0, self.n_rows).numpy()

    def chunks(self, size: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All rows in order, at most ``size`` at a time."""
        for _, x in self._reader.chunks(size, self.n_rows):
            yield x


class ModelRows:
    """The kept tokens of packed rows, run through the model as they are asked for; nothing is stored."""

    def __init__(
        self, lm: LanguageModel, site: str, packed: Rows, *, drop_bos: bool = True, batch_rows: int = 16
    ) -> None:
        self._lm, self._batch, self.site, self.d_in, self.packed = lm, batch_rows, site, lm.width(site), packed
        self._keep: Bool[Tensor, "rows context"] = kept(lm, packed, drop_bos)
        self.n_rows = int(self._keep.sum())

    def places(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Packed row and position of every row."""
        row, position = self._keep.nonzero(as_tuple=True)
        return row.int().numpy(), position.int().numpy()

    def chunks(self, size: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All rows in order, at most ``size`` at a time."""
        for part in torch.arange(len(self.packed)).split(self._batch):
            if bool(self._keep[part].any()):
                x = forward(self._lm, self.packed, self._keep, part, [self.site]).values[self.site]
                yield from x.float().cpu().split(size)


@dataclass(frozen=True)
class RowTable:
    """Of every row the fragment, the token and the one before it: 16 bytes a row, and 4 a packed token."""

    fragments: Fragments
    """All fragments in document order."""
    fragment: Int32[NDArray, "rows"]
    """Fragment of each row, ascending."""
    position: Int32[NDArray, "rows"]
    """Position of each row in its fragment."""
    token: Int32[NDArray, "rows"]
    """Token id of each row."""
    before: Int32[NDArray, "rows"]
    """Token before it in the same document and packed row; -1 for none."""
    used: Int32[NDArray, "used"]
    """Fragments with at least one row."""
    tokens: Int32[NDArray, "packed context"]
    """The packed rows."""

    def context(self, fragment: int) -> Int32[NDArray, "length"]:
        """Token ids of a fragment."""
        of, start = self.fragments, int(self.fragments.start[fragment])
        return self.tokens[int(of.row[fragment]), start : start + int(of.length[fragment])]


def table(source: RowSource, fragment_tokens: int) -> RowTable:
    """Where the rows of ``source`` stand in its text."""
    tokens, docs = source.packed.tokens.numpy(), source.packed.docs.numpy()
    first = np.ones(docs.shape, bool)
    first[:, 1:] = docs[:, 1:] != docs[:, :-1]
    start = first.copy()
    start[:, ::fragment_tokens] = True
    number = (np.cumsum(start.ravel(), dtype=np.int32) - 1).reshape(docs.shape)
    row, position = (part.astype(np.int32) for part in np.nonzero(start))
    ends = np.append(np.flatnonzero(start.ravel())[1:], start.size)
    fragments = Fragments(
        docs[row, position].astype(np.int32), row, position, (ends - np.flatnonzero(start.ravel())).astype(np.int32)
    )
    context, place = source.places()
    fragment = number[context, place]
    before = np.where(first[context, place], -1, tokens[context, place - 1]).astype(np.int32)
    return RowTable(
        fragments,
        fragment,
        (place - fragments.start[fragment]).astype(np.int32),
        tokens[context, place].astype(np.int32),
        before,
        np.unique(fragment).astype(np.int32),
        tokens,
    )
