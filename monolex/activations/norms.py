"""What is usual of a site's activations, told by statistics that a few extreme rows cannot move.

Real models have rows of a hundred times the usual norm: the first position of a row and single delimiters on which
attention rests while it has nothing to do ("massive activations", Sun et al. 2024; "attention sinks", Xiao et al.
2023). A mean square, a mean and a maximum are theirs and nobody else's, so nothing here is one.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SAMPLE_ROWS: Final = 8192
"""Rows from which a centre is taken where there are more."""
CENTRE_STEPS: Final = 32
LEAST_DISTANCE: Final = 1e-100


class Usual(NamedTuple):
    """What is usual of a site."""

    norm: float
    """Median of the rows' norms; 0 if most rows are zero."""
    centre: Float[Tensor, "d_in"]
    """Geometric median of the rows, at least float32."""
    covariance: Float[Tensor, "d_in d_in"] | None = None
    """Of the rows about the centre, float64, where it was asked for."""

    @property
    def scale(self) -> float:
        """Factor that brings the mean squared entry of a row of the median norm to 1; 1 where that norm is 0."""
        return len(self.centre) ** 0.5 / self.norm if self.norm > 0 else 1.0


def row_norms(x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows"]:
    """Euclidean norm of every row, at least float32."""
    return torch.linalg.vector_norm(x.to(_wide(x)), dim=1)


def usual(rows: Float[Tensor, "rows d_in"], *, covariance: bool = False) -> Usual:
    """Median norm and centre of at least one row, and their covariance where it is asked for."""
    known = Usual(float(row_norms(rows).median()), centre(rows))
    return known._replace(covariance=covariance_about(rows, known.centre)) if covariance else known


def covariance_about(rows: Float[Tensor, "rows d_in"], point: Float[Tensor, "d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Mean outer product of the rows' distances from a point, float64."""
    rows, point = (part.cpu() if part.device.type == "mps" else part for part in (rows, point))
    apart = rows.double() - point.double()
    return apart.T @ apart / len(rows)


def centre(rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "d_in"]:
    """The geometric median: the point of the least summed distance to the rows (Weiszfeld's iteration).

    Half of the rows would have to be elsewhere to take it away, while one row can take a mean anywhere.
    """
    precision = _wide(rows)
    rows = rows.cpu().double() if rows.device.type == "mps" else rows.double()  # Metal has no float64
    point = rows.mean(0)
    least = torch.linalg.vector_norm(rows - point, dim=1).median() * 1e-6 + LEAST_DISTANCE
    for _ in range(CENTRE_STEPS):
        near = 1 / torch.linalg.vector_norm(rows - point, dim=1).clamp_min(least)
        point = near @ rows / near.sum()
    return point.to(precision)


def _wide(x: Tensor) -> torch.dtype:
    """The precision of ``x``, at least float32."""
    return torch.promote_types(x.dtype, torch.float32)
