"""Explanations by looking up what stands where a feature is active: tokens, and tokens after tokens.

``token`` is OpenAI's lookup table: every token with its mean activation, what each simulator must beat. ``ngram`` goes
from the general to the particular (the class of a token, the token, the token after a certain one …) and moves each
guess from the more general one towards the mean of what was seen, the further the more was seen. Which contexts are
looked at, and how readily, is what predicts each explained fragment best from the others. Both learn from the fragments
that explainers may see and from nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from monolex.interp.protocol import correlation
from monolex.interp.records import Examples, Explanation, Fragment
from monolex.interp.rule_text import describe
from monolex.interp.rules import ANY, Line, Rule, Slot, one_class, one_token
from monolex.interp.token_classes import class_of

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


class TrainingTokens(NamedTuple):
    """The tokens of the explained fragments, end to end: what a rule is learned from."""

    texts: list[tuple[str, ...]]
    """Fragments."""
    activation: Float[NDArray, "tokens"]
    """Of every token."""
    fragment: Int64[NDArray, "tokens"]
    """Its fragment."""
    place: Int64[NDArray, "tokens"]
    """Its place in the fragment."""


def token_table(examples: Examples) -> Explanation:
    """Every token of the explained fragments with its mean activation; other tokens are silent."""
    tokens = _training_tokens((*examples.explain, *examples.explain_silent))
    level = _level(tokens, (TOKEN,), _numbers(tokens))
    sums, counts = _sums(level, tokens.activation)
    means = sums / counts
    rule = Rule(tuple(_lines(tokens, (TOKEN,), level, means, np.abs(means) >= FLOOR * examples.maximum)))
    return Explanation("token", describe(rule, examples.maximum), rule)


def ngram(examples: Examples) -> Explanation:
    """Tokens by their class, themselves and what stands before them, smoothed; see the module's docstring."""
    tokens = _training_tokens((*examples.explain, *examples.explain_silent))
    numbers = _numbers(tokens)
    levels = {shape: _level(tokens, shape, numbers) for chain in CONTEXTS for shape in chain}
    settings = [(chain, kappa) for chain in CONTEXTS for kappa in SHRINKAGE]
    predictions = (_from_others(tokens, [levels[shape] for shape in chain], kappa) for chain, kappa in settings)
    scores = np.array([correlation(tokens.activation, predicted).value for predicted in predictions])
    chain, kappa = settings[int(np.where(np.isfinite(scores), scores, -np.inf).argmax())]
    rule = _rule(tokens, {shape: levels[shape] for shape in chain}, kappa, FLOOR * examples.maximum)
    return Explanation("ngram", describe(rule, examples.maximum), rule)


def _training_tokens(fragments: Sequence[Fragment]) -> TrainingTokens:
    texts = [fragment.texts for fragment in fragments]
    lengths = [len(of_fragment) for of_fragment in texts]
    activation = np.concatenate([fragment.activations for fragment in fragments]).astype(np.float64)
    place = np.concatenate([np.arange(length) for length in lengths])
    return TrainingTokens(texts, activation, np.repeat(np.arange(len(texts)), lengths), place)


def _numbers(tokens: TrainingTokens) -> dict[str, Int64[NDArray, "tokens"]]:
    """A number for the text and for the class of every token, in order."""
    texts = [text for of_fragment in tokens.texts for text in of_fragment]
    classes = [class_of(text) for text in texts]
    return {
        TOKEN: np.unique(np.array(texts, dtype=object), return_inverse=True)[1],
        CLASS: np.unique(np.array(classes, dtype=object), return_inverse=True)[1],
        ANYTHING: np.zeros(len(texts), np.int64),
    }


