"""Scores of the features of one dictionary: correlation, detection and fuzzing, and the level of chance.

Simulated activations serve all three. Correlation is over all tokens of the scored fragments. Detection asks whether
the largest predicted activation tells fragments with the feature from silent ones; fuzzing whether predictions are
larger on the tokens that are active than on as many others of the same fragments. A fragment whose simulation failed is
no zero: its feature then has no score, and the failure is counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64
from numpy.typing import NDArray

from monolex.interp.protocol import Correlation, correlation
from monolex.interp.records import Examples, Explanation, Failure, Fragment, Job, Prediction, Simulator

Guess = Prediction | Failure
ACTIVE = 0.3
"""Tokens above this share of a fragment's maximum are those that fuzzing marks."""
UNASKED = Failure("not asked for")
"""In the place of predictions that nothing needs."""
WRITTEN = 1.0
"""A language model's prediction says that a feature is active from here on: the first number above zero."""


NO_CHANCE = Correlation(np.nan, "not measured: it would cost further calls")


class Judged(NamedTuple):
    """How well explanations tell two kinds of things apart."""

    balanced_accuracy: Correlation
    """Mean of the shares of either kind that are judged rightly; by chance 0.5."""
    auc: Correlation
    """Chance that a thing of the right kind is ranked above one of the other; by chance 0.5."""
    chance_auc: Correlation = NO_CHANCE
    """The same by other features' explanations, the mean over shuffles."""


@dataclass(frozen=True, eq=False)
class FeatureScore:
    """One explanation of one feature."""

    top: tuple[Guess, ...]
    """What is predicted on ``examples.top``."""
    random: tuple[Guess, ...]
    """On ``examples.random``."""
    chance: tuple[tuple[Guess, ...], ...]
    """What other features' explanations say on both, for every shuffle."""
    detection: Judged | None = None
    """None where it was not asked for."""
    fuzz: Judged | None = None
    """Likewise."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Predictions that failed, by reason."""


@dataclass(frozen=True)
class Asked:
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
    asked: Asked,
    rng: np.random.Generator,
    judging: bool = True,
) -> list[FeatureScore]:
    """Score the explanation of every feature; features that could not be explained get failures for predictions.

    ``judging`` tells whether predictions serve detection and fuzzing too; a chat model may be asked instead
    (:mod:`monolex.interp.score.judging`).
    """
    if not judging and "correlation" not in asked.scorers:
        return [_unasked(one, explanation) for one, explanation in zip(examples, explanations, strict=True)]
    silent = "detection" in asked.scorers and judging
    batch = _Batch(simulator)
    wants = []
    others = _shuffled(explanations, asked.shuffles if "correlation" in asked.scorers else 0, rng)
    for i, (one, explanation) in enumerate(zip(examples, explanations, strict=True)):
        scored = (*one.top, *one.random)
        wants.append(
            (
                batch.want(explanation, one.top),
                batch.want(explanation, one.random),
                [
                    # other features' explanations cost a language model further calls on silent fragments
                    batch.want(explanations[other], (*scored, *(one.silent if silent and asked.calibrated else ())))
                    for other in others[i]
                ],
                batch.want(explanation, one.silent if silent else ()),
                batch.want(explanation, (*one.explain, *one.explain_silent) if asked.calibrated else ()),
            )
        )
    batch.run()
    made = []
    for one, (top, random, shuffled, quiet, learned) in zip(examples, wants, strict=True):
        guesses = (*batch.of(top), *batch.of(random))
        failed = Counter(
            guess.reason for guess in (*guesses, *batch.of(quiet)) if isinstance(guess, Failure)
        )  # chance is counted apart: by its missing features
        chance = [(some[: len(guesses)], some[len(guesses) :]) for some in map(batch.of, shuffled)]
        result = FeatureScore(batch.of(top), batch.of(random), tuple(some for some, _ in chance), failures=dict(failed))
        if judging:
            result = _judged(result, one, batch.of(quiet), batch.of(learned), chance, asked, rng)
        made.append(result)
    return made


