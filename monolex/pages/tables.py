"""Tables as plain values that a template draws: row groups, cells with their interval, and numbered reasons.

A cell without a value never stays bare: it carries the reason as a tooltip and as a note under its table.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from monolex.pages.html import MISSING, interval, number

Row = Mapping[str, Any]


class Column(NamedTuple):
    """One measurement."""

    metric: str
    """Its flat name in metrics.json."""
    label: str
    """Head of the column."""
    meaning: str = ""
    """Tooltip of the head."""
    whole: bool = False
    """Whether it is a count."""
    noted: bool = False
    """Whether its reasons are always notes: of numbers that have a reason each, as counts of what went wrong."""


class Cell(NamedTuple):
    """One number as shown."""

    text: str
    """The number, or ``n/a``."""
    interval: str = ""
    """Its interval, or nothing."""
    title: str = ""
    """Tooltip: what the interval resamples, or why there is none."""
    note: int = 0
    """Number of the note under the table; 0: none."""


class TableLine(NamedTuple):
    """One row of a table."""

    label: str
    """What the row is about."""
    cells: list[Cell]
    """One a column."""


class TableGroup(NamedTuple):
    """Rows under a common heading."""

    label: str
    """The heading; empty: none."""
    lines: list[TableLine]
    """Its rows."""


class Head(NamedTuple):
    """A column's head as shown."""

    label: str
    """Name of the measurement."""
    unit: str
    """What its intervals resample, or why it has none."""
    meaning: str
    """Tooltip."""


@dataclass(frozen=True)
class Table:
    """All that a template needs to draw a table."""

    key: str
    """Unique on the page; anchors of the notes start with it."""
    caption: str
    """What the table holds, in a sentence."""
    about: str
    """Head of the first column."""
    heads: list[Head]
    """Heads of the other columns."""
    groups: list[TableGroup]
    """Rows in groups."""
    notes: list[str]
    """Reasons, in the order of their numbers (from 1)."""
    folded: bool = False
    """Whether it starts closed."""

    @property
    def lines(self) -> list[TableLine]:
        """The rows of all groups."""
        return [line for group in self.groups for line in group.lines]


class Notes:
    """Numbers the distinct reasons of one table."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def number(self, reason: str) -> int:
        """The number under which ``reason`` is noted, from 1; 0 for no reason."""
        if not reason:
            return 0
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1


def bare(value: float | None, reason: str = "") -> dict[str, Any]:
    """A number that has no interval of its own, or why there is none."""
    return {"value": value, "low": None, "high": None, "n": 0, "over": "", "reason": reason if value is None else ""}


def table(
    key: str,
    caption: str,
    about: str,
    columns: Sequence[Column],
    groups: Iterable[tuple[str, Iterable[tuple[str, Callable[[str], Row | None]]]]],
    *,
    folded: bool = False,
) -> Table:
    """A table of ``columns`` for groups of (label, how to look a metric up); empty groups are left out."""
    notes = Notes()
    measured = [
        (label, [(name, [look_up(c.metric) for c in columns]) for name, look_up in each]) for label, each in groups
    ]
    everything = [rows for _, lines in measured for _, rows in lines]
    heads = [_head(column, [rows[i] for rows in everything]) for i, column in enumerate(columns)]
    shown = []
    for label, lines in measured:
        if lines:
            cells = [[_cell(*cell, notes) for cell in zip(rows, columns, heads, strict=True)] for _, rows in lines]
            names = (name for name, _ in lines)
            shown.append(TableGroup(label, [TableLine(*line) for line in zip(names, cells, strict=True)]))
    return Table(key, caption, about, heads, shown, notes.reasons, folded)


def _head(column: Column, rows: Sequence[Row | None]) -> Head:
    """What a column's intervals (most of them) resample, or the reason why none of its numbers has one."""
    if column.noted:
        return Head(column.label, "", column.meaning)
    valued = [row for row in rows if row and row["value"] is not None]
    units = Counter(row["over"] for row in valued if row["low"] is not None)
    if units:
        return Head(column.label, f"over {units.most_common(1)[0][0]}", column.meaning)
    shared = {row["reason"] for row in valued}
    return Head(column.label, shared.pop() if len(shared) == 1 else "", column.meaning)


def _cell(row: Row | None, column: Column, head: Head, notes: Notes) -> Cell:
    if row is None:
        return Cell(MISSING, title="not measured", note=notes.number("not measured"))
    value, reason = row["value"], row["reason"]
    if value is None:
        reason = reason or "no reason was recorded"
        return Cell(MISSING, title=reason, note=notes.number(reason))
    text = number(round(value) if column.whole else value)
    span = interval(row["low"], row["high"])
    title = f"interval over {row['n']:,} {row['over']}" if span else reason
    return Cell(text, span, title, notes.number(reason if reason != head.unit else ""))
