"""A feature's evidence as SAEDashboard's batches have it, and back.

Every context stands once, in the first group that holds it, strongest groups first; a batch says of which interval of
activations a context is,
so groups become intervals of the contexts' maxima.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolex.features.evidence import BINS, GROUPS, TOKEN_BINS, Context, Evidence, Neighbour, Summary, TokenWeight

TOP = -1
"""``bin_min`` and ``bin_contains`` of the strongest contexts, as SAEDashboard marks them."""
ALIGNED = 3
"""Axes that are named of a decoder direction."""
MOST = 2**40
"""Activations in a bar that are believed."""
WHOLE = 10**6
"""Whole numbers below it are written without a point: nearly all are 0."""
SIDE = 10
"""Promoted and suppressed tokens."""
ABSENT = (
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "decoder_weights_dist",
)
"""Lists of a feature that are always empty: nothing that is gathered is what they mean."""

POSITIVE = tuple(group for group in GROUPS if group != "negative")
"""Groups of contexts of the side that the format knows."""


class FeaturesSource(NamedTuple):
    """What all features of a dictionary share."""

    n_prompts: int
    """Packed rows of text that were read; 0 where unknown."""
    n_tokens: int
    """Tokens of each; 0 where unknown."""
    dataset: str
    """The text."""
    quantiles: int
    """Parts in which the active contexts were ranked."""
    groups: tuple[str, ...] = POSITIVE
    """Which contexts are written."""
    window: int = 0
    """Tokens of each around its strongest; 0: all."""


class LogitsHistogram(NamedTuple):
    """How a feature moves the logits of the whole vocabulary, directly."""

    values: Sequence[float]
    """Middles of the bins."""
    heights: Sequence[int]
    """Tokens in each."""


def written(
    evidence: Evidence,
    source: FeaturesSource,
    direction: NDArray[np.float32],
    logits: LogitsHistogram | None,
    vector: bool,
) -> dict[str, Any]:
    """A feature of a batch; ``direction`` is its decoder row, ``[d_out]``, which is left out without ``vector``."""
    summary, bins = evidence.summary, len(evidence.histogram)
    aligned = np.argsort(-direction, kind="stable")[:ALIGNED]
    norm = float(np.abs(direction).sum()) or 1.0
    feature = {
        "feature_index": summary.id,
        "neuron_alignment_indices": aligned.tolist(),
        "neuron_alignment_values": [short(value) for value in direction[aligned]],
        "neuron_alignment_l1": [short(abs(value) / norm) for value in direction[aligned]],
        **{name: [] for name in ABSENT},
        "frac_nonzero": summary.density,
        "freq_hist_data_bar_values": [short((i + 0.5) * summary.max / bins, 6) for i in range(bins)],
        "freq_hist_data_bar_heights": evidence.histogram.tolist(),
        "logits_hist_data_bar_values": [] if logits is None else [short(value, 6) for value in logits.values],
        "logits_hist_data_bar_heights": [] if logits is None else list(logits.heights),
        "n_prompts_total": source.n_prompts,
        "n_tokens_in_prompt": source.n_tokens,
        "dataset": source.dataset,
        "activations": _activations(evidence, source),
    }
    for side, tokens in (("pos", evidence.promoted), ("neg", evidence.suppressed)):
        feature[f"{side}_str"] = [token.text for token in tokens[:SIDE]]
        feature[f"{side}_values"] = [short(token.weight) for token in tokens[:SIDE]]
    return feature | ({"vector": [short(value) for value in direction]} if vector else {})


def evidence_of(feature: Mapping[str, Any]) -> Evidence:
    """What a feature of a batch says, as evidence.

    What a batch does not say is empty: tokens, neighbours, moments, token ids (-1), documents (-1), and the numbers of
    contexts and of different tokens (0). Mean and variance are those of the histogram.
    """
    contexts = _contexts(feature.get("activations", ()))
    seen = [max(context.activations) for group in contexts.values() for context in group]
    heights, values, largest = _bars(feature, max(seen, default=0.0))
    active, density = int(heights.sum()), feature.get("frac_nonzero") or 0.0
    rows = active / density if density else 1.0
    mean, square = (float((heights * values**power).sum() / rows) for power in (1, 2))
    mean_active = mean * rows / active if active else None
    summary = Summary(
        id=feature["feature_index"], n_active=active, fragments=0, density=density, max=largest, min=0.0, mean=mean,
        variance=max(square - mean**2, 0.0), skew=None, kurtosis=None, mean_active=mean_active,
        distinct_tokens=0, top_token=None, top_share=None, embedding_token=None, embedding_cosine=None,
        unembedding_token=None, unembedding_cosine=None, seeds=0, reappears=None, reappears_low=None,
        reappears_high=None, seed_cosine=None,
    )  # fmt: skip
    sides = [
        tuple(
            TokenWeight(-1, text, value)
            for text, value in zip(feature.get(f"{side}_str", ()), feature.get(f"{side}_values", ()), strict=False)
        )
        for side in ("pos", "neg")
    ]
    none: tuple[Neighbour, ...] = ()
    return Evidence(summary, heights, (), (), sides[0], sides[1], none, none, contexts)


def short(value: float, digits: int = 4) -> float:
    """A number with this many significant digits."""
    return float(f"{float(value):.{digits}g}")


def exact(value: float) -> float:
    """The shortest decimal that is the same in float32, as activations are stored; a whole number without a point."""
    shortest = float(str(np.float32(value)))
    return int(shortest) if shortest.is_integer() and abs(shortest) < WHOLE else shortest


def _bars(feature: Mapping[str, Any], seen: float) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Counts in equal bins from 0 to the maximum, their middles, and that maximum, of which ``seen`` is the least."""
    heights = np.array(feature.get("freq_hist_data_bar_heights") or [0] * BINS, np.float64)
    values = np.array(feature.get("freq_hist_data_bar_values") or [0.0] * BINS, np.float64)
    heights = heights.clip(0, MOST).astype(np.int64)
    width = (values[-1] - values[0]) / max(len(values) - 1, 1)
    largest = max(seen, float(values[-1] + width / 2))
    middles = (np.arange(len(values)) + 0.5) * largest / len(values)
    if len(values) % TOKEN_BINS or np.abs(middles - values).max() > width / 4:
        # bars of others begin where activations do, or are of another number: each goes where its middle lies
        bins = len(values) if len(values) % TOKEN_BINS == 0 else BINS
        heights = np.histogram(values, bins, (0, largest or 1), weights=heights)[0].astype(np.int64)
        values = (np.arange(bins) + 0.5) * largest / bins
    return heights, values, largest


