"""From predictions to the two files of a score artefact: a line a feature and explanation, and the means.

Every correlation, of a feature or a mean, is resampled over the same draws of documents (``resample``); what is counted
in examples (detection, fuzzing) is resampled over features alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from monolex import stats
from monolex.artifact import SUBJECT
from monolex.interp.config import ScoreConfig
from monolex.interp.protocol import SAYS_NOTHING
from monolex.interp.score import bootstrap
from monolex.interp.score.bootstrap import Documents, Mean, ResampledScore
from monolex.stats import Estimate

GROUPS = ("top_and_random", "top", "random")
CHANCES = ("chance", "chance_top", "chance_random")
JUDGED = {
    f"{kind}{ending}": (kind, which)
    for kind in ("detection", "fuzz")
    for ending, which in (("", "balanced_accuracy"), ("_auc", "auc"), ("_auc_chance", "chance_auc"))
}
COMPARED = ("top_and_random", "random")
"""Scores whose differences from baselines are given."""
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ScoredDictionary:
    """One explainer's explanations of one dictionary, scored but not yet resampled."""

    facts: Mapping[str, Any]
    """The dictionary."""
    explainer: str
    """Whose."""
    rows: Sequence[Row]
    """A line a feature; ``scores`` holds values and reasons."""
    sums: Float[NDArray, "features fragments 6"]
    """What correlations are made of; NaN where there is no prediction."""
    docs: Int64[NDArray, "features fragments"]
    """Documents of the fragments; -1 where a feature has fewer."""
    top: Int64[NDArray, "features"]
    """How many of a feature's fragments are top ones; they come first."""


def documents(dictionaries: Iterable[ScoredDictionary], config: ScoreConfig) -> Documents:
    """The draws of documents that everything shares."""
    docs = [np.unique(scored.docs[scored.docs >= 0]) for scored in dictionaries]
    return Documents(np.concatenate([np.zeros(0, np.int64), *docs]), config.resamples, config.score_seed)


def resampled(scored: ScoredDictionary, draws: Documents, config: ScoreConfig) -> tuple[list[Row], dict[str, Mean]]:
    """The lines of ``scored`` with intervals, and the mean of every metric."""
    kept: dict[str, list[ResampledScore]] = {group: [] for group in GROUPS}
    rows = []
    for i, row in enumerate(scored.rows):
        known, top = scored.docs[i] >= 0, int(scored.top[i])
        parts = {"top_and_random": slice(None), "top": slice(0, top), "random": slice(top, None)}
        cells = dict(row["scores"])
        for group in GROUPS:
            cell = row["scores"][group]
            value = np.nan if cell["value"] is None else cell["value"]
            sums, docs = scored.sums[i][known][parts[group]], scored.docs[i][known][parts[group]]
            feature = draws.resample(value, cell["reason"], sums, docs)
            kept[group].append(feature)
            cells[group] = cell_of(bootstrap.interval(feature, config.level))
        rows.append({**row, "scores": cells})
    seed = [config.score_seed, *f"{scored.facts['model']}/{scored.facts['site']}/{scored.facts['name']}".encode()]
    means = {group: bootstrap.mean(scores, config.level, seed) for group, scores in kept.items()}
    for chance in CHANCES:
        means[chance] = _plain([row["scores"][chance] for row in scored.rows], config)
    for metric, (kind, which) in JUDGED.items():
        if kind in config.scorers:
            means[metric] = _plain([row[kind][which] for row in scored.rows], config)
    return rows, means


def _plain(cells: Sequence[Mapping[str, Any]], config: ScoreConfig) -> Mean:
    """Mean over features alone; constant predictions count as 0, as in :class:`Mean`."""
    silent = sum(cell["reason"] == SAYS_NOTHING for cell in cells)
    missing = dict(Counter(c["reason"] for c in cells if c["value"] is None and c["reason"] != SAYS_NOTHING))
    known = [cell["value"] for cell in cells if cell["value"] is not None]
    others = float(np.mean(known)) if known else None
    known += [0.0] * silent
    bootstrapped = {"resamples": config.resamples, "level": config.level, "seed": config.score_seed}
    estimate = stats.mean(known, "features", **bootstrapped)
    if not known and missing:
        estimate = stats.not_applicable(max(missing, key=lambda reason: missing[reason]))
    return Mean(estimate, np.zeros(0), missing, silent, others)


def cell_of(estimate: Estimate) -> Row:
    """Value, interval and reason."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "reason": estimate.reason}


def mean_row(mean: Mean) -> Row:
    """A mean as plain values."""
    e = mean.estimate
    known = {"missing": dict(mean.missing), "constant": mean.constant, "without_constant": mean.others}
    return {**cell_of(e), "n": e.n, "over": e.over, **known}


def differences(
    means: Mapping[tuple[str, str], tuple[Mapping[str, Any], Mapping[str, Mean]]], level: float
) -> list[Row]:
    """Every trained dictionary of the subject against every baseline and control of its site, explainer by explainer.

    ``means`` is by key of the dictionary and explainer. Intervals are not corrected for how many there are.
    """
    rows = []
    for (key, explainer), (facts, mine) in means.items():
        if not facts["trained"] or facts["model"] != SUBJECT:
            continue
        for (other, theirs), (against, their) in means.items():
            same = other != key and theirs == explainer and against["site"] == facts["site"]
            if not same or (against["trained"] and against["model"] == SUBJECT):
                continue
            for metric in COMPARED:
                e = bootstrap.difference(mine[metric], their[metric], level)
                rows.append(
                    {
                        "site": facts["site"],
                        "layer": facts["layer"],
                        "explainer": explainer,
                        "metric": metric,
                        "model": facts["model"],
                        "name": facts["name"],
                        "against_model": against["model"],
                        "against": against["name"],
                        **cell_of(e),
                        "n": e.n,
                        "over": e.over,
                    }
                )
    return rows
