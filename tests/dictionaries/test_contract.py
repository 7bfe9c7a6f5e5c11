"""One contract for every kind of dictionary: whatever is measured of one can be measured of all."""

import pytest
import torch
from helpers.memory_rows import MemoryRows, gaussian_rows, skewed_rows
from torch import Tensor

from monolex.config import BaselineConfig
from monolex.dictionaries import baselines
from monolex.dictionaries.base import Dictionary, DictionaryConfig, load
from monolex.errors import UserError
from monolex.kinds import BASELINES, KINDS, THRESHOLDED

D_IN = 8


def trained(kind: str, d_in: int = D_IN, d_sae: int = 20, k: int = 3) -> Dictionary:
    """A dictionary of a trained kind with random weights."""
    generator = torch.Generator().manual_seed(len(kind))
    encoder = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    row = KINDS[kind]
    decoder = encoder if row.tied else torch.randn(d_sae, d_in, generator=generator)
    weights = {
        "W_enc": encoder,
        "b_enc": 0.1 * torch.randn(d_sae, generator=generator),
        "centre": torch.zeros(d_in) if row.tied else torch.randn(d_in, generator=generator),
        "W_dec": decoder.clone(),
        "b_dec": torch.zeros(d_in) if row.tied else torch.randn(d_in, generator=generator),
    }
    if row.activation == "jumprelu":
        weights["threshold"] = 0.3 * torch.rand(d_sae, generator=generator)
    k_or_none = k if row.sparsity == "k" else None
    threshold = 0.2 if row.activation in THRESHOLDED else None
    config = DictionaryConfig(kind, row.activation, d_in, d_in, d_sae, k_or_none, threshold, recipe={"steps": 0})
    return Dictionary(config, weights)


def every_kind(d_in: int = D_IN, k: int = 3) -> dict[str, Dictionary]:
    config = BaselineConfig(kinds=tuple(BASELINES), ks=(k,), nmf_features=min(5, 2 * d_in))
    fitted = baselines.fit(MemoryRows(skewed_rows(500, d_in)), config)
    return {**fitted, **{kind: trained(kind, d_in, k=k) for kind in KINDS}}


EVERY = every_kind()


@pytest.fixture(params=EVERY)
def dictionary(request: pytest.FixtureRequest) -> Dictionary:
    return EVERY[request.param]


def rows(n_rows: int = 40) -> Tensor:
    return gaussian_rows(n_rows, D_IN, seed=7)


def test_all_kinds_of_the_configs_are_covered():
    assert {d.config.kind for d in EVERY.values()} == set(BASELINES) | set(KINDS)


def test_shapes(dictionary: Dictionary):
    d_sae = dictionary.d_sae
    assert dictionary.W_enc.shape == dictionary.W_dec.shape == dictionary.directions().shape == (d_sae, D_IN)
    assert dictionary.encode(rows()).shape == (40, d_sae)
    assert dictionary.reconstruct(rows()).shape == (40, D_IN)
    assert all(weight.dtype == torch.float32 for weight in dictionary.weights.values())


def test_directions_have_unit_length(dictionary: Dictionary):
    torch.testing.assert_close(dictionary.directions().norm(dim=1), torch.ones(dictionary.d_sae))


def test_codes_are_negative_only_where_signed(dictionary: Dictionary):
    codes = dictionary.encode(rows())
    assert (codes != 0).any()
    assert bool((codes < 0).any()) == dictionary.signed


@pytest.mark.parametrize("name", ["topk", "pca-topk-k3", "ica-topk-k3", "random-topk-k3"])
def test_topk_kinds_keep_at_most_k(name: str):
    active = (EVERY[name].encode(rows()) != 0).sum(1)
    assert active.max() == EVERY[name].config.k == 3


def test_sparse_codes_are_the_dense_ones(dictionary: Dictionary):
    codes, sparse = dictionary.encode(rows()), dictionary.encode_sparse(rows())
    assert torch.equal(sparse.dense(), codes)
    assert sparse.offsets[-1] == len(sparse.features) == len(sparse.values) == (codes != 0).sum()
    assert torch.equal(sparse.offsets.diff(), (codes != 0).sum(1))
    for start, stop in zip(sparse.offsets[:-1], sparse.offsets[1:], strict=True):
        assert (sparse.features[start:stop].diff() > 0).all()


def test_decoding_is_affine(dictionary: Dictionary):
    double = dictionary.to(torch.float64)
    a, b = double.encode(rows()).split(20)
    origin = double.decode(torch.zeros_like(a))
    torch.testing.assert_close(origin, double.weights["b_dec"].expand(20, D_IN))
    mixed = double.decode(2 * a - 3 * b) - origin
    torch.testing.assert_close(mixed, 2 * (double.decode(a) - origin) - 3 * (double.decode(b) - origin))


def test_saving_and_loading_is_bit_identical(dictionary: Dictionary, tmp_path):
    files = dictionary.save(tmp_path / "one")
    assert {name: (tmp_path / "one" / name).stat().st_size for name in files} == {n: e.bytes for n, e in files.items()}
    again = load(tmp_path / "one")
    assert again.config == dictionary.config
    assert torch.equal(again.encode(rows()), dictionary.encode(rows()))
    assert torch.equal(again.reconstruct(rows()), dictionary.reconstruct(rows()))


def test_leading_dimensions(dictionary: Dictionary):
    flat = dictionary.encode(rows())
    cube = dictionary.encode(rows().reshape(4, 10, D_IN))
    assert cube.shape == (4, 10, dictionary.d_sae)
    torch.testing.assert_close(cube.reshape(40, -1), flat)
    torch.testing.assert_close(dictionary.encode(rows()[0]), flat[0])
    assert dictionary.decode(flat[0]).shape == (D_IN,)
    assert dictionary.decode(cube).shape == (4, 10, D_IN)


def test_no_rows(dictionary: Dictionary):
    none = torch.zeros(0, D_IN)
    assert dictionary.reconstruct(none).shape == (0, D_IN)
    sparse = dictionary.encode_sparse(none)
    assert sparse.offsets.tolist() == [0]
    assert sparse.dense().shape == (0, dictionary.d_sae)


def test_half_precision_is_encoded_in_full(dictionary: Dictionary):
    half = rows().half()
    assert torch.equal(dictionary.encode(half), dictionary.encode(half.float()))


def test_double_precision(dictionary: Dictionary):
    double = dictionary.to(torch.float64)
    codes = double.encode(rows())
    assert codes.dtype == torch.float64
    torch.testing.assert_close(codes.float(), dictionary.encode(rows()), rtol=1e-4, atol=1e-4)
    assert dictionary.W_enc.dtype == torch.float32


def test_encoding_is_deterministic(dictionary: Dictionary):
    assert torch.equal(dictionary.encode(rows()), dictionary.encode(rows()))


def test_other_widths_are_refused(dictionary: Dictionary):
    with pytest.raises(UserError, match="cannot read activations of shape"):
        dictionary.encode(torch.zeros(3, 1))


def test_one_dimension():
    for name, one in every_kind(d_in=1, k=1).items():
        x = gaussian_rows(6, 1)
        assert torch.equal(one.encode_sparse(x).dense(), one.encode(x)), name
        assert one.reconstruct(x).shape == (6, 1), name


@pytest.mark.parametrize("kind", KINDS)
def test_one_feature(kind: str):
    one = trained(kind, d_sae=1, k=1)
    assert one.encode(rows()).shape == (40, 1)
    assert torch.equal(one.encode_sparse(rows()).dense(), one.encode(rows()))
