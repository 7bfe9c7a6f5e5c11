"""Tokens of a corpus on which features are active, with all the text that the model saw before them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex.activations.reader import Reader
from monolex.activations.rule import EVERY_ROW, RowRule, row_rule
from monolex.activations.stored import packed_rows
from monolex.config import require
from monolex.dictionaries.base import Dictionary

POOL = 4096
ENCODED = 2**25
"""Codes held at once: a kind whose features compete must encode all of them to know one."""


class Occurrences(NamedTuple):
    """Some tokens on which a feature is active; contexts end at them."""

    tokens: Int[Tensor, "occurrences tokens"]
    """The packed row up to and with the token, as the model read it; padded with 0 on the right."""
    end: Int[Tensor, "occurrences"]
    """Position of the token."""
    activation: Float[Tensor, "occurrences"]
    """The feature's stored activation there."""
    doc: Int[Tensor, "occurrences"]
    """Its document."""
    maximum: float
    """M: the feature's largest activation in the split, 0 if it is dead."""
    active: int
    """Rows of the split in which it is active within the asked range."""
    mean: float
    """Its mean activation over all rows of the split, zeros included."""
    pool: Float[Tensor, "sampled"]
    """Its activations in up to :data:`POOL` random rows of the split, most of them zeros."""
    rule: RowRule = EVERY_ROW
    """Which activations count at its site."""


def occurrences(
    activations: Path,
    dictionary: Dictionary,
    features: Sequence[int],
    *,
    count: int,
    low: float = 0.0,
    split: Literal["train", "held_out"] = "train",
    seed: int = 0,
) -> dict[int, Occurrences]:
    """For each feature ``count`` random tokens on which its activation lies in (or on the ends of) ``[low·M, M]``.

    Each is of another document as long as there are any. Signed codes count by their positive side. One pass over the
    stored activations of the dictionary's site serves all features; those that are never active get no occurrences.

    Raises:
        UserError: no finished activations, or a feature that does not exist.
    """
    bad = [feature for feature in features if not 0 <= feature < dictionary.d_sae]
    require(not bad, f"feature {bad[:1]}: {dictionary} has features 0 to {dictionary.d_sae - 1}")
    reader = Reader(activations, dictionary.config.site, split)
    wanted = torch.tensor(list(features), dtype=torch.int64)
    chunks = reader.chunks(max(256, ENCODED // dictionary.d_sae))
    codes = torch.cat([dictionary.encode_some(x.to(dictionary.W_enc.device), wanted).cpu() for _, x in chunks])
    rows, docs = packed_rows(activations, split).tokens, reader.docs(0, len(reader))
    drawn = torch.randperm(len(reader), generator=torch.Generator().manual_seed(seed))[:POOL]
    by_feature = {}
    for column, feature in enumerate(features):
        maximum = codes[:, column].max().clamp_min(0)
        index = ((codes[:, column] > 0) & (codes[:, column] >= low * maximum)).nonzero()[:, 0]
        chosen = _spread(index, docs, count, seed)
        by_feature[feature] = Occurrences(
            *_with_contexts(reader, rows, chosen),
            activation=codes[chosen, column],
            doc=docs[chosen].long(),
            maximum=float(maximum),
            active=len(index),
            mean=float(codes[:, column].clamp_min(0).double().mean()),
            pool=codes[drawn, column].clamp_min(0),
            rule=row_rule(activations, dictionary.config.site),
        )
    return by_feature


def _spread(index: Int[Tensor, "active"], docs: Int[Tensor, "rows"], count: int, seed: int) -> Int[Tensor, "chosen"]:
    """``count`` of the rows ``index`` at random: first one of every document, then second ones, and so on."""
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))]
    doc = docs[index]
    order = doc.argsort(stable=True)
    first = torch.cat([torch.ones(1, dtype=torch.bool), doc[order].diff() != 0])[: len(order)]
    number = torch.arange(len(order))
    turn = number - torch.where(first, number, torch.zeros_like(number)).cummax(0).values if len(order) else number
    ranked = torch.empty_like(turn)
    ranked[order] = turn
    return index[ranked.argsort(stable=True)[:count]]


def _with_contexts(
    reader: Reader, rows: Int[Tensor, "rows context"], chosen: Int[Tensor, "chosen"]
) -> tuple[Int[Tensor, "chosen tokens"], Int[Tensor, "chosen"]]:
    """The text of every chosen row up to its token, and the token's position."""
    end = reader.positions(0, len(reader))[chosen].long()
    row = reader.contexts(0, len(reader))[chosen].long()
    width = int(end.max()) + 1 if len(end) else 0
    return rows[row, :width].long() * (torch.arange(width) <= end[:, None]), end
