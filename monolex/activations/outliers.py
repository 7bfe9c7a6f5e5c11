"""Rows far from all others: which are left out of a harvest, what they were, and the norms of the rest.

The rule is one number a site, ``max_norm`` times the median norm over all training rows, so it is known when the last
row is. All rows are stored, and the list of those beyond it at any of the sites is a file of its own: readers skip
them. Whoever has activations of the model before him (a replaced forward, a prompt) compares with the same number.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FILE: Final = "outliers.safetensors"
"""int64 numbers of the stored rows that are left out, ascending, by split."""
BINS_A_DOUBLING: Final = 8
LOWEST, HIGHEST = -6, 10
"""Ends of the histogram of norms, in doublings of the median."""
NAMED_TOKENS: Final = 10
TOP_SHARE: Final = 0.01
HEAVY: Final = 0.1
"""Share of the squared norm from which on the top percent of the rows is worth a warning."""
MANY: Final = 0.01
"""Share of the rows from which on leaving them out is worth a warning."""


def limit(norms: Float[Tensor, "rows"], max_norm: float) -> float | None:
    """The largest norm of a row that counts, in the model's units; None: no row is left out.

    Where most rows are zero there is no usual norm, and a multiple of it would leave out all that are not.
    """
    median = float(norms.median()) if len(norms) > 0 else 0.0
    return max_norm * median if max_norm > 0 and median > 0 else None


def beyond(norms: Float[Tensor, "rows"], highest: float | None) -> Bool[Tensor, "rows"]:
    """Which rows are left out for their norm."""
    return torch.zeros(len(norms), dtype=torch.bool) if highest is None else norms > highest


def site_facts(norms: Float[Tensor, "rows"], left_out: Bool[Tensor, "rows"], highest: float | None) -> dict[str, Any]:
    """What a manifest says of the training rows of a site.

    Args:
        norms: of all stored rows.
        left_out: those left out, for this site or another one.
        highest: the limit of this site.
    """
    squares, alone = norms.double().square(), beyond(norms, highest)
    total = float(squares.sum())
    kept = squares[~left_out]
    top = kept.topk(int(len(kept) * TOP_SHARE)).values.sum() if len(kept) else kept.sum()
    median = float(norms.median())
    return {
        "median_norm": median,
        "largest_norm": float(norms.max()),
        "norm_limit": highest,
        "outliers": {"rows": int(alone.sum()), "share": share(float(squares[alone].sum()), total)},
        "left_out_share": share(float(squares[left_out].sum()), total),
        "top_percent_share": share(float(top), float(kept.sum())),
        "histogram": {"kept": histogram(norms[~left_out], median), "left_out": histogram(norms[left_out], median)},
    }


def share(part: float, whole: float) -> float:
    """``part / whole``; 0 of nothing."""
    return part / whole if whole > 0 else 0.0


def histogram(norms: Float[Tensor, "rows"], median: float) -> list[int]:
    """Rows by norm, in :data:`BINS_A_DOUBLING` bins a doubling of the median; the ends take what lies beyond them."""
    bins = (HIGHEST - LOWEST) * BINS_A_DOUBLING
    if median == 0:
        return [len(norms), *[0] * (bins - 1)]
    place = ((norms / median).clamp_min(2.0**LOWEST).log2() - LOWEST) * BINS_A_DOUBLING
    return torch.bincount(place.long().clamp(0, bins - 1), minlength=bins).tolist()


def edges() -> list[float]:
    """The ends of the bins of :func:`histogram`, in medians."""
    return [2 ** (LOWEST + number / BINS_A_DOUBLING) for number in range((HIGHEST - LOWEST) * BINS_A_DOUBLING + 1)]


def token_counts(tokens: Int[Tensor, "rows"], texts: Callable[[list[int]], Mapping[int, str]]) -> list[dict[str, Any]]:
    """The commonest tokens of the rows left out: id, text and count."""
    common = Counter(tokens.tolist()).most_common(NAMED_TOKENS)
    spelled = texts([token for token, _ in common])
    return [{"token": token, "text": spelled[token], "count": count} for token, count in common]


def sentences(sites: Mapping[str, Mapping[str, Any]], left_out: int, rows: int) -> list[str]:
    """What a person must know of the norms before reading any number of these activations."""
    warnings = [
        f"{site}: the {TOP_SHARE:.0%} of the rows with the largest norm hold {facts['top_percent_share']:.0%} of the "
        "squared norm, so FVU and every mean square say as much of them; a lower max_norm leaves them out"
        for site, facts in sites.items()
        if facts["top_percent_share"] > HEAVY
    ]
    if left_out > MANY * rows:
        by_site = ", ".join(f"{facts['outliers']['rows']:,} at {site}" for site, facts in sites.items())
        warnings.append(
            f"{left_out:,} of {rows:,} training rows ({left_out / rows:.1%}) are beyond max_norm at some site "
            f"({by_site}) and left out at all of them"
        )
    return warnings
