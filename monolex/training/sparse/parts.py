"""What a sparse step asks of whoever does its parts."""

from typing import ClassVar, Protocol

from torch import Tensor

from monolex.training.sparse.codes import ActiveCodes, BatchErrors, FeatureSums, Passed, Weights


class StepParts(Protocol):
    """How the parts are done: by kernels of numba or Triton, or by torch's operators on any device."""

    adam: ClassVar[bool]
    """Whether :meth:`move` takes Adam's step and leaves unit rows, so that gradients never become matrices."""

    def largest_of_rows(self, pre: Tensor, k: int) -> ActiveCodes:
        """The ``k`` largest positive ones of every row."""
        ...

    def largest_of_batch(self, pre: Tensor, k: int | None) -> ActiveCodes | None:
        """The ``k`` times batch largest positive ones of all; without ``k`` all positive ones, None if many."""
        ...

    def above(self, pre: Tensor, lowest: Tensor) -> ActiveCodes:
        """Those that are at least their feature's own ``lowest``, positive (and in bf16 as it is there)."""
        ...

    def decode(self, target: Tensor, weights: Weights, codes: ActiveCodes) -> BatchErrors:
        """Errors of the reconstructions by the features of each prefix."""
        ...

    def slopes(self, error: Tensor, weights: Weights, codes: ActiveCodes) -> Tensor:
        """Product of every listed code's row with the error of its row of the batch, of the prefix that it is in."""
        ...

    def move(self, passed: Passed, weights: Weights, by: tuple[float, float, float, float] | None) -> FeatureSums:
        """Move decoder and encoder by Adam's rate, root and betas, or leave their gradients in ``grad``."""
        ...
