"""Scores of the features of one dictionary: correlation, detection and fuzzing, and the level of chance.

Simulated activations serve all three. Correlation is over all tokens of the scored fragments. Detection asks whether
the largest predicted activation tells fragments with the feature from silent ones; fuzzing whether predictions are
larger on the tokens that are active than on as many others of the same fragments. A fragment whose simulation failed is
no zero: its feature then has no score, and the failure is counted. Nor is a token that a prediction misses: fragments
are scored on the others, and the missing ones are counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from monolex.interp.protocol import Correlation, correlation
from monolex.interp.records import Examples, Explanation, Failure, Fragment, Simulator
from monolex.interp.score.discrimination import (
    Discrimination,
    best_cut,
    fuzz_marks,
    means_at,
    peaks,
    told_apart,
    with_chance,
)
from monolex.interp.simulate.batch import Guess, PredictedTokens, SimulationBatch, counted_tokens

UNASKED = Failure("not asked for")
"""In the place of predictions that nothing needs."""
WRITTEN = 1.0
"""A language model's prediction says that a feature is active from here on: the first number above zero."""


@dataclass(frozen=True, eq=False)
class FeatureScore:
    """One explanation of one feature."""

    top: tuple[Guess, ...]
    """What is predicted on ``examples.top``."""
    random: tuple[Guess, ...]
    """On ``examples.random``."""
    chance: tuple[tuple[Guess, ...], ...]
    """What other features' explanations say on both, for every shuffle."""
    detection: Discrimination | None = None
    """None where it was not asked for."""
    fuzz: Discrimination | None = None
    """Likewise."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Predictions that failed, by reason."""
    tokens: PredictedTokens = PredictedTokens(0, 0, 0)
    """Of all predictions of the explanation itself on scored and on silent fragments."""


@dataclass(frozen=True)
class Scoring:
    """What is scored."""

    scorers: tuple[str, ...]
    """`correlation`, `detection`, `fuzz`."""
    shuffles: int
    """Other features' explanations for every feature."""
    calibrated: bool
    """Whether thresholds come from predictions on the explained fragments, which cost a rule nothing; else they are
    :data:`WRITTEN`."""


def score_features(
    examples: Sequence[Examples],
    explanations: Sequence[Explanation | Failure],
    simulator: Simulator,
    scoring: Scoring,
    rng: np.random.Generator,
    judging: bool = True,
) -> list[FeatureScore]:
    """Score the explanation of every feature; features that could not be explained get failures for predictions.

    ``judging`` tells whether predictions serve detection and fuzzing too; a chat model may be asked instead
    (:mod:`monolex.interp.score.judging`).
    """
    if not judging and "correlation" not in scoring.scorers:
        return [_unasked(example, explanation) for example, explanation in zip(examples, explanations, strict=True)]
    batch = SimulationBatch(simulator)
    others = _shuffled(explanations, scoring.shuffles if "correlation" in scoring.scorers else 0, rng)
    wanted = [
        _want(batch, example, explanation, [explanations[other] for other in beside], scoring, judging)
        for example, explanation, beside in zip(examples, explanations, others, strict=True)
    ]
    batch.run()
    scores = []
    for example, numbers in zip(examples, wanted, strict=True):
        top, random, silent = batch.of(numbers.top), batch.of(numbers.random), batch.of(numbers.silent)
        # chance is counted apart: by its missing features
        guesses = (*top, *random, *silent)
        failed = Counter(guess.reason for guess in guesses if isinstance(guess, Failure))
        tokens = counted_tokens(guesses)
        count = len(top) + len(random)
        chance = [(guessed[:count], guessed[count:]) for guessed in map(batch.of, numbers.chance)]
        by_others = tuple(guessed for guessed, _ in chance)
        score = FeatureScore(top, random, by_others, failures=dict(failed), tokens=tokens)
        if judging:
            score = _judged(score, example, silent, batch.of(numbers.learned), chance, scoring, rng)
        scores.append(score)
    return scores


