"""What a card says of a feature's explanations: their texts, scores with intervals and chance, and real beside
simulated activations; what the direction writes stands apart, for it says nothing of when the feature is active."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from monolex.interp.records import Overlay, Scored
from monolex.pages import tokens
from monolex.pages.html import MISSING, interval, number

Facts = Mapping[str, Any]
FRAGMENTS = 2
"""Fragments of a group that are shown of a scored explanation."""
SCORES = (
    ("top_and_random", "Score", "correlation of simulated with real activations over all scored fragments"),
    ("top", "Top", "the same over fragments with the strongest activations alone"),
    ("random", "Random", "the same over fragments drawn at random alone"),
    ("chance", "Chance", "mean correlation that explanations of other features have on this one"),
)
CLASSIFIED = (
    ("detection", "Detection", "telling fragments with the feature from silent ones by the explanation"),
    ("fuzz", "Fuzzing", "telling the right tokens marked from wrong ones by the explanation"),
)
BALANCED, AREA = "balanced_accuracy", "auc"


class Number(NamedTuple):
    """A score as a card shows it."""

    label: str
    """Its name."""
    value: str
    """The number, or ``n/a``."""
    under: str
    """Its interval, or why there is no number."""
    about: str
    """What it measures."""


class Simulated(NamedTuple):
    """The scores of an explanation by one simulator."""

    kind: str
    """Which one."""
    simulator: str
    """The same in words."""
    numbers: list[Number]
    """Scores; those that were not asked for are left out."""
    failures: str
    """Calls that failed, with their reasons; empty for none."""
    fragments: list[tuple[str, int, Markup]]
    """Group, document and tokens of some scored fragments."""


class ExplanationScores(NamedTuple):
    """One explanation and all its scores."""

    explainer: str
    """Who says so."""
    text: Markup
    """What it says."""
    simulated: list[Simulated]
    """By simulator."""


def explanations(scored: Sequence[Scored]) -> list[ExplanationScores]:
    """The explanations of one feature, each once, in the order of their scores' artefacts."""
    by_text: dict[tuple[str, str | None], list[Scored]] = {}
    for score in scored:
        by_text.setdefault((score.row["explainer"], score.row["text"]), []).append(score)
    return [ExplanationScores(who, said(text), list(map(_simulated, each))) for (who, text), each in by_text.items()]


def said(text: str | None) -> Markup:
    """An explanation's text; it may have failed to come."""
    return Markup("<i>no explanation</i>") if text is None else tokens.line(text)


def output_side(scored: Sequence[Scored]) -> dict[str, Any] | None:
    """Tokens that the direction promotes and suppresses, or why they are not known; None without explanations."""
    if not scored:
        return None
    output = scored[0].row["output"]
    sides = (("promotes", output["promoted"]), ("suppresses", output["suppressed"]))
    shown = [(name, [tokens.token(text) for text in texts]) for name, texts in sides if texts]
    return {"sides": shown, "reason": output["reason"]}


def summary(scored: Sequence[Scored]) -> list[tuple[str, Markup, str]]:
    """Explainer, text and first score of every explanation, for a small card."""
    return [(each.explainer, each.text, "; ".join(map(_short, each.simulated))) for each in explanations(scored)]


def simulator_words(kind: str) -> str:
    """What a kind of simulator is called where there is room for words.

    >>> simulator_words("rules")
    'the explanation applied as a rule, no language model'
    """
    return "the explanation applied as a rule, no language model" if kind == "rules" else kind


def sort_key(scored: Mapping[int, Sequence[Scored]]) -> tuple[str, dict[int, float]]:
    """By which explainer and simulator features can be sorted, and the features' scores by these.

    Only scores of one kind can be compared: those of the first explanation that has any.
    """
    rows = [each.row for scores in scored.values() for each in scores]
    valued = [row for row in rows if row["scores"]["top_and_random"]["value"] is not None]
    if not valued:
        return "", {}
    first = valued[0]["explainer"], valued[0]["simulator"]
    alike = [row for row in valued if (row["explainer"], row["simulator"]) == first]
    score_of: dict[int, float] = {}
    for row in alike:
        score_of.setdefault(row["feature"], row["scores"]["top_and_random"]["value"])
    return f"score ({first[0]}, {first[1]})", score_of


def _simulated(scored: Scored) -> Simulated:
    row = scored.row
    numbers = [_number(label, row["scores"][name], about) for name, label, about in SCORES if name in row["scores"]]
    for test, label, about in CLASSIFIED:
        if row[test]:
            numbers.append(_number(label, row[test][BALANCED], f"{about}: balanced accuracy, 0.5 is chance"))
            numbers.append(_number(f"{label} AUC", row[test][AREA], f"{about}: area under the curve, 0.5 is chance"))
    failures = ", ".join(f"{reason} ({n:,})" for reason, n in row["failures"].items())
    kind = row["simulator"]
    return Simulated(kind, simulator_words(kind), numbers, failures, _fragments(scored.overlays))


def _number(label: str, cell: Facts, about: str) -> Number:
    if cell["value"] is None:
        return Number(label, MISSING, cell["reason"] or "no reason was recorded", about)
    return Number(label, number(cell["value"]), interval(cell["low"], cell["high"]) or cell["reason"], about)


def _short(simulated: Simulated) -> str:
    first = simulated.numbers[0]
    # an explanation never stands without what those of other features score
    chance = next((number.value for number in simulated.numbers if number.label == "Chance"), MISSING)
    return f"{first.value} {first.under} by {simulated.kind}, chance {chance}".replace("  ", " ")


def _fragments(overlays: Sequence[Overlay]) -> list[tuple[str, int, Markup]]:
    """Some fragments of every group; colours are relative to the largest of what is shown, real and simulated apart."""
    chosen = [
        fragment
        for group in dict.fromkeys(fragment.group for fragment in overlays)
        for fragment in [same for same in overlays if same.group == group][:FRAGMENTS]
    ]
    actual = max((value for fragment in chosen for value in fragment.actual), default=0.0)
    known = (value for fragment in chosen for value in fragment.predicted or () if value is not None)
    predicted = max(known, default=0.0)
    return [(fragment.group, fragment.doc, tokens.overlaid(fragment, actual, predicted)) for fragment in chosen]
