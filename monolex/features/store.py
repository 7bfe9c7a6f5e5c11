"""The evidence of one dictionary as one SQLite file: what every feature was seen to do, each context stored once.

A page, a search or an explanation is a query on it. Nothing here needs the model: the texts of all tokens that occur
are stored beside them. A store is written once by :class:`Writer`, under a temporary name, and read through
:class:`FeatureStore`, which opens the file read-only.
"""

import json
import operator
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, final

import numpy as np
from jaxtyping import Int32, Int64
from numpy.typing import NDArray

from monolex.errors import UserError

SCHEMA = 1
BINS = 40
"""Bins of the histogram of a feature's non-zero activations: equal widths from 0 to its maximum."""
TOKEN_BINS = 10
"""Bins of the token histogram (paper, Fig. 4): each is four of the others."""
GROUPS = ("top", "quantile", "near_zero", "random", "inactive")

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE vocabulary (token INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE context (id INTEGER PRIMARY KEY, doc INTEGER, row INTEGER, start INTEGER, tokens BLOB NOT NULL);
CREATE TABLE feature (
    id INTEGER PRIMARY KEY, n_active INTEGER, fragments INTEGER, density REAL, max REAL, mean REAL, variance REAL,
    skew REAL, kurtosis REAL, mean_active REAL, distinct_tokens INTEGER, top_token INTEGER, top_share REAL,
    embedding_token INTEGER, embedding_cosine REAL, unembedding_token INTEGER, unembedding_cosine REAL,
    histogram BLOB NOT NULL);
CREATE TABLE token (
    feature INTEGER, rank INTEGER, token INTEGER, n_active INTEGER, mass REAL, histogram BLOB NOT NULL,
    PRIMARY KEY (feature, rank)) WITHOUT ROWID;
CREATE TABLE before (
    feature INTEGER, rank INTEGER, token INTEGER, n_active INTEGER, mass REAL,
    PRIMARY KEY (feature, rank)) WITHOUT ROWID;
CREATE TABLE direct (
    feature INTEGER, side INTEGER, rank INTEGER, token INTEGER, weight REAL,
    PRIMARY KEY (feature, side, rank)) WITHOUT ROWID;
CREATE TABLE neighbour (
    feature INTEGER, rank INTEGER, other INTEGER, cosine REAL, PRIMARY KEY (feature, rank)) WITHOUT ROWID;
CREATE TABLE coactive (
    feature INTEGER, rank INTEGER, other INTEGER, both INTEGER, jaccard REAL,
    PRIMARY KEY (feature, rank)) WITHOUT ROWID;
CREATE TABLE example (
    feature INTEGER, grp TEXT, part INTEGER, rank INTEGER, context INTEGER,
    PRIMARY KEY (feature, grp, part, rank)) WITHOUT ROWID;
CREATE TABLE activation (
    feature INTEGER, context INTEGER, positions BLOB NOT NULL, activations BLOB NOT NULL,
    PRIMARY KEY (feature, context)) WITHOUT ROWID;
"""
INDICES = "CREATE INDEX token_of ON token (token, mass); CREATE INDEX feature_top ON feature (top_token);"


class Summary(NamedTuple):
    """One row of the table ``feature``: the numbers of one feature over all rows that were read."""

    id: int
    """Number of the feature."""
    n_active: int
    """Rows in which it is active, that is above zero."""
    fragments: int
    """Contexts in which it is active."""
    density: float
    """``n_active`` over the number of rows."""
    max: float
    """Its largest activation."""
    mean: float
    """Mean over all rows, zeros included."""
    variance: float
    """Mean square minus squared mean, over all rows."""
    skew: float | None
    """Third moment about zero over variance^1.5, over all rows (paper, C.4); None where the variance is 0."""
    kurtosis: float | None
    """Fourth moment about zero over variance², over all rows (paper, C.4)."""
    mean_active: float | None
    """Mean over the rows in which it is active."""
    distinct_tokens: int
    """Different tokens on which it was active."""
    top_token: int | None
    """Token with the largest share of its activation."""
    top_share: float | None
    """That share of the sum of its activations."""
    embedding_token: int | None
    """Token whose embedding row has the largest cosine to the decoder direction; None outside the residual stream."""
    embedding_cosine: float | None
    """That cosine."""
    unembedding_token: int | None
    """The same of the unembedding."""
    unembedding_cosine: float | None
    """That cosine."""


class TokenShare(NamedTuple):
    """What one token has to do with a feature."""

    token: int
    """Token id."""
    text: str
    """As decoded."""
    n_active: int
    """Rows with this token (for ``before``: after this token) in which the feature is active."""
    mass: float
    """Sum of the feature's activations there."""
    share: float
    """``mass`` over the sum of all its activations."""
    histogram: Int64[NDArray, "token_bins"]
    """``n_active`` by bin of the activation; empty for ``before``."""


class TokenWeight(NamedTuple):
    """One token promoted or suppressed."""

    token: int
    """Token id."""
    text: str
    """As decoded."""
    weight: float
    """Change of the logit per unit of activation, up to the scale of the final norm; the mean over the vocabulary
    is taken away."""


class Neighbour(NamedTuple):
    """Another feature of the same dictionary."""

    feature: int
    """Its number."""
    value: float
    """Cosine of decoder directions, or Jaccard index of co-activation."""
    both: int = 0
    """Co-activation: sampled rows in which both are active."""


class Context(NamedTuple):
    """A fragment of one document with a feature's activation on each token."""

    id: int
    """Number of the fragment; the same for all features and dictionaries of one harvest and fragment length."""
    doc: int
    """Its document."""
    row: int
    """Packed row it is from."""
    start: int
    """Position of its first token in that row."""
    tokens: tuple[int, ...]
    """Token ids."""
    texts: tuple[str, ...]
    """The tokens, decoded one by one."""
    activations: tuple[float, ...]
    """The feature's activation on each token; 0 where it is not active (or the position was not harvested)."""
    group: str
    """One of :data:`GROUPS`."""
    part: int
    """Quantile (0 the weakest); 0 in the other groups."""
    rank: int
    """Place in the group, from 0."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of one feature."""

    summary: Summary
    """Its numbers."""
    histogram: Int64[NDArray, "bins"]
    """Its non-zero activations by :data:`BINS` equal bins from 0 to its maximum."""
    tokens: tuple[TokenShare, ...]
    """Tokens it is active on, by falling mass."""
    before: tuple[TokenShare, ...]
    """Tokens before those, by falling mass (rows at the start of a document have none)."""
    promoted: tuple[TokenWeight, ...]
    """Tokens whose logit the direction raises most, directly: through the final norm and the unembedding alone."""
    suppressed: tuple[TokenWeight, ...]
    """Tokens whose logit it lowers most, directly."""
    neighbours: tuple[Neighbour, ...]
    """Features with the largest decoder cosine."""
    coactive: tuple[Neighbour, ...]
    """Features most often active in the same rows, by Jaccard index."""
    examples: Mapping[str, tuple[Context, ...]]
    """Contexts by group."""

    @property
    def token_histogram(self) -> Int64[NDArray, "token_bins"]:
        """All tokens' :data:`TOKEN_BINS` counts; less those of ``tokens`` it is that of all other tokens."""
        return self.histogram.reshape(TOKEN_BINS, -1).sum(1)


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


@final
class Writer:
    """Fills a new store; the file appears under its name when :meth:`finish` is called.

    Rows may come in blocks of features, in any order of tables.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.unlink(missing_ok=True)
        self._db = sqlite3.connect(self._temporary)
        # The file is thrown away unless it is finished, so nothing needs to survive a crash in the middle.
        self._db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA page_size=8192;" + TABLES)

    def insert(self, table: str, rows: Iterable[Sequence[Any]], columns: int) -> None:
        """Rows of ``columns`` values into ``table``; numbers as Python numbers, arrays as bytes."""
        marks = ",".join("?" * columns)
        self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Write ``meta``, build the indices, and put the file in its place."""
        entries = {"schema": SCHEMA, **meta}
        self.insert("meta", [(key, json.dumps(value, allow_nan=False)) for key, value in entries.items()], 2)
        self._db.executescript(INDICES)
        self._db.commit()
        self._db.close()
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self.path)

    def abandon(self) -> None:
        """Throw the unfinished file away."""
        self._db.close()
        self._temporary.unlink(missing_ok=True)


