"""Explanations that a program can apply: lines that look at a token and those before it; the first that fits decides.

Every explainer that needs no language model writes such a rule: a table of tokens is one of single slots, n-grams have
several, a Neuron-to-Graph pattern has slots that take any token. So one simulator serves them all.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

CLASSES: Mapping[str, str] = {
    "line breaks": r"\s*\n\s*",
    "blanks": r"[^\S\n]+",
    "digits": r"\s?\d+",
    "opening brackets": r"\s?[(\[{<]+",
    "closing brackets": r"\s?[)\]}>]+",
    "quotation marks": r"\s?[\"'`“”‘’]+",
    "sentence ends": r"\s?[.!?]+",
    "other punctuation": r"\s?[^\w\s]+",
    "capitals": r"\s?[A-Z]{2,}",
    "capitalised words": r" [A-Z][a-z]*",
    "capitalised pieces": r"[A-Z][a-z]*",
    "lower-case words": r" [a-z]+",
    "lower-case pieces": r"[a-z]+",
    "underscored": r"\s?\w*_\w*",
    "other letters": r"\s?\w+",
}
"""Classes of tokens by what they look like, as regular expressions of the whole token; the first that fits is its
class, so that every token has at most one."""
LISTED = 16
"""Ways to fit a line that are listed; where there are more, its slots are looked at one after the other."""
_CLASSES = {name: re.compile(pattern) for name, pattern in CLASSES.items()}
NO_CLASS = "anything else"
_CLASS_NUMBERS = {name: number for number, name in enumerate((*CLASSES, NO_CLASS))}


@lru_cache(maxsize=2**16)
def class_of(text: str) -> str:
    """The class of a token.

    >>> class_of(" def"), class_of("42"), class_of("),"), class_of("")
    ('lower-case words', 'digits', 'other punctuation', 'anything else')
    """
    return next((name for name, pattern in _CLASSES.items() if pattern.fullmatch(text)), NO_CLASS)


class Slot(NamedTuple):
    """Which tokens may stand at one place; without either, any."""

    tokens: frozenset[str] = frozenset()
    """One of these texts …"""
    classes: frozenset[str] = frozenset()
    """… or of one of these classes."""

    def fits(self, text: str) -> bool:
        """Whether a token may stand here."""
        if not self.tokens and not self.classes:
            return True
        return text in self.tokens or (bool(self.classes) and class_of(text) in self.classes)


ANY = Slot()
ITSELF, CLASS, NOTHING = "itself", "class", "nothing"
"""What of a token a slot looks at."""


def _ways(slot: Slot) -> list[tuple[str, str]]:
    """Every way to fit a slot: what is looked at, and what must be there."""
    named = [(ITSELF, text) for text in slot.tokens] + [(CLASS, name) for name in slot.classes]
    return named or [(NOTHING, "")]


def _numbered(
    lines: Mapping[tuple[str, ...], int], numbers: Sequence[Mapping[str, int]]
) -> tuple[Int64[NDArray, "keys slots"], Int64[NDArray, "keys"]]:
    """Lines of one shape whose slots can be filled here: the numbers of what must be there, and which they are."""
    keys, order = [], []
    for key, line in lines.items():
        found = [known.get(text, -1) for text, known in zip(key, numbers, strict=True)]
        if min(found) >= 0:
            keys.append(found)
            order.append(line)
    return np.array(keys, np.int64).reshape(-1, len(numbers)), np.array(order, np.int64)


def _combined(
    columns: Sequence[Int64[NDArray, "tokens"]], keys: Int64[NDArray, "keys slots"], sizes: Sequence[int]
) -> tuple[Int64[NDArray, "tokens"], Int64[NDArray, "keys"]]:
    """One number for what stands in all slots, of tokens and of lines alike."""
    code, wanted, bound = np.zeros(len(columns[0]), np.int64), np.zeros(len(keys), np.int64), 1
    for column, key, size in zip(columns, keys.T, sizes, strict=True):
        if bound * size >= 2**62:
            # a long line has more possible texts than numbers: only those that occur are counted
            both, inverse = np.unique(np.concatenate([code, wanted]), return_inverse=True)
            code, wanted, bound = inverse[: len(code)], inverse[len(code) :], len(both)
        code, wanted, bound = code * size + column, wanted * size + key, bound * size
    return code, wanted


@lru_cache(maxsize=2**16)
def one_token(text: str) -> Slot:
    """A slot for one token."""
    return Slot(frozenset((text,)))


@lru_cache(maxsize=64)
def one_class(name: str) -> Slot:
    """A slot for one class."""
    return Slot(classes=frozenset((name,)))


class Line(NamedTuple):
    """One line of a rule."""

    slots: tuple[Slot, ...]
    """The token in question is the last; the others are those right before it."""
    value: float
    """Activation that is predicted there."""

    def fits(self, texts: Sequence[str], at: int) -> bool:
        """Whether the token ``at`` and those before it fit."""
        first = at + 1 - len(self.slots)
        return first >= 0 and all(slot.fits(texts[first + i]) for i, slot in enumerate(self.slots))


@dataclass(frozen=True)
class Rule:
    """Lines, the more specific first: the first that fits a token says its activation."""

    lines: tuple[Line, ...]
    """In the order in which they are tried."""
    default: float = 0.0
    """Where none fits."""

    def predict(self, texts: Sequence[str]) -> Float[NDArray[np.float64], "tokens"]:
        """The activation of every token, line by line: what :meth:`predict_all` must agree with."""
        first = (next((line.value for line in self.lines if line.fits(texts, at)), None) for at in range(len(texts)))
        return np.array([self.default if value is None else value for value in first], dtype=np.float64)

    def predict_all(self, fragments: Sequence[Sequence[str]]) -> list[Float[NDArray[np.float64], "tokens"]]:
        """The activations of many fragments, all tokens at once: what stands in the slots is looked up as a number."""
        lengths = [len(texts) for texts in fragments]
        texts = [text for some in fragments for text in some]
        names = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        word = np.array([names[text] for text in texts], np.int64)
        kind = np.array([_CLASS_NUMBERS[class_of(text)] for text in names], np.int64)[word]
        place = np.concatenate([np.arange(n) for n in lengths] or [np.zeros(0, np.int64)])
        columns = {ITSELF: word, CLASS: kind, NOTHING: np.zeros(len(word), np.int64)}
        numbers: dict[str, Mapping[str, int]] = {ITSELF: names, CLASS: _CLASS_NUMBERS, NOTHING: {"": 0}}
        best = np.full(len(word), len(self.lines))
        for shape, lines in self._index.items():
            keys, order = _numbered(lines, [numbers[look] for look in shape])
            if not len(keys):
                continue
            # what comes round from the end is of no token: its place is too early
            stand = [np.roll(columns[look], len(shape) - 1 - i) for i, look in enumerate(shape)]
            code, wanted = _combined(stand, keys, [len(numbers[look]) for look in shape])
            rising = np.argsort(wanted)
            found = rising[np.minimum(np.searchsorted(wanted[rising], code), len(rising) - 1)]
            fits = (wanted[found] == code) & (place >= len(shape) - 1)
            best[fits] = np.minimum(best[fits], order[found[fits]])
        for number in self._wide:
            slots = self.lines[number].slots
            fits = place >= len(slots) - 1
            for back, slot in zip(range(len(slots) - 1, -1, -1), slots, strict=True):
                if slot != ANY:
                    there = np.isin(word, [names[text] for text in slot.tokens if text in names])
                    there |= np.isin(kind, [_CLASS_NUMBERS[name] for name in slot.classes])
                    fits &= np.roll(there, back)
            best[fits] = np.minimum(best[fits], number)
        values = np.array([*(line.value for line in self.lines), self.default])
        return np.split(values[best], np.cumsum(lengths)[:-1]) if fragments else []

    @cached_property
    def _wide(self) -> list[int]:
        """Lines that too many texts fit to list them."""
        counts = (math.prod(max(1, len(s.tokens) + len(s.classes)) for s in line.slots) for line in self.lines)
        return [number for number, count in enumerate(counts) if count > LISTED]

    @cached_property
    def _index(self) -> dict[tuple[str, ...], dict[tuple[str, ...], int]]:
        """The first of the other lines for what may stand in its slots, by how each slot is looked at."""
        index: dict[tuple[str, ...], dict[tuple[str, ...], int]] = {}
        wide = set(self._wide)
        for number, line in enumerate(self.lines):
            if number in wide:
                continue
            for ways in itertools.product(*(_ways(slot) for slot in line.slots)):
                shape, key = zip(*ways, strict=True)
                index.setdefault(shape, {}).setdefault(key, number)
        return index

    def to_json(self) -> dict[str, Any]:
        """Plain values; :func:`from_json` gives the rule back."""
        lines = [[[_slot(slot) for slot in line.slots], _short(line.value)] for line in self.lines]
        return {"lines": lines, "default": self.default}


def _short(value: float) -> float:
    """Five digits: a rule is a guess, and there are many lines."""
    return float(f"{value:.5g}")


def from_json(raw: Mapping[str, Any]) -> Rule:
    """A rule out of :meth:`Rule.to_json`."""
    lines = [Line(tuple(map(_from_slot, slots)), value) for slots, value in raw["lines"]]
    return Rule(tuple(lines), float(raw["default"]))


def _slot(slot: Slot) -> Any:
    """A token's text for a slot of one token, null for any, else its tokens and classes: most lines are short."""
    if slot == ANY:
        return None
    if len(slot.tokens) == 1 and not slot.classes:
        return next(iter(slot.tokens))
    found = {"tokens": sorted(slot.tokens), "classes": sorted(slot.classes)}
    return {name: some for name, some in found.items() if some}


