"""The evidence of one dictionary as one SQLite file: what every feature was seen to do, each context stored once.

A page, a search or an explanation is a query on it. Nothing here needs the model: the texts of all tokens that occur
are stored beside them. A store is written once, by ``store_writer``, and its file is opened read-only.
"""

import json
import operator
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex, final

import numpy as np

from monolex.errors import UserError
from monolex.features.evidence import (
    GROUPS,
    Context,
    Evidence,
    Neighbour,
    Summary,
    TokenShare,
    TokenWeight,
)
from monolex.features.store_writer import SCHEMA


@final
class FeatureStore:
    """The evidence of one dictionary, read-only.

    Raises:
        UserError: no such file, or no store of this version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(f"{path} is a folder; give a store in it (features/SITE/DICTIONARY.sqlite)")
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
        near = self._others("neighbour", "cosine, 0", number)
        together = self._others("coactive", "jaccard, both", number)
        total = summary.mean * self.meta["rows"]
        return Evidence(
            summary,
            np.frombuffer(histogram, np.int64),
            self._shares(number, "token", "histogram", total),
            self._shares(number, "before", "x''", total),
            tuple(TokenWeight(*row[1:]) for row in direct if row[0] > 0),
            tuple(TokenWeight(*row[1:]) for row in direct if row[0] < 0),
            near,
            together,
            self._examples(number),
        )

    def _others(self, table: str, values: str, number: int) -> tuple[Neighbour, ...]:
        query = (
            f"SELECT other, {values}, top.text FROM {table} LEFT JOIN feature ON feature.id = other "
            f"LEFT JOIN vocabulary AS top ON top.token = feature.top_token WHERE {table}.feature = ? "
            f"ORDER BY {table}.rank"
        )
        return tuple(Neighbour(*row) for row in self.rows(query, (number,)))

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
            "SELECT grp, part, example.rank, context.id, doc, row, start, tokens, "
            "coalesce(below.positions, activation.positions), coalesce(below.activations, activation.activations) "
            "FROM example JOIN context ON context.id = example.context "
            "LEFT JOIN activation ON grp <> 'negative' AND activation.feature = example.feature "
            "AND activation.context = context.id "
            "LEFT JOIN below ON grp = 'negative' AND below.feature = example.feature AND below.context = context.id "
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
