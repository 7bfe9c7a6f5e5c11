"""Heat-maps as panels: a cell is a block whose shade says in which tenth of a range its value lies."""

from collections.abc import Callable, Sequence

from monolex.pages.axis import Axis
from monolex.pages.html import number
from monolex.pages.picture import Panel
from monolex.pages.svg import BLOCK, Point, Series

HALF = 0.48
"""Of a cell's sides; what is left parts it from the next."""
SHADES = 10
"""Classes `shade0` (faintest) to `shade9` of static/chart.css."""

Values = Sequence[Sequence[float | None]]
"""Rows from the bottom, a value a column; None of a cell without."""


def heat(
    title: str,
    values: Values,
    columns: tuple[str, Sequence[str]],
    rows: tuple[str, Sequence[str]],
    ends: tuple[float, float],
    *,
    told: Callable[[float], str] = number,
    width: int = 420,
    height: int = 300,
) -> Panel:
    """The cells of ``values`` between ``ends``, beyond which they have the last shade; axes as (label, names)."""
    shaded: list[list[Point]] = [[] for _ in range(SHADES)]
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value is None:
                continue
            about = f"{columns[0]} {columns[1][x]}, {rows[0]} {rows[1][y]}\n{told(value)}"
            cell = Point(x, y, about, (x - HALF, x + HALF), (y - HALF, y + HALF))
            shaded[shade(value, ends)].append(cell)
    series = [
        Series(between(level, ends, told), tuple(points), "blue", BLOCK, joined=False, variant=f"shade{level}")
        for level, points in enumerate(shaded)
    ]
    return Panel(title, tuple(series), _axis(*columns), _axis(*rows), width, height)


def shade(value: float, ends: tuple[float, float]) -> int:
    """Which tenth of the range between the ends a value lies in.

    >>> shade(0.0, (0.0, 1.0)), shade(0.95, (0.0, 1.0)), shade(7.0, (0.0, 1.0))
    (0, 9, 9)
    """
    low, high = ends
    return min(SHADES - 1, max(0, int((value - low) / (high - low) * SHADES)))


def opacity(level: int) -> float:
    """Of a shade, as static/chart.css has it too."""
    return round(0.04 + 0.96 * level / (SHADES - 1), 2)


def between(level: int, ends: tuple[float, float], told: Callable[[float], str] = number) -> str:
    """What a shade stands for."""
    low, step = ends[0], (ends[1] - ends[0]) / SHADES
    if level == SHADES - 1:
        return f"{told(low + level * step)} or more"
    return f"{told(low + level * step)} to {told(low + (level + 1) * step)}"


def _axis(label: str, names: Sequence[str]) -> Axis:
    return Axis(label, -0.5, len(names) - 0.5, names=tuple(enumerate(names)))
