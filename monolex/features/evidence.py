"""What is known of a feature: numbers, tokens, neighbours, and contexts with its activation on every token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int64
from numpy.typing import NDArray

from monolex.stats import Estimate

BINS = 40
"""Bins of the histogram of a feature's non-zero activations: equal widths from 0 to its maximum."""
TOKEN_BINS = 10
"""Bins of the token histogram (paper, Fig. 4): each is four of the others."""
GROUPS = ("top", "quantile", "near_zero", "random", "inactive", "negative")
"""Groups of contexts; ``negative`` is that of signed kinds alone, and holds activations below zero."""


class Summary(NamedTuple):
    """One row of the table ``feature``: the numbers of one feature over all rows that were read."""

    id: int
    """Number of the feature."""
    n_active: int
    """Rows in which it is active, that is above zero."""
    fragments: int
    """Contexts in which it is active; 0 of an active feature where another tool's file does not say."""
    density: float
    """``n_active`` over the number of rows."""
    max: float
    """Its largest activation."""
    min: float
    """Its smallest code where codes are signed (PCA, ICA); 0 of other kinds, and where none is below zero. All other
    numbers are of the positive side."""
    mean: float
    """Mean over all rows, zeros included."""
    variance: float
    """Mean square minus squared mean, over all rows."""
    skew: float | None
    """Third moment about zero over variance^1.5, over all rows (paper, C.4); None where the variance is 0."""
    kurtosis: float | None
    """Fourth moment about zero over variance², over all rows (paper, C.4)."""
    mean_active: float | None
    """Mean over the rows in which it is active."""
    distinct_tokens: int
    """Different tokens on which it was active; 0 of an active feature where another tool's file does not say."""
    top_token: int | None
    """Token with the largest share of its activation."""
    top_share: float | None
    """That share of the sum of its activations."""
    embedding_token: int | None
    """Token whose embedding row has the largest cosine to the decoder direction; None outside the residual stream."""
    embedding_cosine: float | None
    """That cosine."""
    unembedding_token: int | None
    """The same of the unembedding."""
    unembedding_cosine: float | None
    """That cosine."""
    seeds: int
    """Dictionaries of the same recipe and of other seeds that it was looked for in; 0 where there are none."""
    reappears: float | None
    """Share of them with a like feature (:mod:`monolex.features.seeds`): how likely it comes back."""
    reappears_low: float | None
    """Lower end of the 95 % interval of that probability."""
    reappears_high: float | None
    """Upper end."""
    seed_cosine: float | None
    """Mean over those dictionaries of the likeness of the nearest feature."""

    @property
    def comes_back(self) -> Estimate | None:
        """The probability that it reappears, with its interval; None without other seeds."""
        known = (self.reappears, self.reappears_low, self.reappears_high)
        return Estimate(*known, self.seeds, "seeds") if self.seeds else None


class TokenShare(NamedTuple):
    """What one token has to do with a feature."""

    token: int
    """Token id."""
    text: str
    """As decoded."""
    n_active: int
    """Rows with this token (for ``before``: after this token) in which the feature is active."""
    mass: float
    """Sum of the feature's activations there."""
    share: float
    """``mass`` over the sum of all its activations."""
    histogram: Int64[NDArray, "token_bins"]
    """``n_active`` by bin of the activation; empty for ``before``."""


class TokenWeight(NamedTuple):
    """One token promoted or suppressed."""

    token: int
    """Token id."""
    text: str
    """As decoded."""
    weight: float
    """Change of the logit per unit of activation, up to the scale of the final norm; the mean over the vocabulary
    is taken away."""


class Neighbour(NamedTuple):
    """Another feature of the same dictionary."""

    feature: int
    """Its number."""
    value: float
    """Cosine of decoder directions, or Jaccard index of co-activation."""
    both: int = 0
    """Co-activation: sampled rows in which both are active."""
    top_token: str | None = None
    """Token with the largest share of its activation, where that is known."""


class Context(NamedTuple):
    """A fragment of one document with a feature's activation on each token."""

    id: int
    """Number of the fragment; the same for all features and dictionaries of one harvest and fragment length."""
    doc: int
    """Its document."""
    row: int
    """Packed row it is from."""
    start: int
    """Position of its first token in that row."""
    tokens: tuple[int, ...]
    """Token ids."""
    texts: tuple[str, ...]
    """The tokens, decoded one by one."""
    activations: tuple[float, ...]
    """The feature's activation on each token; 0 where it is not active (or the position was not harvested).
    In the group ``negative`` its codes below zero, and 0 elsewhere."""
    group: str
    """One of :data:`GROUPS`."""
    part: int
    """Quantile (0 the weakest); 0 in the other groups."""
    rank: int
    """Place in the group, from 0."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of one feature."""

    summary: Summary
    """Its numbers."""
    histogram: Int64[NDArray, "bins"]
    """Its non-zero activations by :data:`BINS` equal bins from 0 to its maximum."""
    tokens: tuple[TokenShare, ...]
    """Tokens it is active on, by falling mass."""
    before: tuple[TokenShare, ...]
    """Tokens before those, by falling mass (rows at the start of a document have none)."""
    promoted: tuple[TokenWeight, ...]
    """Tokens whose logit the direction raises most, directly: through the final norm and the unembedding alone."""
    suppressed: tuple[TokenWeight, ...]
    """Tokens whose logit it lowers most, directly."""
    neighbours: tuple[Neighbour, ...]
    """Features with the largest decoder cosine."""
    coactive: tuple[Neighbour, ...]
    """Features most often active in the same rows, by Jaccard index."""
    examples: Mapping[str, tuple[Context, ...]]
    """Contexts by group."""

    @property
    def token_histogram(self) -> Int64[NDArray, "token_bins"]:
        """All tokens' :data:`TOKEN_BINS` counts; less those of ``tokens`` it is that of all other tokens."""
        return self.histogram.reshape(TOKEN_BINS, -1).sum(1)
