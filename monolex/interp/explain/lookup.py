"""Explanations by looking up what stands where a feature is active: tokens, and tokens after tokens.

``token`` is OpenAI's lookup table: every token with its mean activation, what each simulator must beat. ``ngram`` goes
from the general to the particular (the class of a token, the token, the token after a certain one …) and moves each
guess from the more general one towards the mean of what was seen, the further the more was seen. Which contexts are
looked at, and how readily, is what predicts each explained fragment best from the others. Both learn from the fragments
that explainers may see and from nothing else.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from monolex.interp.protocol import correlation
from monolex.interp.records import Examples, Explanation, Fragment
from monolex.interp.rules import ANY, Line, Rule, Slot, class_of, describe, one_class, one_token

FLOOR = 0.04
"""Lines that move a guess by less than this share of the maximum are left out."""
SHRINKAGE = (0.1, 0.5, 2.0)
"""How many tokens' worth the more general guess counts; the best is chosen."""
TOKEN, CLASS, ANYTHING = "token", "class", "any"
SLOTS: dict[str, Callable[[str], Slot]] = {
    TOKEN: one_token,
    CLASS: lambda text: one_class(class_of(text)),
    ANYTHING: lambda _text: ANY,
}
CONTEXTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    ((CLASS,), (TOKEN,)),
    ((CLASS,), (TOKEN,), (TOKEN, TOKEN), (TOKEN, TOKEN, TOKEN)),
    ((CLASS,), (TOKEN,), (CLASS, TOKEN), (TOKEN, TOKEN)),
    ((CLASS, ANYTHING), (TOKEN, ANYTHING)),
    ((CLASS, ANYTHING), (TOKEN, ANYTHING), (TOKEN, CLASS), (TOKEN, TOKEN)),
    ((TOKEN, ANYTHING, ANYTHING),),
    ((TOKEN, ANYTHING, ANYTHING), (TOKEN, ANYTHING, CLASS), (TOKEN, ANYTHING, TOKEN)),
)
"""What is looked at, from the general to the particular: the last place is the token itself."""


class Level(NamedTuple):
    """One context of all tokens."""

    key: Int64[NDArray, "tokens"]
    """Equal for tokens in equal contexts; -1 where the fragment begins too late to tell."""
    first: Int64[NDArray, "keys"]
    """A token of every context."""


class Seen(NamedTuple):
    """The tokens to learn from."""

    texts: list[tuple[str, ...]]
    """Fragments."""
    y: Float[NDArray, "tokens"]
    """Activation of every token, fragment after fragment."""
    fragment: Int64[NDArray, "tokens"]
    """Its fragment."""
    place: Int64[NDArray, "tokens"]
    """Its place there."""


def token_table(examples: Examples) -> Explanation:
    """Every token of the explained fragments with its mean activation; other tokens are silent."""
    seen = _seen((*examples.explain, *examples.explain_silent))
    level = _level(seen, (TOKEN,), _numbers(seen))
    sums, counts = _sums(level, seen.y)
    means = sums / counts
    lines = [
        Line(_slots(seen, (TOKEN,), int(at)), float(mean))
        for at, mean in zip(level.first, means, strict=True)
        if abs(mean) >= FLOOR * examples.maximum
    ]
    rule = Rule(tuple(sorted(lines, key=lambda line: -line.value)))
    return Explanation("token", describe(rule, examples.maximum), rule)


def ngram(examples: Examples) -> Explanation:
    """Tokens by their class, themselves and what stands before them, smoothed; see the module's docstring."""
    seen = _seen((*examples.explain, *examples.explain_silent))
    numbers = _numbers(seen)
    levels = {shape: _level(seen, shape, numbers) for chain in CONTEXTS for shape in chain}
    scored = [
        (correlation(seen.y, _left_out(seen, [levels[shape] for shape in chain], kappa)).value, -i, chain, kappa)
        for i, (chain, kappa) in enumerate((chain, kappa) for chain in CONTEXTS for kappa in SHRINKAGE)
    ]
    known = [one for one in scored if np.isfinite(one[0])] or scored[:1]
    _, _, chain, kappa = max(known, key=lambda one: one[:2])
    rule = _rule(seen, chain, [levels[shape] for shape in chain], kappa, FLOOR * examples.maximum)
    return Explanation("ngram", describe(rule, examples.maximum), rule)