@final
class FeatureStore:
    """The evidence of one dictionary, read-only.

    Raises:
        UserError: no such file, or no store of this version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path} does not exist; gather the evidence first: monolex features")
        try:
            # read-only, so that any thread of a server may use it
            self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            self.meta: dict[str, Any] = {k: json.loads(v) for k, v in self._db.execute("SELECT * FROM meta")}
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is no feature store, or damaged ({error}); gather the evidence again") from error
        if self.meta.get("schema") != SCHEMA:
            raise UserError(f"{path} has schema {self.meta.get('schema')}, this version reads {SCHEMA}; gather again")
        self._texts: dict[int, str] = {}

    def __len__(self) -> int:
        return self.meta["d_sae"]

    def __repr__(self) -> str:
        return f"FeatureStore({self.path}, {self.meta['name']} at {self.meta['site']}: {len(self)} features)"

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def summaries(
        self, where: str = "1", values: Sequence[Any] = (), order: str = "id", limit: int = -1
    ) -> list[Summary]:
        """The numbers of all features, or those that an SQL condition on the columns of :class:`Summary` keeps."""
        columns = ", ".join(Summary._fields)
        query = f"SELECT {columns} FROM feature WHERE {where} ORDER BY {order} LIMIT ?"
        return [Summary(*row) for row in self.rows(query, (*values, limit))]

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of any SQL query.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return self._db.execute(query, tuple(values)).fetchall()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path} is damaged ({error}); gather the evidence again") from error

    def text(self, token: int | None) -> str:
        """The text of a token that occurs in the store."""
        if not self._texts:
            self._texts = dict(self.rows("SELECT token, text FROM vocabulary"))
        return "" if token is None else self._texts.get(token, "")

    def feature(self, number: SupportsIndex) -> Evidence:
        """All that is known of feature ``number``.

        Raises:
            UserError: there is no such feature.
        """
        number = operator.index(number)  # SQLite finds nothing under one of numpy's
        if not 0 <= number < len(self):
            raise UserError(f"feature {number}: {self.meta['name']} has features 0 to {len(self) - 1}")
        summary = self.summaries("id = ?", (number,))[0]
        ((histogram,),) = self.rows("SELECT histogram FROM feature WHERE id = ?", (number,))
        direct = self.rows(
            "SELECT side, token, text, weight FROM direct JOIN vocabulary USING (token) WHERE feature = ? "
            "ORDER BY side, rank",
            (number,),
        )
        near = self.rows("SELECT other, cosine FROM neighbour WHERE feature = ? ORDER BY rank", (number,))
        together = self.rows("SELECT other, jaccard, both FROM coactive WHERE feature = ? ORDER BY rank", (number,))
        total = summary.mean * self.meta["rows"]
        return Evidence(
            summary,
            np.frombuffer(histogram, np.int64),
            self._shares(number, "token", "histogram", total),
            self._shares(number, "before", "x''", total),
            tuple(TokenWeight(*row[1:]) for row in direct if row[0] > 0),
            tuple(TokenWeight(*row[1:]) for row in direct if row[0] < 0),
            tuple(Neighbour(*row) for row in near),
            tuple(Neighbour(*row) for row in together),
            self._examples(number),
        )

    def _shares(self, number: int, table: str, histogram: str, total: float) -> tuple[TokenShare, ...]:
        query = (
            f"SELECT token, text, n_active, mass, {histogram} FROM {table} JOIN vocabulary USING (token) "
            "WHERE feature = ? ORDER BY rank"
        )
        shares = self.rows(query, (number,))
        return tuple(
            TokenShare(token, text, active, mass, mass / total, np.frombuffer(bins, np.int64))
            for token, text, active, mass, bins in shares
        )

    def _examples(self, number: int) -> dict[str, tuple[Context, ...]]:
        query = (
            "SELECT grp, part, example.rank, context.id, doc, row, start, tokens, positions, activations FROM example "
            "JOIN context ON context.id = example.context LEFT JOIN activation "
            "ON activation.feature = example.feature AND activation.context = context.id "
            "WHERE example.feature = ? ORDER BY grp, part, example.rank"
        )
        contexts_by_group: dict[str, list[Context]] = {group: [] for group in GROUPS}
        for group, part, rank, context, doc, row, start, tokens, positions, activations in self.rows(query, (number,)):
            ids = np.frombuffer(tokens, np.int32)
            codes = np.zeros(len(ids), np.float32)
            if positions is not None:
                codes[np.frombuffer(positions, np.uint16)] = np.frombuffer(activations, np.float32)
            names = tuple(int(token) for token in ids)
            said = tuple(self.text(token) for token in names)
            example = Context(context, doc, row, start, names, said, tuple(codes.tolist()), group, part, rank)
            contexts_by_group[group].append(example)
        return {group: tuple(contexts) for group, contexts in contexts_by_group.items()}
