"""Files of other tools as what they say of features: explanations, numbers, and what shows which features they mean."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from monolex.errors import UserError
from monolex.publish.files import documents
from monolex.publish.neuronpedia import NOTE, PROTOCOL, TYPE_NAME
from monolex.publish.read_batch import checked_batch, is_batch
from monolex.publish.schema import require_parallel, require_valid

MOMENTS = ("mean", "variance", "skewness", "kurtosis")
FIRST_NUMBER = re.compile(r"\d+")


class ForeignExplanation(NamedTuple):
    """What somebody else says of a feature."""

    explainer: str
    """Who or which method; empty where the file does not say."""
    text: str
    """What they say."""
    score: float | None
    """How well it predicts, by their account; None where that is not said."""
    method: str
    """What the score is; empty without one."""


class ForeignPeak(NamedTuple):
    """Where a feature is most active in a context, by their account; of contexts no more is kept."""

    activation: float
    """How active."""
    text: str
    """The token."""


@dataclass(frozen=True)
class ForeignFeature:
    """What a file says of one feature."""

    number: int
    """Its number there."""
    layer: int | None
    """The block of its site; None where that is not said."""
    explanations: tuple[ForeignExplanation, ...] = ()
    """What is said of it."""
    numbers: Mapping[str, float] | None = None
    """Numbers of it, as the file calls them."""
    vector: tuple[float, ...] = ()
    """Its decoder direction; empty where there is none."""
    promoted: tuple[str, ...] = ()
    """Tokens that it promotes."""
    suppressed: tuple[str, ...] = ()
    """Tokens that it suppresses."""
    peaks: tuple[ForeignPeak, ...] = ()
    """Where it is most active, a context each."""


def read_features(path: Path) -> list[ForeignFeature]:
    """All that a file says of features.

    Raises:
        UserError: no such file, a damaged one, or one of no known format, with the place in it.
    """
    features: list[ForeignFeature] = []
    for place, value in documents(path):
        where = path if not place else f"{path}, {place}"
        for each in value if isinstance(value, list) else [value]:
            features += _reader(each, where)(each, where)
    if not features:
        raise UserError(f"{path} says nothing of any feature; give another file")
    return features


Reading = Callable[[Mapping[str, Any], Any], Iterator[ForeignFeature]]


def _reader(value: Any, where: object) -> Reading:
    if is_batch(value):
        return _of_batch
    keys = set(value) if isinstance(value, dict) else set()
    for needed, reading in _READINGS:
        if needed <= keys:
            return reading
    known = (
        "SAEDashboard's batch-N.json, Neuronpedia's features and explanations, neuron-explainer's records and results"
    )
    raise UserError(f"{where} is of no format that is read; known are {known}")


def _of_batch(value: Mapping[str, Any], where: Any) -> Iterator[ForeignFeature]:
    layer = _layer(value.get("layer"))
    for number, feature in checked_batch(value, where).features.items():
        heights = feature.get("freq_hist_data_bar_heights") or ()
        numbers = {"frac_nonzero": feature.get("frac_nonzero"), "active": sum(heights) if heights else None}
        yield _feature(feature, number, layer, (), numbers)


def _of_bulk_feature(value: Mapping[str, Any], where: Any) -> Iterator[ForeignFeature]:
    require_valid(value, "neuronpedia-feature", where)
    for i, activation in enumerate(value.get("activations", ())):
        require_parallel(activation, ("tokens", "values"), where, f"activations[{i}]")
    said = tuple(map(_explanation, value.get("explanations", ())))
    numbers = {name: value.get(name) for name in ("frac_nonzero", "maxActApprox")}
    yield _feature(value, _number(value["index"], where), _layer(value.get("layer")), said, numbers)


def _of_explanation(value: Mapping[str, Any], where: Any) -> Iterator[ForeignFeature]:
    require_valid(value, "explanation", where)
    number, layer = _number(value["index"], where), _layer(value.get("layer"))
    yield ForeignFeature(number, layer, (_explanation(value),))


def _of_record(value: Mapping[str, Any], where: Any) -> Iterator[ForeignFeature]:
    require_valid(value, "neuron-record", where)
    peaks: list[ForeignPeak] = []
    for name in ("most_positive_activation_records", "random_sample"):
        for i, record in enumerate(value.get(name, ())):
            require_parallel(record, ("tokens", "activations"), where, f"{name}[{i}]")
            peaks += _peak(record["tokens"], record["activations"])
    identity = value["neuron_id"]
    numbers = _known({name: value.get(name) for name in MOMENTS})
    yield ForeignFeature(identity["neuron_index"], identity["layer_index"], numbers=numbers, peaks=tuple(peaks))


def _of_results(value: Mapping[str, Any], where: Any) -> Iterator[ForeignFeature]:
    require_valid(value, "simulation-results", where)
    said: list[ForeignExplanation] = []
    peaks: list[ForeignPeak] = []
    for i, explanation in enumerate(value["scored_explanations"]):
        simulation = explanation.get("scored_simulation") or {}
        score = _known({"score": simulation.get("ev_correlation_score")}).get("score")
        method = "" if score is None else "neuron-explainer: ev_correlation_score"
        said.append(ForeignExplanation("", explanation["explanation"], score, method))
        for j, sequence in enumerate(simulation.get("scored_sequence_simulations", ())):
            shown = sequence.get("simulation") or sequence["sequence_simulation"]
            place = f"scored_explanations[{i}].scored_simulation.scored_sequence_simulations[{j}]"
            require_parallel({**shown, **sequence}, ("tokens", "true_activations"), where, place)
            peaks += _peak(shown["tokens"], sequence["true_activations"])
    identity = value["neuron_id"]
    yield ForeignFeature(identity["neuron_index"], identity["layer_index"], tuple(said), peaks=tuple(peaks))


_READINGS: Sequence[tuple[set[str], Reading]] = (
    ({"neuron_id", "scored_explanations"}, _of_results),
    ({"neuron_id", "most_positive_activation_records"}, _of_record),
    ({"index", "description"}, _of_explanation),
    ({"index", "modelId"}, _of_bulk_feature),
)
"""Keys by which a value is known, and what reads it."""


def _feature(
    value: Mapping[str, Any],
    number: int,
    layer: int | None,
    said: tuple[ForeignExplanation, ...],
    numbers: Mapping[str, float | None],
) -> ForeignFeature:
    """A feature of a batch or of the bulk files, which call the same things the same."""
    peaks = tuple(peak for a in value.get("activations", ()) for peak in _peak(a["tokens"], a["values"]))
    sides = tuple(value.get("pos_str", ())), tuple(value.get("neg_str", ()))
    return ForeignFeature(number, layer, said, _known(numbers), tuple(value.get("vector") or ()), *sides, peaks)


def _peak(texts: Sequence[str], activations: Sequence[float]) -> list[ForeignPeak]:
    """The strongest token of a context, if there is any."""
    if not activations or max(activations) <= 0:
        return []
    peak = max(activations)
    return [ForeignPeak(peak, texts[activations.index(peak)])]


def _explanation(value: Mapping[str, Any]) -> ForeignExplanation:
    """An explanation of Neuronpedia; of those published here, whose notes say so, explainer and score again."""
    score = _known({"score": value.get("scoreV1")}).get("score")
    method, explainer = "Neuronpedia: scoreV1", value.get("typeName") or ""
    explainer = PROTOCOL if explainer == TYPE_NAME else explainer
    if value.get("explanationModelName"):
        explainer = " ".join(filter(None, (explainer, value["explanationModelName"])))
    ours = _notes(value.get("notes")).get(NOTE)
    if isinstance(ours, dict) and isinstance(ours.get("explainer"), str):
        explainer = ours["explainer"]
        method = str(ours.get("score", method))
        score = _first_score(ours.get("scores")) if score is None else score
    return ForeignExplanation(explainer, value["description"], score, "" if score is None else method)


def _first_score(scores: Any) -> float | None:
    """The first number of what was scored here: ``scoreV1`` is null where only rules simulated."""
    values = [each.get("value") for each in scores if isinstance(each, dict)] if isinstance(scores, list) else []
    return next((value for value in values if type(value) is float and math.isfinite(value)), None)


def _notes(text: str | None) -> Mapping[str, Any]:
    """Notes that are an object of JSON; they may be anything."""
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: str | int, where: object) -> int:
    if isinstance(value, str) and not value.isdecimal():
        raise UserError(f"{where}: index is {value!r} where the number of a feature is needed; mend it there")
    return int(value)


def _layer(value: str | int | None) -> int | None:
    """The block in ``5``, ``"5"`` or ``"5-resid_post-tied"``."""
    match = FIRST_NUMBER.match(str(value)) if value is not None else None
    return None if match is None else int(match[0])


def _known(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Those that are numbers: None and NaN are none."""
    return {name: value for name, value in numbers.items() if value is not None and value == value}