class _Wanted(NamedTuple):
    """Numbers of a feature's predictions in the batch."""

    top: list[int | Failure]
    random: list[int | Failure]
    chance: list[list[int | Failure]]
    silent: list[int | Failure]
    learned: list[int | Failure]


def _want(
    batch: SimulationBatch,
    example: Examples,
    explanation: Explanation | Failure,
    others: Sequence[Explanation | Failure],
    scoring: Scoring,
    judging: bool,
) -> _Wanted:
    silent = example.silent if judging and "detection" in scoring.scorers else ()
    # other features' explanations would cost a language model further calls on silent fragments
    beside = (*example.top, *example.random, *(silent if scoring.calibrated else ()))
    return _Wanted(
        batch.want(explanation, example.top),
        batch.want(explanation, example.random),
        [batch.want(other, beside) for other in others],
        batch.want(explanation, silent),
        batch.want(explanation, (*example.explain, *example.explain_silent) if scoring.calibrated else ()),
    )


def _unasked(example: Examples, explanation: Explanation | Failure) -> FeatureScore:
    """Without a prediction, which would cost a call of a language model each."""
    failed = {f"no explanation: {explanation.reason}": 1} if isinstance(explanation, Failure) else {}
    return FeatureScore((UNASKED,) * len(example.top), (UNASKED,) * len(example.random), (), failures=failed)


def correlated(fragments: Sequence[Fragment], guesses: Sequence[Guess]) -> Correlation:
    """One correlation over all tokens of fragments that are predicted."""
    for guess in guesses:
        if isinstance(guess, Failure):
            return Correlation(np.nan, guess.reason)
    known = [guess for guess in guesses if not isinstance(guess, Failure)]
    if not fragments:
        return Correlation(np.nan, "no fragment")
    actual, predicted = np.concatenate([fragment.activations for fragment in fragments]), np.concatenate(known)
    return correlation(actual[~np.isnan(predicted)], predicted[~np.isnan(predicted)])


def _judged(
    score: FeatureScore,
    example: Examples,
    silent: Sequence[Guess],
    learned: Sequence[Guess],
    chance: Sequence[tuple[Sequence[Guess], Sequence[Guess]]],
    scoring: Scoring,
    rng: np.random.Generator,
) -> FeatureScore:
    """``learned`` are predictions on the explained fragments and on silent ones beside them; ``chance`` those of other
    explanations on the scored and on the silent fragments."""
    fragments, guesses = (*example.top, *example.random), (*score.top, *score.random)
    count = len(example.explain)
    detection = fuzz = None
    if "detection" in scoring.scorers:
        cut = best_cut(peaks(learned[:count]), peaks(learned[count:])) if scoring.calibrated else WRITTEN
        detection = told_apart(peaks(guesses), peaks(silent), cut)
        if scoring.calibrated:
            detection = with_chance(
                detection, [told_apart(peaks(guessed), peaks(rest), None) for guessed, rest in chance]
            )
    if "fuzz" in scoring.scorers:
        marks, shown = ([fuzz_marks(fragment, rng) for fragment in part] for part in (fragments, example.explain))
        cut = best_cut(*means_at(shown, learned[:count])) if scoring.calibrated else WRITTEN
        fuzz = told_apart(*means_at(marks, guesses), cut)
        fuzz = with_chance(fuzz, [told_apart(*means_at(marks, guessed), None) for guessed, _ in chance])
    return replace(score, detection=detection, fuzz=fuzz)


def _shuffled(
    explanations: Sequence[Explanation | Failure], shuffles: int, rng: np.random.Generator
) -> list[list[int]]:
    """For every feature other ones that have an explanation; none where there are no two."""
    others: list[list[int]] = [[] for _ in explanations]
    # drawn before the failures are left out, so that one of them more or less changes its neighbours' alone
    order = [i for i in rng.permutation(len(explanations)).tolist() if isinstance(explanations[i], Explanation)]
    for step in range(1, min(shuffles, len(order) - 1) + 1):
        for i, other in zip(order, np.roll(order, step), strict=True):
            others[i].append(int(other))
    return others
