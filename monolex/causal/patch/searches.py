"""Which features to patch: attribution, greedy, local swaps, exhaustive (the paper's search is in ``sweep.py``).

Every search gives nested or single *sets* (masks over a patch's candidates); :mod:`~monolex.causal.patch.curves`
measures them. All decisions are made on the exact mean KL(patched ‖ donor); attribution only says in which order to
look.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.causal.patch.patch import Patch
from monolex.causal.prompts.behaviour import kl
from monolex.config import require
from monolex.runtime import progress

EXHAUSTIVE = 16


class FeatureSet(NamedTuple):
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
    log_p = patch.suffix.end_logits(x[None])[0].log_softmax(-1)
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


def prefixes(order: Int[Tensor, "candidates"], sizes: Sequence[int]) -> list[FeatureSet]:
    """The first ``size`` candidates of an order, for every size."""
    sets = []
    for size in sizes:
        chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        chosen[order[:size]] = True
        sets.append(FeatureSet(chosen))
    return sets


def taken(sets: Sequence[FeatureSet], ties: Int[Tensor, "candidates"]) -> Int[Tensor, "taken"]:
    """Candidates in the order in which nested sets take them: those first that are in most of the sets.

    Of growing sets these came first, of shrinking ones (a sweep's) they were kept longest; those that are in as many
    stand as in ``ties``, those that are in none are left out.
    """
    counts = torch.stack([each.chosen for each in sets]).sum(0)
    order = ties[counts[ties].argsort(descending=True, stable=True)]
    return order[counts[order] > 0]


def log_sizes(candidates: int, points: int = 24) -> list[int]:
    """Set sizes spaced evenly in the logarithm, with 0 and all."""
    if candidates == 0:
        return [0]
    spaced = np.unique(np.round(np.logspace(0, np.log10(candidates), points)).astype(int))
    return sorted({0, *spaced.tolist(), candidates})


def random_order(patch: Patch, seed: int) -> Int[Tensor, "candidates"]:
    """The control: candidates in an order that knows nothing."""
    order = torch.randperm(len(patch.candidates), generator=torch.Generator().manual_seed(seed))
    return order.to(patch.candidates.device)


def greedy(patch: Patch, limit: int | None = None) -> list[FeatureSet]:
    """Forward greedy: at every step add the candidate that leaves the smallest mean KL, all of them tried exactly."""
    chosen = ~patch.all()
    edit = patch.edit(chosen)
    kl = patch.kl(edit)
    sets = [FeatureSet(chosen.clone())]
    steps = len(chosen) if limit is None else min(limit, len(chosen))
    with progress(steps, "greedy", "features") as bar:
        for _ in range(steps):
            best = int((~chosen).nonzero()[_gains(patch, edit, kl, ~chosen).argmin(), 0])
            chosen[best] = True
            edit = patch.edit(chosen)
            kl = patch.kl(edit)
            sets.append(FeatureSet(chosen.clone()))
            bar.update(1)
    return sets


def _gains(
    patch: Patch, edit: Tensor, kl: Float[Tensor, "prompts"], tried: Bool[Tensor, "candidates"]
) -> Float[Tensor, "tried"]:
    """By how much each of the candidates ``tried`` would change the mean KL if it were added to ``edit``."""
    gains = []
    for part in tried.nonzero()[:, 0].split(patch.fold):
        numbers = part.tolist()
        for pairs, values in patch.trials([edit + patch.contribution(candidate) for candidate in numbers], numbers):
            gains.append((values - kl[pairs]).sum() / len(kl))
    return torch.stack(gains) if gains else kl[:0]


def local_swaps(patch: Patch, start: FeatureSet, *, tries: int = 32, rounds: int = 20) -> FeatureSet:
    """Improve a set of fixed size: exchange a member for an outsider as long as that lowers the mean KL exactly.

    In every round the gradient at the present set proposes the ``tries`` most promising exchanges.
    """
    chosen = start.chosen.clone()
    if not chosen.any() or chosen.all():
        return FeatureSet(chosen)
    edit = patch.edit(chosen)
    now = float(patch.mean_kl(edit[None])[0])
    for _ in range(rounds):
        pairs = _exchanges(patch, chosen, edit, tries)
        values = torch.cat(
            [
                patch.mean_kl(torch.stack([edit - patch.contribution(a) + patch.contribution(b) for a, b in part]))
                for part in (pairs[i : i + patch.fold] for i in range(0, len(pairs), patch.fold))
            ]
        ).tolist()
        best = min(range(len(pairs)), key=values.__getitem__)
        if values[best] >= now:
            break
        now, (out, into) = values[best], pairs[best]
        chosen[out], chosen[into] = False, True
        edit = patch.edit(chosen)
    return FeatureSet(chosen)


def _exchanges(patch: Patch, chosen: Tensor, edit: Tensor, tries: int) -> list[tuple[int, int]]:
    gain = _slopes(patch, edit)
    inside, outside = chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]
    count = max(1, int(tries**0.5))
    leave = inside[gain[inside].argsort(descending=True)[:count]].tolist()
    enter = outside[gain[outside].argsort()[: max(1, tries // len(leave))]].tolist()
    return [(out, into) for out in leave for into in enter]


def exhaustive(patch: Patch) -> list[FeatureSet]:
    """The best set of every size, by trying all of them.

    Raises:
        UserError: more than :data:`EXHAUSTIVE` candidates.
    """
    count = len(patch.candidates)
    require(count <= EXHAUSTIVE, f"exhaustive search over {count} candidates: use greedy above {EXHAUSTIVE}")
    best_sets = []
    for size in range(count + 1):
        masks = torch.zeros(len(list(combinations(range(count), size))), count, dtype=torch.bool)
        for row, members in enumerate(combinations(range(count), size)):
            masks[row, list(members)] = True
        values = torch.cat(
            [patch.mean_kl(torch.stack([patch.edit(mask) for mask in part])) for part in masks.split(patch.fold)]
        )
        best_sets.append(FeatureSet(masks[int(values.argmin())].to(patch.candidates.device)))
    return best_sets


def _legendre(points: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