def _unasked(one: Examples, explanation: Explanation | Failure) -> FeatureScore:
    """Without a prediction, which would cost a call of a language model each."""
    failed = {f"no explanation: {explanation.reason}": 1} if isinstance(explanation, Failure) else {}
    return FeatureScore((UNASKED,) * len(one.top), (UNASKED,) * len(one.random), (), failures=failed)


def correlated(fragments: Sequence[Fragment], guesses: Sequence[Guess]) -> Correlation:
    """One correlation over all tokens of fragments."""
    for guess in guesses:
        if isinstance(guess, Failure):
            return Correlation(np.nan, guess.reason)
    known = [guess for guess in guesses if not isinstance(guess, Failure)]
    if not fragments:
        return Correlation(np.nan, "no fragment")
    return correlation(np.concatenate([one.activations for one in fragments]), np.concatenate(known))


def _judged(
    result: FeatureScore,
    one: Examples,
    quiet: Sequence[Guess],
    learned: Sequence[Guess],
    chance: Sequence[tuple[Sequence[Guess], Sequence[Guess]]],
    asked: Asked,
    rng: np.random.Generator,
) -> FeatureScore:
    """``learned`` are predictions on the explained fragments and on silent ones beside them; ``chance`` those of other
    explanations on the scored and on the silent fragments."""
    fragments, guesses = (*one.top, *one.random), (*result.top, *result.random)
    before, silent = learned[: len(one.explain)], learned[len(one.explain) :]
    detection = fuzz = None
    if "detection" in asked.scorers:
        cut = _best_cut(_peaks(before), _peaks(silent)) if asked.calibrated else WRITTEN
        detection = told_apart(_peaks(guesses), _peaks(quiet), cut)
        if asked.calibrated:
            detection = _beside(detection, [told_apart(_peaks(some), _peaks(rest), None) for some, rest in chance])
    if "fuzz" in asked.scorers:
        marks, shown = ([fuzz_marks(f, rng) for f in some] for some in (fragments, one.explain))
        cut = _best_cut(*_marked(shown, before)) if asked.calibrated else WRITTEN
        fuzz = told_apart(*_marked(marks, guesses), cut)
        fuzz = _beside(fuzz, [told_apart(*_marked(marks, some), None) for some, _ in chance])
    return replace(result, detection=detection, fuzz=fuzz)


def _beside(found: Judged, chance: Sequence[Judged]) -> Judged:
    return found._replace(chance_auc=average([one.auc for one in chance]))


def average(found: Sequence[Correlation]) -> Correlation:
    """The mean over shuffles that have one."""
    known = [one.value for one in found if np.isfinite(one.value)]
    if known:
        return Correlation(float(np.mean(known)))
    return found[0] if found else Correlation(np.nan, "no other feature's explanation")