def _seen(fragments: Sequence[Fragment]) -> Seen:
    texts = [one.texts for one in fragments]
    lengths = [len(one) for one in texts]
    y = np.concatenate([one.activations for one in fragments]).astype(np.float64)
    return Seen(texts, y, np.repeat(np.arange(len(texts)), lengths), np.concatenate([np.arange(n) for n in lengths]))


def _numbers(seen: Seen) -> dict[str, Int64[NDArray, "tokens"]]:
    """A number for the text and for the class of every token, in order."""
    texts = [text for some in seen.texts for text in some]
    classes = [class_of(text) for text in texts]
    return {
        TOKEN: np.unique(np.array(texts, dtype=object), return_inverse=True)[1],
        CLASS: np.unique(np.array(classes, dtype=object), return_inverse=True)[1],
        ANYTHING: np.zeros(len(texts), np.int64),
    }


def _level(seen: Seen, shape: tuple[str, ...], numbers: dict[str, Int64[NDArray, "tokens"]]) -> Level:
    key = np.zeros(len(seen.y), np.int64)
    for back, kind in zip(range(len(shape) - 1, -1, -1), shape, strict=True):
        column = numbers[kind]
        # what comes round from the end is of no token: its place is too early
        key = key * (int(column.max(initial=0)) + 1) + np.roll(column, back)
    key[seen.place < len(shape) - 1] = -1
    found, first, index = np.unique(key, return_index=True, return_inverse=True)
    short = int(len(found) > 0 and found[0] == -1)
    return Level(index - short, first[short:])


def _sums(level: Level, y: NDArray) -> tuple[NDArray, NDArray]:
    known = level.key >= 0
    keys = level.key[known]
    return np.bincount(keys, y[known], len(level.first)), np.bincount(keys, minlength=len(level.first))


def _left_out(seen: Seen, levels: Sequence[Level], kappa: float) -> Float[NDArray, "tokens"]:
    """What every token is predicted from the other fragments alone."""
    fragments = len(seen.texts)
    own = np.bincount(seen.fragment, seen.y, fragments)[seen.fragment]
    sizes = np.bincount(seen.fragment, minlength=fragments)[seen.fragment]
    guess = (seen.y.sum() - own) / np.maximum(len(seen.y) - sizes, 1)
    for level in levels:
        known = level.key >= 0
        key, y = level.key[known], seen.y[known]
        pair = key * fragments + seen.fragment[known]
        width = len(level.first) * fragments
        total, count = _sums(level, seen.y)
        left = total[key] - np.bincount(pair, y, width)[pair]
        number = count[key] - np.bincount(pair, minlength=width)[pair]
        guess[known] = (left + kappa * guess[known]) / (number + kappa)
    return guess


def _rule(seen: Seen, chain: Sequence[tuple[str, ...]], levels: Sequence[Level], kappa: float, floor: float) -> Rule:
    """Lines for every context seen, from the particular to the general, less those that say what the next one says."""
    default = float(seen.y.mean())
    guess, lines = np.full(len(seen.y), default), []
    said = guess.copy()
    for shape, level in zip(chain, levels, strict=True):
        sums, counts = _sums(level, seen.y)
        known = level.key >= 0
        values = (sums + kappa * guess[level.first]) / (counts + kappa)
        guess[known] = values[level.key[known]]
        kept = np.abs(values - said[level.first]) >= floor
        moved = known & kept[level.key]
        said[moved] = guess[moved]
        here = [
            Line(_slots(seen, shape, int(at)), float(value))
            for at, value, keep in zip(level.first, values, kept, strict=True)
            if keep
        ]
        lines = sorted(here, key=lambda line: -line.value) + lines
    return Rule(tuple(lines), default)


def _slots(seen: Seen, shape: tuple[str, ...], at: int) -> tuple[Slot, ...]:
    first = int(seen.place[at]) + 1 - len(shape)
    texts = seen.texts[int(seen.fragment[at])][first : first + len(shape)]
    return tuple(SLOTS[kind](text) for kind, text in zip(shape, texts, strict=True))
