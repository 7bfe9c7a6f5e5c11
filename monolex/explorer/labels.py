"""What a person writes of features: a label, a note, a pin; kept in the index, exported as lines of JSON.

Labels are named by the hash of the dictionary, so they outlive everything that is made again around it.
"""

import json
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from monolex.config import require
from monolex.explorer.index import Index

LONGEST = {"text": 200, "note": 20_000}
"""Letters of a label and of a note, at most."""


class Label(NamedTuple):
    """What a person wrote of one feature."""

    hash: str
    """Of its dictionary."""
    number: int
    """Which feature."""
    text: str
    """A few words; empty where there is only a note or a pin."""
    note: str
    """Anything longer."""
    pinned: bool
    """Whether it is kept at hand."""
    changed: str
    """When, as ISO 8601 in UTC."""


def read(index: Index, dictionary: str, number: int) -> Label | None:
    """The label of a feature."""
    query = "SELECT hash, number, text, note, pinned, changed FROM label WHERE hash = ? AND number = ?"
    rows = index.rows(query, (dictionary, number))
    return _label(rows[0]) if rows else None


def everything(index: Index) -> list[Label]:
    """All labels, the pinned ones first, then the latest."""
    query = "SELECT hash, number, text, note, pinned, changed FROM label ORDER BY pinned DESC, changed DESC"
    return [_label(row) for row in index.rows(query)]


def write(index: Index, dictionary: str, number: int, *, text: str, note: str, pinned: bool) -> Label | None:
    """Keep a label; one that says nothing is taken away.

    Raises:
        UserError: it is too long, or the index cannot be written.
    """
    for name, said in (("text", text), ("note", note)):
        require(len(said) <= LONGEST[name], f"{name} has {len(said):,} letters: write at most {LONGEST[name]:,}")
    label = Label(dictionary, number, text.strip(), note.strip(), pinned, datetime.now(UTC).isoformat("T", "seconds"))
    with index.writing() as db:
        db.execute("DELETE FROM label WHERE hash = ? AND number = ?", (dictionary, number))
        if label.text or label.note or pinned:
            db.execute("INSERT INTO label VALUES (?, ?, ?, ?, ?, ?)", label)
            return label
    return None


def lines(index: Index, hashes: Collection[str] | None = None) -> Iterator[str]:
    """All labels as lines of JSON, or those of the dictionaries of some hashes."""
    for label in everything(index):
        if hashes is None or label.hash in hashes:
            yield json.dumps(label._asdict(), ensure_ascii=False) + "\n"


def _label(row: tuple) -> Label:
    return Label(*row)._replace(pinned=bool(row[4]))
