"""Cells, rows and numbers as text."""

from collections.abc import Mapping, Sequence
from typing import Any


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, aligned; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def records(records: Sequence[dict[str, Any]]) -> str:
    keys = [key for key in dict.fromkeys(k for r in records for k in r) if key != "path"]
    return columns([keys, *[[cell(record.get(key)) for key in keys] for record in records]]) if records else ""


def cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def estimate(found: dict[str, Any]) -> str:
    """A number with its interval, or why it has none."""
    if found["value"] is None:
        return f"n/a: {found['reason']}"
    span = "" if found["low"] is None or found["high"] is None else f" [{found['low']:.3g}, {found['high']:.3g}]"
    return f"{found['value']:.3g}{span}"


def counts(some: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in some.items())
