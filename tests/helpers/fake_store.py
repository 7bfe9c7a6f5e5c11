"""A feature store out of dense codes, feature by feature, for the tests of what is drawn from one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.document_rows import make
from numpy.typing import NDArray

from monolex.artifact import FileEntry, file_hash, finish
from monolex.features.evidence import BINS, TOKEN_BINS
from monolex.features.store import FeatureStore
from monolex.features.store_writer import StoreWriter

HOSTILE = '</script><img src=x onerror="alert(1)">'
TEXTS = (" self", ".", " the", "\n", "\t", "\n        ", HOSTILE, " שלום", "\u0301", "\u200b", "\x07", "é", " fn", "&")


def fake_codes(rows: int = 960, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Codes ``(rows, 8)`` of features of every kind, and the tokens they were computed from.

    0 and 6 are of one token, 1 of the token before, 2 mixed, 3 dead, 4 dense, 5 of hostile text, 7 active once.
    """
    drawn = np.random.default_rng(seed)
    tokens = drawn.integers(0, len(TEXTS), rows).astype(np.int32)
    size = drawn.gamma(2.0, 1.5, (rows, 8)).astype(np.float32) + np.float32(0.01)
    before = np.concatenate([[-1], tokens[:-1]])
    draw = drawn.random(rows)
    active = np.stack(
        [
            (tokens == 0) & (draw < 0.9),
            before == 1,
            draw < 0.05,
            np.zeros(rows, bool),
            draw < 0.7,
            tokens == 6,
            tokens == 7,
            np.arange(rows) == rows // 2,
        ],
        axis=1,
    )
    return np.where(active, size, np.float32(0)), tokens


