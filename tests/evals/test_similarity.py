"""Similarity: MMCS and matching identities, chunking, signs, and cells without a value."""

import pytest
import torch
from helpers.document_rows import make, noise, rotation

from monolex.config import EvalConfig
from monolex.evals import similarity
from monolex.evals.similarity import (
    cosine_to_rows,
    decoder_cosines,
    decoder_metrics,
    matching,
    mmcs,
    nearest,
    pair_metrics,
    seed_overlap,
)

CONFIG = EvalConfig(resamples=100)


def unit(d_sae: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(noise(d_sae, d, seed=seed), dim=1)


def test_mmcs_with_itself_is_one_and_ignores_order_and_scale():
    w = unit(30)
    a, b = make(w), make(w[torch.randperm(30, generator=torch.Generator().manual_seed(1))] * 3)
    assert mmcs(a, a, CONFIG).value == pytest.approx(1, abs=1e-6)
    assert mmcs(a, b, CONFIG).value == pytest.approx(1, abs=1e-6)
    assert mmcs(a, b, CONFIG).over == "features"


def test_mmcs_is_not_symmetric():
    small, large = make(unit(10)), make(torch.cat([unit(10), unit(10, seed=1)]))
    assert mmcs(small, large, CONFIG).value == pytest.approx(1, abs=1e-6)
    assert mmcs(large, small, CONFIG).value < 0.9
    both = pair_metrics(small, large, CONFIG)
    assert both["mmcs"] == mmcs(small, large, CONFIG)
    assert both["mmcs_back"] == mmcs(large, small, CONFIG)


def test_nearest_equals_naive_in_any_blocks(monkeypatch):
    a, b = noise(23, 9), noise(31, 9, seed=1)
    naive = torch.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(nearest(a, b), naive.amax(1))
    torch.testing.assert_close(nearest(a, b, unsigned=True), naive.abs().amax(1))
    square = torch.cosine_similarity(a[:, None], a[None], dim=-1).fill_diagonal_(-2)
    for block in (1, 50, 100, 1000):
        monkeypatch.setattr(similarity, "BLOCK", block)
        torch.testing.assert_close(nearest(a, b), naive.amax(1))
        torch.testing.assert_close(nearest(a, a, others=True), square.amax(1))


def test_decoder_cosine_finds_the_planted_pair():
    w = torch.linalg.qr(noise(16, 16)).Q[:5]
    found = decoder_cosines(make(torch.cat([w, w[:1] * 2])))
    assert found.tolist() == pytest.approx([1, 0, 0, 0, 0, 1], abs=1e-6)
    metrics = decoder_metrics(make(torch.cat([w, w[:1]])), CONFIG)
    assert metrics["decoder_cosine"].value == pytest.approx(1 / 3, abs=1e-6)
    assert metrics["decoder_cosine_max"].value == pytest.approx(1, abs=1e-6)
    assert metrics["decoder_cosine_max"].low is None


def test_opposite_directions_differ_unless_codes_are_signed():
    w = unit(8)
    assert mmcs(make(w), make(-w), CONFIG).value < 0.9
    assert mmcs(make(w, activation="linear"), make(-w), CONFIG).value == pytest.approx(1, abs=1e-6)
    # one of the two is enough: an axis of either sign is met by a direction of any
    assert mmcs(make(w), make(-w, activation="linear"), CONFIG).value == pytest.approx(1, abs=1e-6)
    assert matching(make(w, activation="linear"), make(-w)).cosines.tolist() == pytest.approx([1] * 8, abs=1e-6)
    assert matching(make(w), make(-w, activation="linear")).cosines.tolist() == pytest.approx([1] * 8, abs=1e-6)


def test_an_axis_of_signed_codes_is_like_its_opposite():
    """Of PCA and ICA a direction and its negative are one feature, beside each other and beside a token."""
    w = unit(8)
    both = torch.cat([w[:1], -w[:1], w[1:]])
    signed, unsigned = make(both, activation="linear"), make(both)
    assert decoder_cosines(signed)[:2].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert decoder_cosines(unsigned)[:2].max() < 0.9
    assert cosine_to_rows(make(-w, activation="linear"), w, CONFIG).value == pytest.approx(1, abs=1e-6)
    assert cosine_to_rows(make(-w), w, CONFIG).value < 0.9


def test_matching_recovers_a_permutation():
    w, order = unit(40), torch.randperm(40, generator=torch.Generator().manual_seed(2))
    found = matching(make(w), make(w[order] + 0.01 * noise(40, 16, seed=3)))
    assert torch.equal(order[found.partners], found.features)
    assert found.cosines.min() > 0.98


def test_matching_is_one_to_one_where_mmcs_is_not():
    w = unit(2)
    a, b = make(w[[0, 0]]), make(w)
    assert mmcs(a, b, CONFIG).value == pytest.approx(1, abs=1e-6)
    assert sorted(matching(a, b).partners.tolist()) == [0, 1]
    assert matching(a, b).cosines.mean() < 0.99


def test_matching_of_different_widths_covers_the_smaller():
    w = unit(12)
    found = pair_metrics(make(w), make(w[:5]), CONFIG)
    assert found["matched_cosine"].value == pytest.approx(1, abs=1e-6)
    assert found["matched_cosine"].n == 5
    assert found["matched_above_0.7"].value == found["matched_above_0.9"].value == 1


def test_thresholds_separate():
    w = torch.eye(4, 8)
    tilted = torch.stack([w[0], w[1] + 0.75 * torch.eye(8)[4], w[2] + 2 * torch.eye(8)[5], torch.eye(8)[6]])
    found = pair_metrics(make(w), make(tilted), CONFIG)
    assert found["matched_above_0.9"].value == 1 / 4
    assert found["matched_above_0.7"].value == 2 / 4


def test_wide_dictionaries_are_not_matched_but_say_so(monkeypatch):
    monkeypatch.setattr(similarity, "MATCH_LIMIT", 10)
    found = pair_metrics(make(unit(11)), make(unit(4)), CONFIG)
    assert found["mmcs"].value is not None
    for name in ("matched_cosine", "matched_above_0.7", "matched_above_0.9"):
        assert found[name].value is None
        assert "up to 10 features" in found[name].reason
    overlap = seed_overlap([make(unit(11)), make(unit(11))])
    assert all(e.value is None and "up to 10" in e.reason for e in overlap.values())


def test_random_directions_take_a_dictionarys_place():
    d = make(unit(40))
    floor = similarity.random_like(d, seed=0)
    assert floor.W_dec.shape == d.W_dec.shape and torch.equal(floor.W_dec, similarity.random_like(d, seed=0).W_dec)
    torch.testing.assert_close(floor.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(floor.W_enc, d.W_enc) and not torch.equal(floor.W_dec, similarity.random_like(d, seed=1).W_dec)


def test_seed_overlap():
    w = unit(20)
    same = [make(w), make(w.flip(0)), make(w.roll(3, 0))]
    found = seed_overlap(same)
    assert [e.value for e in found.values()] == [1, 1]
    assert found["seed_overlap_0.7"].n == 3
    assert found["seed_overlap_0.7"].low is None and "1 to 1 over 3 pairs of seeds" in found["seed_overlap_0.7"].reason
    half = [make(w), make(torch.cat([w[:10], unit(10, 16, seed=9)]))]
    assert seed_overlap(half)["seed_overlap_0.9"].value == pytest.approx(0.5, abs=0.05)
    alone = seed_overlap(same[:1])
    assert all(e.value is None and e.reason == "one seed only" for e in alone.values())


def test_one_feature():
    metrics = decoder_metrics(make(unit(1)), CONFIG)
    assert all(e.value is None and "one feature" in e.reason for e in metrics.values())
    assert matching(make(unit(1)), make(unit(1))).cosines.tolist() == pytest.approx([1])


def test_zero_rows_are_like_nothing():
    w = unit(4)
    w[2] = 0
    assert mmcs(make(w), make(unit(4)), CONFIG).value == pytest.approx(0.75, abs=1e-6)
    assert decoder_cosines(make(w)).isfinite().all()


def test_cosine_to_rows():
    embedding = unit(50)
    found = cosine_to_rows(make(embedding[[3, 7, 7]] * 5), embedding.to(torch.bfloat16), CONFIG)
    assert found.value == pytest.approx(1, abs=1e-2)
    assert found.over == "features"
    assert found.n == 3
    assert cosine_to_rows(rotation(16), embedding, CONFIG).value < 0.9
    other = cosine_to_rows(make(unit(3, 8)), embedding, CONFIG)
    assert other.value is None
    assert "width 8" in other.reason
    assert "width 16" in other.reason