def told_apart(
    right: Sequence[float | Failure | None], wrong: Sequence[float | Failure | None], threshold: float | None
) -> Judged:
    """Compare what the right things were given with what the others were; None is a thing that does not exist."""
    for value in (*right, *wrong):
        if isinstance(value, Failure):
            return Judged(*(Correlation(np.nan, value.reason),) * 2)
    a = np.array([value for value in right if value is not None], np.float64)
    b = np.array([value for value in wrong if value is not None], np.float64)
    if not len(a) or not len(b):
        reason = f"nothing to tell it from: {len(a)} with and {len(b)} without the feature"
        return Judged(*(Correlation(np.nan, reason),) * 2)
    auc = float((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())
    if threshold is None:
        return Judged(Correlation(np.nan, "no threshold could be learned"), Correlation(auc))
    return Judged(Correlation(float((a >= threshold).mean() + (b < threshold).mean()) / 2), Correlation(auc))


def _best_cut(positive: Sequence[float | Failure | None], negative: Sequence[float | Failure | None]) -> float | None:
    """The threshold that tells the explained fragments apart best, in the middle of the gap; None without both."""
    a = np.array([v for v in positive if isinstance(v, float)])
    b = np.array([v for v in negative if isinstance(v, float)])
    if not len(a) or not len(b):
        return None
    values = np.unique(np.concatenate([a, b]))
    cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    right = (a[:, None] >= cuts).mean(0) + (b[:, None] < cuts).mean(0)
    return float(cuts[int(right.argmax())])


def _peaks(guesses: Sequence[Guess]) -> list[float | Failure | None]:
    return [guess if isinstance(guess, Failure) else float(guess.max()) for guess in guesses]


Marks = tuple[Int64[NDArray, "_active"], Int64[NDArray, "_silent"]]


def fuzz_marks(fragment: Fragment, rng: np.random.Generator) -> Marks:
    """Active tokens of a fragment and as many silent ones: counting marks must not tell them apart."""
    active, quiet = np.flatnonzero(active_tokens(fragment)), np.flatnonzero(fragment.activations <= 0)
    count = min(len(active), len(quiet))
    return np.sort(rng.permutation(active)[:count]), np.sort(rng.permutation(quiet)[:count])


def _marked(
    marks: Sequence[Marks], guesses: Sequence[Guess]
) -> tuple[list[float | Failure | None], list[float | Failure | None]]:
    """Mean prediction on the active tokens of every fragment, and on the silent ones; None where there are none."""
    sides: tuple[list[float | Failure | None], ...] = ([], [])
    for pair, guess in zip(marks, guesses, strict=False):
        for side, where in zip(sides, pair, strict=True):
            known = guess if isinstance(guess, Failure) else float(guess[where].mean()) if len(where) else None
            side.append(known)
    return sides[0], sides[1]


def active_tokens(fragment: Fragment) -> Bool[NDArray, "tokens"]:
    """Tokens that fuzzing marks: above :data:`ACTIVE` of the fragment's maximum, and above zero."""
    return (fragment.activations > 0) & (fragment.activations >= ACTIVE * fragment.maximum)


def _shuffled(
    explanations: Sequence[Explanation | Failure], shuffles: int, rng: np.random.Generator
) -> list[list[int]]:
    """For every feature other ones that have an explanation; none where there are no two."""
    found: list[list[int]] = [[] for _ in explanations]
    # drawn before the failures are left out, so that one of them more or less changes its neighbours' alone
    order = [i for i in rng.permutation(len(explanations)).tolist() if isinstance(explanations[i], Explanation)]
    for step in range(1, min(shuffles, len(order) - 1) + 1):
        for i, other in zip(order, np.roll(order, step), strict=True):
            found[i].append(int(other))
    return found


class _Batch:
    """All predictions that are wanted of a simulator, each once, in one call."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._jobs: dict[tuple[int, int], tuple[int, Job]] = {}
        self._made: list[Guess] = []

    def want(self, explanation: Explanation | Failure, fragments: Sequence[Fragment]) -> list[int | Failure]:
        if isinstance(explanation, Failure):
            return [Failure(f"no explanation: {explanation.reason}") for _ in fragments]
        numbers = []
        for fragment in fragments:
            job = len(self._jobs), Job(explanation, fragment.texts)
            numbers.append(self._jobs.setdefault((id(explanation), id(fragment)), job)[0])
        return numbers

    def run(self) -> None:
        jobs = [job for _, job in self._jobs.values()]
        made = self._simulator.simulate(jobs) if jobs else []
        self._made = [_usable(guess, len(job.texts)) for guess, job in zip(made, jobs, strict=True)]

    def of(self, wanted: Sequence[int | Failure]) -> tuple[Guess, ...]:
        return tuple(one if isinstance(one, Failure) else self._made[one] for one in wanted)


def _usable(guess: Guess, length: int) -> Guess:
    if isinstance(guess, Failure):
        return guess
    if guess.shape != (length,) or not np.isfinite(guess).all():
        return Failure("a prediction that is not one finite number a token")
    return guess
