"""A rule's strongest lines in words."""

from collections.abc import Sequence

from monolex.interp.rules import ANY, CLASS, NOTHING, Line, Rule, Slot, covers, ways_to_fit
from monolex.interp.token_classes import class_of
from monolex.text.characters import json_quoted

SHOWN = 6
"""Lines that a text names, at most."""
STRONG, SAME = 0.3, 0.6
"""A line is named if it has this share of the maximum, unless a more general one says that share of its own value."""


def describe(rule: Rule, maximum: float) -> str:
    """The strongest lines in words, each with its activation in tenths of ``maximum``; empty where nothing is active.

    The general comes before the particular: a line is left out if a more general one that is named has most of its
    value.

    >>> line = Line((Slot(frozenset(("(",))), Slot(classes=frozenset(("digits",)))), 4.0)
    >>> describe(Rule((line, Line((Slot(frozenset((" def",))),), 5.0))), 5.0)
    'the token " def" (10); digits after "(" (8)'
    """
    if maximum <= 0:
        return ""
    named: dict[tuple[str, str], list[Line]] = {}
    for line in reversed(rule.lines):
        if line.value < STRONG * maximum:
            continue
        # a more general line has the last slot in common, or the class of its tokens, or takes any token
        last = line.slots[-1]
        looks = [*ways_to_fit(last), *((CLASS, class_of(text)) for text in last.tokens), (NOTHING, "")]
        if not any(_says(general, line) for look in looks for general in named.get(look, ())):
            named.setdefault(ways_to_fit(last)[0], []).append(line)
    strongest = sorted((line for lines in named.values() for line in lines), key=lambda line: -line.value)[:SHOWN]
    return "; ".join(f"{_line(line.slots)} ({10 * line.value / maximum:.0f})" for line in strongest)


def _says(general: Line, line: Line) -> bool:
    """Whether a line fits wherever another does, and has most of its value."""
    return general.value >= SAME * line.value and covers(general.slots, line.slots)


def _line(slots: Sequence[Slot]) -> str:
    *before, last = slots
    head = _words(last, "the token ") if last != ANY else "any token"
    steps = [f" after {_words(slot, '')}" if slot != ANY else " after any token" for slot in reversed(before)]
    return head + "".join(steps)


def _words(slot: Slot, article: str) -> str:
    tokens = [json_quoted(text) for text in sorted(slot.tokens)]
    named = [article + tokens[0] if len(tokens) == 1 else " or ".join(tokens)] if tokens else []
    return " or ".join([*named, *sorted(slot.classes)])
