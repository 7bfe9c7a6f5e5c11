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


def estimate(row: dict[str, Any]) -> str:
    """A number with its interval, or why it has none."""
    if row["value"] is None:
        return f"n/a: {row['reason']}"
    span = "" if row["low"] is None or row["high"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{row['value']:.3g}{span}"


def counts(by_reason: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in by_reason.items())
