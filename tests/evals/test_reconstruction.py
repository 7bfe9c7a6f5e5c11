"""Reconstruction: identities of FVU and the norms, sums against a naive computation, alive rules, chunking."""

import numpy as np
import pytest
import torch
from helpers.document_rows import DocumentRows, constant, identity, make, noise, rotation

from monolex.config import EvalConfig
from monolex.evals import reconstruction as module
from monolex.evals.reconstruction import metrics, negative_bias, reconstruction, reconstructions

CONFIG = EvalConfig(resamples=200)
D = 12


def rows(n: int = 240, documents: int = 8) -> DocumentRows:
    """Rows with a large common offset, in documents of unequal length with ids that are not consecutive."""
    docs = (torch.arange(n) ** 1.2 * documents / n**1.2).long() * 7 + 3
    return DocumentRows(noise(n, D) + 30 + docs[:, None] / 20, docs)


def fvu(dictionary, reader, **options) -> float:
    return metrics(reconstruction(dictionary, reader, reader.n_rows, **options), CONFIG)["fvu"].value


def sae(d_sae: int = 20, d: int = D):
    return make(noise(d_sae, d, seed=1), noise(d_sae, d, seed=2), b_enc=noise(d_sae, seed=3) - 5)


def test_full_rotation_explains_everything():
    found = metrics(reconstruction(rotation(D), rows(), 10_000), CONFIG)
    assert found["fvu"].value < 1e-6
    assert found["norm_ratio"].value == pytest.approx(1, abs=1e-5)
    assert found["cosine"].value == pytest.approx(1, abs=1e-5)
    assert found["l0"].value == D
    assert found["dead"].value == 0


def test_mean_predictor_has_fvu_one_and_no_features():
    reader = rows()
    found = metrics(reconstruction(constant(D, reader.rows.double().mean(0).float()), reader, 10_000), CONFIG)
    assert found["fvu"].value == pytest.approx(1, rel=1e-5)
    assert found["l0"].value == 0
    assert found["dead"].value == 1
    assert found["alive"].value == 0


def test_zero_dictionary():
    reader = rows()
    found = metrics(reconstruction(constant(D, torch.zeros(D)), reader, 10_000), CONFIG)
    x = reader.rows.double()
    expected = x.square().sum() / (x - x.mean(0)).square().sum()
    assert found["fvu"].value == pytest.approx(expected.item(), rel=1e-6)
    assert found["norm_ratio"].value == 0
    assert found["cosine"].value == 0


def test_sums_by_document_equal_naive_ones():
    reader, dictionary = rows(), sae()
    found = reconstruction(dictionary, reader, reader.n_rows)
    x, docs = reader.rows.double(), reader.docs(0, reader.n_rows)
    codes = dictionary.encode(reader.rows)
    x_hat = dictionary.decode(codes).double()
    mean = x.mean(0)
    torch.testing.assert_close(found.mean, mean.float())
    assert torch.equal(found.counts, (codes != 0).sum(0))
    for number, document in enumerate(docs.unique().tolist()):
        mine = docs == document
        ratio = x_hat[mine].norm(dim=1) / x[mine].norm(dim=1)
        cosine = torch.cosine_similarity(x[mine], x_hat[mine])
        naive = {
            "doc_rows": mine.sum(),
            "measured": mine.sum(),
            "spread": (x[mine] - mean).square().sum(),
            "error": (x[mine] - x_hat[mine]).square().sum(),
            "nonzero": (codes[mine] != 0).sum(),
            "norm_ratio": ratio.sum(),
            "cosine": cosine.sum(),
        }
        for name, value in naive.items():
            assert getattr(found, name)[number].item() == pytest.approx(value.item(), rel=1e-4), name


def test_numbers_follow_from_sums():
    reader, dictionary = rows(), sae()
    found = metrics(reconstruction(dictionary, reader, reader.n_rows), CONFIG)
    codes = dictionary.encode(reader.rows)
    assert found["rows"].value == reader.n_rows
    assert found["l0"].value == pytest.approx((codes != 0).sum(1).double().mean().item())
    assert found["l0"].over == "documents"
    assert found["density"].over == "features"
    assert found["density"].value * dictionary.d_sae == pytest.approx(found["l0"].value)
    assert found["alive"].value + found["dead"].value == pytest.approx(1)
    for name, estimate in found.items():
        if name != "rows":
            assert estimate.low <= estimate.value <= estimate.high, name


