"""The evidence of one dictionary: from its active codes by feature into its store, a block of features at a time.

Memory: ``memory_mb``, 20 bytes a row (the row table) and the weights; whatever the width.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolex.config import FeaturesConfig
from monolex.dictionaries.base import Dictionary
from monolex.features import contexts, numbers, weights
from monolex.features.coactive import Together
from monolex.features.contexts import Chosen, Maxima
from monolex.features.rows import RowTable
from monolex.features.spill import Block, Codes
from monolex.features.store import Writer
from monolex.model import LanguageModel
from monolex.sites import Site


class Gathered:
    """What a store needs beside the rows of its features: which contexts and tokens it mentions."""

    def __init__(self, table: RowTable, tokens: int) -> None:
        self.contexts = np.zeros(len(table.fragments.doc), bool)
        self.tokens = np.zeros(max(tokens, int(table.tokens.max(initial=0)) + 1), bool)


def gather(
    path: Path,
    dictionary: Dictionary,
    codes: Codes,
    table: RowTable,
    lm: LanguageModel,
    config: FeaturesConfig,
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the store of one dictionary and return its meta; nothing is left at ``path`` if it fails."""
    writer = Writer(path)
    try:
        made = {**meta, **_fill(writer, dictionary, codes, table, lm, config)}
        writer.finish(made)
    except BaseException:
        writer.abandon()
        raise
    return made


def _fill(
    writer: Writer, dictionary: Dictionary, codes: Codes, table: RowTable, lm: LanguageModel, config: FeaturesConfig
) -> dict[str, Any]:
    known = len(lm.tokenizer) if lm.tokenizer is not None else lm.vocab_size
    tokens = min(known, lm.vocab_size)
    seen = Gathered(table, tokens)
    together = Together(codes.sample(), dictionary.d_sae)
    facts: dict[str, Any] = {"rows": len(table.token), "coactive_rows": together.rows, "alive": 0}
    facts |= _weights(writer, dictionary, lm, tokens, seen, config)
    cosines = _token_cosines(dictionary, lm, tokens, seen)
    for block in codes.blocks(config.memory_mb * 1_000_000):
        facts["alive"] += _block(writer, block, table, cosines, seen, config)
        size = len(block.offsets) - 1
        feature, other, both, jaccard = together.nearest(block.first, block.first + size, config.neighbours)
        rank = np.arange(len(feature)) - np.searchsorted(feature, feature)
        _insert(writer, "coactive", feature + block.first, rank, other, both, jaccard)
    writer.insert("context", _contexts(table, seen), 5)
    writer.insert("vocabulary", _vocabulary(lm, seen), 2)
    return facts


def _block(
    writer: Writer,
    block: Block,
    table: RowTable,
    cosines: list[NDArray],
    seen: Gathered,
    config: FeaturesConfig,
) -> int:
    """All that comes from the activations of a block of features; returns how many of them are alive."""
    feature, size = numbers.feature_of(block), len(block.offsets) - 1
    moments = numbers.moments(block, len(table.token))
    bin_of = numbers.bins(block, feature, moments.peak)
    on, after = numbers.entry_tokens(block, table)
    listed, where = numbers.token_table(block, feature, on, config.tokens)
    before, _ = numbers.token_table(block, feature, after, config.tokens)
    maxima = contexts.maxima(block, feature, table)
    chosen = contexts.choose(block, maxima, table, config)
    for one in (listed, before):
        seen.tokens[one.token] = True
    own = [part[block.first : block.first + size] for part in cosines]
    histogram = numbers.histogram(feature, bin_of, size)
    writer.insert("feature", _features(block, moments, listed, maxima, own, histogram, len(table.token)), 18)
    spread = (row.tobytes() for row in numbers.token_histograms(where, bin_of))
    columns = (listed.feature + block.first, listed.rank, listed.token, listed.n_active, listed.mass)
    writer.insert("token", zip(*(part.tolist() for part in columns), spread, strict=True), 6)
    columns = (before.feature + block.first, before.rank, before.token, before.n_active, before.mass)
    _insert(writer, "before", *columns)
    for one in chosen:
        seen.contexts[one.fragment] = True
        rows = zip(
            *(part.tolist() for part in (one.feature + block.first, one.part, one.rank, one.fragment)), strict=True
        )
        writer.insert("example", ((f, one.group, part, rank, context) for f, part, rank, context in rows), 5)
    writer.insert("activation", _activations(block, maxima, chosen, table), 4)
    return int((moments.n_active > 0).sum())


