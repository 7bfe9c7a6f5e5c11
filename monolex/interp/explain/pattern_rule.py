"""From the places that matter in a feature's texts to a rule: slots, lines, and which lines are one."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from monolex.interp.explain.pattern_text import described
from monolex.interp.records import Examples, Explanation, Failure
from monolex.interp.rules import ANY, Line, Rule, Slot, covers


def slots_of(places: Sequence[Collection[int]], texts: Mapping[int, str]) -> tuple[Slot, ...]:
    """From the first place that matters on: what may stand before it says nothing."""
    first = next(number for number, tokens in enumerate(places) if tokens)
    return tuple(Slot(frozenset(texts[token] for token in tokens)) if tokens else ANY for tokens in places[first:])


def pattern_explanation(
    examples: Examples, stored: Mapping[tuple[Slot, ...], Sequence[float]]
) -> Explanation | Failure:
    """A line for every tuple of slots, with the mean of the activations stored where they were found."""
    if examples.maximum <= 0:
        return Failure("never above zero")
    if not stored:
        return Failure("not active without the text before")
    lines = [Line(slots, float(np.mean(activations))) for slots, activations in merged(stored).items()]
    seen = {text for fragment in examples.explain for text in fragment.texts}
    return Explanation("pattern", described(lines, examples.maximum, seen), Rule(tuple(lines)))


def merged(stored: Mapping[tuple[Slot, ...], Sequence[float]]) -> dict[tuple[Slot, ...], list[float]]:
    """Lines' slots with their activations: those with more conditions first, then the longer, then as they were found.

    A line that would never be reached, since an earlier one fits wherever it does, adds its activations to that one.
    """
    kept: dict[tuple[Slot, ...], list[float]] = {}
    for slots in sorted(stored, key=lambda slots: (-sum(slot != ANY for slot in slots), -len(slots))):
        into = next((earlier for earlier in kept if covers(earlier, slots)), slots)
        kept.setdefault(into, []).extend(stored[slots])
    return kept
