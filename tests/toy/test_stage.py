"""The artefact of toy data: whole, gone on with, drawn, shown; and what it finds where the answer is known."""

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers.page_parser import Page

from monolex import stages
from monolex.artifact import WARNINGS, open_artifact, read_json
from monolex.cli import main
from monolex.errors import UserError
from monolex.pages.toy_charts import pictures
from monolex.report.toy import draw
from monolex.toy import learn, stage
from monolex.toy.config import PRESETS, ToyConfig
from monolex.toy.learn import alpha_at, trained, world_of
from monolex.toy.recovery import METRICS, recovery
from monolex.train_config import TrainConfig

TINY = ToyConfig(
    data=("independent",), d_in=8, features=16, active=2.0, decay=0.9, seeds=(0, 1), steps=8, batch_size=64,
    kinds=("untied", "topk", "matching-pursuit", "lista"), controls=("pca-topk",), l1=(0.1, 1.0),
    grid_sizes=(0.5, 1.0, 2.0), grid_steps=4, grid_batch=64, crowding=(1.0, 2.0), crowded_width=8,
    crowded_kinds=("topk",), test_rows=2048, fit_rows=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "out"
    stage.toy(folder, TINY)
    return folder


def test_everything_that_was_asked_for_is_there(folder: Path):
    content = read_json(folder / "toy.json")
    assert [world["data"] for world in content["worlds"]] == ["independent"]
    assert content["worlds"][0]["hash"] == world_of(TINY, "independent", 0).digest()
    assert Counter(cell["kind"] for cell in content["grid"]) == {"untied": 6, "tied": 6}
    assert {(cell["size"], cell["larger"] is None) for cell in content["grid"]} == {
        (0.5, False), (1.0, False), (2.0, True)
    }  # fmt: skip
    assert all(cell["alpha"] == cell["l1"] / cell["d_sae"] for cell in content["grid"])
    assert [row["name"] for row in content["kinds"]] == [*TINY.kinds, "known", "pca-topk"]
    assert [(row["crowding"], row["name"]) for row in content["superposition"]] == [
        (1.0, "topk"), (1.0, "known"), (2.0, "topk"), (2.0, "known")
    ]  # fmt: skip
    for row in (*content["kinds"], *content["superposition"]):
        assert row["seeds"] == [0, 1] and set(row["metrics"]) == set(METRICS)
        assert row["metrics"]["f1"]["over"] == "seeds" and row["metrics"]["f1"]["low"] is not None
    (rungs,) = content["ladders"]
    assert rungs["kind"] == "untied" and len(rungs["tried"]) == len(learn.RUNGS)
    assert content["kinds"][0]["alpha"] == rungs["alpha"]


def test_a_dictionary_at_another_l0_is_named(folder: Path):
    content = read_json(folder / "toy.json")
    (untied,) = [row for row in content["kinds"] if row["name"] == "untied"]
    off = abs(untied["metrics"]["l0"]["value"] / untied["k"] - 1) > stage.OFF
    said = open_artifact(folder, "toy").data[WARNINGS]
    assert off and len(said) == 1 and said[0].startswith("untied on independent has an L0 of")
    assert said[0].replace("'", "&#39;") in (draw(folder)[0]).read_text(encoding="utf-8")
    assert stage._elsewhere({"kinds": [{**untied, "k": untied["metrics"]["l0"]["value"]}], "superposition": []}) == []


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(folder: Path, tmp_path: Path, monkeypatch):
    calls: list[int] = []
    whole = learn.trained

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(learn, "trained", counted)
    monkeypatch.setattr(stage.grid, "trained", counted)
    with pytest.raises(KeyboardInterrupt):
        stage.toy(tmp_path / "out", TINY)
    assert not (tmp_path / "out" / "toy.json").exists()
    stage.toy(tmp_path / "out", TINY)
    done = len(calls)
    assert (tmp_path / "out" / "toy.json").read_bytes() == (folder / "toy.json").read_bytes()
    stage.toy(tmp_path / "out", TINY)
    stage.toy(folder, TINY)
    # 6 rows of the grid, 1 ladder, 8 trained, 4 crowded, and the one that was stopped
    assert len(calls) == done == 6 + 1 + 8 + 4 + 1


def test_the_verb_draws_a_page_without_hosts_and_show_knows_it(folder: Path, capsys: pytest.CaptureFixture[str]):
    page, *drawn = draw(folder)
    text = page.read_text(encoding="utf-8")
    assert all(link[0] == "#" for link in Page(text).links) and "http" not in text.replace("http-equiv", "")
    shown = pictures(read_json(folder / "toy.json"))
    names = {f"toy-{picture.name}{ending}" for picture in shown for ending in (".svg", ".png")}
    assert {path.name for path in drawn} == names and len(names) == 12
    assert main(["show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "independent: 16 features in 8 dimensions" in out and "matching-pursuit" in out
    assert main(["show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["kinds"]
    assert open_artifact(folder, "toy").data["worlds"] and "toy" in stages.BESIDE


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_what_was_left_out(preset):
    config = ToyConfig(preset=preset, features=640)
    assert config.features == 640 and config.d_in == PRESETS[preset]["d_in"]
    assert ToyConfig(preset=preset, **{n: v for n, v in PRESETS[preset].items()}) == ToyConfig(preset=preset)


def test_an_alpha_is_found_between_those_that_were_tried():
    tried = [(0.01, 20.0), (0.02, 80.0), (0.08, 20.0), (0.16, 5.0)]
    assert alpha_at(tried, 40.0) == pytest.approx(0.04)
    assert alpha_at(tried, 5.0) == pytest.approx(0.16)
    assert alpha_at(tried, 500.0) == 0.01 and alpha_at(tried, 1.0) == 0.16


@pytest.mark.parametrize("kind", ["topk", "lista", "matching-pursuit", "frozen-decoder"])
def test_features_that_are_easy_come_back_unless_the_decoder_is_random(kind):
    """Twelve features in twelve dimensions, one and a half a row."""
    config = ToyConfig(
        data=("independent",), d_in=12, features=12, active=1.5, decay=1.0, steps=500, batch_size=256, test_rows=2048
    )
    world = world_of(config, "independent", 0)
    recipe = TrainConfig(**{**vars(learn.recipe_of(kind, world, 12, 2, 0, config)), "lrs": (1e-2,)})
    ((_, dictionary),) = trained(world, recipe, 0, "cpu")
    measured = recovery(dictionary, world, 1, 2048)
    assert (measured["mmcs"] > 0.93) == (kind != "frozen-decoder"), measured


@pytest.mark.parametrize(
    "wrong",
    [
        {"parts": ()}, {"data": "noisy"}, {"steps": 0}, {"test_rows": 100}, {"k": 0}, {"active": 0.0}, {"size": -1.0},
        {"grid_sizes": (0.0,)}, {"l1": (-1.0,)}, {"noise": -0.1}, {"decay": 0.0}, {"kinds": ("unheard",)},
        {"controls": ("unheard",)}, {"crowded_kinds": ("unheard",)},
        {"data": ("hierarchical",)},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"^{'kinds' if 'unheard' in str(wrong) else next(iter(wrong))} "):
        ToyConfig(**wrong)
