"""What makes a dictionary's numbers doubtful, in training and in an evaluation alike.

A fraction of variance unexplained above 1, a dictionary as sparse as nobody asked for, or mostly dead: each is plotted
beside the sound ones, so each is said.
"""

from collections.abc import Iterator
from typing import Final

ABOVE_MEAN: Final = "above 1: worse than answering with the mean"
FAR: Final = 1.5
"""Factor by which L0 may miss k."""
MOST_DEAD: Final = 0.5


def doubts(*, fvu: float | None, l0: float | None, dead: float | None, k: int | None) -> Iterator[str]:
    """A sentence for everything that is wrong with these numbers; None says nothing.

    Args:
        fvu: fraction of variance unexplained.
        l0: mean number of active features.
        dead: fraction of the features that are never active.
        k: active features that were asked for.
    """
    if fvu is not None and fvu > 1:
        yield f"FVU {fvu:.4g} is {ABOVE_MEAN}"
    if l0 is not None and k is not None and not k / FAR <= l0 <= k * FAR:
        yield f"L0 is {l0:.3g} where k = {k}"
    if dead is not None and dead > MOST_DEAD:
        yield f"{dead:.0%} of its features are never active"
