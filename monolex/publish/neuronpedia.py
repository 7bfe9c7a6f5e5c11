"""A dictionary as SAEDashboard and Neuronpedia have it: batches of features, those left out, settings, explanations."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monolex.activations.stored import packed_rows
from monolex.artifact import digest, json_bytes, open_artifact
from monolex.dictionaries.listing import RunDictionary
from monolex.features.known import open_store
from monolex.features.store import FeatureStore
from monolex.interp.simulate.by_rule import KIND as RULES
from monolex.model.language_model import LanguageModel
from monolex.publish import labels
from monolex.publish.batch import FeaturesSource, written
from monolex.publish.config import PublishConfig
from monolex.publish.explained import ExplainedFeature, SaidOfFeature, ScoredIn
from monolex.publish.files import compact, compressed_lines
from monolex.publish.logits import logits_histograms
from monolex.publish.schema import problem, schema

BATCH = 128
"""Features in a batch, as SAEDashboard writes and Neuronpedia takes them."""
AUTHOR = "monolex"
"""``authorId`` of an explanation: whoever imports it puts a user's in its place."""
NOTE = "monolex"
"""Key of an explanation's notes under which explainer and scores stand."""
PROTOCOL = "openai"
"""Explainer that follows OpenAI's protocol, which Neuronpedia calls :data:`TYPE_NAME`."""
TYPE_NAME = "oai_token-act-pair"
SCORE = "correlation, top and random fragments"
"""What scores are."""

GetModel = Callable[[], LanguageModel | None]


class File(NamedTuple):
    """A file of a dictionary's folder."""

    name: str
    """Relative to the folder."""
    content: bytes
    """What is in it."""


def files(
    run: Path,
    dictionary: RunDictionary,
    config: PublishConfig,
    explained: Sequence[ExplainedFeature],
    model: GetModel,
) -> Iterator[File]:
    """All files of a dictionary; ``model`` gives the run's model, or None where it cannot be had.

    Raises:
        UserError: no evidence, or a feature that the dictionary does not have.
    """
    with closing(open_store(dictionary)) as store:
        wanted = config.features or range(len(store))
        active = {summary.id: summary.n_active > 0 for summary in store.summaries()}
        named = {"model_id": labels.model_id(store.meta["model"]), "layer": labels.layer(dictionary)}
        named["sae_set"] = labels.set_name(dictionary)
        source = source_of(run, store, config)
        # asked of the store where there is none, so that the number is refused by name
        alive = [number for number in wanted if active.get(number, True)]
        chunks = [alive[start : start + BATCH] for start in range(0, len(alive), BATCH)]
        for number, chunk in enumerate(chunks):
            features = _features(store, dictionary, chunk, source, config, model)
            yield _valid(f"batch-{number}.json", {**named, "features": features}, features)
        dead = [number for number in wanted if not active.get(number, True)]
        # a feature below this is active in none of the rows that were read
        least = math.log10(1 / max(store.meta["rows"], 1))
        skipped = {**named, "layer": str(named["layer"]), "log_sparsity": least, "skipped_indexes": dead}
        assert not problem(skipped, schema("skipped"), written=True)
        yield File("skipped_indexes.json", json_bytes(skipped))
        yield File("run_settings.json", json_bytes(_settings(dictionary, store, source, named)))
    for number, rows in enumerate(_grouped(explained, chunks)):
        lines = [explanation_row(row.feature, said, named, dictionary) for row in rows for said in row.explanations]
        for line in lines:
            assert not (fault := problem(line, schema("explanation"), written=True)), fault
        if lines:
            yield File(f"explanations/batch-{number}.jsonl.gz", compressed_lines(lines))


def source_of(run: Path, store: FeatureStore, config: PublishConfig) -> FeaturesSource:
    """What all features of a store share."""
    manifest = open_artifact(run / "activations", "activations")
    tokens = packed_rows(run / "activations", store.meta["split"]).tokens
    quantiles = store.meta["config"]["quantiles"]
    return FeaturesSource(
        len(tokens), tokens.shape[1], Path(manifest.config["corpus"]).name, quantiles, config.groups, config.window
    )


