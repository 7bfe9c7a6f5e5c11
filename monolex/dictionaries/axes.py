"""Principal and independent axes of activations: what the PCA and ICA dictionaries are built on.

PCA never holds the rows: mean and covariance are merged chunk by chunk in float64. ICA whitens in the principal
subspace that the rows span, so dead neurons and fewer rows than dimensions need no special case. The sign of an axis
is arbitrary in both, while evidence is read off the positive tail, so the heavier tail of the fitting rows is made the
positive one.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from monolex import runtime
from monolex.errors import UserError

CHUNK = 8192
RANK_TOLERANCE = 1e-8
ICA_TOLERANCE = 1e-3
ICA_ALONE = 1024
"""Dimensions up to which one thread fits ICA."""


class ActivationRows(Protocol):
    """What fitting needs of a reader of stored activations."""

    @property
    def site(self) -> str: ...
    @property
    def d_in(self) -> int: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def model(self) -> dict[str, Any]: ...
    def chunks(self, size: int = ..., limit: int | None = ...) -> Iterator[tuple[int, Tensor]]: ...
    def gather(self, index: Tensor) -> Tensor: ...


class RowMoments(NamedTuple):
    """Mean and covariance of a stream of rows, in float64."""

    rows: int
    """How many were seen."""
    mean: Float[Tensor, "d_in"]
    """Their mean."""
    covariance: Float[Tensor, "d_in d_in"]
    """Their covariance, normalised by ``rows - 1``."""


class Axes(NamedTuple):
    """Linear coordinates of centred rows, in float64: ``code = (x - centre) encoderᵀ``, ``x̂ = code decoder + centre``.

    ``decoder`` rows have unit length; the reconstruction is exact on the subspace that the rows span.
    """

    centre: Float[Tensor, "d_in"]
    """Mean of the fitting rows."""
    encoder: Float[Tensor, "axes d_in"]
    """What is read."""
    decoder: Float[Tensor, "axes d_in"]
    """What is written: the axes' directions."""


class Ica(NamedTuple):
    """Independent axes and how the fit ended."""

    axes: Axes
    """As many as the rank of the rows."""
    converged: bool
    """Whether the fit met its tolerance before its last iteration."""
    iterations: int
    """Iterations it took."""


def streamed(reader: ActivationRows, limit: int, what: str) -> Iterator[Float[Tensor, "rows d_in"]]:
    """The first ``limit`` rows in chunks, under a progress bar called ``what``."""
    with runtime.progress(min(limit, reader.n_rows), f"{what} {reader.site}", "row") as bar:
        for _, rows in reader.chunks(CHUNK, limit):
            yield rows
            bar.update(len(rows))


def sample(reader: ActivationRows, limit: int, seed: int) -> Float[Tensor, "rows d_in"]:
    """At most ``limit`` different rows in order: one at random from each of ``limit`` equal slices of the split."""
    count = min(limit, reader.n_rows)
    bounds = torch.arange(count + 1) * reader.n_rows // count
    # float64: a float32 uniform number rounds up to the next slice where slices are long
    uniform = torch.rand(count, generator=runtime.generator("sample", seed, reader.site), dtype=torch.float64)
    return reader.gather(bounds[:-1] + (uniform * bounds.diff()).long())


def moments(chunks: Iterable[Float[Tensor, "_rows d_in"]]) -> RowMoments:
    """Mean and covariance, merged chunk by chunk (Chan, Golub & LeVeque 1983); at least two rows in all.

    Raises:
        UserError: the rows hold NaN or infinity.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        rows = chunk.double()
        total = count + len(rows)
        centre = rows.mean(0)
        centred, shift = rows - centre, centre - mean
        scatter = scatter + centred.T @ centred + torch.outer(shift, shift) * (count * len(rows) / total)
        mean = mean + shift * (len(rows) / total)
        count = total
    assert count >= 2, count
    if not scatter.isfinite().all():
        raise UserError("the activations hold NaN or infinity: harvest this site again with dtype = bf16 or fp32")
    return RowMoments(count, mean, scatter / (count - 1))


def pca(of: RowMoments) -> Axes:
    """All ``d_in`` principal axes, largest variance first."""
    rows = _principal(of)[1]
    return Axes(of.mean, rows, rows)


def ica(rows: Float[Tensor, "rows d_in"], seed: int, most_iterations: int) -> Ica:
    """Independent axes by FastICA (scikit-learn: logcosh, symmetric) on whitened rows, sign-fixed by :func:`orient`.

    Axes of less than 1e-8 of the largest variance are left out before whitening.

    Raises:
        UserError: the rows hold NaN or infinity, or do not vary at all.
    """
    # scikit-learn takes a second to import and only fitting needs it
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    of = moments(rows.split(CHUNK))
    variances, principal = _principal(of)
    kept = variances > RANK_TOLERANCE * variances[0]
    if not variances[0] > 0:
        raise UserError("the activations do not vary, so ICA finds no axes: harvest more text or leave out ica")
    scale, principal = variances[kept].sqrt()[:, None], principal[kept]
    whiten = principal / scale
    white = torch.cat([((chunk.double() - of.mean) @ whiten.T).float() for chunk in rows.split(CHUNK)])
    model = FastICA(
        whiten=False,  # pyright: ignore[reportArgumentType]
        max_iter=most_iterations,
        tol=ICA_TOLERANCE,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # reaching the last iteration is recorded in the result instead
        warnings.simplefilter("ignore", ConvergenceWarning)
        with few_threads(len(whiten)):
            model.fit(white.numpy())
    # the unmixing of white rows is a rotation; float32 iterations leave it one only roughly
    left, _, right = torch.linalg.svd(torch.from_numpy(model.components_).double())
    rotation = left @ right
    mixing = rotation @ (principal * scale)
    length = mixing.norm(dim=1, keepdim=True)
    axes = orient(Axes(of.mean, rotation @ whiten * length, mixing / length), rows)
    iterations = int(model.n_iter_)
    return Ica(axes, iterations < most_iterations, iterations)


def few_threads(width: int) -> AbstractContextManager[object]:
    """One BLAS thread up to :data:`ICA_ALONE` dimensions: a round's small eigenproblems are two to four times as fast
    alone as by threads that wait for each other (docs/log.md), and the axes are those of every number of cores."""
    from threadpoolctl import threadpool_limits  # it looks through every library that is loaded

    return threadpool_limits(1 if width <= ICA_ALONE else None, "blas")


def orient(axes: Axes, rows: Float[Tensor, "rows d_in"]) -> Axes:
    """The same axes, each turned so that the heavier tail of its codes over ``rows`` is positive.

    Tails are weighed by the third moment, which the extremes rule and which needs no choice of a quantile.
    """
    cubes = torch.zeros(len(axes.encoder), dtype=torch.float64)
    for chunk in rows.split(CHUNK):
        cubes += ((chunk.double() - axes.centre) @ axes.encoder.T).pow(3).sum(0)
    sign = torch.where(cubes < 0, -1.0, 1.0)[:, None].double()
    return Axes(axes.centre, axes.encoder * sign, axes.decoder * sign)


def _principal(of: RowMoments) -> tuple[Float[Tensor, "d_in"], Float[Tensor, "d_in d_in"]]:
    """Variances, largest first, and their axes as rows."""
    variances, columns = torch.linalg.eigh(of.covariance)
    return variances.flip(0), columns.flip(1).T
