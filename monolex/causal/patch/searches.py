"""Which features to patch: attribution, the paper's sweep over thresholds, greedy, local swaps, exhaustive.

Every search gives nested or single *sets* (masks over a patch's candidates); :mod:`~monolex.causal.patch.curves`
measures them. All decisions are made on the exact mean KL(patched ‖ donor); attribution only says in which order to
look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.causal.patch.patch import Patch
from monolex.causal.prompts.behaviour import kl
from monolex.config import require
from monolex.runtime import progress

Budget = Literal["step", "full"]
EXHAUSTIVE = 16


class Found(NamedTuple):
    """A set that a search arrived at."""

    chosen: Bool[Tensor, "candidates"]
    """The set."""
    threshold: float | None = None
    """Of the threshold sweep, the threshold after which it was left."""


def attribution(patch: Patch, points: int = 5) -> Float[Tensor, "candidates"]:
    """What each candidate is estimated to add to the mean KL (negative is good), by integrated gradients.

    ``points`` Gauss–Legendre nodes on the straight way from no candidate patched to all (``points=0`` takes the
    gradient at the base alone, attribution patching); the sum over candidates is then nearly KL(all) − KL(none). The
    gradient at the donor is useless (KL is smallest there), so the way never starts from it.
    """
    nodes, weights = ([0.0], [1.0]) if points == 0 else _legendre(points)
    whole = patch.edit(patch.all())
    total = torch.zeros_like(patch.difference[:, 0, 0])
    for node, weight in zip(nodes, weights, strict=True):
        total += weight * _slopes(patch, node * whole)
    return total


def _slopes(patch: Patch, edit: Float[Tensor, "prompts tokens d_in"]) -> Float[Tensor, "candidates"]:
    """What each candidate would add to the mean KL at ``edit``, were that linear from there on."""
    x = (patch.base + edit.to(patch.base.dtype)).detach().requires_grad_()
    log_p = patch.suffix.end_logits(x[None], grad=True)[0].log_softmax(-1)
    (gradient,) = torch.autograd.grad(kl(log_p, patch.donor_log_p).mean(), x)
    along = torch.einsum("ptd,cd->cpt", gradient.to(patch.directions), patch.directions)
    return (along * patch.difference).sum((1, 2))


def effects(patch: Patch) -> Float[Tensor, "candidates"]:
    """What each candidate adds to the mean KL when it alone is patched, exactly."""
    nothing = patch.edit(~patch.all())
    return _gains(patch, nothing, patch.kl(nothing), patch.all())


def ranking(scores: Float[Tensor, "candidates"]) -> Int[Tensor, "candidates"]:
    """Candidates by rising score: those that lower the KL most first, ties by number."""
    return scores.argsort(stable=True)


def prefixes(order: Int[Tensor, "candidates"], sizes: Sequence[int]) -> list[Found]:
    """The first ``size`` candidates of an order, for every size."""
    found = []
    for size in sizes:
        chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        chosen[order[:size]] = True
        found.append(Found(chosen))
    return found


def log_sizes(candidates: int, points: int = 24) -> list[int]:
    """Set sizes spaced evenly in the logarithm, with 0 and all."""
    if candidates == 0:
        return [0]
    spaced = np.unique(np.round(np.logspace(0, np.log10(candidates), points)).astype(int))
    return sorted({0, *spaced.tolist(), candidates})


def paper_thresholds(count: int = 50) -> list[float]:
    """Thresholds in nats, ascending and even in the logarithm; fifty are the paper's."""
    return np.logspace(-5, 0, count).tolist()


def random_order(patch: Patch, seed: int) -> Int[Tensor, "candidates"]:
    """The control: candidates in an order that knows nothing."""
    order = torch.randperm(len(patch.candidates), generator=torch.Generator().manual_seed(seed))
    return order.to(patch.candidates.device)


