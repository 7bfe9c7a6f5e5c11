"""The activations of dictionaries, and what a damaged or malformed dictionary says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monolex.dictionaries.base import CONFIG, WEIGHTS, Dictionary, DictionaryConfig, SparseCodes, load, sparse
from monolex.errors import UserError

D_IN, D_SAE = 3, 5


def weights(**changed: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    fresh = {
        "W_enc": torch.randn(D_SAE, D_IN, generator=generator),
        "b_enc": torch.zeros(D_SAE),
        "centre": torch.zeros(D_IN),
        "W_dec": torch.randn(D_SAE, D_IN, generator=generator),
        "b_dec": torch.zeros(D_IN),
    }
    return {**fresh, **changed}


def config(**changed: Any) -> DictionaryConfig:
    fields: dict[str, Any] = {"kind": "untied", "activation": "relu", "d_in": D_IN, "d_out": D_IN, "d_sae": D_SAE}
    return DictionaryConfig(**{**fields, **changed})


def reading_pre(activation: str, **changed: Any) -> Dictionary:
    """A dictionary whose pre-activations are its input."""
    eye = torch.eye(D_IN)
    given = weights(W_enc=eye, W_dec=eye, b_enc=torch.zeros(D_IN))
    return Dictionary(config(activation=activation, d_sae=D_IN, **changed), given)


def test_the_formula():
    given = weights(b_enc=torch.randn(D_SAE), centre=torch.randn(D_IN), b_dec=torch.randn(D_IN))
    one, x = Dictionary(config(), given), torch.randn(4, D_IN)
    code = ((x - given["centre"]) @ given["W_enc"].T + given["b_enc"]).clamp(min=0)
    torch.testing.assert_close(one.encode(x), code)
    torch.testing.assert_close(one.reconstruct(x), code @ given["W_dec"] + given["b_dec"])


def test_activations():
    x = torch.tensor([[3.0, -5.0, 0.5]])
    assert reading_pre("relu").encode(x).tolist() == [[3.0, 0.0, 0.5]]
    assert reading_pre("linear").encode(x).tolist() == [[3.0, -5.0, 0.5]]
    assert reading_pre("topk", k=1).encode(x).tolist() == [[3.0, 0.0, 0.0]]
    assert reading_pre("topk", k=3).encode(x).tolist() == [[3.0, 0.0, 0.5]]
    assert reading_pre("threshold", threshold=1.0).encode(x).tolist() == [[3.0, 0.0, 0.0]]
    assert reading_pre("threshold", threshold=-9.0).encode(x).tolist() == [[3.0, 0.0, 0.5]]


def test_sparse_codes_keep_signs_and_empty_rows():
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    sparse = reading_pre("linear").encode_sparse(x)
    assert sparse.offsets.tolist() == [0, 0, 2, 2]
    assert sparse.features.tolist() == [1, 2]
    assert sparse.values.tolist() == [-2.0, 1.0]
    assert torch.equal(sparse.dense(), x)


@pytest.mark.usefixtures("unchecked_arrays")
def test_sparse_codes_are_of_rows_alone():
    dictionary = reading_pre("linear")
    for x in (torch.zeros(3), torch.zeros(2, 2, 3)):
        with pytest.raises(UserError, match=r"give x as \[rows, d_in\], not "):
            sparse(dictionary.encode(x))


def test_sparse_codes_of_no_features_are_zero():
    empty = SparseCodes(torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 2)
    assert torch.equal(empty.dense(), torch.zeros(3, 2))


def test_a_zero_row_has_no_direction():
    given = weights()
    given["W_dec"][1] = 0
    directions = Dictionary(config(), given).directions()
    assert directions[1].tolist() == [0.0] * D_IN
    torch.testing.assert_close(directions.norm(dim=1)[[0, 2, 3, 4]], torch.ones(4))


def test_transcoder_shapes():
    given = weights(W_dec=torch.randn(D_SAE, 2), b_dec=torch.zeros(2))
    assert Dictionary(config(d_out=2), given).reconstruct(torch.randn(4, D_IN)).shape == (4, 2)


@pytest.mark.parametrize(
    ("changed_config", "changed_weights", "sentence"),
    [
        ({"activation": "gelu"}, {}, "activation 'gelu' is none of relu, linear"),
        ({"activation": "topk"}, {}, "k = None does not fit a dictionary of 5 features"),
        ({"activation": "topk", "k": 6}, {}, "k = 6 does not fit"),
        ({"activation": "threshold"}, {}, "threshold is missing"),
        ({"activation": "nmf"}, {}, r"weight H should be \(5, 6\) but is nothing"),
        ({"d_sae": 4}, {}, r"weight W_enc should be \(4, 3\) but is \(5, 3\)"),
        ({}, {"b_dec": torch.zeros(2)}, r"weight b_dec should be \(3,\) but is \(2,\)"),
        ({}, {"b_enc": torch.full((D_SAE,), torch.nan)}, "weight b_enc holds NaN"),
        ({}, {"W_dec": torch.full((D_SAE, D_IN), torch.inf)}, "weight W_dec holds NaN or infinity"),
    ],
)
def test_malformed_dictionaries_are_refused(changed_config: dict, changed_weights: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        Dictionary(config(**changed_config), weights(**changed_weights))


def saved(folder: Path) -> Path:
    Dictionary(config(), weights()).save(folder)
    return folder


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no dictionary"):
        load(tmp_path)


def test_missing_weights(tmp_path: Path):
    (saved(tmp_path) / WEIGHTS).unlink()
    with pytest.raises(UserError, match="is missing or damaged"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights(tmp_path: Path, kept: int):
    path = saved(tmp_path) / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="is missing or damaged"):
        load(tmp_path)


def test_truncated_config(tmp_path: Path):
    path = saved(tmp_path) / CONFIG
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"d_sea": 5}, "did you mean 'd_sae'"),
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"schema": None}, "schema None"),
        ({"d_in": "three"}, "expected int, got str"),
    ],
)
def test_changed_configs_are_refused(tmp_path: Path, changed: dict[str, Any], sentence: str):
    path = saved(tmp_path) / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


def test_a_config_without_a_required_key_is_refused(tmp_path: Path):
    path = saved(tmp_path) / CONFIG
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "d_sae"}))
    with pytest.raises(UserError, match="lacks 'd_sae'"):
        load(tmp_path)


def test_a_config_that_is_no_object_is_refused(tmp_path: Path):
    (saved(tmp_path) / CONFIG).write_text("[1]")
    with pytest.raises(UserError, match="schema None"):
        load(tmp_path)
