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
from monolex.interp.simulate.sanity_suite import SUITE, Case, examples

Score = Callable[[NDArray, NDArray], Correlation]
"""Compares the activations of all scored fragments, end to end, with the predictions."""


class Told(NamedTuple):
    """An explanation and its score."""

    text: str
    """What is said."""
    score: float | None
    """Its score; None where there is none."""
    reason: str = ""
    """Why there is none."""


class Ranked(NamedTuple):
    """The explanations of one feature, by their scores."""

    name: str
    """The feature."""
    rank: int | None
    """1 if the true explanation scores above every false one that has a score; one more for each that scores as high.
    None where the true one has no score, or no false one has."""
    true: Told
    """The true explanation."""
    best_false: Told | None
    """The false one with the best score; None where none has one."""
    failures: tuple[Told, ...]
    """Explanations without a score, the true one included."""


class SanityResult(NamedTuple):
    """What a simulator made of the suite."""

    simulator: str
    """Its kind."""
    features: tuple[Ranked, ...]
    """All features of the suite."""

    @property
    def first(self) -> int:
        """Features whose true explanation ranks first."""
        return sum(one.rank == 1 for one in self.features)

    @property
    def unranked(self) -> int:
        """Features that cannot be ranked."""
        return sum(one.rank is None for one in self.features)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is missing is null."""
        counts = {"features": len(self.features), "first": self.first, "unranked": self.unranked}
        return {"simulator": self.simulator, **counts, "ranked": [_plain(one) for one in self.features]}

    def table(self) -> str:
        """A line a feature, and one about all of them."""
        rows = [("feature", "rank", "true", "best false", "failed", "what the best false one says")]
        for one in self.features:
            best = one.best_false or Told("", None)
            rank = "n/a" if one.rank is None else str(one.rank)
            rows.append((one.name, rank, _number(one.true), _number(best), str(len(one.failures)), best.text))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        told = f"{self.simulator}: the true explanation ranks first of {self.first} of {len(self.features)} features"
        reasons = sorted({told.reason for one in self.features for told in one.failures})
        lines += [f"{told}; {self.unranked} could not be ranked", *(f"failed: {reason}" for reason in reasons)]
        return "\n".join(lines)


def run(simulator: Simulator, score: Score = protocol.correlation, suite: Sequence[Case] = SUITE) -> SanityResult:
    """Score every explanation of every feature of ``suite``; the simulator is asked once for all of them.

    An explanation of which a fragment could not be predicted has no score.

    Raises:
        UserError: the simulator does not give one prediction a job, or not one number a token.
    """
    shown = [examples(number, case) for number, case in enumerate(suite)]
    scored = [(*one.top, *one.random) for one in shown]
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
    found = []
    for case, explanations, fragments in zip(suite, told, scored, strict=True):
        actual = np.concatenate([fragment.activations for fragment in fragments]).astype(np.float64)
        parts = [[next(ahead) for _ in fragments] for _ in explanations]
        marks = [Told(e.text, *_mark(actual, some, score)) for e, some in zip(explanations, parts, strict=True)]
        found.append(_ranked(case.name, marks[0], marks[1:]))
    return SanityResult(simulator.kind, tuple(found))


def _require_one_each(simulator: Simulator, jobs: Sequence[Job], predictions: Sequence[Prediction | Failure]) -> None:
    wanted = [len(job.texts) for job in jobs]
    given = [
        tokens if isinstance(one, Failure) else np.size(one) for one, tokens in zip(predictions, wanted, strict=False)
    ]
    if given != wanted:
        raise UserError(f"simulator {simulator.kind!r}: give one prediction a job, with one number a token")


def _mark(
    actual: NDArray[np.float64], predictions: Sequence[Prediction | Failure], score: Score
) -> tuple[float | None, str]:
    failed = [one for one in predictions if isinstance(one, Failure)]
    if failed:
        return None, failed[0].reason
    found = score(actual, np.concatenate([one for one in predictions if not isinstance(one, Failure)]))
    return (None, found.reason or "the score is not a number") if np.isnan(found.value) else (found.value, "")


def _ranked(name: str, true: Told, false: Sequence[Told]) -> Ranked:
    scores = {one: one.score for one in false if one.score is not None}
    failures = tuple(one for one in (true, *false) if one.score is None)
    best = max(scores, key=lambda one: scores[one], default=None)
    if true.score is None or best is None:
        return Ranked(name, None, true, best, failures)
    return Ranked(name, 1 + sum(score >= true.score for score in scores.values()), true, best, failures)


def _plain(one: Ranked) -> dict[str, Any]:
    return {
        "name": one.name,
        "rank": one.rank,
        "true": one.true._asdict(),
        "best_false": None if one.best_false is None else one.best_false._asdict(),
        "failures": [told._asdict() for told in one.failures],
    }


def _number(told: Told) -> str:
    return "n/a" if told.score is None else f"{told.score:.3f}"
