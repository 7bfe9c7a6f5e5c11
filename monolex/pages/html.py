"""Pages from templates: everything that comes from data is escaped, scripts and styles are written into the page.

Numbers are formatted here and nowhere else, so that a page, its tables and its tooltips agree.
"""

import functools
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MISSING = "n/a"


def page(template: str, **context: Any) -> str:
    """The template of that name under ``templates/``, filled with ``context``."""
    return _environment().get_template(template).render(context)


def number(value: float | None) -> str:
    """Three significant digits; integers in full; thousands apart.

    >>> number(0.012345), number(12345.6), number(1234), number(4.2e-05), number(-1.0)
    ('0.0123', '12,346', '1,234', '4.20e-05', '−1.00')
    """
    if value is None:
        return MISSING
    if isinstance(value, int):
        text = f"{value:,}"
    elif value == 0 or not math.isfinite(value):
        text = f"{value:.0f}"
    else:
        rounded = float(f"{value:.3g}")
        exponent = math.floor(math.log10(abs(rounded)))
        text = f"{value:.2e}" if exponent < -3 else f"{value:,.{max(0, 2 - exponent)}f}"
    return text.replace("-", "−") if "e" not in text else text


def interval(low: float | None, high: float | None) -> str:
    """``[0.120, 0.127]``, or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"


def estimate(row: Mapping[str, Any]) -> str:
    """A number with its interval, or why there is none."""
    if row["value"] is None:
        return f"{MISSING} ({row['reason']})"
    return f"{number(row['value'])} {interval(row['low'], row['high'])}".rstrip()


def short(digest: str) -> str:
    """The first digits of a hash, enough to tell two apart."""
    return digest[:12]


def asset(name: str) -> Markup:
    """The text of a file under ``static/``, to be written into the page."""
    return Markup(files("monolex.pages").joinpath("static", name).read_text(encoding="utf-8"))


def style() -> Markup:
    """The style sheet of charts and cards, which applies inside ``class="monolex"`` only."""
    return Markup("{}:where(.monolex) {{\n{}}}\n{}").format(asset("palette.css"), asset("chart.css"), asset("card.css"))


@functools.cache
def palette() -> Mapping[str, str]:
    """The colours on a light ground by name, as ``#rrggbb``."""
    light, *_ = asset("palette.css").split("@media")
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("monolex.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "short": short}
    environment.globals |= {"asset": asset, "style": style}
    return environment