def _level(tokens: TrainingTokens, shape: tuple[str, ...], numbers: dict[str, Int64[NDArray, "tokens"]]) -> Level:
    key = np.zeros(len(tokens.activation), np.int64)
    for back, kind in zip(range(len(shape) - 1, -1, -1), shape, strict=True):
        column = numbers[kind]
        # what comes round from the end is of no token: its place is too early
        key = key * (int(column.max(initial=0)) + 1) + np.roll(column, back)
    key[tokens.place < len(shape) - 1] = -1
    keys, first, index = np.unique(key, return_index=True, return_inverse=True)
    too_early = int(len(keys) > 0 and keys[0] == -1)
    return Level(index - too_early, first[too_early:])


def _sums(level: Level, activation: Float[NDArray, "tokens"]) -> tuple[NDArray, NDArray]:
    """Sum of the activations and number of the tokens of every context."""
    known = level.key >= 0
    keys = level.key[known]
    return np.bincount(keys, activation[known], len(level.first)), np.bincount(keys, minlength=len(level.first))


def _from_others(tokens: TrainingTokens, levels: Sequence[Level], kappa: float) -> Float[NDArray, "tokens"]:
    """What every token is predicted from the other fragments alone."""
    # A prediction is made of sums and counts, so that leaving a fragment out is to take its share away from both: all
    # fragments are left out at once, where a fit without each would cost a fit a fragment for every setting.
    fragments, activation = len(tokens.texts), tokens.activation
    fragment_sum = np.bincount(tokens.fragment, activation, fragments)[tokens.fragment]
    fragment_size = np.bincount(tokens.fragment, minlength=fragments)[tokens.fragment]
    guess = (activation.sum() - fragment_sum) / np.maximum(len(activation) - fragment_size, 1)
    for level in levels:
        known = level.key >= 0
        key = level.key[known]
        sums, counts = _sums(level, activation)
        key_and_fragment = key * fragments + tokens.fragment[known]
        pairs = len(level.first) * fragments
        others_sum = sums[key] - np.bincount(key_and_fragment, activation[known], pairs)[key_and_fragment]
        others_count = counts[key] - np.bincount(key_and_fragment, minlength=pairs)[key_and_fragment]
        guess[known] = (others_sum + kappa * guess[known]) / (others_count + kappa)
    return guess


def _rule(tokens: TrainingTokens, levels: Mapping[tuple[str, ...], Level], kappa: float, floor: float) -> Rule:
    """Lines for every context seen, from the particular to the general, less those that say what the next one says."""
    default = float(tokens.activation.mean())
    guess = np.full(len(tokens.activation), default)
    # A line left out still moves the guess of the more particular ones, but not what the rule says of their tokens: so
    # a line is judged by what it adds to the lines that are kept, and small steps that add up are not lost.
    said = guess.copy()
    lines: list[Line] = []
    for shape, level in levels.items():
        sums, counts = _sums(level, tokens.activation)
        known = level.key >= 0
        means = (sums + kappa * guess[level.first]) / (counts + kappa)
        guess[known] = means[level.key[known]]
        kept = np.abs(means - said[level.first]) >= floor
        moved = known & kept[level.key]
        said[moved] = guess[moved]
        lines = _lines(tokens, shape, level, means, kept) + lines
    return Rule(tuple(lines), default)


def _lines(
    tokens: TrainingTokens, shape: tuple[str, ...], level: Level, means: Float[NDArray, "keys"], kept: NDArray
) -> list[Line]:
    """A line for every context of a level that is kept, the strongest first."""
    lines = [Line(_slots(tokens, shape, int(level.first[key])), float(means[key])) for key in np.flatnonzero(kept)]
    return sorted(lines, key=lambda line: -line.value)


def _slots(tokens: TrainingTokens, shape: tuple[str, ...], at: int) -> tuple[Slot, ...]:
    first = int(tokens.place[at]) + 1 - len(shape)
    texts = tokens.texts[int(tokens.fragment[at])][first : first + len(shape)]
    return tuple(SLOTS[kind](text) for kind, text in zip(shape, texts, strict=True))
