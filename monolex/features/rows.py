"""Rows of activations with what a person needs to read them: their token, the one before, and their fragment.

Rows come from stored activations (:class:`StoredRows`) or straight from the model (:class:`ModelRows`). Contexts are
*fragments*: packed rows cut at multiples of a length and wherever the document changes. The table holds 14 bytes a row;
the packed tokens stay where they are (memory-mapped, if they are stored).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, UInt16
from numpy.typing import NDArray
from torch import Tensor

from monolex.activations import outliers
from monolex.activations.forward import forward, kept
from monolex.activations.norms import row_norms
from monolex.activations.reader import Reader
from monolex.activations.rule import USUAL, RowFilter
from monolex.config import FeaturesConfig, require
from monolex.model.language_model import LanguageModel
from monolex.text.rows import Rows

SLICE = 2**20


class Fragments(NamedTuple):
    """Contexts of a harvest: fragments of packed rows, each of one document."""

    doc: Int32[NDArray, "fragments"]
    """Document."""
    row: Int32[NDArray, "fragments"]
    """Packed row."""
    start: Int32[NDArray, "fragments"]
    """First position in it."""
    length: Int32[NDArray, "fragments"]
    """Number of tokens."""


@dataclass(frozen=True, eq=False)
class RowTable:
    """What is known of every row but its activation."""

    token: Int32[NDArray, "rows"]
    """Index of its token in ``vocabulary``."""
    before: Int32[NDArray, "rows"]
    """Index of the token before it in its document and packed row; ``len(vocabulary)`` where there is none."""
    fragment: Int32[NDArray, "rows"]
    """Its fragment; ascends."""
    position: UInt16[NDArray, "rows"]
    """Its place in the fragment."""
    fragments: Fragments
    """All fragments of the packed rows."""
    vocabulary: Int32[NDArray, "vocabulary"]
    """Ids of the tokens that occur, ascending."""
    packed: Int32[NDArray, "packed context"]
    """Token ids of the packed rows."""

    def __len__(self) -> int:
        return len(self.token)

    def used(self) -> Int32[NDArray, "used"]:
        """Fragments that hold a row, ascending."""
        return self.fragment[np.flatnonzero(np.diff(self.fragment, prepend=-1))]

    def tokens_of(self, fragment: int) -> Int32[NDArray, "length"]:
        """Token ids of a fragment."""
        start = self.fragments.start[fragment]
        return self.packed[self.fragments.row[fragment], start : start + self.fragments.length[fragment]]


class RowSource(Protocol):
    """Rows of one site in document order."""

    @property
    def site(self) -> str: ...

    @property
    def table(self) -> RowTable: ...

    def chunks(self, size: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All rows in order, at most ``size`` at a time, float32."""
        ...


@final
class StoredRows:
    """Rows of an activations artefact.

    Raises:
        UserError: the corpus of the artefact is damaged.
    """

    def __init__(self, reader: Reader, packed: Rows, config: FeaturesConfig) -> None:
        self._reader = reader
        self._n = min(config.feature_rows or reader.n_rows, reader.n_rows)
        self.site = reader.site
        contexts, positions = (read(0, self._n).numpy() for read in (reader.contexts, reader.positions))
        self.table = tabulate(packed, contexts, positions, config.fragment_tokens)

    def chunks(self, size: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All rows in order, at most ``size`` at a time, float32."""
        return (x for _, x in self._reader.chunks(size, self._n))


@final
class ModelRows:
    """Rows straight from a model; nothing is stored.

    Those beyond ``row_filter.max_norm`` times their median norm are left out, for which the model runs over all rows
    once more (0 leaves none out and saves that).

    Raises:
        UserError: no such site, or no kept token.
    """

    def __init__(
        self,
        lm: LanguageModel,
        packed: Rows,
        site: str,
        config: FeaturesConfig,
        batch_rows: int = 16,
        row_filter: RowFilter = USUAL,
    ) -> None:
        self._lm, self._packed, self._batch = lm, packed, batch_rows
        lm.place(site)
        self.site = site
        self._keep = kept(lm, packed, row_filter.drop_bos).clone()  # which may be that of the caller's rows
        if row_filter.max_norm > 0:
            self._leave_out(row_filter.max_norm)
        contexts, positions = (index.int().numpy() for index in self._keep.nonzero(as_tuple=True))
        require(len(contexts) > 0, "no row is left to read: drop_bos, positions and roles leave nothing of the corpus")
        self._n = min(config.feature_rows or len(contexts), len(contexts))
        self.table = tabulate(packed, contexts[: self._n], positions[: self._n], config.fragment_tokens)

    def chunks(self, size: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All rows in order, at most ``size`` at a time, float32."""
        left = self._n
        for x in self._batches():
            yield from x[:left].float().split(size)
            left -= len(x)
            if left <= 0:
                return

    def _batches(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All kept rows in order."""
        for part in torch.arange(len(self._packed)).split(self._batch):
            if bool(self._keep[part].any()):
                yield forward(self._lm, self._packed, self._keep, part, [self.site]).values[self.site]

    def _leave_out(self, max_norm: float) -> None:
        norms = [row_norms(x).cpu() for x in self._batches()]
        if norms:
            every = torch.cat(norms)
            self._keep[self._keep.clone()] = ~outliers.beyond(every, outliers.limit(every, max_norm))


def tabulate(
    packed: Rows, contexts: Int32[NDArray, "rows"], positions: Int32[NDArray, "rows"], length: int
) -> RowTable:
    """The table of the rows at ``positions`` of the packed rows ``contexts``, in fragments of at most ``length``."""
    tokens, docs = packed.tokens.numpy(), packed.docs.numpy()
    new = _boundaries(docs, length)
    width = tokens.shape[1]
    starts = np.flatnonzero(new)
    fragments = Fragments(
        docs.reshape(-1)[starts].astype(np.int32),
        (starts // width).astype(np.int32),
        (starts % width).astype(np.int32),
        np.diff(starts, append=new.size).astype(np.int32),
    )
    number = new.reshape(-1).cumsum(dtype=np.int32)
    vocabulary = np.flatnonzero(np.bincount(tokens.reshape(-1)))
    index = np.zeros(int(vocabulary[-1]) + 1, np.int32)
    index[vocabulary] = np.arange(len(vocabulary))
    n = len(contexts)
    table = RowTable(
        token=np.empty(n, np.int32),
        before=np.empty(n, np.int32),
        fragment=np.empty(n, np.int32),
        position=np.empty(n, np.uint16),
        fragments=fragments,
        vocabulary=vocabulary.astype(np.int32),
        packed=tokens,
    )
    for start in range(0, n, SLICE):
        part = slice(start, start + SLICE)
        row, at = contexts[part], positions[part]
        table.token[part] = index[tokens[row, at]]
        follows = (at > 0) & (docs[row, at - 1] == docs[row, at])
        table.before[part] = np.where(follows, index[tokens[row, at - 1]], len(vocabulary))
        table.fragment[part] = number[row * np.int64(width) + at] - 1
        table.position[part] = at - fragments.start[table.fragment[part]]
    return table


def _boundaries(docs: Int32[NDArray, "packed context"], length: int) -> Bool[NDArray, "packed context"]:
    """Where a fragment begins."""
    new = np.zeros(docs.shape, bool)
    new[:, ::length] = True
    new[:, 1:] |= docs[:, 1:] != docs[:, :-1]
    return new
