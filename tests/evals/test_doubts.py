"""What cannot be read like any other number is a sentence, and what can is none."""

from dataclasses import replace
from pathlib import Path

import pytest

from monolex.artifact import finish
from monolex.dictionaries.base import DictionaryConfig
from monolex.dictionaries.doubts import doubts
from monolex.dictionaries.listing import RunDictionary
from monolex.evals.doubts import marked, sentences
from monolex.stats import Estimate, not_applicable

SITE = "resid_post.1"
SOUND = {"fvu": 0.3, "l0": 8.0, "dead": 0.1, "k": 8}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"fvu": 1.0, "dead": 0.5}, []),
        ({"fvu": None, "l0": None, "dead": None}, []),
        ({"fvu": 1.3}, ["FVU 1.3 is above 1: worse than answering with the mean"]),
        ({"l0": 5.0}, ["L0 is 5 where k = 8"]),
        ({"l0": 12.5}, ["L0 is 12.5 where k = 8"]),
        ({"l0": 5.4}, []),
        ({"l0": 11.9}, []),
        ({"l0": 90.0, "k": None}, []),
        ({"dead": 0.51}, ["51% of its features are never active"]),
        ({"fvu": 2.0, "l0": 0.0, "dead": 1.0}, ["FVU 2 is", "L0 is 0 where", "100% of its"]),
    ],
)
def test_what_is_doubtful_is_a_sentence_and_what_is_sound_is_none(changes: dict, said: list[str]):
    sentences = list(doubts(**{**SOUND, **changes}))
    assert len(sentences) == len(said)
    assert all(sentence.startswith(start) for sentence, start in zip(sentences, said, strict=True))


def test_a_value_above_one_says_so_in_its_cell():
    above = Estimate(1.3, 1.2, 1.4, 5, "documents", "one document")
    assert marked(above) == above._replace(reason="one document; above 1: worse than answering with the mean")
    assert marked(above._replace(reason="")).reason == "above 1: worse than answering with the mean"
    for sound in (Estimate(1.0), Estimate(0.2, reason="one document"), not_applicable("no data")):
        assert marked(sound) == sound


def listed(folder: Path, training: float | None, **changes) -> RunDictionary:
    """A dictionary of a sweep whose FVU at the end of training is ``training``."""
    finish(folder, "sweep", {}, {}, {}, {"members": [{"path": f"{SITE}/a", "fvu": training}]})
    config = DictionaryConfig("topk", "topk", 4, 4, 16, k=8, site=SITE)
    return replace(RunDictionary("subject", SITE, "a", folder / SITE / "a", config), **changes)


def rows(dictionary: RunDictionary, **values: float | None) -> list[dict]:
    head = {"model": dictionary.model, "site": dictionary.site, "name": dictionary.name}
    pair = {**head, "metric": "fvu", "value": 9.0, "other": "b"}
    return [{**head, "metric": metric, "value": value, "other": ""} for metric, value in values.items()] + [pair]


@pytest.mark.parametrize(
    ("fvu", "training", "said"),
    [
        (0.3, 0.15, ["FVU is 0.3 on held-out rows and 0.15 on training rows"]),
        (0.3, 0.21, []),
        (0.06, 0.02, []),
        (0.15, 0.3, []),
        (0.3, None, []),
        (None, 0.3, []),
    ],
)
def test_training_and_held_out_values_far_apart_are_said(tmp_path: Path, fvu, training, said):
    dictionary = listed(tmp_path, training)
    assert sentences([dictionary], rows(dictionary, fvu=fvu, l0=8.0, dead=0.0)) == [f"{SITE}/a: {s}" for s in said]


def test_every_dictionary_is_asked_for_what_it_can_answer(tmp_path: Path):
    """A basis has as many idle features as it has; an unfinished fit says so; along training nothing was logged."""
    sweep = listed(tmp_path, 0.1)
    dead = rows(sweep, fvu=0.1, l0=8.0, dead=0.7)
    assert sentences([sweep], dead) == [f"{SITE}/a: 70% of its features are never active"]
    pca = replace(sweep, config=replace(sweep.config, kind="pca-topk"))
    assert sentences([pca], dead) == []
    nmf = replace(pca, config=replace(pca.config, kind="nmf", k=None, recipe={"converged": False, "iterations": 5}))
    assert sentences([nmf], dead) == [f"{SITE}/a: its fit stopped unconverged after 5 iterations"]
    control = replace(sweep, model="random")
    assert sentences([control, sweep], rows(control, dead=0.7)) == [
        f"random/{SITE}/a: 70% of its features are never active"
    ]
    early = replace(sweep, step=5, folder=tmp_path / "checkpoints" / "5" / SITE / "a")
    assert sentences([early], rows(early, fvu=0.9)) == []


def test_baselines_worse_than_the_mean_are_one_sentence(tmp_path: Path):
    """Random directions always are; a trained dictionary that is has its own."""
    sweep = listed(tmp_path, 2.0)
    config = replace(sweep.config, kind="random-topk")
    fvus = [1.5, 1.25, 0.9, 1.125, 2.0, 3.0, 4.0]
    several = [replace(sweep, name=f"r{n}", config=config) for n in range(len(fvus))]
    measured = [row for d, fvu in zip(several, fvus, strict=True) for row in rows(d, fvu=fvu, l0=8.0, dead=0.0)]
    measured += rows(sweep, fvu=1.5, l0=8.0, dead=0.0)
    named = ", ".join(f"{SITE}/r{n} {fvus[n]:g}" for n in (0, 1, 3, 4, 5))
    assert sentences([*several, sweep], measured) == [
        f"{SITE}/a: FVU 1.5 is above 1: worse than answering with the mean",
        f"baselines with an FVU above 1: worse than answering with the mean: {named} and 1 more",
    ]
