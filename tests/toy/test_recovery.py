"""What is measured of a recovered feature: right on dictionaries whose answer is known."""

import dataclasses

import pytest
import torch
from torch import Tensor

from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.toy.hierarchy import HierarchySettings, hierarchical
from monolex.toy.planted import PlantedSettings, independent
from monolex.toy.recovery import METRICS, known_dictionary, recovery
from monolex.toy.world import World, listed

ROWS = 4096


def orthogonal(features: int = 16) -> World:
    """Features that do not interfere, none of them faint."""
    world = independent(PlantedSettings(d_in=features, features=features, active=2.0, decay=0.95))

    def draw(rows: int, generator: torch.Generator):
        codes = world.draw(rows, generator)
        return codes._replace(values=codes.values + 0.5)

    return dataclasses.replace(world, directions=torch.eye(features), draw=draw)


def relu(rows: Tensor, encoder: Tensor | None = None, bias: float = 0.0) -> Dictionary:
    d_sae, d_in = rows.shape
    config = DictionaryConfig("untied", "relu", d_in, d_in, d_sae)
    biases = {"b_enc": torch.full((d_sae,), bias), "centre": torch.zeros(d_in), "b_dec": torch.zeros(d_in)}
    return Dictionary(
        config, {"W_enc": (rows if encoder is None else encoder).clone(), "W_dec": rows.clone(), **biases}
    )


def test_the_features_themselves_are_recovered():
    world = orthogonal()
    measured = recovery(relu(world.directions), world, 0, ROWS)
    assert set(measured) == set(METRICS)
    assert measured["f1"] == measured["f1_nearest"] == measured["mmcs"] == measured["recovered"] == 1
    assert measured["splitting"] == measured["dead"] == 0 and measured["fvu"] == pytest.approx(0, abs=1e-9)
    assert measured["l0"] == pytest.approx(2.0, rel=0.1)
    assert measured["absorption"] is measured["leaning"] is None


def test_a_detector_is_chosen_by_what_it_says_and_not_by_where_it_points():
    world = orthogonal()
    turned = relu(world.directions.roll(1, 0), world.directions)
    measured = recovery(turned, world, 0, ROWS)
    assert measured["f1"] == 1 and measured["mmcs"] == 1
    assert measured["f1_nearest"] < 0.4


def test_copies_are_splitting_and_silence_is_death():
    world = orthogonal()
    twice = recovery(relu(torch.cat([world.directions, world.directions])), world, 0, ROWS)
    assert twice["splitting"] == 0.5 and twice["mmcs"] == 1
    silent = recovery(relu(world.directions, bias=-9.0), world, 0, ROWS)
    assert (silent["dead"], silent["f1"], silent["splitting"]) == (1, 0, None)


def test_a_narrow_dictionary_is_asked_for_what_it_could_hold():
    world = orthogonal()
    measured = recovery(relu(world.directions[:4]), world, 0, ROWS)
    assert measured["mmcs"] == measured["f1"] == 1
    assert recovery(relu(world.directions[4:8]), world, 0, ROWS)["recovered"] == 0


def family(absorbs: bool) -> tuple[World, Dictionary]:
    """A parent, its child and a stranger, orthogonal; a dictionary whose child may write its parent too."""
    parent = torch.tensor([-1, 0, -1])

    def draw(rows: int, generator: torch.Generator):
        there = torch.rand(rows, 3, generator=generator) < torch.tensor([0.5, 0.5, 0.3])
        there[:, 1] &= there[:, 0]
        row, feature = there.nonzero(as_tuple=True)
        return listed(row, feature, torch.ones(len(row)), rows, 3)

    world = World(torch.eye(3), torch.tensor([0.5, 0.25, 0.3]).double(), parent, 0.0, draw)
    encoder, decoder = torch.eye(3), torch.eye(3)
    if absorbs:
        encoder[0] = torch.tensor([1.0, -1.0, 0.0])
        decoder[1] = torch.tensor([0.5, 0.5, 0.0]).sqrt()
    return world, relu(decoder, encoder)


def test_absorption_is_a_parent_that_is_missed_where_its_child_is():
    right = recovery(family(False)[1], family(False)[0], 0, ROWS)
    assert right["absorption"] == 0 and right["leaning"] == 0
    wrong = recovery(family(True)[1], family(True)[0], 0, ROWS)
    assert wrong["absorption"] == 1 and wrong["leaning"] == pytest.approx(0.5**0.5)


def test_a_bad_detector_alone_is_no_absorption():
    world = family(False)[0]
    blunt = relu(torch.eye(3), bias=-5.0)
    assert recovery(blunt, world, 0, ROWS)["absorption"] == 0


def test_what_could_be_had_is_the_features_as_a_topk():
    world = hierarchical(HierarchySettings(d_in=64, features=256, active=3.0))
    handed = known_dictionary(world, 64, 2)
    measured = recovery(handed, world, 0, ROWS)
    assert handed.d_sae == 64 and measured["mmcs"] == pytest.approx(1) and measured["l0"] <= 2
    assert 0.3 < measured["f1"] < 1
