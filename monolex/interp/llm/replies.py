"""Every reply of a language model, kept the moment it comes: nothing is asked, or paid for, twice.

A reply is found by the hash of the model and the request, so the endpoint may move. Each is a transaction of its own:
a killed process loses the calls under way and nothing else, and two processes may use one file (of two replies to the
same request the first stays, for both). Failures are not kept: whoever runs the same command again tries those again
that may be answered then (:attr:`monolex.interp.records.Failure.again`).
"""

import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from monolex.errors import UserError
from monolex.interp.llm.client import Answer, Backend
from monolex.interp.records import Reply, Request

SCHEMA = 1
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE reply (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, identity TEXT NOT NULL, request BLOB NOT NULL, reply BLOB NOT NULL,
    read INTEGER, written INTEGER, seconds REAL NOT NULL, made REAL NOT NULL
) WITHOUT ROWID;
"""
"""`key`: :func:`monolex.interp.llm.client.key_of`; `request`, `reply`: JSON, deflated; `read`, `written`: tokens,
NULL where the model did not say; `seconds`: how long it took; `made`: Unix time."""
_AT_ONCE = 500


@final
class Replies:
    """The file; safe to use from several threads and processes.

    Raises:
        UserError: a damaged file, one that is something else, or (with ``existing``) none.
    """

    def __init__(self, path: str | Path, *, existing: bool = False) -> None:
        self.path, self._lock = Path(path).expanduser(), threading.Lock()
        if existing and not self.path.is_file():
            raise UserError(f"offline: {path} does not exist; give the file of replies, or ask the model first")
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The timeout is how long another process's write is waited for.
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            self._open(existing)
        except BaseException:
            self._db.close()
            raise

    def _open(self, existing: bool) -> None:
        with self._explained():
            if not existing:
                self._create()
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
            meta = {}
            if tables >= {"meta", "reply"}:
                meta = {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM meta")}
        if meta.get("kind") != "replies":
            raise UserError(f"{self.path} holds something other than replies; give another file as replies")
        if meta.get("schema") != SCHEMA:
            raise UserError(f"{self.path} has schema {meta.get('schema')}, this version reads {SCHEMA}; give another")

    def _create(self) -> None:
        # Immediate, so that of two processes one makes the tables and the other finds them.
        self._db.execute("BEGIN IMMEDIATE")
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            for statement in TABLES.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO meta VALUES ('kind', '\"replies\"'), ('schema', ?)", (str(SCHEMA),))
        self._db.execute("COMMIT")

    def __len__(self) -> int:
        with self._lock, self._explained():
            return self._db.execute("SELECT count(*) FROM reply").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that there are, by key."""
        wanted, replies = list(dict.fromkeys(keys)), {}
        for start in range(0, len(wanted), _AT_ONCE):
            chunk = wanted[start : start + _AT_ONCE]
            query = f"SELECT key, reply FROM reply WHERE key IN ({','.join('?' * len(chunk))})"
            with self._lock, self._explained():
                replies |= {key: _read(reply) for key, reply in self._db.execute(query, chunk)}
        return replies

    def put(self, key: str, model: Backend, request: Request, answer: Answer) -> Reply:
        """Keep a reply and give the one that is kept, which is another process's if that was earlier."""
        assert isinstance(answer.reply, Reply), "failures are not kept"
        read, written = answer.usage or (None, None)
        row = (key, model.model, model.identity, _pack(request._asdict()), _pack(answer.reply._asdict()))
        with self._lock, self._explained():
            marks = "INSERT OR IGNORE INTO reply VALUES (?,?,?,?,?,?,?,?,?)"
            self._db.execute(marks, (*row, read, written, answer.seconds, time.time()))
            return _read(self._db.execute("SELECT reply FROM reply WHERE key = ?", (key,)).fetchone()[0])

    def identity(self, model: str, start: str) -> str:
        """The identity, beginning with ``start``, under which a model of this name last replied; empty if none did."""
        query = "SELECT identity FROM reply WHERE model = ? AND substr(identity, 1, ?) = ? ORDER BY made DESC LIMIT 1"
        with self._lock, self._explained():
            return (self._db.execute(query, (model, len(start), start)).fetchone() or ("",))[0]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # a closed file, for example: no fault of the file
            raise
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path} cannot be used ({error}); free it or some space, or give another") from error
        except (sqlite3.DatabaseError, zlib.error, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.path} is no file of replies, or damaged ({error}); move it away, and what it held is asked anew"
            ) from error
        except OSError as error:
            raise UserError(f"{self.path} cannot be made: {error.strerror}; give another file as replies") from error


def _pack(value: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(value).encode())


def _read(packed: bytes) -> Reply:
    return Reply(**json.loads(zlib.decompress(packed)))
