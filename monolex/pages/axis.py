"""Linear and logarithmic scales with round ticks, and where two of them put a value in a chart."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 12.0, 46.0
WIDE = 6.6
"""Of a letter, about, at the size of ticks."""


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale."""

    label: str
    """What it measures, with its unit."""
    low: float
    """Value at its start."""
    high: float
    """Value at its end."""
    log: bool = False
    """Whether equal ratios take equal lengths."""
    names: tuple[tuple[float, str], ...] = ()
    """Values with their names, in place of round values as ticks."""

    def place(self, value: float) -> float:
        """Where ``value`` lies, from 0 (start) to 1 (end); values beyond an end lie on it."""
        low, high, value = (_log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies between the ends."""
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= value <= self.high + slack

    def ticks(self) -> list[tuple[float, str]]:
        """Round values with their labels, or the names of an axis that has them."""
        if self.names:
            return list(self.names)
        values = _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)
        return [(value, _tick_label(value, self.log)) for value in values if self.holds(value)]


def axis(
    label: str, values: Iterable[float], *, log: bool = False, low: float | None = None, high: float | None = None
) -> Axis:
    """An axis that shows all finite ``values`` (for ``log`` the positive ones), widened to round ends.

    ``low`` and ``high`` fix an end; a chart draws what lies beyond on the border, as an arrow.
    """
    shown = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    start = low if low is not None else min(shown, default=1.0 if log else 0.0)
    end = high if high is not None else max(shown, default=10.0 if log else 1.0)
    if log:
        start, end = (start / 1.25 if low is None else start), (end * 1.25 if high is None else end)
        return Axis(label, start, end if end > start else start * 10, log=True)
    end = end if end > start else start + (abs(start) or 1.0)
    step = _step(start, end)
    start = start if low is not None else math.floor(start / step + 1e-9) * step
    return Axis(label, start, end if high is not None else math.ceil(end / step - 1e-9) * step)


class Frame:
    """Maps values to coordinates; the names of a vertical axis have the room that they need."""

    def __init__(
        self, x: Axis, y: Axis, width: int, height: int, left: float | None = None, bottom: float = BOTTOM
    ) -> None:
        self.x, self.y = x, y
        needed = 16 + WIDE * max((len(name) for _, name in y.names), default=0) + (18 if y.label else 0)
        self.left, self.right = max(LEFT, needed) if left is None else left, width - RIGHT
        self.top, self.bottom = TOP, height - bottom

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = self.left + self.x.place(x) * (self.right - self.left)
        return round(across, 2), round(self.bottom - self.y.place(y) * (self.bottom - self.top), 2)


def _log(value: float) -> float:
    return math.log10(max(value, 1e-300))


def _step(low: float, high: float) -> float:
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * m for m in (1, 2, 5, 10) if unit * m >= 0.8 * rough)


def _linear_ticks(low: float, high: float) -> list[float]:
    step = _step(low, high)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(_log(low)), math.ceil(_log(high))
    multiples = (1, 2, 5) if _log(high) - _log(low) < 2.5 else (1,)
    every = max(1, math.ceil((last - first) / 8))
    return [m * 10.0**e for e in range(first, last + 1, every) for m in multiples]


def _tick_label(value: float, log: bool) -> str:
    if log and not 1e-2 <= value < 1e4:
        exponent = math.floor(math.log10(value) + 1e-9)
        factor = round(value / 10.0**exponent)
        return ("" if factor == 1 else f"{factor}·") + "10" + str(exponent).translate(SUPERSCRIPT)
    return f"{round(value, 12) + 0.0:.6g}".replace("-", "−")
