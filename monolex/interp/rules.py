"""Explanations that a program can apply: lines that look at a token and those before it; the first that fits decides.

Every explainer that needs no language model writes such a rule: a table of tokens is one of single slots, n-grams have
several, a Neuron-to-Graph pattern has slots that take any token. So one simulator serves them all.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray

from monolex.interp.token_classes import CLASS_NUMBERS, class_of

LISTED = 16
"""Ways to fit a line that are listed; where there are more, its slots are looked at one after the other."""


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

    def covers(self, narrow: "Slot") -> bool:
        """Whether every token that may stand at another slot may stand here."""
        if self == ANY:
            return True
        named = all(text in self.tokens or class_of(text) in self.classes for text in narrow.tokens)
        return narrow != ANY and named and narrow.classes <= self.classes


ANY = Slot()
ITSELF, CLASS, NOTHING = "itself", "class", "nothing"
"""What of a token a slot looks at."""


def covers(wide: Sequence[Slot], narrow: Sequence[Slot]) -> bool:
    """Whether the slots of one line fit wherever those of another do; the last of both are of the same token."""
    pairs = zip(reversed(wide), reversed(narrow), strict=False)
    return len(wide) <= len(narrow) and all(slot.covers(other) for slot, other in pairs)


def ways_to_fit(slot: Slot) -> list[tuple[str, str]]:
    """What is looked at and what must be there, for every way to fit a slot."""
    named = [(ITSELF, text) for text in slot.tokens] + [(CLASS, name) for name in slot.classes]
    return named or [(NOTHING, "")]


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


class _Tokens(NamedTuple):
    """The tokens of many fragments, end to end, as numbers."""

    names: dict[str, int]
    """The number of every text."""
    word: Int64[NDArray, "tokens"]
    """Number of every token's text."""
    kind: Int64[NDArray, "tokens"]
    """Number of its class."""
    place: Int64[NDArray, "tokens"]
    """Its place in its fragment."""

    def fit(self, slots: Sequence[Slot]) -> Bool[NDArray, "tokens"]:
        """Which tokens and those before them fit, slot by slot."""
        fits = self.place >= len(slots) - 1
        for back, slot in enumerate(reversed(slots)):
            if slot != ANY:
                may_stand = np.isin(self.word, [self.names[text] for text in slot.tokens if text in self.names])
                may_stand |= np.isin(self.kind, [CLASS_NUMBERS[name] for name in slot.classes])
                fits &= np.roll(may_stand, back)
        return fits


def _tokens(fragments: Sequence[Sequence[str]]) -> _Tokens:
    texts = [text for of_fragment in fragments for text in of_fragment]
    names = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    word = np.array([names[text] for text in texts], np.int64)
    kind = np.array([CLASS_NUMBERS[class_of(text)] for text in names], np.int64)[word]
    place = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(of_fragment)) for of_fragment in fragments)])
    return _Tokens(names, word, kind, place)


def _looked_up(
    tokens: _Tokens, shape: Sequence[str], lines: Mapping[tuple[str, ...], int]
) -> tuple[Bool[NDArray, "tokens"], Int64[NDArray, "fitting"]]:
    """Which tokens one of the lines of a shape fits, and which line that is."""
    columns = {ITSELF: tokens.word, CLASS: tokens.kind, NOTHING: np.zeros(len(tokens.word), np.int64)}
    numbers: dict[str, Mapping[str, int]] = {ITSELF: tokens.names, CLASS: CLASS_NUMBERS, NOTHING: {"": 0}}
    keys, order = _numbered(lines, [numbers[look] for look in shape])
    if not len(keys):
        return np.zeros(len(tokens.word), bool), order
    # what comes round from the end is of no token: its place is too early
    stand = [np.roll(columns[look], len(shape) - 1 - slot) for slot, look in enumerate(shape)]
    code, wanted = _combined(stand, keys, [len(numbers[look]) for look in shape])
    rising = np.argsort(wanted)
    nearest = rising[np.minimum(np.searchsorted(wanted[rising], code), len(rising) - 1)]
    fits = (wanted[nearest] == code) & (tokens.place >= len(shape) - 1)
    return fits, order[nearest[fits]]


def _numbered(
    lines: Mapping[tuple[str, ...], int], numbers: Sequence[Mapping[str, int]]
) -> tuple[Int64[NDArray, "keys slots"], Int64[NDArray, "keys"]]:
    """Lines of one shape that can fit these tokens: the numbers of what must be there, and which lines they are."""
    known = {key: [of_slot.get(text, -1) for text, of_slot in zip(key, numbers, strict=True)] for key in lines}
    possible = [key for key in lines if min(known[key]) >= 0]
    keys = np.array([known[key] for key in possible], np.int64).reshape(-1, len(numbers))
    return keys, np.array([lines[key] for key in possible], np.int64)


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
        # Lines with few ways to fit are looked up, all of a shape at once, in a sorted list of what they want: a table
        # of tokens has thousands. The others are few, and tried one after the other.
        tokens = _tokens(fragments)
        first = np.full(len(tokens.word), len(self.lines))  # the first line that fits; past the last where none does
        for shape, lines in self._index.items():
            fits, number = _looked_up(tokens, shape, lines)
            first[fits] = np.minimum(first[fits], number)
        for number in self._wide:
            fits = tokens.fit(self.lines[number].slots)
            first[fits] = np.minimum(first[fits], number)
        values = np.array([*(line.value for line in self.lines), self.default])
        return np.split(values[first], np.cumsum([len(texts) for texts in fragments])[:-1]) if fragments else []

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
            for ways in itertools.product(*(ways_to_fit(slot) for slot in line.slots)):
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
    names = {"tokens": sorted(slot.tokens), "classes": sorted(slot.classes)}
    return {kind: of_kind for kind, of_kind in names.items() if of_kind}


def _from_slot(raw: Any) -> Slot:
    if raw is None:
        return ANY
    if isinstance(raw, str):
        return one_token(raw)
    return Slot(frozenset(raw.get("tokens", ())), frozenset(raw.get("classes", ())))
