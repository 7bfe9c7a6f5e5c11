"""Simulators that read text are shown whole characters: what they say of one goes to every token that is part of it."""

from collections.abc import Sequence
from typing import final

import numpy as np

from monolex.interp.records import Failure, Job, Prediction, Simulator
from monolex.text.characters import Piece, pieces


@final
class WholeCharacters:
    """Another simulator, whose jobs are of whole characters; a :class:`monolex.interp.records.Simulator`."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    @property
    def kind(self) -> str:
        """That of the other one."""
        return self._simulator.kind

    def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        """A prediction of every job, a number a token, equal over the parts of a character."""
        shown = [pieces(job.texts) for job in jobs]
        whole = [Job(job.explanation, tuple(p.text for p in parts)) for job, parts in zip(jobs, shown, strict=True)]
        return [_spread(guess, parts) for guess, parts in zip(self._simulator.simulate(whole), shown, strict=True)]


def _spread(guess: Prediction | Failure, parts: Sequence[Piece]) -> Prediction | Failure:
    if isinstance(guess, Failure) or len(guess) != len(parts):
        # what is no number a token is refused where all predictions are checked
        return guess
    return np.repeat(guess, [piece.stop - piece.start for piece in parts])
