"""Fragments of a corpus: rows of stored activations that are neighbouring tokens of one document.

In ``paper`` mode there is one fragment a document, at a random place in it (paper, A); in ``modern`` mode as many as
fit. The activations are those of the whole packed row, so that a fragment's first tokens have seen what stands before
it; the paper's released code ran the model on every fragment alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int32, Int64
from numpy.typing import NDArray

from monolex.activations.reader import Reader
from monolex.config import require
from monolex.interp.config import ExplainConfig
from monolex.model.language_model import LanguageModel
from monolex.text.rows import Rows
from monolex.text.vocabulary import Texts


class CorpusFragments(NamedTuple):
    """Fragments of one model's text, in document order."""

    start: Int64[NDArray, "fragments"]
    """Row of the first token among the activations' rows; the others follow it."""
    doc: Int64[NDArray, "fragments"]
    """Document."""
    tokens: Int32[NDArray, "fragments tokens"]
    """Token ids."""
    left_out: Mapping[str, int]
    """Documents and fragments that were left out, by reason."""

    @property
    def length(self) -> int:
        """Tokens of a fragment."""
        return self.tokens.shape[1]

    def rows(self, numbers: Int64[NDArray, "chosen"] | slice = slice(None)) -> torch.Tensor:
        """The activations' rows of the fragments with these numbers, ``[chosen, tokens]``."""
        return torch.from_numpy(self.start[numbers][:, None] + np.arange(self.length))


def cut_fragments(reader: Reader, packed: Rows, config: ExplainConfig) -> CorpusFragments:
    """Cut the rows of ``reader`` into fragments as ``config`` says; beyond its limit, those kept are drawn at random.

    Documents in which fewer tokens than a fragment has were kept in one packed row are left out. Fragments that begin
    or end within a character are not, as they were in the released code: of a text in Chinese that leaves few.

    Raises:
        UserError: there is no fragment.
    """
    length, limit = config.fragment_tokens, config.fragments
    context, position = reader.contexts(0, len(reader)).numpy(), reader.positions(0, len(reader)).numpy()
    doc = reader.docs(0, len(reader)).numpy().astype(np.int64)
    first = np.arange(max(len(doc) - length + 1, 0))
    last = first + length - 1
    whole = (context[first] == context[last]) & (doc[first] == doc[last]) & (position[last] - position[first] < length)
    rng = np.random.default_rng(config.explain_seed)
    if config.mode == "paper":
        start = _one_a_document(first[whole], doc, rng)
    else:
        start = _side_by_side(first[whole], doc, context, length)
    documents = len(np.unique(doc))
    left_out = {f"documents without {length} kept tokens in a row": documents - len(np.unique(doc[start]))}
    tokens = packed.tokens.numpy()[context[start][:, None], position[start][:, None] + np.arange(length)]
    if len(start) > limit:
        kept = np.sort(rng.permutation(len(start))[:limit])
        left_out["fragments beyond the limit"] = len(start) - limit
        start, tokens = start[kept], tokens[kept]
    require(
        len(start) > 0,
        f"no document has {length} kept tokens in a row: lower fragment_tokens, or harvest longer documents",
    )
    reasons = {why: count for why, count in left_out.items() if count}
    return CorpusFragments(start, doc[start], tokens.astype(np.int32), reasons)


def _one_a_document(first: NDArray, doc: NDArray, rng: np.random.Generator) -> NDArray:
    """Of the possible beginnings one a document, each as likely as the others."""
    # sorted by document and luck, the first of every document is a fair draw: no loop over documents
    luck = rng.permutation(len(first))
    order = np.lexsort((luck, doc[first]))
    new = np.diff(doc[first][order], prepend=-1) != 0
    return first[order[new]]


def _side_by_side(first: NDArray, doc: NDArray, context: NDArray, length: int) -> NDArray:
    """Beginnings of fragments that do not overlap, from the beginning of every stretch of rows on."""
    if not len(first):
        return first
    # a possible beginning that does not directly follow another opens a stretch; every length-th of its rows is taken
    opens = np.ones(len(first), bool)
    opens[1:] = (np.diff(first) != 1) | (np.diff(doc[first]) != 0) | (np.diff(context[first]) != 0)
    stretch_start = first[np.flatnonzero(opens)][opens.cumsum() - 1]
    return first[(first - stretch_start) % length == 0]


def texts_of(tokens: NDArray, lm: LanguageModel) -> dict[int, str]:
    """The text of every token that occurs."""
    return dict(Texts(lm).of(np.unique(tokens).tolist()))
