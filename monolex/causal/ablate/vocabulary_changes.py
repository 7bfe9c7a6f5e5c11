"""What an ablation changes, by document and vocabulary token, and what can be said of it.

Changes of raw logits, of logits less their mean over the vocabulary, and of log-probabilities differ by one number an
occurrence, so that the change of the logits and two numbers hold all three; probabilities are kept beside them, since
only they tell tokens that matter from tokens that were never likely. All are averaged over the occurrences of a
document as they come: memory is twice documents × vocabulary floats (float32 for a float32 model) for each of
:data:`VERSIONS`, so that some hundred occurrences are right.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.stats import t as student_t
from torch import Tensor

from monolex import stats
from monolex.causal.config import AblateConfig
from monolex.stats import Estimate, not_applicable

SHIFTED = ("logprob", "logit", "centred")
MEASURES = ("probability", *SHIFTED)
VERSIONS = ("feature", "direct", "control_feature", "control_direction", "paired")
"""The ablation, its direct part, both controls, and the ablation less the first control."""
BINS = 41
DOCUMENTS = "documents"
SIGNIFICANT = 0.05


class Histogram(NamedTuple):
    """Vocabulary tokens by their mean change."""

    edges: list[float]
    """Ends of the bins, the same for all versions of a measure."""
    counts: list[int]
    """Tokens in each."""


class TokenChange(NamedTuple):
    """One vocabulary token."""

    token: int
    """Token id."""
    text: str
    """As decoded."""
    change: float
    """Mean change over documents, ablated less base: negative where the token loses."""
    low: float | None
    """Lower end of its t interval."""
    high: float | None
    """Upper end."""
    direct: float | None
    """Change through the skip connections alone."""
    control: float | None
    """Change when the matched active feature is ablated instead."""
    p: float | None
    """Of the paired t-test against that control over documents, Benjamini–Hochberg corrected over the vocabulary."""


class Measure(NamedTuple):
    """One way of saying how much a token loses; they rank tokens differently."""

    total: Histogram
    """Later layers run anew."""
    direct: Histogram | None
    """Through the skip connections alone; None outside the residual stream."""
    control_feature: Histogram | None
    """A matched active feature ablated instead; None where no token had one."""
    control_direction: Histogram
    """A random direction of the same length taken away instead."""
    suppressed: list[TokenChange]
    """Tokens that lose most, first the most."""
    promoted: list[TokenChange]
    """Tokens that gain most."""
    significant: int | None
    """Tokens with a corrected p below 0.05; None where there was no test."""
    significant_down: int | None
    """Those of them that lose, and lose more than under that control."""


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
        there = self._counts[name] > 0
        count = self._counts[name][there, None]
        if measure == "probability":
            likelier = self._probabilities[name][there]
            return (likelier / count.to(likelier)).numpy()
        logits = self._logits[name][there]
        shift = self._shifts[name][there, SHIFTED.index(measure), None] / count
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
        return Change(*(own - theirs for own, theirs in zip(self, other, strict=True)))

    def where(self, there: Bool[Tensor, "rows"]) -> "Change":
        """Those of some rows."""
        return Change(*(part[there] for part in self))

    def logprob(self) -> Float[Tensor, "rows vocab"]:
        """Of the log-probabilities."""
        return self.logits - self.shifts[:, :1]


def change(before: Float[Tensor, "rows logits"], after: Float[Tensor, "rows logits"], vocab: int) -> Change:
    """From logits to logits of the first ``vocab`` tokens; those that pad a matrix count for the normaliser only."""
    moved = (after - before)[:, :vocab]
    normaliser = after.logsumexp(-1) - before.logsumexp(-1)
    likelier = (after.softmax(-1) - before.softmax(-1))[:, :vocab]
    return Change(moved, likelier, torch.stack([normaliser, torch.zeros_like(normaliser), moved.mean(-1)], -1))


def measure(changes: Changes, name: str, config: AblateConfig, text: Callable[[int], str]) -> Measure:
    """Histograms and tokens of one measure."""
    own = changes.by_document("feature", name)
    total, half = own.mean(0, dtype=np.float64), _half_width(own, config.level)
    difference = changes.by_document("paired", name)
    p = stats.benjamini_hochberg(stats.paired(difference))
    direct, control, random = (changes.mean(one, name) for one in ("direct", "control_feature", "control_direction"))
    assert random is not None, "every occurrence has one"
    edges = _edges([values for values in (total, direct, control, random) if values is not None])

    def described(token: int) -> TokenChange:
        span = (None, None) if half is None else (float(total[token] - half[token]), float(total[token] + half[token]))
        others = (_at(direct, token), _at(control, token), _at(p, token))
        return TokenChange(token, text(token), float(total[token]), *span, *others)

    order = total.argsort(kind="stable")
    rising = (-total).argsort(kind="stable")
    tested = bool((~np.isnan(p)).any())
    found = p < SIGNIFICANT
    falls = found & (total < 0) & (difference.mean(0) < 0) if tested else found
    return Measure(
        _histogram(total, edges),
        None if direct is None else _histogram(direct, edges),
        None if control is None else _histogram(control, edges),
        _histogram(random, edges),
        [described(int(token)) for token in order[: config.top] if total[token] < 0],
        [described(int(token)) for token in rising[: config.top] if total[token] > 0],
        int(found.sum()) if tested else None,
        int(falls.sum()) if tested else None,
    )


def over_documents(
    values: Float[Tensor, "occurrences"], number: NDArray[np.int64], how: Mapping[str, float | int]
) -> tuple[Estimate, Float[NDArray, "documents"]]:
    """Mean over documents of the means of their occurrences, and those means; NaN occurrences are left out."""
    array = values.double().cpu().numpy()
    there = ~np.isnan(array)
    if not there.any():
        return not_applicable("no occurrence has one"), np.zeros(0)
    kept, place = np.unique(number[there], return_inverse=True)
    means = np.bincount(place, array[there]) / np.bincount(place)
    return stats.mean(means, DOCUMENTS, **how), means  # pyright: ignore[reportArgumentType]


def p_value(differences: Float[NDArray, "documents"]) -> float | None:
    """Of the paired t-test; None where there is none."""
    return _number(float(stats.paired(differences[:, None])[0])) if len(differences) else None


def _half_width(values: Float[NDArray, "documents vocab"], level: float) -> Float[NDArray, "vocab"] | None:
    if len(values) < 2:
        return None
    return student_t.ppf((1 + level) / 2, len(values) - 1) * values.std(0, ddof=1) / len(values) ** 0.5


def _edges(shown: Sequence[NDArray]) -> NDArray:
    reach = max(float(np.abs(values).max()) for values in shown) or 1.0
    return np.linspace(-reach, reach, BINS + 1)


def _histogram(values: NDArray, edges: NDArray) -> Histogram:
    counts, _ = np.histogram(values, edges)
    return Histogram(edges.tolist(), counts.tolist())


def _at(values: NDArray | None, token: int) -> float | None:
    return None if values is None else _number(float(values[token]))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
