"""The contexts of a card in groups: the strongest in sight, the others folded."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from monolex.features.evidence import Context, Evidence
from monolex.pages import tokens
from monolex.pages.html import number

OPEN = 8
"""Contexts that are in sight without unfolding."""
NARROW = 7
"""Tokens on each side in the folded groups: a line each."""
SMALL = 4
"""Contexts of a compact card."""
ABOUT = {
    "top": "The contexts with the largest activations",
    "negative": "The contexts with the smallest codes: what the other end of the direction stands for",
    "near_zero": "Active contexts with the smallest maxima: where the feature only just fires",
    "random": "Active contexts drawn at random",
    "inactive": "Contexts drawn at random in which none of the activations that were read has it active",
}


class ContextGroup(NamedTuple):
    """Contexts under a common heading."""

    label: str
    """The heading."""
    about: str
    """How they were chosen."""
    lines: list[tuple[str, int | None, Markup]]
    """Largest activation (of the negative side the smallest code), document (of those in sight), and tokens of each."""


def groups(evidence: Evidence, meta: Mapping[str, Any], compact: bool) -> list[ContextGroup]:
    """Contexts as they are shown, the first group in sight and the others folded; none for a dead feature."""
    examples, largest, smallest = evidence.examples, evidence.summary.max, evidence.summary.min
    if not evidence.summary.n_active:
        return []
    top = examples["top"]
    if compact:
        return [ContextGroup("Strongest", ABOUT["top"], _lines(top[:SMALL], largest, NARROW))]
    shown = [ContextGroup("Strongest", ABOUT["top"], _lines(top[:OPEN], largest, tokens.WINDOW))]
    shown.append(ContextGroup("Next", "The contexts that follow these", _lines(top[OPEN:], largest, NARROW)))
    shown.append(ContextGroup("Most negative", ABOUT["negative"], _lines(examples["negative"], smallest, NARROW)))
    shown += _quantiles(examples["quantile"], evidence, meta)
    names = {"near_zero": "Just above zero", "random": "At random", "inactive": "Inactive"}
    shown += [ContextGroup(name, ABOUT[g], _lines(examples[g], largest, NARROW)) for g, name in names.items()]
    return [group for group in shown if group.lines]


def _quantiles(contexts: Sequence[Context], evidence: Evidence, meta: Mapping[str, Any]) -> list[ContextGroup]:
    """The quantiles from the strongest to the weakest, each with the ranks it was drawn from where they are known."""
    count, active = max((context.part for context in contexts), default=-1) + 1, evidence.summary.fragments
    groups = []
    for part in reversed(range(count)):
        # The store ranks by rising maximum; a reader counts from the strongest.
        first, last = active - (part + 1) * active // count + 1, active - part * active // count
        ranks = f"{first:,} to {last:,} of {active:,}"
        about = f"Drawn at random from those ranked {ranks} by their maximum, strongest first"
        if not active:
            about = "Contexts of an interval of activations, of which another tool's file says no more"
        elif meta.get("config", {}).get("disjoint"):
            # one context of a document was ranked, and how many those are is not stored
            about = "Drawn at random from this part of the ranking by maximum, of one context a document"
        drawn = [context for context in contexts if context.part == part]
        drawn.sort(key=lambda context: -max(context.activations))
        lines = _lines(drawn, evidence.summary.max, NARROW)
        groups.append(ContextGroup(f"Quantile {part + 1} of {count}", about, lines))
    return groups


def _lines(contexts: Sequence[Context], largest: float, window: int) -> list[tuple[str, int | None, Markup]]:
    """``largest`` is the feature's largest activation; of the negative side its smallest code."""
    wide, strongest = window == tokens.WINDOW, min if largest < 0 else max
    return [
        (number(strongest(c.activations)), c.doc if wide else None, tokens.context(c, largest, window, cut=wide))
        for c in contexts
    ]
