"""Does a simulator know a true explanation from a false one? Asked of features made by hand.

Of each feature of :mod:`monolex.interp.simulate.sanity_suite` several explanations are scored as a run's are, and the
true one should score best. Rules do so everywhere; a language model that does not is no judge of a dictionary's
features.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolex.errors import UserError
from monolex.interp import protocol
from monolex.interp.protocol import Correlation
from monolex.interp.records import Failure, Job, Prediction, Simulator
from monolex.interp.simulate.batch import PredictedTokens, counted_tokens, missing_said
from monolex.interp.simulate.sanity_suite import SUITE, Case, examples

Score = Callable[[NDArray, NDArray], Correlation]
"""Compares the activations of all scored fragments, end to end, with the predictions."""


class ScoredExplanation(NamedTuple):
    """An explanation and its score."""

    text: str
    """What is said."""
    score: float | None
    """Its score; None where there is none."""
    reason: str = ""
    """Why there is none."""


class RankedExplanations(NamedTuple):
    """The explanations of one feature, by their scores."""

    name: str
    """The feature."""
    rank: int | None
    """1 if the true explanation scores above every false one that has a score; one more for each that scores as high.
    None where the true one has no score, or no false one has."""
    true: ScoredExplanation
    """The true explanation."""
    best_false: ScoredExplanation | None
    """The false one with the best score; None where none has one."""
    failures: tuple[ScoredExplanation, ...]
    """Explanations without a score, the true one included."""


class SanityResult(NamedTuple):
    """What a simulator made of the suite."""

    simulator: str
    """Its kind."""
    features: tuple[RankedExplanations, ...]
    """All features of the suite."""
    tokens: PredictedTokens
    """Of all predictions."""

    @property
    def first(self) -> int:
        """Features whose true explanation ranks first."""
        return sum(feature.rank == 1 for feature in self.features)

    @property
    def unranked(self) -> int:
        """Features that cannot be ranked."""
        return sum(feature.rank is None for feature in self.features)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is missing is null."""
        counts = {"features": len(self.features), "first": self.first, "unranked": self.unranked}
        counts |= {"tokens": self.tokens._asdict()}
        return {"simulator": self.simulator, **counts, "ranked": [_plain(feature) for feature in self.features]}

    def table(self) -> str:
        """A line a feature, and one about all of them."""
        rows = [("feature", "rank", "true", "best false", "failed", "what the best false one says")]
        for feature in self.features:
            best = feature.best_false or ScoredExplanation("", None)
            rank = "n/a" if feature.rank is None else str(feature.rank)
            rows.append(
                (feature.name, rank, _number(feature.true), _number(best), str(len(feature.failures)), best.text)
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        told = f"{self.simulator}: the true explanation ranks first of {self.first} of {len(self.features)} features"
        reasons = sorted({told.reason for feature in self.features for told in feature.failures})
        lines += [f"{told}; {self.unranked} could not be ranked", *(f"failed: {reason}" for reason in reasons)]
        return "\n".join(filter(None, (*lines, missing_said(self.tokens))))


def run(simulator: Simulator, score: Score = protocol.correlation, suite: Sequence[Case] = SUITE) -> SanityResult:
    """Score every explanation of every feature of ``suite``; the simulator is asked once for all of them.

    An explanation of which a fragment could not be predicted has no score.

    Raises:
        UserError: the simulator does not give one prediction a job, or not one number a token.
    """
    shown = [examples(number, case) for number, case in enumerate(suite)]
    scored = [(*example.top, *example.random) for example in shown]
    told = [(case.true, *case.false) for case in suite]
    jobs = [
        Job(explanation, fragment.texts)
        for explanations, fragments in zip(told, scored, strict=True)
        for explanation in explanations
        for fragment in fragments
    ]
    predictions = simulator.simulate(jobs)
    _require_one_each(simulator, jobs, predictions)
    ahead = iter(predictions)
    ranked = []
    for case, explanations, fragments in zip(suite, told, scored, strict=True):
        actual = np.concatenate([fragment.activations for fragment in fragments]).astype(np.float64)
        parts = [[next(ahead) for _ in fragments] for _ in explanations]
        marks = [
            ScoredExplanation(e.text, *_mark(actual, predicted, score))
            for e, predicted in zip(explanations, parts, strict=True)
        ]
        ranked.append(_ranked(case.name, marks[0], marks[1:]))
    return SanityResult(simulator.kind, tuple(ranked), counted_tokens(predictions))


def _require_one_each(simulator: Simulator, jobs: Sequence[Job], predictions: Sequence[Prediction | Failure]) -> None:
    wanted = [len(job.texts) for job in jobs]
    delivered = [
        tokens if isinstance(prediction, Failure) else np.size(prediction)
        for prediction, tokens in zip(predictions, wanted, strict=False)
    ]
    if delivered != wanted:
        raise UserError(f"simulator {simulator.kind!r}: give one prediction a job, with one number a token")


def _mark(
    actual: NDArray[np.float64], predictions: Sequence[Prediction | Failure], score: Score
) -> tuple[float | None, str]:
    failed = [prediction for prediction in predictions if isinstance(prediction, Failure)]
    if failed:
        return None, failed[0].reason
    predicted = np.concatenate([prediction for prediction in predictions if not isinstance(prediction, Failure)])
    known = ~np.isnan(predicted)
    correlation = score(actual[known], predicted[known])
    return (
        (None, correlation.reason or "the score is not a number")
        if np.isnan(correlation.value)
        else (correlation.value, "")
    )


def _ranked(name: str, true: ScoredExplanation, false: Sequence[ScoredExplanation]) -> RankedExplanations:
    scores = {explanation: explanation.score for explanation in false if explanation.score is not None}
    failures = tuple(explanation for explanation in (true, *false) if explanation.score is None)
    best = max(scores, key=lambda explanation: scores[explanation], default=None)
    if true.score is None or best is None:
        return RankedExplanations(name, None, true, best, failures)
    return RankedExplanations(name, 1 + sum(score >= true.score for score in scores.values()), true, best, failures)


def _plain(feature: RankedExplanations) -> dict[str, Any]:
    return {
        "name": feature.name,
        "rank": feature.rank,
        "true": feature.true._asdict(),
        "best_false": None if feature.best_false is None else feature.best_false._asdict(),
        "failures": [told._asdict() for told in feature.failures],
    }


def _number(told: ScoredExplanation) -> str:
    return "n/a" if told.score is None else f"{told.score:.3f}"