def test_interval_covers_the_value_of_a_larger_sample():
    n, documents = 6000, 300
    docs = torch.arange(n) * documents // n
    x = noise(n, D) * (1 + noise(documents, seed=5).abs()[docs])[:, None]
    dictionary = make(torch.eye(D)[:6], activation="linear")
    truth = fvu(dictionary, DocumentRows(x, docs))
    covered = 0
    for start in range(0, n, n // 10):
        part = DocumentRows(x[start : start + n // 10], docs[start : start + n // 10])
        estimate = metrics(reconstruction(dictionary, part, n), CONFIG)["fvu"]
        covered += estimate.low <= truth <= estimate.high
    assert covered >= 8


def test_alive_rules():
    x = torch.zeros(100, 4)
    x[0, 0] = x[:10, 1] = x[:11, 2] = 1
    found = metrics(reconstruction(make(torch.eye(4)), DocumentRows(x, torch.arange(100) % 5), 100), CONFIG)
    assert found["alive"].value == 3 / 4
    assert found["alive_paper"].value == 1 / 4
    assert found["dead"].value == 1 / 4


def test_signed_codes_count_as_active():
    found = reconstruction(make(-torch.eye(4), activation="linear"), DocumentRows(torch.ones(6, 4), torch.arange(6)), 6)
    assert found.counts.tolist() == [6] * 4


def test_zero_rows_have_no_norm_ratio():
    x = noise(40, D)
    x[::2] = 0
    found = metrics(reconstruction(identity(D), DocumentRows(x, torch.arange(40) // 4), 40), CONFIG)
    assert found["norm_ratio"].value == pytest.approx(1)
    assert found["cosine"].value == pytest.approx(1)
    nothing = metrics(reconstruction(identity(D), DocumentRows(torch.zeros(8, D), torch.arange(8)), 8), CONFIG)
    assert nothing["norm_ratio"] == nothing["cosine"]
    assert nothing["norm_ratio"].value is None
    assert nothing["norm_ratio"].reason == "no data"


def test_several_dictionaries_share_a_pass_and_equal_each_alone(monkeypatch):
    reader = rows()
    dictionaries = {"a": sae(), "b": rotation(D), "one": make(noise(1, D))}
    shares = []
    together = reconstructions(dictionaries, reader, 200, chunk=64, advance=shares.append)
    assert sum(shares) == pytest.approx(1)
    monkeypatch.setattr(module, "CODES_AT_ONCE", 60)
    for name, dictionary in dictionaries.items():
        alone = reconstructions({name: dictionary}, reader, 200, chunk=17)[name]
        assert alone.rows == together[name].rows == 200
        for field, mine, theirs in zip(alone._fields, alone, together[name], strict=True):
            if field != "rows":
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4, msg=field)


def test_one_document_has_a_value_and_no_interval():
    found = metrics(reconstruction(sae(), DocumentRows(noise(30, D), torch.zeros(30)), 30), CONFIG)
    assert found["fvu"].value is not None
    assert found["fvu"].low is None
    assert "no interval" in found["fvu"].reason


def test_constant_activations_have_no_fvu():
    found = metrics(reconstruction(identity(D), DocumentRows(torch.full((20, D), 3.0), torch.arange(20)), 20), CONFIG)
    assert found["fvu"].value is None
    assert found["fvu"].reason == "no data"


def test_float16_rows_are_reconstructed_in_full_precision():
    x = (noise(50, D) * 100).half()
    found = reconstruction(identity(D), DocumentRows(x.float(), torch.arange(50) // 5), 50)
    assert not found.error.any()


def test_negative_bias():
    bias = torch.tensor([-1.0, -2.0, 3.0, 0.0])
    assert negative_bias(make(torch.eye(4), b_enc=bias), CONFIG).value == 0.5
    none = negative_bias(make(torch.eye(4)), CONFIG)
    assert none.value is None
    assert none.reason == "every encoder bias is zero"


def test_intervals_are_reproducible_and_follow_the_seed():
    found = reconstruction(sae(), rows(), 240)
    first, again = (metrics(found, CONFIG)["fvu"] for _ in range(2))
    other = metrics(found, EvalConfig(resamples=200, eval_seed=1))["fvu"]
    narrow = metrics(found, EvalConfig(resamples=200, level=0.5))["fvu"]
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert narrow.high - narrow.low < first.high - first.low
    assert np.isfinite([first.low, first.high]).all()


@pytest.mark.parametrize(
    ("rows", "n_rows", "size"), [(10, 100, 3), (100, 100, 7), (1, 50, 8), (8, 9, 8), (99, 100, 10)]
)
def test_blocks_are_disjoint_in_order_and_reach_both_ends(rows, n_rows, size):
    blocks = list(module.spread_blocks(rows, n_rows, size))
    covered = [row for start, stop in blocks for row in range(start, stop)]
    assert len(covered) == rows == len(set(covered))
    assert covered == sorted(covered) and covered[0] == 0 and covered[-1] < n_rows
    assert max(stop - start for start, stop in blocks) <= size
    if len(blocks) > 1:
        assert n_rows - covered[-1] <= size