def threshold_sweep(
    patch: Patch, thresholds: Sequence[float], *, budget: Budget = "step", seed: int = 0
) -> list[Found]:
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
    at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    sweep, found = Sweep.start(patch, budget), []
    with progress(len(thresholds), "threshold sweep", "thresholds") as bar:
        for threshold in thresholds:
            left = sweep.chosen.nonzero()[:, 0].cpu()
            sweep.visit(left[torch.randperm(len(left), generator=generator)].tolist(), threshold)
            found.append(Found(sweep.chosen.clone(), threshold))
            bar.update(1)
    return found


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

    def _together(self, some: Sequence[int], threshold: float) -> int:
        """Try some candidates in one forward, each as if all guesses before it were right; how many were decided."""
        versions, guesses, running = [], [], self.edit
        for candidate in some:
            without = running - self.patch.contribution(candidate)
            guesses.append(self.rises[candidate] < threshold)
            versions.append(without)
            running = without if guesses[-1] else running
        kls, kl = [], self.kl
        for guess, (pairs, values) in zip(guesses, self.patch.trials(versions, some), strict=True):
            kls.append(kl.index_copy(0, pairs, values))
            kl = kls[-1] if guess else kl
        now, *means = torch.stack([self.kl, *kls]).mean(1).tolist()
        for step, value in enumerate(means):
            candidate = some[step]
            self.rises[candidate] = value - now
            drop = value - (now if self.full is None else self.full) < threshold
            if drop:
                self.chosen[candidate] = False
                self.edit, self.kl, now = versions[step], kls[step], value
            if drop != guesses[step]:
                return step + 1
        return len(some)


def greedy(patch: Patch, limit: int | None = None) -> list[Found]:
    """Forward greedy: at every step add the candidate that leaves the smallest mean KL, all of them tried exactly."""
    chosen = ~patch.all()
    edit = patch.edit(chosen)
    kl = patch.kl(edit)
    found = [Found(chosen.clone())]
    steps = len(chosen) if limit is None else min(limit, len(chosen))
    with progress(steps, "greedy", "features") as bar:
        for _ in range(steps):
            best = int((~chosen).nonzero()[_gains(patch, edit, kl, ~chosen).argmin(), 0])
            chosen[best] = True
            edit = patch.edit(chosen)
            kl = patch.kl(edit)
            found.append(Found(chosen.clone()))
            bar.update(1)
    return found


def _gains(
    patch: Patch, edit: Tensor, kl: Float[Tensor, "prompts"], tried: Bool[Tensor, "candidates"]
) -> Float[Tensor, "tried"]:
    """By how much each of the candidates ``tried`` would change the mean KL if it were added to ``edit``."""
    found = []
    for some in tried.nonzero()[:, 0].split(patch.fold):
        numbers = some.tolist()
        for pairs, values in patch.trials([edit + patch.contribution(one) for one in numbers], numbers):
            found.append((values - kl[pairs]).sum() / len(kl))
    return torch.stack(found) if found else kl[:0]


def local_swaps(patch: Patch, start: Found, *, tries: int = 32, rounds: int = 20) -> Found:
    """Improve a set of fixed size: exchange a member for an outsider as long as that lowers the mean KL exactly.

    In every round the gradient at the present set proposes the ``tries`` most promising exchanges.
    """
    chosen = start.chosen.clone()
    if not chosen.any() or chosen.all():
        return Found(chosen)
    edit = patch.edit(chosen)
    now = float(patch.mean_kl(edit[None])[0])
    for _ in range(rounds):
        pairs = _exchanges(patch, chosen, edit, tries)
        values = torch.cat(
            [
                patch.mean_kl(torch.stack([edit - patch.contribution(a) + patch.contribution(b) for a, b in some]))
                for some in (pairs[i : i + patch.fold] for i in range(0, len(pairs), patch.fold))
            ]
        ).tolist()
        best = min(range(len(pairs)), key=values.__getitem__)
        if values[best] >= now:
            break
        now, (out, into) = values[best], pairs[best]
        chosen[out], chosen[into] = False, True
        edit = patch.edit(chosen)
    return Found(chosen)


def _exchanges(patch: Patch, chosen: Tensor, edit: Tensor, tries: int) -> list[tuple[int, int]]:
    gain = _slopes(patch, edit)
    inside, outside = chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]
    count = max(1, int(tries**0.5))
    leave = inside[gain[inside].argsort(descending=True)[:count]].tolist()
    enter = outside[gain[outside].argsort()[: max(1, tries // len(leave))]].tolist()
    return [(out, into) for out in leave for into in enter]


def exhaustive(patch: Patch) -> list[Found]:
    """The best set of every size, by trying all of them.

    Raises:
        UserError: more than :data:`EXHAUSTIVE` candidates.
    """
    count = len(patch.candidates)
    require(count <= EXHAUSTIVE, f"exhaustive search over {count} candidates: use greedy above {EXHAUSTIVE}")
    found = []
    for size in range(count + 1):
        masks = torch.zeros(len(list(combinations(range(count), size))), count, dtype=torch.bool)
        for row, members in enumerate(combinations(range(count), size)):
            masks[row, list(members)] = True
        values = torch.cat(
            [patch.mean_kl(torch.stack([patch.edit(mask) for mask in some])) for some in masks.split(patch.fold)]
        )
        found.append(Found(masks[int(values.argmin())].to(patch.candidates.device)))
    return found


def _legendre(points: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
