"""The paper's search: a sweep over thresholds, after each of which the features that cost less are dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monolex.causal.patch.patch import Patch
from monolex.causal.patch.searches import FeatureSet, attribution
from monolex.runtime import progress

Budget = Literal["step", "full"]


def paper_thresholds(count: int = 50) -> list[float]:
    """Thresholds in nats, ascending and even in the logarithm; fifty are the paper's."""
    return np.logspace(-5, 0, count).tolist()


def threshold_sweep(
    patch: Patch, thresholds: Sequence[float], *, budget: Budget = "step", seed: int = 0
) -> list[FeatureSet]:
    """The paper's search (Algorithm 4.1, ACDC on a flat graph): start from all candidates patched; for each threshold,
    ascending, visit those left in random order and drop each whose loss raises the mean KL by less than it.

    The released code's defects, by the letters of our notes on it, and what is done instead: (a) it stored the edit
    size of the last set *tried*; sizes here are of the set kept. (b) It judges every step by itself (`budget="step"`,
    as here by default), so that KL may drift by k thresholds over k steps; `budget="full"` compares with the KL of all
    candidates and cannot. (c) Its order was not seeded. (d) It ran every layer and encoded anew for each of all
    features; here a step is a rank-one update of a candidate, through the later layers alone, many at once. (e) Its
    plots called the empty set full; here a set is a mask.

    Several steps go through one forward: which of them will be dropped is guessed from what they did under the last
    threshold (attribution at first), and results are used up to the first wrong guess, so decisions are those of one
    at a time (:meth:`Sweep.visit`).
    """
    generator = torch.Generator().manual_seed(seed)
    sweep, sets = Sweep.start(patch, budget), []
    with progress(len(thresholds), "threshold sweep", "thresholds") as bar:
        for threshold in thresholds:
            left = sweep.chosen.nonzero()[:, 0].cpu()
            sweep.visit(left[torch.randperm(len(left), generator=generator)].tolist(), threshold)
            sets.append(FeatureSet(sweep.chosen.clone(), threshold))
            bar.update(1)
    return sets


@final
@dataclass(eq=False)
class Sweep:
    """Where a threshold sweep stands; made by :meth:`start` and moved on by :meth:`visit`."""

    patch: Patch
    """What is searched."""
    chosen: Bool[Tensor, "candidates"]
    """The set."""
    edit: Float[Tensor, "prompts tokens d_in"]
    """What it adds."""
    kl: Float[Tensor, "prompts"]
    """Its KL(patched ‖ donor)."""
    full: float | None
    """The mean KL of all candidates where losses are compared with that, else None."""
    rises: list[float]
    """By how much dropping each candidate last raised the mean KL; attribution's estimate at first."""

    @classmethod
    def start(cls, patch: Patch, budget: Budget = "step") -> "Sweep":
        """All candidates patched."""
        edit = patch.edit(patch.all())
        kl = patch.kl(edit)
        # dropping undoes what patching does
        rises = (-attribution(patch)).tolist() if len(patch.candidates) and patch.fold > 1 else []
        rises = rises or [0.0] * len(patch.candidates)
        return cls(patch, patch.all(), edit, kl, float(kl.mean()) if budget == "full" else None, rises)

    def visit(self, order: Sequence[int], threshold: float) -> None:
        """Drop, one after the other, each candidate whose loss raises the KL by less than ``threshold``."""
        width, done = self.patch.fold, 0
        while done < len(order):
            steps = self._together(order[done : done + width], threshold)
            done, width = done + steps, min(self.patch.fold, 2 * steps)
        # rank-one updates gather rounding errors
        self.edit = self.patch.edit(self.chosen)
        self.kl = self.patch.kl(self.edit)

    def _together(self, candidates: Sequence[int], threshold: float) -> int:
        """Try ``candidates`` in one forward, each as if all guesses before it were right; how many were decided.

        Why guess: each step starts from the set that the step before it left, so that one at a time they would be as
        many small forwards, of which one costs nearly what a full one does. From one threshold to the next few
        candidates change sides, so what they did last is mostly right. Behind a wrong guess the versions are of sets
        that never were: they are thrown away and tried again, from the true set, in a narrower forward.
        """
        versions, guesses, running = [], [], self.edit
        for candidate in candidates:
            without = running - self.patch.contribution(candidate)
            guesses.append(self.rises[candidate] < threshold)
            versions.append(without)
            running = without if guesses[-1] else running
        kls, kl = [], self.kl
        for guess, (pairs, values) in zip(guesses, self.patch.trials(versions, candidates), strict=True):
            kls.append(kl.index_copy(0, pairs, values))
            kl = kls[-1] if guess else kl
        now, *means = torch.stack([self.kl, *kls]).mean(1).tolist()
        for step, value in enumerate(means):
            candidate = candidates[step]
            self.rises[candidate] = value - now
            drop = value - (now if self.full is None else self.full) < threshold
            if drop:
                self.chosen[candidate] = False
                self.edit, self.kl, now = versions[step], kls[step], value
            if drop != guesses[step]:
                return step + 1
        return len(candidates)
