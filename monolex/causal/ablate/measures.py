"""What can be said of the changes of an ablation: histograms, tests, the tokens that lose and gain most."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import t as student_t
from torch import Tensor

from monolex import stats
from monolex.causal.ablate.vocabulary_changes import Changes
from monolex.causal.config import AblateConfig
from monolex.stats import Bootstrap, Estimate, not_applicable
from monolex.verdicts import SIGNIFICANT

BINS = 41
DOCUMENTS = "documents"


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


def measure(changes: Changes, name: str, config: AblateConfig, text: Callable[[int], str]) -> Measure:
    """Histograms and tokens of one measure."""
    changed = changes.by_document("feature", name)
    total, half = changed.mean(0, dtype=np.float64), _half_width(changed, config.level)
    difference = changes.by_document("paired", name)
    p = stats.benjamini_hochberg(stats.paired(difference))
    direct, control, random = (
        changes.mean(version, name) for version in ("direct", "control_feature", "control_direction")
    )
    assert random is not None, "every occurrence has one"
    edges = _edges([values for values in (total, direct, control, random) if values is not None])

    def described(token: int) -> TokenChange:
        span = (None, None) if half is None else (float(total[token] - half[token]), float(total[token] + half[token]))
        others = (_at(direct, token), _at(control, token), _at(p, token))
        return TokenChange(token, text(token), float(total[token]), *span, *others)

    order = total.argsort(kind="stable")
    rising = (-total).argsort(kind="stable")
    tested = bool((~np.isnan(p)).any())
    significant = p < SIGNIFICANT
    falls = significant & (total < 0) & (difference.mean(0) < 0) if tested else significant
    return Measure(
        _histogram(total, edges),
        None if direct is None else _histogram(direct, edges),
        None if control is None else _histogram(control, edges),
        _histogram(random, edges),
        [described(int(token)) for token in order[: config.top] if total[token] < 0],
        [described(int(token)) for token in rising[: config.top] if total[token] > 0],
        int(significant.sum()) if tested else None,
        int(falls.sum()) if tested else None,
    )


def over_documents(
    values: Float[Tensor, "occurrences"], number: NDArray[np.int64], bootstrap: Bootstrap
) -> tuple[Estimate, Float[NDArray, "documents"]]:
    """Mean over documents of the means of their occurrences, and those means; NaN occurrences are left out."""
    array = values.double().cpu().numpy()
    measured = ~np.isnan(array)
    if not measured.any():
        return not_applicable("no occurrence has one"), np.zeros(0)
    _, document = np.unique(number[measured], return_inverse=True)
    means = np.bincount(document, array[measured]) / np.bincount(document)
    return bootstrap.mean(means, DOCUMENTS), means


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