def _activations(evidence: Evidence, source: FeaturesSource) -> list[dict[str, Any]]:
    """Every context once, with the interval of its group."""
    seen: set[int] = set()
    rows = []
    for group in (name for name in GROUPS if name in source.groups):
        contexts = sorted(evidence.examples[group], key=lambda context: (-context.part, context.rank))
        for context in contexts:
            if context.id in seen:
                continue
            seen.add(context.id)
            low, high, share = _interval(context, evidence, source)
            peak = int(np.argmax(context.activations))
            start = max(0, min(peak - source.window // 2, len(context.texts) - source.window)) if source.window else 0
            part = slice(start, start + (source.window or len(context.texts)))
            rows.append(
                {
                    "bin_min": low,
                    "bin_max": high,
                    "bin_contains": share,
                    "tokens": list(context.texts[part]),
                    "values": [exact(value) for value in context.activations[part]],
                    "qualifying_token_index": peak - start,
                }
            )
    return rows


def _interval(context: Context, evidence: Evidence, source: FeaturesSource) -> tuple[float, float, float]:
    """``bin_min``, ``bin_max`` and ``bin_contains`` of a context, by the maxima of its group."""
    summary, group = evidence.summary, evidence.examples[context.group]
    if context.group == "top":
        return TOP, exact(summary.max), TOP
    if context.group == "inactive":
        return 0, 0, 0
    if context.group == "random":
        return 0, exact(summary.max), 1
    maxima = [max(other.activations) for other in group if other.part == context.part]
    if context.group == "near_zero":
        return 0, exact(max(maxima)), short(len(maxima) / max(summary.fragments, len(maxima)))
    return exact(min(maxima)), exact(max(maxima)), short(1 / source.quantiles)


def _contexts(activations: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Context, ...]]:
    """Contexts by group, each once: marked ones are the strongest, silent ones inactive, others by interval."""
    intervals: dict[tuple[float, float], int] = {}
    spans = {(row.get("bin_min", TOP), row.get("bin_max", TOP)) for row in activations if _kind(row) == "quantile"}
    for part, span in enumerate(sorted(spans)):
        intervals[span] = part
    groups: dict[str, list[Context]] = {name: [] for name in GROUPS}
    seen: set[tuple[tuple[str, ...], tuple[float, ...]]] = set()
    for number, row in enumerate(activations):
        texts, values = tuple(row["tokens"]), tuple(float(np.float32(value)) for value in row["values"])
        if (texts, values) in seen:
            continue
        seen.add((texts, values))
        kind = _kind(row)
        part = intervals[row.get("bin_min", TOP), row.get("bin_max", TOP)] if kind == "quantile" else 0
        rank = sum(context.part == part for context in groups[kind])
        groups[kind].append(Context(number, -1, -1, 0, (-1,) * len(texts), texts, values, kind, part, rank))
    return {name: tuple(contexts) for name, contexts in groups.items()}


def _kind(row: Mapping[str, Any]) -> str:
    low, share = row.get("bin_min", TOP), row.get("bin_contains")
    if max(row["values"]) <= 0:
        return "inactive"
    if low == TOP:
        return "top"
    return "random" if low == 0 and share == 1 else "quantile"
