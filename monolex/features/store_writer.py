"""Writing the store of one dictionary: a SQLite file, under a temporary name until it is whole."""

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self, final

from monolex import runtime

SCHEMA = 3
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE vocabulary (token INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE context (id INTEGER PRIMARY KEY, doc INTEGER, row INTEGER, start INTEGER, tokens BLOB NOT NULL);
CREATE TABLE feature (
    id INTEGER PRIMARY KEY, n_active INTEGER, fragments INTEGER, density REAL, max REAL, min REAL, mean REAL,
    variance REAL, skew REAL, kurtosis REAL, mean_active REAL, distinct_tokens INTEGER,
    top_token INTEGER, top_share REAL, embedding_token INTEGER, embedding_cosine REAL,
    unembedding_token INTEGER, unembedding_cosine REAL,
    seeds INTEGER, reappears REAL, reappears_low REAL, reappears_high REAL, seed_cosine REAL, histogram BLOB NOT NULL);
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
CREATE TABLE below (
    feature INTEGER, context INTEGER, positions BLOB NOT NULL, activations BLOB NOT NULL,
    PRIMARY KEY (feature, context)) WITHOUT ROWID;
"""
INDICES = "CREATE INDEX token_of ON token (token, mass); CREATE INDEX feature_top ON feature (top_token);"


@final
class StoreWriter:
    """Fills a new store; the file appears under its name when :meth:`finish` is called.

    Rows may come in blocks of features, in any order of tables. Used as a context manager: what is not finished when it
    is left is thrown away.

    Raises:
        UserError: the disk is full (on leaving the context, of whatever was done in it).
    """

    def __init__(self, path: Path) -> None:
        self.path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.unlink(missing_ok=True)
            self._db = self._stack.enter_context(closing(sqlite3.connect(self._temporary)))
            # The file is thrown away unless it is finished, so nothing needs to survive a crash in the middle.
            self._db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA page_size=8192;" + TABLES)
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        self._stack.close()
        written = self._temporary.stat().st_size if self._temporary.exists() else 0
        self._temporary.unlink(missing_ok=True)
        if isinstance(error, sqlite3.OperationalError | OSError):
            reason = getattr(error, "strerror", None) or error
            raise runtime.unwritable(self.path, written, reason) from error

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
        self._stack.close()
        with self._temporary.open("r+b") as file:  # what is only read cannot be flushed on Windows
            os.fsync(file.fileno())
        os.replace(self._temporary, self.path)
