"""The stage ``score``: explanations of a run's features, simulated and compared with what the features really do.

A dictionary is a piece, kept as it is done; replies of a language model are kept one by one. Calls that it left
unanswered are counted failures, and the same command tries them again; answers that are no use (not one number a token)
are failures that stay. Writes ``score.json`` (means by dictionary, explainer and metric, and differences),
``scores.jsonl`` (a line a feature and explainer) and ``predictions.safetensors`` (``MODEL/SITE/NAME/EXPLAINER``:
predicted activations on the scored fragments, NaN where a prediction failed).
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from monolex import pieces
from monolex.artifact import FileEntry, Manifest, write_bytes, write_json
from monolex.config import identity, plain
from monolex.interp import stored
from monolex.interp.config import ScoreConfig
from monolex.interp.judging import judged
from monolex.interp.meter import METER
from monolex.interp.protocol import Correlation
from monolex.interp.records import Examples, Failure, dictionary_of
from monolex.interp.replies import unanswered
from monolex.interp.resample import SUMS, sums
from monolex.interp.rules_simulator import KIND as KIND_OF_RULES
from monolex.interp.score import Asked, FeatureScore, Judged, average, correlated, score_features
from monolex.interp.simulators import Opened, opened
from monolex.interp.stored import Explained, Explanations
from monolex.interp.summary import Measured, differences, documents, mean_row, resampled

KIND = "score"
MEANS, LINES, PREDICTIONS = "score.json", "scores.jsonl", "predictions.safetensors"


def score(folder: str | Path, explanations: str | Path, config: ScoreConfig, run: str | Path) -> Manifest:
    """Score the explanations artefact ``explanations``; see the module's docstring for what is written.

    ``run`` is where replies of language models are kept.

    Raises:
        UserError: no finished explanations, or a language model that cannot be asked.
    """
    folder, explanations, run = Path(folder), Path(explanations), Path(run)
    given = Explanations(explanations)
    request = {"explanations": given.manifest.content}
    local = config.simulator != "rules" and not config.base_url
    # an endpoint need not be there when all is done; of a local model the weights are part of the request
    if not local and (found := pieces.done(folder, KIND, identity(config), request)):
        return found
    with opened(config, run) as how:
        request |= {"llm": how.weights} if how.weights else {}
        if local and (found := pieces.done(folder, KIND, identity(config), request)):
            return found

        def piece(key: str) -> pieces.Piece:
            return lambda path: _dictionary(path, key, given, how, config)

        works = {key: piece(key) for key in given.facts}
        partial, made = pieces.make(folder, KIND, identity(config), request, works, unanswered(how.client))
    measured = []
    for key, explainers in zip(given.facts, made, strict=True):
        measured += _measured(pieces.place(partial, key), given.facts[key], explainers)
    lines, means = [], {}
    draws = documents(measured, config)
    for one in measured:
        rows, found = resampled(one, draws, config)
        lines += rows
        means["/".join(dictionary_of(one.facts)), one.explainer] = one.facts, found
    entry = {
        "explanations": os.path.relpath(explanations, folder),
        "mode": given.mode,
        "simulator": how.simulator.kind,
        **{name: plain(getattr(config, name)) for name in ("scorers", "shuffles", "level", "resamples")},
        "dictionaries": [
            {**facts, "explainers": {e: {n: mean_row(m) for n, m in means[key, e][1].items()} for e in explainers}}
            for (key, facts), explainers in zip(given.facts.items(), made, strict=True)
        ],
        "differences": differences(means, config.level),
    }

    def write() -> dict[str, FileEntry]:
        flat = {}
        for key in given.facts:
            arrays = load_file(pieces.place(partial, key).with_suffix(".safetensors"))
            flat |= {f"{key}/{name[:-12]}": a for name, a in arrays.items() if name.endswith("/predictions")}
        return {
            MEANS: write_json(folder / MEANS, entry),
            LINES: write_bytes(folder / LINES, stored.lines(lines)),
            PREDICTIONS: write_bytes(folder / PREDICTIONS, save(flat)),
        }

    failed = sum(sum(row["failures"].values()) for row in lines)
    counts = {"simulator": how.simulator.kind, "explanations": len(lines), "failures": failed}
    counts |= {METER: how.client.meter.to_json()} if how.client is not None else {}
    return pieces.finish(folder, KIND, identity(config), request, write, counts)


def _dictionary(path: Path, key: str, given: Explanations, how: Opened, config: ScoreConfig) -> list[str]:
    """Score one dictionary's explanations; whose there are."""
    there = given.read(key)
    limit = len(there.examples) if config.limit is None else config.limit
    examples = there.examples[:limit]
    asked = Asked(config.scorers, config.shuffles, how.simulator.kind == KIND_OF_RULES)
    rows, arrays = [], {}
    for explainer, explanations in there.explanations.items():
        rng = np.random.default_rng([config.score_seed, *f"{key}/{explainer}".encode()])
        scored = score_features(examples, explanations[:limit], how.simulator, asked, rng, how.judge is None)
        if how.judge is not None:
            asking = how.judge, config.scorers, rng
            scored = judged(scored, examples, explanations[:limit], *asking, logprobs=how.logprobs)
        texts = [None if isinstance(one, Failure) else one.text for one in explanations[:limit]]
        rows += [_line(there, i, explainer, how.simulator.kind, texts[i], one) for i, one in enumerate(scored)]
        arrays |= {f"{explainer}/{name}": a for name, a in _arrays(examples, scored).items()}
    write_bytes(path.with_suffix(".jsonl"), stored.lines(rows))
    write_bytes(path.with_suffix(".safetensors"), save(arrays))
    return list(there.explanations)