def _from_slot(raw: Any) -> Slot:
    if raw is None:
        return ANY
    if isinstance(raw, str):
        return one_token(raw)
    return Slot(frozenset(raw.get("tokens", ())), frozenset(raw.get("classes", ())))


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
        looks = [*_ways(last), *((CLASS, class_of(text)) for text in last.tokens), (NOTHING, "")]
        if not any(_says(one, line) for look in looks for one in named.get(look, ())):
            named.setdefault(_ways(last)[0], []).append(line)
    strong = sorted((line for some in named.values() for line in some), key=lambda line: -line.value)[:SHOWN]
    return "; ".join(f"{_line(line.slots)} ({10 * line.value / maximum:.0f})" for line in strong)


def _says(general: Line, line: Line) -> bool:
    """Whether a line fits wherever another does, and has most of its value."""
    if len(general.slots) > len(line.slots) or general.value < SAME * line.value:
        return False
    pairs = zip(general.slots, line.slots[len(line.slots) - len(general.slots) :], strict=True)
    return all(_covers(wide, narrow) for wide, narrow in pairs)


def _covers(wide: Slot, narrow: Slot) -> bool:
    if wide == ANY:
        return True
    named = all(text in wide.tokens or class_of(text) in wide.classes for text in narrow.tokens)
    return narrow != ANY and named and narrow.classes <= wide.classes


def _line(slots: Sequence[Slot]) -> str:
    *before, last = slots
    head = _words(last, "the token ") if last != ANY else "any token"
    steps = [f" after {_words(slot, '')}" if slot != ANY else " after any token" for slot in reversed(before)]
    return head + "".join(steps)


def _words(slot: Slot, article: str) -> str:
    tokens = [json.dumps(text, ensure_ascii=False) for text in sorted(slot.tokens)]
    named = [article + tokens[0] if len(tokens) == 1 else " or ".join(tokens)] if tokens else []
    return " or ".join([*named, *sorted(slot.classes)])
