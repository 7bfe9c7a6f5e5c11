"""What the stage keeps of a dictionary: a line a feature and explainer, and arrays that means are resampled from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolex.interp.explain import saved
from monolex.interp.explain.saved import ExplainedDictionary
from monolex.interp.protocol import Correlation
from monolex.interp.records import Examples, Failure
from monolex.interp.score.bootstrap import SUMS, sums
from monolex.interp.score.discrimination import Discrimination, average
from monolex.interp.score.means import ScoredDictionary
from monolex.interp.score.scorers import FeatureScore, correlated


def read_back(
    arrays: saved.Arrays, written: Sequence[dict[str, Any]], facts: Mapping[str, Any], explainers: Sequence[str]
) -> list[ScoredDictionary]:
    """What the piece of a dictionary left."""
    dictionaries = []
    for explainer in explainers:
        parts = {name: arrays[f"{explainer}/{name}"] for name in ("sums", "docs", "top")}
        rows = [row for row in written if row["explainer"] == explainer]
        dictionaries.append(ScoredDictionary(facts, explainer, rows, **parts))
    return dictionaries


def line_of(
    explained: ExplainedDictionary, i: int, explainer: str, simulator: str, text: str | None, score: FeatureScore
) -> dict[str, Any]:
    """The line of the feature with number ``i`` among the explained ones, its intervals still empty."""
    example = explained.examples[i]
    both = (*example.top, *example.random)
    top = len(example.top)
    parts = {
        "chance": (both, slice(None)),
        "chance_top": (example.top, slice(0, top)),
        "chance_random": (example.random, slice(top, None)),
    }
    cells = {
        "top_and_random": correlated(both, (*score.top, *score.random)),
        "top": correlated(example.top, score.top),
        "random": correlated(example.random, score.random),
    }
    for name, (scored, part) in parts.items():
        cells[name] = average([correlated(scored, guesses[part]) for guesses in score.chance])
    facts = {name: explained.facts[name] for name in ("model", "site", "name", "kind", "method", "layer")}
    return facts | {
        "feature": example.feature,
        "explainer": explainer,
        "simulator": simulator,
        "text": text,
        "scores": {name: _cell(cell) for name, cell in cells.items()},
        "detection": _judged(score.detection),
        "fuzz": _judged(score.fuzz),
        "failures": dict(score.failures),
        "tokens": score.tokens._asdict(),
        "moments": {name: _finite(getattr(explained.moments, name)[i]) for name in explained.moments._fields},
        "output": explained.output[i],
    }


def _judged(discrimination: Discrimination | None) -> dict[str, Any]:
    return {} if discrimination is None else {name: _cell(cell) for name, cell in discrimination._asdict().items()}


def _cell(correlation: Correlation) -> dict[str, Any]:
    return {"value": _finite(correlation.value), "low": None, "high": None, "reason": correlation.reason}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def arrays_of(examples: Sequence[Examples], scored: Sequence[FeatureScore]) -> Mapping[str, NDArray]:
    """Predictions, and what correlations are made of, of all scored fragments; top ones first."""
    count = max((len(example.top) + len(example.random) for example in examples), default=0)
    width = max((len(f.texts) for example in examples for f in (*example.top, *example.random)), default=0)
    predictions = np.full((len(examples), count, width), np.nan, np.float32)
    sums_of = np.full((len(examples), count, SUMS), np.nan)
    docs = np.full((len(examples), count), -1, np.int64)
    for i, (example, score) in enumerate(zip(examples, scored, strict=True)):
        pairs = list(zip((*example.top, *example.random), (*score.top, *score.random), strict=True))
        known = [guess for _, guess in pairs if not isinstance(guess, Failure)]
        # a correlation does not mind a shift, and sums of squares of large numbers lose digits
        shift = np.nanmean(np.concatenate(known)) if known else 0.0
        base = np.concatenate([fragment.activations for fragment, _ in pairs]).mean(dtype=np.float64)
        for j, (fragment, guess) in enumerate(pairs):
            docs[i, j] = fragment.doc
            if not isinstance(guess, Failure):
                predictions[i, j, : len(guess)] = guess
                of = ~np.isnan(guess)
                sums_of[i, j] = sums(fragment.activations[of] - base, guess[of] - shift)
    top = np.array([len(example.top) for example in examples], np.int64)
    return {"predictions": predictions, "sums": sums_of, "docs": docs, "top": top}