def explanation_row(
    feature: int, said: SaidOfFeature, named: Mapping[str, Any], dictionary: RunDictionary
) -> dict[str, Any]:
    """An explanation as a line of Neuronpedia's bulk files.

    ``scoreV1`` is the correlation over top and random fragments by the first language model that simulated, null where
    only rules did; ``notes`` hold every score with its interval, chance and artefact.
    """
    scores = [_score(line.row, source) for line, source in zip(said.scored, said.scored_in, strict=True)]
    by_models = [score["value"] for score in scores if score["simulator"] != RULES and score["value"] is not None]
    identity = [dictionary.content, feature, said.artefact, said.explainer, said.text]
    notes = {NOTE: {"explainer": said.explainer, "score": SCORE, "scores": scores}}
    return {
        "id": "c" + digest(identity)[:24],
        "modelId": named["model_id"],
        "layer": labels.source_id(dictionary),
        "index": str(feature),
        "description": said.text,
        "authorId": AUTHOR,
        "typeName": TYPE_NAME if said.explainer == PROTOCOL else None,
        "explanationModelName": said.model or None,
        "notes": compact(notes).decode(),
        "scoreV1": next(iter(by_models), None),
        "createdAt": said.when,
        "updatedAt": said.when,
    }


def _score(row: Mapping[str, Any], source: ScoredIn) -> dict[str, Any]:
    """A score with its interval, and what explanations of other features score on the feature."""
    value, chance = row["scores"]["top_and_random"], row["scores"]["chance"]["value"]
    head = {"simulator": row["simulator"], **{name: value[name] for name in ("value", "low", "high")}}
    return head | {"chance": chance, **source._asdict()}


def _features(
    store: FeatureStore,
    dictionary: RunDictionary,
    chunk: Sequence[int],
    source: FeaturesSource,
    config: PublishConfig,
    model: GetModel,
) -> list[dict[str, Any]]:
    weights = dictionary.weights()
    lm = model() if config.logits else None
    evidence = [store.feature(number) for number in chunk]
    histograms = None if lm is None else logits_histograms(lm, dictionary.site, weights.to(lm.device), chunk)
    directions = weights.W_dec[list(chunk)].cpu().numpy().astype(np.float32)
    return [
        written(known, source, direction, histogram, config.vectors)
        for known, direction, histogram in zip(evidence, directions, histograms or [None] * len(chunk), strict=True)
    ]


def _valid(name: str, batch: dict[str, Any], features: Sequence[Mapping[str, Any]]) -> File:
    """A batch as a file; what is written here and is not valid is a defect."""
    assert not (fault := problem(batch, schema("batch"), written=True)), fault
    for feature in features:
        assert not (fault := problem(feature, schema("feature"), written=True)), fault
    return File(name, compact(batch))


def _settings(
    dictionary: RunDictionary, store: FeatureStore, source: FeaturesSource, named: Mapping[str, Any]
) -> dict[str, Any]:
    """What SAEDashboard's runner keeps of its settings, as far as that has a meaning here, and where all comes from."""
    meta = store.meta
    return {
        **named,
        "sae_path": dictionary.title,
        "np_set_name": named["sae_set"],
        "n_prompts_total": source.n_prompts,
        "n_tokens_in_prompt": source.n_tokens,
        "n_features_at_a_time": BATCH,
        "huggingface_dataset_path": source.dataset,
        "monolex": {key: meta.get(key) for key in ("site", "name", "kind", "d_sae", "rows", "split", "signed", "model")}
        | {"fingerprint": meta.get("fingerprint"), "activations": meta.get("activations"), "evidence": meta["config"]},
    }


def _grouped(explained: Sequence[ExplainedFeature], chunks: Sequence[Sequence[int]]) -> list[list[ExplainedFeature]]:
    """Explained features by the batch that holds them."""
    by_number = {feature.feature: feature for feature in explained}
    return [[by_number[number] for number in chunk if number in by_number] for chunk in chunks]