def _features(
    block: Block,
    moments: numbers.Moments,
    listed: numbers.TokenTable,
    maxima: Maxima,
    cosines: list[NDArray],
    histogram: NDArray[np.int64],
    n_rows: int,
) -> Iterator[tuple[Any, ...]]:
    """Rows of the table ``feature``."""
    size = len(block.offsets) - 1
    fragments = np.bincount(maxima.feature, minlength=size)
    first = np.flatnonzero(listed.rank == 0)
    top, share = np.full(size, -1), np.full(size, np.nan)
    top[listed.feature[first]] = listed.token[first]
    share[listed.feature[first]] = listed.mass[first] / moments.mass[listed.feature[first]]
    with np.errstate(divide="ignore", invalid="ignore"):
        typical = moments.mass / moments.n_active
    number, density = np.arange(block.first, block.first + size), moments.n_active / n_rows
    columns = (
        number, moments.n_active, fragments, density, moments.peak, moments.mean, moments.variance, moments.skew,
        moments.kurtosis, typical, listed.distinct, top, share, *cosines,
    )  # fmt: skip
    for row, counts in zip(zip(*(part.tolist() for part in columns), strict=True), histogram, strict=True):
        yield (*(_known(value) for value in row), counts.tobytes())


def _known(value: Any) -> Any:
    """None for a number that makes no sense and for the token -1."""
    return None if value != value or value in (np.inf, -1) else value


def _activations(block: Block, maxima: Maxima, chosen: Iterable[Chosen], table: RowTable) -> Iterator[tuple[Any, ...]]:
    """Rows of the table ``activation``: positions and values of every feature in its examples."""
    width = len(table.fragments.doc)
    keys = np.concatenate([c.feature * width + c.fragment for c in chosen if c.group != "inactive"])
    pairs = np.searchsorted(maxima.feature * width + maxima.fragment, np.unique(keys))
    positions = table.position[block.rows].astype(np.uint16)
    values = np.ascontiguousarray(block.values, np.float32)
    columns = (
        maxima.feature[pairs] + block.first,
        maxima.fragment[pairs],
        maxima.offsets[pairs],
        maxima.offsets[pairs + 1],
    )
    for feature, fragment, start, stop in zip(*(part.tolist() for part in columns), strict=True):
        yield feature, fragment, positions[start:stop].tobytes(), values[start:stop].tobytes()


def _weights(
    writer: Writer, dictionary: Dictionary, lm: LanguageModel, tokens: int, seen: Gathered, config: FeaturesConfig
) -> dict[str, Any]:
    """Neighbours and direct logits; says why where there are none."""
    if dictionary.d_sae > 1:
        near = weights.neighbours(dictionary, config.neighbours)
        _insert(writer, "neighbour", *_ranked(near.indices.numpy(), near.values.numpy()))
    found = weights.direct(dictionary, lm, tokens, config.direct)
    if isinstance(found, str):
        return {"direct_reason": found}
    for side, part in ((1, found.promoted), (-1, found.suppressed)):
        feature, rank, token, weight = _ranked(part.indices.numpy(), part.values.numpy())
        seen.tokens[token] = True
        _insert(writer, "direct", feature, np.full_like(feature, side), rank, token, weight)
    return {"direct_reason": ""}


def _token_cosines(dictionary: Dictionary, lm: LanguageModel, tokens: int, seen: Gathered) -> list[NDArray]:
    """Token and cosine of the nearest embedding and unembedding row; -1 and NaN outside the residual stream."""
    if Site.parse(dictionary.config.site).kind not in weights.RESIDUAL:
        return [np.full(dictionary.d_sae, -1), np.full(dictionary.d_sae, np.nan)] * 2
    columns = []
    for matrix in (lm.embedding, lm.unembedding):
        near = weights.nearest_rows(dictionary, matrix[:tokens].detach())
        seen.tokens[near.indices[:, 0].numpy()] = True
        columns += [near.indices[:, 0].numpy(), near.values[:, 0].double().numpy()]
    return columns


def _ranked(indices: NDArray, values: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Feature, rank, index and value of a table of features by ranks."""
    features, ranks = indices.shape
    feature, rank = np.repeat(np.arange(features), ranks), np.tile(np.arange(ranks), features)
    return feature, rank, indices.ravel(), values.ravel().astype(np.float64)


def _insert(writer: Writer, name: str, *columns: NDArray) -> None:
    writer.insert(name, zip(*(column.tolist() for column in columns), strict=True), len(columns))


def _contexts(table: RowTable, seen: Gathered) -> Iterator[tuple[Any, ...]]:
    of = table.fragments
    for fragment in np.flatnonzero(seen.contexts).tolist():
        tokens = np.ascontiguousarray(table.context(fragment), np.int32)
        seen.tokens[tokens] = True
        yield fragment, int(of.doc[fragment]), int(of.row[fragment]), int(of.start[fragment]), tokens.tobytes()


def _vocabulary(lm: LanguageModel, seen: Gathered) -> Iterator[tuple[int, str]]:
    for token in np.flatnonzero(seen.tokens).tolist():
        yield token, token_text(lm, token)


def token_text(lm: LanguageModel, token: int) -> str:
    """A token by itself: decoded, or as the tokenizer spells it where it is only part of a character."""
    if lm.tokenizer is None:
        return str(token)
    text = str(lm.tokenizer.decode([token]))
    piece = lm.tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else None
    return text if piece is None else str(piece)
