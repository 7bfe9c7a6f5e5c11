"""Rows of ``metrics.json`` as an aligned text table: the value with its interval, n/a with a numbered reason."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def table(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """One line a dictionary (or reference, or group of seeds) and one column a metric.

    The second line of the head says what the intervals of a column resample; reasons stand below. Rows about pairs of
    dictionaries are left out.
    """
    lines: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row["metric"] in metrics and not row["other"]:
            lines.setdefault((row["model"], row["site"], row["name"]), {})[row["metric"]] = row
    reasons: dict[str, int] = {}
    body = [[*key, *(_cell(cells.get(metric), reasons) for metric in metrics)] for key, cells in lines.items()]
    units = [_units([cells[metric] for cells in lines.values() if metric in cells]) for metric in metrics]
    head = [["model", "site", "dictionary", *metrics], ["", "", "", *units]]
    notes = [f"({number}) {reason}" for reason, number in reasons.items()]
    return "\n".join([*aligned(head + body), *notes])


def _cell(row: Row | None, reasons: dict[str, int]) -> str:
    if row is None:
        return "–"
    note = f" ({reasons.setdefault(row['reason'], len(reasons) + 1)})" if row["reason"] else ""
    if row["value"] is None:
        return f"n/a{note}"
    interval = "" if row["low"] is None else f" [{row['low']:.4g}, {row['high']:.4g}]"
    return f"{row['value']:.4g}{interval}{note}"


def _units(rows: Sequence[Row]) -> str:
    units = dict.fromkeys(row["over"] for row in rows if row["low"] is not None)
    return f"over {', '.join(units)}" if units else ""


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