def fake_store(
    path: Path,
    codes: NDArray[np.float32] | None = None,
    tokens: NDArray[np.int32] | None = None,
    texts: tuple[str, ...] = TEXTS,
    *,
    fragment: int = 32,
    decoder: NDArray[np.float32] | None = None,
    directed: bool = True,
    **meta: Any,
) -> FeatureStore:
    """Write a store of ``codes (rows, features)`` over ``tokens (rows,)``, signed if one is below zero, and open it."""
    if codes is None or tokens is None:
        codes, tokens = fake_codes()
    rows, width = codes.shape
    directions = np.random.default_rng(1).normal(size=(width, 12)) if decoder is None else decoder.astype(np.float64)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    with StoreWriter(path) as writer:
        writer.insert("vocabulary", list(enumerate(texts)), 2)
        starts = enumerate(range(0, rows, fragment))
        contexts = [(i, i // 3, i // 4, s % 128, tokens[s : s + fragment].tobytes()) for i, s in starts]
        writer.insert("context", contexts, 5)
        alive = 0
        for number in range(width):
            alive += _feature(writer, number, codes, tokens, fragment, unit, len(texts))
            direct = [(s, r, (number + r) % len(texts), s * (0.9 - 0.1 * r)) for s in (-1, 1) for r in range(3)]
            writer.insert("direct", [(number, *row) for row in direct if directed], 5)
        writer.finish(
            {
                "name": path.stem,
                "site": path.parent.name,
                "kind": "tied",
                "d_sae": width,
                "rows": rows,
                "model": "demo",
                "split": "train",
                "signed": bool((codes < 0).any()),
                "negative": bool((codes < 0).any()),
                "coactive_rows": rows,
                "direct_reason": "",
                "other_seeds": [1, 2, 3],
                "alive": alive,
                **meta,
            }
        )
    return FeatureStore(path)


def fake_features(run: Path, stores: dict[str, str], **meta: Any) -> None:
    """``RUN/features`` with one store for every ``SITE/NAME`` of ``stores``, of the kind it says.

    The dictionary of each has 8 features; feature i reads axis 7 - i.
    """
    listed, entries = [], {}
    for where, kind in stores.items():
        path = run / "features" / f"{where}.sqlite"
        make(torch.eye(8).flip(0), kind=kind).save(run / "train" / where)
        site, name = where.split("/")
        store = fake_store(path, kind=kind, dictionary=f"../../train/{where}", **meta)
        known = {"path": f"{where}.sqlite", "site": site, "name": name, "kind": kind, "d_sae": len(store)}
        listed.append({**known, "rows": store.meta["rows"], "alive": store.meta["alive"]})
        listed[-1]["bytes"] = path.stat().st_size
        store.close()
        entries[f"{where}.sqlite"] = FileEntry(path.stat().st_size, file_hash(path))
    finish(run / "features", "features", {}, {}, entries, {"stores": listed})


def _feature(
    writer: StoreWriter, number: int, codes: NDArray, tokens: NDArray, fragment: int, unit: NDArray, vocabulary
):
    whole = codes[:, number].astype(np.float64)
    column = whole.clip(min=0)
    at = np.flatnonzero(column)
    total, largest = column.sum(), column.max()
    variance = column.var()
    maxima = np.maximum.reduceat(column, np.arange(0, len(column), fragment))
    shares = _shares(column, tokens, at, largest, vocabulary)
    before = _shares(column[1:], tokens[:-1], at[at > 0] - 1, largest, vocabulary)
    writer.insert("token", [(number, rank, *row) for rank, row in enumerate(shares[:10])], 6)
    writer.insert("before", [(number, rank, *row[:3]) for rank, row in enumerate(before[:10])], 5)
    bins = np.minimum(BINS - 1, (column[at] / largest * BINS).astype(int)) if len(at) else np.zeros(0, int)
    summary = (
        number,
        len(at),
        int((maxima > 0).sum()),
        len(at) / len(column),
        largest,
        whole.min(initial=0),
        column.mean(),
        variance,
    )
    moments = [(column**p).mean() / variance ** (p / 2) if variance else None for p in (3, 4)]
    top = (shares[0][0], shares[0][2] / total) if shares else (None, None)
    mean_active = total / len(at) if len(at) else None
    rest = (*moments, mean_active, len(shares), *top, number % vocabulary, 0.25 + number / 100, 1, 0.125)
    back = (3, share := number % 4 / 3, share / 2, (1 + share) / 2, 0.25 + share / 2)
    histogram = np.bincount(bins, minlength=BINS).astype(np.int64).tobytes()
    writer.insert("feature", [(*summary, *rest, *back, histogram)], 24)
    _others(writer, number, codes, unit)
    _examples(writer, number, column, maxima, fragment)
    _negative(writer, number, whole.clip(max=0), fragment)
    return int(len(at) > 0)


def _shares(column: NDArray, tokens: NDArray, at: NDArray, largest: float, vocabulary: int) -> list[tuple]:
    rows = []
    for token in range(vocabulary):
        values = column[at][tokens[at] == token]
        if len(values):
            bins = np.minimum(TOKEN_BINS - 1, (values / largest * TOKEN_BINS).astype(int))
            counts = np.bincount(bins, minlength=TOKEN_BINS).astype(np.int64)
            rows.append((token, len(values), values.sum(), counts.tobytes()))
    return sorted(rows, key=lambda row: -row[2])


def _others(writer: StoreWriter, number: int, codes: NDArray, unit: NDArray) -> None:
    cosine = unit @ unit[number]
    cosine[number] = -2
    near = np.argsort(-cosine)[:5]
    writer.insert("neighbour", [(number, r, int(o), float(cosine[o])) for r, o in enumerate(near) if o != number], 4)
    on = codes > 0
    both = (on & on[:, [number]]).sum(0)
    either = (on | on[:, [number]]).sum(0)
    jaccard = both / np.maximum(either, 1)
    jaccard[number] = 0
    together = [int(o) for o in np.argsort(-jaccard)[:5] if jaccard[o] > 0]
    rows = [(number, r, o, int(both[o]), float(jaccard[o])) for r, o in enumerate(together)]
    writer.insert("coactive", rows, 5)


def _examples(writer: StoreWriter, number: int, column: NDArray, maxima: NDArray, fragment: int) -> None:
    drawn = np.random.default_rng(number)
    active = np.flatnonzero(maxima)
    ranked = active[np.argsort(maxima[active], kind="stable")]
    groups: list[tuple[str, int, NDArray]] = [("top", 0, ranked[::-1][:20]), ("near_zero", 0, ranked[:5])]
    parts = [ranked[i * len(ranked) // 5 : (i + 1) * len(ranked) // 5] for i in range(5)]
    groups += [("quantile", i, drawn.permutation(part)[:4]) for i, part in enumerate(parts)]
    groups += [("random", 0, drawn.permutation(active)[:10])]
    groups += [("inactive", 0, drawn.permutation(np.flatnonzero(maxima == 0))[:10])]
    rows = [(number, g, part, r, int(c)) for g, part, chosen in groups for r, c in enumerate(chosen)]
    writer.insert("example", rows, 5)
    for context in sorted({row[4] for row in rows if row[1] != "inactive"}):
        piece = column[context * fragment : (context + 1) * fragment]
        positions = np.flatnonzero(piece)
        stored = (positions.astype(np.uint16).tobytes(), piece[positions].astype(np.float32).tobytes())
        writer.insert("activation", [(number, context, *stored)], 4)


def _negative(writer: StoreWriter, number: int, column: NDArray, fragment: int) -> None:
    """The contexts with the most negative codes."""
    minima = np.minimum.reduceat(column, np.arange(0, len(column), fragment))
    ranked = [int(c) for c in np.argsort(minima, kind="stable")[:20] if minima[c] < 0]
    writer.insert("example", [(number, "negative", 0, rank, context) for rank, context in enumerate(ranked)], 5)
    for context in ranked:
        piece = column[context * fragment : (context + 1) * fragment]
        positions = np.flatnonzero(piece)
        stored = (positions.astype(np.uint16).tobytes(), piece[positions].astype(np.float32).tobytes())
        writer.insert("below", [(number, context, *stored)], 4)
