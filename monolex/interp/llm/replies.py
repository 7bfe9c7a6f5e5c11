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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, final

from monolex import runtime
from monolex.artifact import Manifest
from monolex.errors import UserError
from monolex.interp.config import LlmConfig
from monolex.interp.llm.client import NOT_RECORDED, Answer, Backend, Keep, More, key_of
from monolex.interp.llm.identity import named
from monolex.interp.llm.meter import BudgetSpent, Meter
from monolex.interp.records import Failure, Reply, Request
from monolex.pieces import Work
from monolex.runtime import log

T = TypeVar("T")

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


@final
class Absent:
    """Nobody to ask: what the store does not hold is a failure."""

    def __init__(self, model: str, identity: str) -> None:
        self.model, self.identity = model, identity

    def answer(self, requests: Sequence[Request], keep: Keep, more: More) -> None:  # noqa: ARG002
        """As :meth:`monolex.interp.llm.client.Backend.answer`."""
        for number in range(len(requests)):
            keep(Answer(number, Failure(NOT_RECORDED, again=True)))

    def close(self) -> None:
        """Nothing to give up."""


@final
class Recorded:
    """A client that looks into the store first, asks a model for what is missing, and keeps every reply as it comes."""

    def __init__(self, backend: Backend, store: Replies, meter: Meter | None = None) -> None:
        self.backend, self.store, self.meter = backend, store, meter or Meter()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Recorded({self.model}, {self.store.path}, {self.meter})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the model's connections and the store, and say what was spent."""
        if self.meter.calls + self.meter.recorded + self.meter.failures.total():
            log.info("%s: %s", self.model, self.meter)
        self.backend.close()
        self.store.close()

    @property
    def model(self) -> str:
        """The model's name; of a local one with its precision and weights, of which there may be several."""
        kind, _, rest = self.backend.identity.partition(":")
        dtype, _, weights = rest.partition(":")
        return named(self.backend.model, dtype, weights) if kind == "local" else self.backend.model

    def ask(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """An answer a request, in order; equal requests are asked once, and all replies stay in memory meanwhile.

        Raises:
            BudgetSpent: the budget did not last; what was answered is in the store.
            UserError: the model cannot be asked (any longer), or the store cannot be used; likewise.
        """
        keys = [key_of(self.backend.identity, request) for request in requests]
        answers: dict[str, Reply | Failure] = {**self.store.get(keys)}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
        with self._lock:
            self.meter.recorded += len(requests) - len(missing)
        if missing:
            self._ask(missing, answers)
        if any(key not in answers for key in missing):
            raise BudgetSpent(
                f"{self.meter.spent} is spent: {self.meter}; all replies are kept in {self.store.path}, and the same "
                "command with a larger budget goes on from there"
            )
        return [answers[key] for key in keys]

    def _ask(self, missing: dict[str, Request], answers: dict[str, Reply | Failure]) -> None:
        keys, requests = list(missing), list(missing.values())

        def keep(answer: Answer) -> None:
            kept = _encodable(answer.reply)
            answer = answer._replace(reply=kept)
            if isinstance(kept, Reply):
                kept = self.store.put(keys[answer.number], self.backend, requests[answer.number], answer)
            with self._lock:
                answers[keys[answer.number]] = kept
                if bar is not None:
                    bar.update(1)
                self.meter.count(answer)

        quiet = len(requests) == 1 or isinstance(self.backend, Absent)
        with nullcontext() if quiet else runtime.progress(len(requests), self.model, "call") as bar:
            self.backend.answer(requests, keep, self._more)

    def _more(self) -> bool:
        with self._lock:
            return not self.meter.spent


def opened_unless_found(
    stack: ExitStack,
    work: Work,
    config: LlmConfig,
    opened: Callable[[], AbstractContextManager[T]],
    weights: Callable[[T], str],
) -> Manifest | tuple[Work, T]:
    """The artefact of ``work`` if it is found; else the work, and what is ``opened`` for it until ``stack`` is left.

    An endpoint need not be there when all is done; of a local model the ``weights`` are part of the request.
    """
    if not config.local and (manifest := work.found()):
        return manifest
    model = stack.enter_context(opened())
    if config.local:
        work = Work(work.folder, work.kind, config, {**work.parents, "llm": weights(model)})
        if manifest := work.found():
            return manifest
    return work, model


def unanswered(client: Recorded | None) -> Callable[[], Counter[str]]:
    """How many calls went unanswered so far, by reason: asked by :class:`monolex.pieces.Work` around a piece."""
    return lambda: Counter() if client is None else Counter(client.meter.unanswered)


def _encodable(reply: Reply | Failure) -> Reply | Failure:
    """A failure in place of a text that no file can hold: half of a surrogate pair, which JSON lets through."""
    try:
        if isinstance(reply, Reply):
            reply.text.encode()
    except UnicodeEncodeError:
        return Failure("text that cannot be encoded")
    return reply


def _pack(value: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(value).encode())


def _read(packed: bytes) -> Reply:
    return Reply(**json.loads(zlib.decompress(packed)))
