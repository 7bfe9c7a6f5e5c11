"""The index of a run: one small SQLite file over its feature stores, opened by every thread of a server on its own.

It lies in the run as ``explorer.sqlite``; where the run cannot or must not be written to, in a temporary folder, and
then what a person writes is not kept.
"""

import atexit
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, final

from monolex.errors import UserError
from monolex.explorer.migrations import APPLICATION, MIGRATIONS

FILE = "explorer.sqlite"
PATIENCE = 20.0
"""Seconds that a thread waits for another that is writing."""
_TEMPORARY: list[Path] = []


@final
class Index:
    """The index at a path, made or brought up to date where it has to be.

    Raises:
        UserError: the file is damaged, no index, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        with _read_as_index(path):
            _migrate(self._connection(), path)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of an SQL query.

        Raises:
            UserError: the file is damaged.
        """
        with _read_as_index(self.path):
            return self._connection().execute(query, tuple(values)).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing is written."""
        connection = self._connection()
        with _read_as_index(self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def close(self) -> None:
        """Close this thread's connection."""
        if connection := getattr(self._local, "connection", None):
            connection.close()
            self._local.connection = None

    def _connection(self) -> sqlite3.Connection:
        held = getattr(self._local, "connection", None)
        if held is None:
            held = self._local.connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        return held


def index_path(run: Path, *, writable: bool = True) -> tuple[Path, bool]:
    """Where the index of a run lies, and whether it is kept there.

    Elsewhere, because the run cannot be written to or with ``writable`` false must not be, it begins as a copy of what
    lies in the run, and is gone when the process ends.
    """
    if writable and os.access(run, os.W_OK) and (not (run / FILE).exists() or os.access(run / FILE, os.W_OK)):
        return run / FILE, True
    folder = Path(tempfile.mkdtemp(prefix="monolex-"))
    _TEMPORARY.append(folder)
    if (run / FILE).exists():
        _copy(run / FILE, folder / FILE)
    return folder / FILE, False


@atexit.register
def remove_temporary() -> None:
    """Remove the indices that are kept nowhere; done when the process ends."""
    for folder in _TEMPORARY:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(path: Path, copy: Path) -> None:
    """An index as it is now; none where it cannot be read, for all but its labels can be made again."""
    try:
        source = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)
        with closing(source), closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.Error:
        with suppress(FileNotFoundError):
            copy.unlink()


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a file to the newest version, in one transaction, so that two processes cannot both do a step."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        if tables and application != APPLICATION:
            raise UserError(f"{path} is no index of monolex; move it away, and the index is built again")
        if version > len(MIGRATIONS):
            raise UserError(
                f"{path} was written by a newer monolex (schema {version}, this one reads {len(MIGRATIONS)}); update "
                "monolex, or move the file away to have the index built again without its labels"
            )
        for step in MIGRATIONS[version:]:
            for statement in filter(str.strip, step.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


@contextmanager
def _read_as_index(path: Path) -> Iterator[None]:
    """What SQLite has against a file, in one sentence."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UserError(f"{path} is being written by another process; try again") from error
        raise UserError(f"{path} cannot be used ({error}); check the disk and the file's permissions") from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path} is damaged ({error}); move it away, and the index is built again (labels are lost with it)"
        ) from error