def _measured(place: Path, facts: Mapping[str, Any], explainers: Sequence[str]) -> list[Measured]:
    """What :func:`_dictionary` left of one dictionary."""
    arrays = load_file(place.with_suffix(".safetensors"))
    written = list(stored.read_lines(place.with_suffix(".jsonl")))
    found = []
    for explainer in explainers:
        own = {name: arrays[f"{explainer}/{name}"] for name in ("sums", "docs", "top")}
        mine = [row for row in written if row["explainer"] == explainer]
        found.append(Measured(facts, explainer, mine, **own))
    return found


def _line(
    there: Explained, i: int, explainer: str, simulator: str, text: str | None, one: FeatureScore
) -> dict[str, Any]:
    example = there.examples[i]
    both = (*example.top, *example.random)
    top = len(example.top)
    parts = {
        "chance": (both, slice(None)),
        "chance_top": (example.top, slice(0, top)),
        "chance_random": (example.random, slice(top, None)),
    }
    cells = {
        "top_and_random": correlated(both, (*one.top, *one.random)),
        "top": correlated(example.top, one.top),
        "random": correlated(example.random, one.random),
    }
    for name, (some, place) in parts.items():
        cells[name] = average([correlated(some, guesses[place]) for guesses in one.chance])
    facts = {name: there.facts[name] for name in ("model", "site", "name", "kind", "method", "layer")}
    return facts | {
        "feature": example.feature,
        "explainer": explainer,
        "simulator": simulator,
        "text": text,
        "scores": {name: _cell(found) for name, found in cells.items()},
        "detection": _judged(one.detection),
        "fuzz": _judged(one.fuzz),
        "failures": dict(one.failures),
        "moments": {name: _finite(getattr(there.moments, name)[i]) for name in there.moments._fields},
        "output": there.output[i],
    }


def _judged(found: Judged | None) -> dict[str, Any]:
    return {} if found is None else {name: _cell(cell) for name, cell in found._asdict().items()}


def _cell(found: Correlation) -> dict[str, Any]:
    return {"value": _finite(found.value), "low": None, "high": None, "reason": found.reason}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _arrays(examples: Sequence[Examples], scored: Sequence[FeatureScore]) -> Mapping[str, NDArray]:
    """Predictions, and what correlations are made of, of all scored fragments; top ones first."""
    count = max((len(one.top) + len(one.random) for one in examples), default=0)
    width = max((len(f.texts) for one in examples for f in (*one.top, *one.random)), default=0)
    predictions = np.full((len(examples), count, width), np.nan, np.float32)
    made = np.full((len(examples), count, SUMS), np.nan)
    docs = np.full((len(examples), count), -1, np.int64)
    for i, (one, found) in enumerate(zip(examples, scored, strict=True)):
        pairs = list(zip((*one.top, *one.random), (*found.top, *found.random), strict=True))
        known = [guess for _, guess in pairs if not isinstance(guess, Failure)]
        # a correlation does not mind a shift, and sums of squares of large numbers lose digits
        shift = np.concatenate(known).mean() if known else 0.0
        base = np.concatenate([fragment.activations for fragment, _ in pairs]).mean(dtype=np.float64)
        for j, (fragment, guess) in enumerate(pairs):
            docs[i, j] = fragment.doc
            if not isinstance(guess, Failure):
                predictions[i, j, : len(guess)] = guess
                made[i, j] = sums(fragment.activations - base, guess - shift)
    top = np.array([len(one.top) for one in examples], np.int64)
    return {"predictions": predictions, "sums": made, "docs": docs, "top": top}
