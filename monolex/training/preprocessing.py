"""What is done to a site's activations before training, and how a trained dictionary is made to read them as they are.

A row becomes ``factor · (x - shift) · matrix``. All of it is linear, so it folds into a dictionary's weights and biases
(:func:`folded`), and what is saved needs nothing of it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.activations.norms import Usual
from monolex.config import require
from monolex.dictionaries.base import SKIP
from monolex.train_config import Preprocess

LEAST_VARIANCE = 1e-3
"""Variances below this share of the mean one are not brought all the way to 1: they would be mostly noise."""


class Preprocessing(NamedTuple):
    """What is done to the activations of a site."""

    factor: Float[Tensor, ""]
    """Units."""
    shift: Float[Tensor, "d"] | None = None
    """What is taken off; None: nothing."""
    matrix: Float[Tensor, "d d"] | None = None
    """Symmetric whitening; None: none."""
    inverse: Float[Tensor, "d d"] | None = None
    """Of ``matrix``."""

    def to(self, *where: torch.device | torch.dtype) -> "Preprocessing":
        """The same on another device or in another precision."""
        return self._replace(**{name: part.to(*where) for name, part in self._asdict().items() if part is not None})

    def rows(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """Activations in the units of training."""
        x = x if self.shift is None else x - self.shift
        x = x if self.matrix is None else x @ self.matrix
        return x * self.factor

    def back(self, point: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The activation that becomes ``point``."""
        point = point / self.factor
        point = point if self.inverse is None else point @ self.inverse
        return point if self.shift is None else point + self.shift


def preprocessing(what: Preprocess, known: Usual) -> Preprocessing:
    """What ``what`` says of a site of which that much is known.

    Raises:
        UserError: whitening without a covariance.
    """
    if what == "whiten":
        require(
            known.covariance is not None,
            "preprocess = 'whiten' needs a sample of rows, which this stream lacks; give usual with a covariance",
        )
        assert known.covariance is not None
        variances, axes = torch.linalg.eigh(known.covariance.double())
        spread = (variances.clamp_min(0) + LEAST_VARIANCE * variances.mean()).clamp_min(1e-30).sqrt()
        to, back = ((axes * scale) @ axes.T for scale in (1 / spread, spread))
        precision = known.centre.dtype
        return Preprocessing(torch.ones((), dtype=precision), known.centre, to.to(precision), back.to(precision))
    factor = known.scale if what == "scale" else 1.0
    shift = known.centre if what == "centre" else None
    return Preprocessing(torch.tensor(factor, dtype=known.centre.dtype), shift)


def folded(weights: Mapping[str, Tensor], read: Preprocessing, written: Preprocessing) -> dict[str, Tensor]:
    """The weights of a dictionary that gives for ``x`` what ``weights`` give for its preprocessed rows.

    ``read`` is of what it reads, ``written`` of what it reconstructs. Decoder rows keep their length where nothing is
    whitened: the units go into the codes, because ReLU, a choice of the largest and thresholds commute with a positive
    factor; whitened, the codes are those of training.
    """
    units = read.factor / written.factor
    encoder, decoder = weights["W_enc"], weights["W_dec"]
    out = {
        "W_enc": (encoder if read.matrix is None else encoder @ read.matrix) * units,
        "b_enc": weights["b_enc"] / written.factor,
        "centre": read.back(weights["centre"]),
        "W_dec": decoder if written.inverse is None else decoder @ written.inverse,
        "b_dec": written.back(weights["b_dec"]),
    }
    if "threshold" in weights:
        out["threshold"] = weights["threshold"] / written.factor
    if SKIP in weights:
        skip = weights[SKIP] if read.matrix is None else weights[SKIP] @ read.matrix
        out[SKIP] = (skip if written.inverse is None else written.inverse @ skip) * units
    return out
