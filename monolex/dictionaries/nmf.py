"""Non-negative matrix factorisation of ``[x⁺, x⁻]``: the components, and the codes of new rows.

Activations are signed, so NMF sees their positive and negative parts side by side. The codes of new rows solve a
non-negative least-squares problem with the components held fixed. They are computed by accelerated projected gradient
rather than multiplicative updates, which never reach zero and so would make every code dense.

This module knows nothing of ``Dictionary``: ``base`` registers :func:`codes`, so that ``load`` works by path alone.
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

ITERATIONS = 100
MAX_FIT_ITERATIONS = 400


class Components(NamedTuple):
    """Fitted components."""

    rows: Float[Tensor, "features two_d_in"]
    """One component a row, of unit length, over ``[x⁺, x⁻]``."""
    converged: bool
    """Whether the fit met its tolerance before its last iteration."""
    iterations: int
    """Iterations it took."""


def parts(x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows two_d_in"]:
    """``[x⁺, x⁻]``, both non-negative."""
    return torch.cat([x.relu(), (-x).relu()], dim=-1)


def codes(
    x: Float[Tensor, "*rows d_in"], components: Float[Tensor, "features two_d_in"]
) -> Float[Tensor, "*rows features"]:
    """The non-negative codes whose combination of ``components`` is nearest to ``[x⁺, x⁻]``.

    FISTA with a fixed number of iterations; a row's momentum restarts where it points uphill (O'Donoghue & Candès
    2015), so rows do not influence each other.
    """
    gram, target = components @ components.T, parts(x) @ components.T
    step = 1 / torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-12)
    solution = torch.zeros_like(target)
    ahead, momentum = solution, torch.ones_like(target[..., :1])
    for _ in range(ITERATIONS):
        new = (ahead - step * (ahead @ gram - target)).relu()
        moved = new - solution
        uphill = ((ahead - new) * moved).sum(-1, keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        next_momentum = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = new + (momentum - 1) / next_momentum * moved
        solution, momentum = new, next_momentum
    return solution


def fit(x: Float[Tensor, "rows d_in"], features: int, seed: int) -> Components:
    """scikit-learn's NMF (Frobenius norm, ``nndsvda`` start) of ``[x⁺, x⁻]``; ``features`` ≤ min(rows, 2·d_in)."""
    # scikit-learn takes a second to import and only fitting needs it
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    model = NMF(
        n_components=features,  # pyright: ignore[reportArgumentType]
        init="nndsvda",
        max_iter=MAX_FIT_ITERATIONS,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # reaching the last iteration is recorded in the result instead
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(parts(x).numpy())
    rows = torch.from_numpy(model.components_).float()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)
    iterations = int(model.n_iter_)
    return Components(rows, iterations < MAX_FIT_ITERATIONS, iterations)
