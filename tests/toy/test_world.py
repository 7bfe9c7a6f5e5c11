"""Generators: what is drawn has the frequencies, the families and the strengths that were asked for."""

import functools

import pytest
import torch
from torch import Tensor

from monolex.errors import UserError
from monolex.toy.hierarchy import BRANCHES, HANDS_ON, HierarchySettings, hierarchical
from monolex.toy.planted import PlantedSettings, correlated, independent, noisy, probabilities
from monolex.toy.world import World, WorldRows, present

SMALL = PlantedSettings(d_in=12, features=40, active=4.0, decay=0.97)
TREES = HierarchySettings(d_in=16, features=512, active=6.0)
WORLDS = {
    "independent": independent(SMALL), "correlated": correlated(SMALL), "noisy": noisy(SMALL),
    "hierarchical": hierarchical(TREES),
}  # fmt: skip


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


DRAWN = 40_000


@functools.cache
def drawn(name: str) -> Tensor:
    return torch.cat([batch.codes.dense() for batch in WORLDS[name].batches(1, DRAWN, 10_000)])


def test_a_batch_is_a_pure_function_of_its_seed_and_number(world: World):
    first, again = world.batch(3, 5, 64), world.batch(3, 5, 64)
    assert torch.equal(first.x, again.x) and torch.equal(first.codes.dense(), again.codes.dense())
    for other in (world.batch(3, 6, 64), world.batch(4, 5, 64)):
        assert not torch.equal(first.x, other.x)


def test_a_row_is_the_sum_of_what_is_present(world: World):
    batch = world.batch(0, 0, 200)
    codes = batch.codes
    assert (codes.values > 0).all()
    for start, stop in zip(codes.offsets[:-1], codes.offsets[1:], strict=True):
        assert (codes.features[start:stop].diff() > 0).all()
    torch.testing.assert_close(world.directions.norm(dim=1), torch.ones(world.features))
    missed = batch.x - codes.dense() @ world.directions
    if world.noise:
        assert missed.std() == pytest.approx(world.noise, rel=0.05)
    else:
        assert missed.abs().max() < 1e-4


@pytest.mark.parametrize("name", WORLDS)
def test_features_come_as_often_as_their_world_says(name: str):
    world, codes = WORLDS[name], drawn(name)
    counted, expected = (codes > 0).double().mean(0), world.frequency
    assert (expected.diff() <= 0).all()
    spread = (expected * (1 - expected) / len(codes)).sqrt()
    assert ((counted - expected).abs() < 5 * spread + 0.004 * expected).all()
    assert float(counted.sum()) == pytest.approx(float(expected.sum()), rel=0.02)


def test_the_hash_is_of_what_is_drawn():
    hashes = [independent(PlantedSettings(8, 16, 2.0, 0.95, seed=seed)).digest() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert noisy(SMALL).digest() != independent(SMALL).digest() != correlated(SMALL).digest()


def test_strengths_are_one_uniform_number():
    """The work that the paper grew out of once multiplied two, of which the mean is a quarter."""
    values = WORLDS["independent"].batch(0, 0, 20_000).codes.values
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.var()) == pytest.approx(1 / 12, rel=0.03)


def test_independent_features_are_and_correlated_ones_come_together():
    apart, together = (torch.corrcoef((drawn(name) > 0).float().T) for name in ("independent", "correlated"))
    off = ~torch.eye(SMALL.features, dtype=torch.bool)
    noise = DRAWN**-0.5
    assert float(apart[off].std()) == pytest.approx(noise, rel=0.15)
    assert float(together[off].std()) > 3 * noise and float(together[off].max()) > 0.05


def test_events_are_independent_and_as_likely_as_asked():
    probability = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    rows, features = present(probability, 50_000, torch.Generator().manual_seed(0))
    cells = torch.zeros(50_000, 3)
    cells[rows, features] = 1
    assert len(rows) == int(cells.sum()), "an event is listed twice"
    torch.testing.assert_close(cells.double().mean(0), probability, atol=0.008, rtol=0)
    assert float(torch.corrcoef(cells[:, :2].T)[0, 1]) == pytest.approx(0, abs=0.02)


def test_children_have_their_parent_and_no_sibling():
    world = WORLDS["hierarchical"]
    codes = drawn("hierarchical") > 0
    children = torch.arange(world.features)[world.parent >= 0]
    assert len(children) == 512 // 128 * (BRANCHES + BRANCHES**2 + BRANCHES**3)
    assert not (codes[:, children] & ~codes[:, world.parent[children]]).any()
    for parent in world.parent[children].unique().tolist():
        brood = children[world.parent[children] == parent]
        assert len(brood) == BRANCHES and codes[:, brood].sum(1).max() <= 1
        assert float(world.frequency[brood].sum()) == pytest.approx(HANDS_ON * float(world.frequency[parent]))


def test_a_child_is_as_strong_as_its_parent_is():
    world = WORLDS["hierarchical"]
    codes = drawn("hierarchical")
    child = int(torch.arange(world.features)[world.parent >= 0][0])
    rows = codes[:, child] > 0
    pairs = torch.stack([codes[rows, child], codes[rows, int(world.parent[child])]])
    assert float(torch.corrcoef(pairs)[0, 1]) > 0.3


def test_what_no_world_can_have_is_refused():
    with pytest.raises(UserError, match="active = 30: with features = 40 and decay = 0.5 the first"):
        probabilities(PlantedSettings(8, 40, 30.0, 0.5))
    with pytest.raises(UserError, match="features = 100: hierarchical data need at least 128"):
        hierarchical(HierarchySettings(8, 100, 1.0))
    with pytest.raises(UserError, match="active = 300: of features = 128"):
        hierarchical(HierarchySettings(8, 128, 300.0))


def test_rows_are_read_as_stored_ones_are():
    rows = WorldRows(WORLDS["noisy"], 2, 5000, "toy")
    parts = list(rows.chunks(2048, 4500))
    assert [start for start, _ in parts] == [0, 2048, 4096] and sum(len(x) for _, x in parts) == 4500
    assert torch.equal(torch.cat([x for _, x in parts])[[7, 4200]], rows.gather(torch.tensor([7, 4200])))
