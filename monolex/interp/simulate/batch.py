"""Many predictions at once: what is wanted is noted first, and asked of a simulator in one call.

A prediction may miss tokens, of which the simulator says nothing (NaN): they are counted, and the fragment is scored on
the others. Where it misses more than :data:`MOST_MISSING` of a fragment it is a failure.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

import numpy as np

from monolex.interp.records import Explanation, Failure, Fragment, Job, Prediction, Simulator

Guess = Prediction | Failure
MOST_MISSING = 0.25
"""Share of a fragment's tokens that a prediction may miss."""


class PredictedTokens(NamedTuple):
    """How many tokens were to be predicted, and how many are missing."""

    predicted: int
    """Tokens of all fragments whose prediction did not fail."""
    missing: int
    """Those of them of which the simulator says nothing."""
    fragments: int
    """Fragments that miss any."""


def added(counts: Iterable[PredictedTokens]) -> PredictedTokens:
    """All of them together."""
    return PredictedTokens(*map(sum, zip(PredictedTokens(0, 0, 0), *counts, strict=True)))


def missing_said(tokens: PredictedTokens) -> str:
    """A sentence on the missing tokens; empty where there are none.

    >>> missing_said(PredictedTokens(640, 16, 3)).split(":")[0]
    'The simulator named no number at 16 of 640 tokens (2.5 %), in 3 fragments'
    """
    if not tokens.missing:
        return ""
    share = f"{tokens.missing:,} of {tokens.predicted:,} tokens ({100 * tokens.missing / tokens.predicted:.1f} %)"
    return (
        f"The simulator named no number at {share}, in {tokens.fragments:,} fragments: these are scored on their other "
        f"tokens; one that misses more than {100 * MOST_MISSING:.0f} % counts as failed."
    )


def counted_tokens(guesses: Iterable[Guess]) -> PredictedTokens:
    """Tokens of predictions; failures have none."""
    missing = [np.isnan(guess) for guess in guesses if not isinstance(guess, Failure)]
    counts = [int(tokens.sum()) for tokens in missing]
    return PredictedTokens(sum(map(len, missing)), sum(counts), sum(count > 0 for count in counts))


def within_limit(prediction: Prediction, reason: str) -> Guess:
    """The prediction, or a failure with ``reason`` where it misses more than :data:`MOST_MISSING` of the tokens."""
    return Failure(reason) if np.isnan(prediction).sum() > MOST_MISSING * len(prediction) else prediction


@final
class SimulationBatch:
    """All predictions that are wanted of a simulator, each once, in one call."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._jobs: dict[tuple[int, int], tuple[int, Job]] = {}
        self._predictions: list[Guess] = []

    def want(self, explanation: Explanation | Failure, fragments: Sequence[Fragment]) -> list[int | Failure]:
        """Note predictions on fragments; the numbers by which :meth:`of` gives them."""
        if isinstance(explanation, Failure):
            return [Failure(f"no explanation: {explanation.reason}") for _ in fragments]
        numbers = []
        for fragment in fragments:
            job = len(self._jobs), Job(explanation, fragment.texts)
            numbers.append(self._jobs.setdefault((id(explanation), id(fragment)), job)[0])
        return numbers

    def run(self) -> None:
        """Ask for all of them."""
        jobs = [job for _, job in self._jobs.values()]
        predictions = self._simulator.simulate(jobs) if jobs else []
        self._predictions = [_usable(guess, len(job.texts)) for guess, job in zip(predictions, jobs, strict=True)]

    def of(self, wanted: Sequence[int | Failure]) -> tuple[Guess, ...]:
        """What was predicted, or why it was not."""
        return tuple(number if isinstance(number, Failure) else self._predictions[number] for number in wanted)


def _usable(guess: Guess, length: int) -> Guess:
    if isinstance(guess, Failure):
        return guess
    if guess.shape != (length,) or np.isinf(guess).any():
        return Failure("a prediction that is not one finite number a token")
    return within_limit(guess, "a prediction of too few tokens")
