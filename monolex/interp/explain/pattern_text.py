"""Lines of a rule in words."""

from collections.abc import Collection, Sequence
from itertools import groupby

from monolex.interp.protocol import normalise
from monolex.interp.records import TOP
from monolex.interp.rules import ANY, Line, Slot
from monolex.text.characters import json_quoted

NAMED = 6
"""Tokens of a place that are written out."""


def described(lines: Sequence[Line], maximum: float, seen: Collection[str] = ()) -> str:
    """Lines of tokens, the strongest first, each with its strength from 0 to 10, which stands for ``maximum``.

    Of the tokens that may stand at a place, those in ``seen`` come first. Blanks and line breaks are escaped as in
    JSON, so that every token can be read.

    >>> described([Line((Slot(frozenset(["\\n"])), ANY, Slot(frozenset(["def"]))), 3.0)], 4.0)
    '"def" after any token after "\\\\n" (strength 7 of 10)'
    """
    strengths = normalise([line.value for line in lines], maximum, TOP).tolist()
    ordered = sorted(zip(lines, strengths, strict=True), key=lambda pair: -pair[0].value)
    return "; ".join(f"{_line(line, seen)} (strength {strength} of {TOP})" for line, strength in ordered)


def _line(line: Line, seen: Collection[str]) -> str:
    parts = []
    for slot, run in groupby(reversed(line.slots)):
        count = sum(1 for _ in run)
        if slot == ANY:
            parts.append("any token" if count == 1 else f"any {count} tokens")
        else:
            parts += [_slot(slot, seen)] * count
    return " after ".join(parts)


def _slot(slot: Slot, seen: Collection[str]) -> str:
    tokens = sorted(slot.tokens, key=lambda text: (text not in seen, len(text), text))
    names = [json_quoted(text) for text in tokens]
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more like these"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
