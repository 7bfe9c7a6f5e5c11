"""What an ablation changes, by document and vocabulary token.

Changes of raw logits, of logits less their mean over the vocabulary, and of log-probabilities differ by one number an
occurrence, so that the change of the logits and two numbers hold all three; probabilities are kept beside them, since
only they tell tokens that matter from tokens that were never likely. All are averaged over the occurrences of a
document as they come: memory is twice documents × vocabulary floats (float32 for a float32 model) for each of
:data:`VERSIONS`, so that some hundred occurrences are right.
"""

from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

SHIFTED = ("logprob", "logit", "centred")
MEASURES = ("probability", *SHIFTED)
VERSIONS = ("feature", "direct", "control_feature", "control_direction", "paired")
"""The ablation, its direct part, both controls, and the ablation less the first control."""


@final
class Changes:
    """Sums of changes by document."""

    def __init__(self, docs: Int[Tensor, "occurrences"], vocab: int, dtype: torch.dtype) -> None:
        known, self._number = docs.unique(return_inverse=True)
        self.documents, self.vocab = len(known), vocab
        self._logits = {name: torch.zeros(len(known), vocab, dtype=dtype) for name in VERSIONS}
        self._probabilities = {name: torch.zeros(len(known), vocab, dtype=dtype) for name in VERSIONS}
        self._shifts = {name: torch.zeros(len(known), len(SHIFTED), dtype=torch.float64) for name in VERSIONS}
        self._counts = {name: torch.zeros(len(known), dtype=torch.float64) for name in VERSIONS}

    def number(self, rows: Int[Tensor, "rows"]) -> NDArray[np.int64]:
        """Documents of some occurrences, counted from 0."""
        return self._number[rows].numpy()

    def add(self, name: str, rows: Int[Tensor, "rows"], change: "Change") -> None:
        """Add changes of the occurrences ``rows``."""
        number = self._number[rows]
        self._logits[name].index_add_(0, number, change.logits.cpu())
        self._probabilities[name].index_add_(0, number, change.probabilities.cpu())
        self._shifts[name].index_add_(0, number, change.shifts.double().cpu())
        self._counts[name] += torch.bincount(number, minlength=self.documents)

    def by_document(self, name: str, measure: str) -> Float[NDArray, "documents vocab"]:
        """Mean change in every document that has the version, in the logits' precision."""
        counted = self._counts[name] > 0
        count = self._counts[name][counted, None]
        if measure == "probability":
            likelier = self._probabilities[name][counted]
            return (likelier / count.to(likelier)).numpy()
        logits = self._logits[name][counted]
        shift = self._shifts[name][counted, SHIFTED.index(measure), None] / count
        return (logits / count.to(logits) - shift.to(logits)).numpy()

    def mean(self, name: str, measure: str) -> Float[NDArray, "vocab"] | None:
        """Mean of :meth:`by_document`; None where no document has the version."""
        by = self.by_document(name, measure)
        return by.mean(0, dtype=np.float64) if len(by) else None


class Change(NamedTuple):
    """Changes of what some occurrences predict."""

    logits: Float[Tensor, "rows vocab"]
    """Of the raw logits."""
    probabilities: Float[Tensor, "rows vocab"]
    """Of the probabilities."""
    shifts: Float[Tensor, "rows shifted"]
    """What is to be taken away from the logits' change for each of :data:`SHIFTED`."""

    def less(self, other: "Change") -> "Change":
        """The difference of two changes."""
        return Change(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def where(self, kept: Bool[Tensor, "rows"]) -> "Change":
        """Those of some rows."""
        return Change(*(part[kept] for part in self))

    def logprob(self) -> Float[Tensor, "rows vocab"]:
        """Of the log-probabilities."""
        return self.logits - self.shifts[:, :1]


def change(before: Float[Tensor, "rows logits"], after: Float[Tensor, "rows logits"], vocab: int) -> Change:
    """From logits to logits of the first ``vocab`` tokens; those that pad a matrix count for the normaliser only."""
    moved = (after - before)[:, :vocab]
    normaliser = after.logsumexp(-1) - before.logsumexp(-1)
    likelier = (after.softmax(-1) - before.softmax(-1))[:, :vocab]
    return Change(moved, likelier, torch.stack([normaliser, torch.zeros_like(normaliser), moved.mean(-1)], -1))
