"""What is wrong with a value is said in one sentence with its place."""

import json
import math
import sys
from pathlib import Path

import pytest

from monolex.errors import UserError
from monolex.publish import schema as schemas
from monolex.publish.schema import KEYWORDS, TYPES, problem, require_parallel, require_valid, schema

NAMES = sorted(path.stem for path in (Path(schemas.__file__).parent / "schemas").glob("*.json"))
FEATURE = {"feature_index": 3, "pos_str": ["a"], "activations": [{"tokens": ["x", "y"], "values": [0, 1.5]}]}


def keywords(wanted: dict) -> set[str]:
    """All that a schema says, inner schemas too."""
    inner = [*wanted.get("properties", {}).values(), *wanted.get("anyOf", ())]
    inner += [wanted["items"]] if "items" in wanted else []
    return set(wanted).union(*map(keywords, inner))


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_says_nothing_that_is_not_read(name):
    assert keywords(dict(schema(name))) <= KEYWORDS
    assert schema(name)["title"] and schema(name)["description"]


def test_every_schema_is_known_to_its_users():
    assert NAMES == [
        "batch", "delphi-config", "delphi-explanation", "explanation", "feature", "neuron-record",
        "neuronpedia-feature", "simulation-results", "skipped",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feature_index": "3"}, 'feature_index is "3" where integer at least 0 is needed'),
        ({"feature_index": True}, "feature_index is true where integer at least 0 is needed"),
        ({"feature_index": -1}, "feature_index is -1 where integer at least 0 is needed"),
        ({"pos_str": ["a", None]}, "pos_str[1] is null where string is needed"),
        ({"pos_str": "a"}, 'pos_str is "a" where array is needed'),
        ({"pos_values": [0.5, "b"]}, 'pos_values[1] is "b" where number is needed'),
        ({"pos_values": [math.nan]}, "pos_values[0] is NaN where number is needed"),
        ({"pos_values": [10**400]}, "pos_values[0] is 100000000000000000000000000000000000000… where number"),
        ({"activations": [{"tokens": ["a"], "values": [[]]}]}, "activations[0].values[0] is of type array"),
        ({"activations": [{"tokens": ["a"]}]}, "activations[0].values is missing"),
        ({"activations": [{"tokens": [], "values": []}]}, "activations[0].tokens is of type array where array with 1"),
    ],
)
def test_a_fault_has_its_place(change, said):
    assert problem({**FEATURE, **change}, schema("feature")).startswith(said)


def test_nothing_is_wrong_with_what_is_right():
    assert problem(FEATURE, schema("feature")) == ""
    assert problem({**FEATURE, "pos_values": [1, -2.5, 0], "unheard_of": {}}, schema("feature")) == ""


def test_what_is_written_has_more_fields_than_what_is_read():
    assert problem(FEATURE, schema("feature"), written=True) == "neuron_alignment_indices is missing"
    record = {"neuron_id": {"layer_index": 0, "neuron_index": 1}, "most_positive_activation_records": []}
    assert problem(record, schema("neuron-record")) == ""
    assert problem(record, schema("neuron-record"), written=True) == "dataclass_name is missing"


def test_nan_counts_as_null_where_null_may_be():
    record = {"neuron_id": {"layer_index": 0, "neuron_index": 1}, "most_positive_activation_records": []}
    for value in (math.nan, None, 1.5):
        assert problem({**record, "skewness": value}, schema("neuron-record")) == ""
    assert problem({**record, "skewness": "nan"}, schema("neuron-record")).startswith(
        'skewness is "nan" where number or'
    )


def test_of_choices_the_nearest_speaks():
    """Both names of the simulation are read; a fault within one of them is not said of the other."""
    sequence = {"true_activations": [1.0], "simulation": {"tokens": ["a"], "expected_activations": ["b"]}}
    value = {"neuron_id": {"layer_index": 0, "neuron_index": 0}}
    value["scored_explanations"] = [
        {"explanation": "", "scored_simulation": {"scored_sequence_simulations": [sequence]}}
    ]
    place = "scored_explanations[0].scored_simulation.scored_sequence_simulations[0].simulation.expected_activations[0]"
    assert problem(value, schema("simulation-results")).startswith(f'{place} is "b"')


def test_a_refusal_is_one_sentence_with_the_file():
    with pytest.raises(UserError, match=r"^f.json: features\[2\].feature_index is missing; mend it there, or leave"):
        require_valid({}, "feature", "f.json", path="features[2]")
    with pytest.raises(UserError, match=r"lists of features\[0\] differ in length \(a 1, b 2\)"):
        require_parallel({"a": [1], "b": [1, 2], "c": []}, ("a", "b", "c", "d"), "f.json", "features[0]")


def test_types_are_those_of_json():
    values = json.loads('[{}, [], "a", 1, 1.5, true, null]')
    assert [next(name for name, kinds in TYPES.items() if type(value) in kinds) for value in values] == [
        "object", "array", "string", "integer", "number", "boolean", "null",
    ]  # fmt: skip


def test_lists_of_numbers_are_looked_through_at_once():
    """No call of Python a number: as many calls for a long list as for a short one."""

    def calls(length: int) -> int:
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        value = {"feature_index": 0, "activations": [{"tokens": ["a"] * length, "values": [0.5] * length}]}
        before = sys.getprofile()
        sys.setprofile(lambda _frame, event, _arg: counted() if event == "call" else None)
        try:
            assert problem(value, schema("feature")) == ""
        finally:
            sys.setprofile(before)
        return count

    # what looks at each is C's, but for one generator and whether a number is finite
    assert calls(400) - calls(100) <= 3 * 300 * 2
