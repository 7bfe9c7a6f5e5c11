"""Explained features as OpenAI's neuron-explainer has neurons: records of activations, and what was simulated."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolex.dictionaries.listing import RunDictionary
from monolex.interp.protocol import correlation
from monolex.interp.records import Fragment, Overlay, Scored
from monolex.interp.simulate.by_rule import KIND as BY_RULE
from monolex.publish import labels
from monolex.publish.batch import exact
from monolex.publish.explained import ExplainedFeature, SaidOfFeature
from monolex.publish.files import compact
from monolex.publish.neuronpedia import File
from monolex.publish.schema import problem, schema

Json = dict[str, Any]


def files(dictionary: RunDictionary, explained: Sequence[ExplainedFeature]) -> Iterator[File]:
    """``collated-activations/LAYER/NUMBER.json`` and ``explanations/LAYER/NUMBER.jsonl`` of every explained feature."""
    layer = labels.layer(dictionary)
    for feature in explained:
        record, results = neuron_record(layer, feature), simulation_results(layer, feature)
        for value, name in ((record, "neuron-record"), (results, "simulation-results")):
            assert not (fault := problem(value, schema(name), written=True)), fault
        yield File(f"collated-activations/{layer}/{feature.feature}.json", compact(record) + b"\n")
        yield File(f"explanations/{layer}/{feature.feature}.jsonl", compact(results) + b"\n")


def neuron_record(layer: int, feature: ExplainedFeature) -> Json:
    """The fragments that a feature was explained from and scored on, the strongest first, and the random ones."""
    examples, moments = feature.examples, feature.moments
    top = sorted((*examples.explain, *examples.top), key=lambda fragment: -fragment.maximum)
    return _named(
        "NeuronRecord",
        neuron_id=_neuron(layer, feature),
        random_sample=[_record(fragment) for fragment in examples.random],
        random_sample_by_quantile=None,
        quantile_boundaries=None,
        mean=finite(moments.mean),
        variance=finite(moments.variance),
        skewness=finite(moments.skew),
        kurtosis=finite(moments.kurtosis),
        most_positive_activation_records=[_record(fragment) for fragment in top],
    )


def simulation_results(layer: int, feature: ExplainedFeature) -> Json:
    """All explanations of a feature, by every simulator that scored them."""
    scored = [_explanation(said, line) for said in feature.explanations for line in said.scored or (None,)]
    return _named("NeuronSimulationResults", neuron_id=_neuron(layer, feature), scored_explanations=scored)


def explained_share(actual: NDArray[np.float64], predicted: NDArray[np.float64]) -> tuple[float, float]:
    """``1 - mean((r - p)²) / mean(r²)`` and ``1 - mean|r - p| / mean|r|``; NaN where nothing is active.

    >>> r, p = np.array([-0.1, 0, 3, 1]), np.array([0.0, 1, 7, 2])
    >>> [round(score, 8) for score in explained_share(r, p)]
    [-0.7992008, -0.48780488]
    """
    error, square, size = actual - predicted, float((actual**2).sum()), float(np.abs(actual).sum())
    if not size:
        return math.nan, math.nan
    return 1 - float((error**2).sum()) / square, 1 - float(np.abs(error).sum()) / size


def finite(value: float) -> float | None:
    """A number, or None where there is none."""
    return value if math.isfinite(value) else None


def _explanation(said: SaidOfFeature, line: Scored | None) -> Json:
    simulation = None if line is None else _simulation(line)
    return _named("ScoredExplanation", explanation=said.text, scored_simulation=simulation)


def _simulation(line: Scored) -> Json:
    """Fragments of which every token was predicted; the format has no place for a missing one."""
    whole = [overlay for overlay in line.overlays if overlay.predicted and None not in overlay.predicted]
    scale = "neuron_activations" if line.row["simulator"] == BY_RULE else "simulated_normalized_activations"
    pairs = [_arrays(overlay) for overlay in whole]
    scores = _scores(*(np.concatenate(side) for side in zip(*pairs, strict=True))) if pairs else _scores(*_NOTHING)
    # the run's own number stands for all fragments, those with missing tokens too
    scores["ev_correlation_score"] = line.row["scores"]["top_and_random"]["value"]
    return _named("ScoredSimulation", scored_sequence_simulations=[_sequence(o, scale) for o in whole], **scores)


_NOTHING = np.zeros(0), np.zeros(0)


def _sequence(overlay: Overlay, scale: str) -> Json:
    actual, predicted = _arrays(overlay)
    simulation = _named(
        "SequenceSimulation",
        tokens=list(overlay.texts),
        expected_activations=[exact(value) for value in predicted],
        activation_scale=scale,
        distribution_values=[],
        distribution_probabilities=[],
        uncalibrated_simulation=None,
    )
    scores = _scores(actual, predicted)
    return _named(
        "ScoredSequenceSimulation", simulation=simulation, true_activations=[exact(value) for value in actual], **scores
    )


def _scores(actual: NDArray[np.float64], predicted: NDArray[np.float64]) -> dict[str, float | None]:
    square, size = explained_share(actual, predicted)
    return {
        "ev_correlation_score": finite(correlation(actual, predicted).value),
        "rsquared_score": finite(square),
        "absolute_dev_explained_score": finite(size),
    }


def _arrays(overlay: Overlay) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    assert overlay.predicted is not None
    return np.array(overlay.actual, np.float64), np.array(overlay.predicted, np.float64)


def _record(fragment: Fragment) -> Json:
    values = [exact(value) for value in fragment.activations]
    return _named("ActivationRecord", tokens=list(fragment.texts), activations=values)


def _neuron(layer: int, feature: ExplainedFeature) -> Json:
    return _named("NeuronId", layer_index=layer, neuron_index=feature.feature)


def _named(dataclass_name: str, **fields: Any) -> Json:
    """An object as neuron-explainer tells its dataclasses apart."""
    return {"dataclass_name": dataclass_name, **fields}
