"""Many predictions at once: what is wanted is noted first, and asked of a simulator in one call."""

from collections.abc import Sequence
from typing import final

import numpy as np

from monolex.interp.records import Explanation, Failure, Fragment, Job, Prediction, Simulator

Guess = Prediction | Failure


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
    if guess.shape != (length,) or not np.isfinite(guess).all():
        return Failure("a prediction that is not one finite number a token")
    return guess
