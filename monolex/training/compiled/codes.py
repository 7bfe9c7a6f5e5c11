"""What the compiled kernels hand to each other: plain arrays under names, which numba takes as they are."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class ActiveCodes(NamedTuple):
    """The active codes of a batch, row by row."""

    starts: NDArray[np.int64]
    """Where those of a row begin."""
    counts: NDArray[np.int64]
    """How many it has."""
    features: NDArray[np.int32]
    """Of each."""
    values: Floats
    """Positive; 0 of a JumpReLU's that is just below its threshold."""


class SortedCodes(NamedTuple):
    """The same by feature."""

    ends: NDArray[np.int64]
    """Those of feature f are ``ends[f]`` to ``ends[f + 1]``."""
    rows: NDArray[np.int32]
    """Of each."""
    slots: NDArray[np.int32]
    """Where it lies among the :class:`ActiveCodes`."""


class BatchErrors(NamedTuple):
    """What decoding a batch gives, for every prefix of the features that reconstructs (one, but for Matryoshka)."""

    error: Floats
    """The gradient of the loss by what the features up to each prefix reconstruct, ``[prefixes, batch, d_out]``."""
    codes: Floats
    """That of the loss by every listed code."""
    squares: Floats
    """Summed squared error of every row, ``[prefixes, batch]``."""


class AddedGradients(NamedTuple):
    """What is added to what the active codes give: of dead features by the auxiliary loss, of all by products."""

    number: NDArray[np.int32]
    """By feature: which of the rows below is its own; -1 for none."""
    dec: Floats
    """By the decoder's rows."""
    enc: Floats
    """By the encoder's."""
    pre: Floats
    """By its pre-activation."""
