"""The stage ``score``: explanations of a run's features, simulated and compared with what the features really do.

A dictionary is a piece, kept as it is done; replies of a language model are kept one by one. Calls that it left
unanswered are counted failures, and the same command tries them again; answers that are no use (not one number a token)
are failures that stay. Writes ``score.json`` (means by dictionary, explainer and metric, and differences),
``scores.jsonl`` (a line a feature and explainer) and ``predictions.safetensors`` (``MODEL/SITE/NAME/EXPLAINER``:
predicted activations on the scored fragments, NaN where a prediction failed or misses a token).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from monolex.artifact import Manifest, json_bytes, relative_place, write_bytes
from monolex.config import plain
from monolex.interp.config import ScoreConfig
from monolex.interp.explain import saved
from monolex.interp.explain.saved import Explanations
from monolex.interp.llm.meter import METER, nothing_done
from monolex.interp.llm.recorded import opened_unless_found, unanswered
from monolex.interp.records import Failure, dictionary_of
from monolex.interp.score.judging import judged
from monolex.interp.score.lines import arrays_of, line_of, read_back
from monolex.interp.score.means import differences, documents, mean_row, resampled
from monolex.interp.score.scorers import Scoring, score_features
from monolex.interp.simulate.batch import MOST_MISSING, PredictedTokens, added
from monolex.interp.simulate.by_rule import KIND as KIND_OF_RULES
from monolex.interp.simulate.open import OpenSimulator, open_simulator
from monolex.lock import alone
from monolex.pieces import Piece, Work

KIND = "score"
MEANS, LINES, PREDICTIONS = "score.json", "scores.jsonl", "predictions.safetensors"


@alone
def score(folder: str | Path, explanations: str | Path, config: ScoreConfig, run: str | Path) -> Manifest:
    """Score the explanations artefact ``explanations``; see the module's docstring for what is written.

    ``run`` is where replies of language models are kept.

    Raises:
        UserError: no finished explanations, a language model that cannot be asked, or not one prediction.
    """
    folder, explanations, run = Path(folder), Path(explanations), Path(run)
    explained = Explanations(explanations)
    with ExitStack() as stack:
        work = Work(folder, KIND, config, {"explanations": explained.manifest.content})
        simulator = partial(open_simulator, config, run)
        answer = opened_unless_found(stack, work, config, simulator, lambda model: model.weights)
        if isinstance(answer, Manifest):
            return answer
        work, model = answer

        def piece(key: str) -> Piece:
            return lambda path: _dictionary(path, key, explained, model, config)

        explainers = work.done({key: piece(key) for key in explained.facts}, unanswered(model.client))
    return _finish(work, explained, config, model, explainers)


def _finish(
    work: Work,
    explained: Explanations,
    config: ScoreConfig,
    model: OpenSimulator,
    explainers: Mapping[str, Sequence[str]],
) -> Manifest:
    """The artefact out of what the pieces of all dictionaries left."""
    dictionaries, flat = [], {}
    for key, facts in explained.facts.items():
        arrays = load_file(work.place(key).with_suffix(".safetensors"))
        rows = list(saved.read_lines(work.place(key).with_suffix(".jsonl")))
        dictionaries += read_back(arrays, rows, facts, explainers[key])
        flat |= {f"{key}/{name[:-12]}": a for name, a in arrays.items() if name.endswith("/predictions")}
    lines, means = [], {}
    draws = documents(dictionaries, config)
    for scored in dictionaries:
        rows, mean = resampled(scored, draws, config)
        lines += rows
        means["/".join(dictionary_of(scored.facts)), scored.explainer] = scored.facts, mean
    failed = sum((Counter(row["failures"]) for row in lines), Counter())
    useless = not any(map(_predicted, flat.values())) and not any(map(_judged, lines))
    if failed and useless and config.simulator != "rules":  # which asks nobody
        work.forget()
        raise nothing_done(f"{model.simulator.kind}: all of {failed.total()} predictions failed", failed)
    entry = {
        "explanations": relative_place(explained.folder, work.folder),
        "mode": explained.mode,
        "simulator": model.simulator.kind,
        **{name: plain(getattr(config, name)) for name in ("scorers", "shuffles", "level", "resamples")},
        "most_missing": MOST_MISSING,
        "dictionaries": [
            {
                **facts,
                "explainers": {e: {n: mean_row(m) for n, m in means[key, e][1].items()} for e in explainers[key]},
                "tokens": {e: _tokens(lines, key, e)._asdict() for e in explainers[key]},
            }
            for key, facts in explained.facts.items()
        ],
        "differences": differences(means, config.level),
    }
    files = {MEANS: json_bytes(entry), LINES: saved.lines(lines), PREDICTIONS: save(flat)}
    counts = {"simulator": model.simulator.kind, "explanations": len(lines), "failures": failed.total()}
    counts |= {METER: model.client.meter.to_json()} if model.client is not None else {}
    return work.finish(files, counts)


def _tokens(lines: Sequence[Mapping[str, Any]], key: str, explainer: str) -> PredictedTokens:
    """Predicted and missing tokens of one explainer's explanations of a dictionary."""
    chosen = (row for row in lines if ("/".join(dictionary_of(row)), row["explainer"]) == (key, explainer))
    return added(PredictedTokens(**row["tokens"]) for row in chosen)


def _predicted(predictions: np.ndarray) -> bool:
    return bool(np.isfinite(predictions).any())


def _judged(row: Mapping[str, Any]) -> bool:
    return any(cell["value"] is not None for kind in ("detection", "fuzz") for cell in row[kind].values())


def _dictionary(
    path: Path, key: str, explanations: Explanations, model: OpenSimulator, config: ScoreConfig
) -> list[str]:
    """Score one dictionary's explanations; whose they are."""
    explained = explanations.read(key)
    limit = len(explained.examples) if config.limit is None else config.limit
    examples = explained.examples[:limit]
    scoring = Scoring(config.scorers, config.shuffles, model.simulator.kind == KIND_OF_RULES)
    rows, arrays = [], {}
    for explainer, texts in explained.explanations.items():
        rng = np.random.default_rng([config.score_seed, *f"{key}/{explainer}".encode()])
        scored = score_features(examples, texts[:limit], model.simulator, scoring, rng, model.judge is None)
        if model.judge is not None:
            scored = judged(scored, examples, texts[:limit], model.judge, config.scorers, rng)
        written = [None if isinstance(text, Failure) else text.text for text in texts[:limit]]
        rows += [
            line_of(explained, i, explainer, model.simulator.kind, written[i], score) for i, score in enumerate(scored)
        ]
        arrays |= {f"{explainer}/{name}": a for name, a in arrays_of(examples, scored).items()}
    write_bytes(path.with_suffix(".jsonl"), saved.lines(rows))
    write_bytes(path.with_suffix(".safetensors"), save(arrays))
    return list(explained.explanations)
