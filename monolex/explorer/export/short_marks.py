"""Marks of active tokens in few letters: of a dense dictionary nearly every token of a context has one.

``<mark class=a3 title="0.345 @17">`` is written ``<0.345>`` where it follows a mark at position 16 and its colour is
that of the shown value over the feature's largest activation (below zero: its smallest code). What is otherwise is
said, ``<0.345@17!a3=TEXT>``: the position, the strongest token, the colour, the text of a token that is a part of a
character. No other tag begins with a digit or a sign. A script of the export writes them out
(``static/export_feature.js``).
"""

import math
import re

VALUE = r"[−-]?[\d.,]+(?:e[+-]\d+)?"
WRITTEN = re.compile(rf'<mark class=(?:"([an])(\d+) peak"|([an])(\d+)) title="(?:([^"]*: ))?({VALUE}) @(\d+)">')
SHORT = re.compile(rf"<({VALUE})(?:@(\d+))?(!?)(?:([an])(\d+))?(?:=([^>]*))?>")
STEPS = 10


def shortened(html: str, largest: float, smallest: float) -> str:
    """The markup of a feature with this largest activation and smallest code, its marks short."""
    expected = 0

    def short(mark: re.Match[str]) -> str:
        nonlocal expected
        strongest, side, level = mark[1], mark[1] or mark[3], mark[2] or mark[4]
        said, value, position = mark[5], mark[6], int(mark[7])
        place = "" if position == expected else f"@{position}"
        expected = position + 1
        colour = "" if side + level == _colour(value, largest, smallest) else side + level
        return f"<{value}{place}{'!' if strongest else ''}{colour}{f'={said}' if said else ''}>"

    return WRITTEN.sub(short, html).replace("</mark>", "</>")


def whole(html: str, largest: float, smallest: float) -> str:
    """What :func:`shortened` was given."""
    expected = 0

    def written(mark: re.Match[str]) -> str:
        nonlocal expected
        value, place, strongest, side, level, said = mark.groups()
        position = int(place) if place else expected
        expected = position + 1
        colour = side + level if side else _colour(value, largest, smallest)
        style = f'"{colour} peak"' if strongest else colour
        return f'<mark class={style} title="{said or ""}{value} @{position}">'

    return SHORT.sub(written, html).replace("</>", "</mark>")


def _colour(value: str, largest: float, smallest: float) -> str:
    activation = float(value.replace("−", "-").replace(",", ""))
    side, bound = ("n", smallest) if activation < 0 else ("a", largest)
    return f"{side}{min(STEPS, max(0, math.floor(STEPS * activation / bound + 0.5))) if bound else 0}"
