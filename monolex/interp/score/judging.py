"""Detection and fuzzing by a chat model: it is shown an explanation and fragments, and says of which it holds.

Every call mixes fragments of both kinds in a random order. A call that fails leaves its feature without a number.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from monolex.interp.llm.prompts import marked
from monolex.interp.records import Examples, Explanation, Failure, Fragment
from monolex.interp.score.discrimination import Discrimination, fuzz_marks, told_apart
from monolex.interp.score.scorers import FeatureScore
from monolex.interp.simulate.chat import ChatJudge, Question, Verdict, judge
from monolex.text.characters import joined

SHOWN = 5
"""Fragments in a call."""
HALF = 0.5


class ShownFragment(NamedTuple):
    """One fragment as it is shown."""

    text: str
    """With marks, for fuzzing."""
    right: bool
    """What a perfect judge says."""


def judged(
    scores: Sequence[FeatureScore],
    examples: Sequence[Examples],
    explanations: Sequence[Explanation | Failure],
    by: ChatJudge,
    scorers: Sequence[str],
    rng: np.random.Generator,
) -> list[FeatureScore]:
    """The scores with detection and fuzzing added, one call for every :data:`SHOWN` fragments."""
    questions: list[Question] = []
    plans: list[dict[str, list[tuple[int, list[ShownFragment]]]]] = []
    # each of its own draws, so that one explanation more or less does not make all questions after it new ones
    for example, explanation, draws in zip(examples, explanations, rng.spawn(len(examples)), strict=True):
        plan: dict[str, list[tuple[int, list[ShownFragment]]]] = {}
        for scorer, show in (("detection", _plain), ("fuzz", _marks)):
            if scorer in scorers and isinstance(explanation, Explanation):
                plan[scorer] = []
                for items in (items for part in show(example, draws) for items in _calls(part, draws)):
                    plan[scorer].append((len(questions), items))
                    questions.append(Question(explanation, tuple(item.text for item in items), scorer == "fuzz"))
        plans.append(plan)
    answers = judge(by, questions) if questions else []
    judged_scores = []
    for result, plan, explanation in zip(scores, plans, explanations, strict=True):
        failed = Counter(result.failures)
        for calls in plan.values():
            failed.update(answer.reason for n, _ in calls if isinstance(answer := answers[n], Failure))
        both = {scorer: _told(calls, answers) for scorer, calls in plan.items()}
        if isinstance(explanation, Failure):
            none = Failure(f"no explanation: {explanation.reason}")
            both = {scorer: told_apart([none], [], None) for scorer in scorers if scorer != "correlation"}
        judged_scores.append(replace(result, failures=dict(failed), **both))
    return judged_scores


def _plain(example: Examples, _rng: np.random.Generator) -> tuple[list[ShownFragment], ...]:
    active = [ShownFragment(joined(fragment.texts), True) for fragment in (*example.top, *example.random)]
    return (active + [ShownFragment(joined(fragment.texts), False) for fragment in example.silent],)


def _marks(example: Examples, rng: np.random.Generator) -> tuple[list[ShownFragment], ...]:
    """Every fragment with the right marks and with as many wrong ones: of each pair one in either half, so that no call
    shows both."""
    halves: tuple[list[ShownFragment], list[ShownFragment]] = ([], [])
    for fragment in (*example.top, *example.random):
        right, wrong = fuzz_marks(fragment, rng)
        if len(right):
            pair = [ShownFragment(_marked(fragment, right), True), ShownFragment(_marked(fragment, wrong), False)]
            for half, i in zip(halves, rng.permutation(2), strict=True):
                half.append(pair[i])
    return halves


def _marked(fragment: Fragment, where: np.ndarray) -> str:
    return marked(fragment.texts, np.isin(np.arange(len(fragment.texts)), where))


def _calls(items: Sequence[ShownFragment], rng: np.random.Generator) -> list[list[ShownFragment]]:
    shuffled = [items[i] for i in rng.permutation(len(items))]
    return [shuffled[start : start + SHOWN] for start in range(0, len(shuffled), SHOWN)]


def _told(
    calls: Sequence[tuple[int, Sequence[ShownFragment]]], answers: Sequence[list[Verdict] | Failure]
) -> Discrimination:
    """Where every verdict has a probability the area is of those, else of the verdicts."""
    pairs: list[tuple[ShownFragment, Verdict]] = []
    for number, items in calls:
        answer = answers[number]
        if isinstance(answer, Failure):
            return told_apart([answer], [], None)
        pairs += zip(items, answer, strict=True)
    known = all(verdict.probability is not None for _, verdict in pairs)
    values = [(item.right, float(verdict.yes), verdict.probability) for item, verdict in pairs]
    yes = told_apart([v for right, v, _ in values if right], [v for right, v, _ in values if not right], HALF)
    if not known:
        return yes
    likely = told_apart([p for right, _, p in values if right], [p for right, _, p in values if not right], HALF)
    return Discrimination(yes.balanced_accuracy, likely.auc)
