"""One row a kind: what a made-up one needs to be trained or fitted, and what becomes of one that nobody knows."""

import dataclasses
from typing import get_args

import pytest
import torch
from helpers import causal_json, fake_scores
from helpers.fake_run import SITES, fake_run
from helpers.memory_rows import MemoryRows
from helpers.planted import SITE, config, planted, trained

from monolex import kinds as kind_rows
from monolex.artifact import read_json
from monolex.causal.patch.claims import COMPLETE
from monolex.cli import main
from monolex.config import BaselineConfig
from monolex.dictionaries import baselines, families
from monolex.dictionaries.base import ACTIVATIONS, ENCODERS, Dictionary, load
from monolex.errors import UserError
from monolex.kinds import BASELINES, FAMILIES, KINDS, NEUTRAL, THRESHOLDED, colour, heading
from monolex.pages import patch_charts, score_charts, svg
from monolex.pages.eval_charts import UNKNOWN
from monolex.report.page import report
from monolex.report.patch_section import describe
from monolex.train_config import TrainConfig
from monolex.training import losses, steps
from monolex.training.members import members
from monolex.training.optim import DECODER_RATE
from monolex.training.sweep import Trainer


def test_rows_name_what_exists():
    for kind in KINDS.values():
        assert kind.loss in losses.LOSSES and kind.activation in {**ACTIVATIONS, **ENCODERS}, kind.name
    assert set(FAMILIES) == set(families.BUILDERS)
    fields = {field.name for field in dataclasses.fields(BaselineConfig)}
    assert {family.rows for family in FAMILIES.values()} - {None} <= fields
    assert {row.colour for row in (*KINDS.values(), *FAMILIES.values())} | {NEUTRAL} <= set(svg.COLOURS)
    assert {family.marker for family in FAMILIES.values()} <= set(svg.MARKERS)
    assert not set(KINDS) & set(BASELINES)


@pytest.mark.parametrize(("verb", "known"), [("train", KINDS), ("baselines", BASELINES)])
def test_flags_list_all_kinds_and_refuse_others(verb, known, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "{" + ",".join(known) + "}" in "".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as refused:
        main([verb, "activations", "out", "--kinds", "unheard"])
    assert refused.value.code == 2
    assert get_args({"train": kind_rows.Kind, "baselines": kind_rows.BaselineKind}[verb]) == tuple(known)
    with pytest.raises(UserError, match="kinds holds 'unheard': choose from "):
        {"train": TrainConfig, "baselines": BaselineConfig}[verb](kinds=("unheard",))


def test_a_made_up_kind_takes_a_row_and_its_loss(monkeypatch):
    def absolute_error(params, batch, member, settings):
        loss, passed = losses.l1_loss(params, batch, member, settings), steps.encode(params, batch, member)
        return loss._replace(total=(passed.target - passed.pre.relu() @ passed.rows).abs().mean())

    row = dataclasses.replace(KINDS["untied"], name="absolute", loss="absolute", modern=True)
    monkeypatch.setitem(KINDS, "absolute", row)
    monkeypatch.setitem(losses.LOSSES, "absolute", absolute_error)
    trainer = trained(config(kinds=("absolute",), steps=5), {SITE: planted().x}, 5)
    (dictionary,), (row_of_metrics,) = trainer.dictionaries(), trainer.metrics()
    assert row_of_metrics["loss"] > 1.5 * row_of_metrics["mse"], "another loss than its own"
    assert dictionary.config.kind == "absolute" and dictionary.config.loss_convention == row.convention
    assert dictionary.weights["b_dec"].any() and not torch.equal(dictionary.W_enc, dictionary.W_dec)
    assert (colour("absolute"), heading("absolute")) == (row.colour, "Trained")


def test_a_made_up_baseline_takes_a_row_and_its_builder(monkeypatch):
    def rotated(reader, config):
        turn = torch.linalg.qr(torch.randn(reader.d_in, reader.d_in, generator=torch.Generator().manual_seed(0)))[0]
        return {"rotated": families._dictionary(reader, "rotated", "linear", turn, turn)}

    row = dataclasses.replace(FAMILIES["pca"], name="rotated", forms=("",))
    monkeypatch.setitem(FAMILIES, "rotated", row)
    monkeypatch.setitem(BASELINES, "rotated", row)
    monkeypatch.setitem(families.BUILDERS, "rotated", rotated)
    x = planted(64).x
    (dictionary,) = baselines.fit(MemoryRows(x), BaselineConfig(kinds=("rotated",))).values()
    torch.testing.assert_close(dictionary.reconstruct(x), x, atol=1e-5, rtol=1e-5)
    assert (colour("rotated"), heading("rotated")) == (row.colour, "Baselines")


def test_rows_decide_what_training_does():
    for name, kind in KINDS.items():
        (dictionary,) = trained(config(kinds=(name,), preset="paper", steps=3), {SITE: planted().x}, 3).dictionaries()
        c = dictionary.config
        assert torch.equal(dictionary.W_enc, dictionary.W_dec) == kind.tied
        assert bool(dictionary.weights["b_dec"].any()) == kind.modern
        assert (c.recipe["auxk"] > 0) == kind.auxk and (c.threshold is not None) == (kind.activation in THRESHOLDED)
        assert (c.recipe["decoder_rate"] == DECODER_RATE) == (kind.modern and kind.two_matrices)
        assert {"alpha": c.recipe["alpha"], "k": c.k}[kind.sparsity] is not None
        assert (c.activation, c.loss_convention) == (kind.activation, kind.convention)


def test_baselines_that_reconstruct_everything_are_those_of_the_rows():
    x = planted(256, d_in=6).x
    fitted = baselines.fit(MemoryRows(x), BaselineConfig(kinds=tuple(BASELINES), ks=(2,), nmf_features=4))
    exact = {d.config.kind for d in fitted.values() if torch.allclose(d.reconstruct(x), x, atol=1e-3)}
    assert exact == set(COMPLETE)
    for dictionary in fitted.values():
        family = BASELINES[dictionary.config.kind]
        assert dictionary.d_sae <= family.directions(6, 4.0)


@pytest.fixture
def _unknown():
    """A version that has never heard of three kinds which the saved files name."""
    rows = (KINDS, FAMILIES, BASELINES)
    whole = [dict(table) for table in rows]
    for kind in FAMILIES["pca"].forms:
        del BASELINES[f"pca{kind}"]
    del FAMILIES["pca"], KINDS["tied"], KINDS["batchtopk"]
    yield
    # in their order, which charts go by
    for table, before in zip(rows, whole, strict=True):
        table.clear()
        table.update(before)


@pytest.mark.usefixtures("_unknown")
def test_an_unknown_kind_has_a_colour_and_a_sentence_in_the_report(tmp_path):
    page = report(fake_run(tmp_path)).read_text(encoding="utf-8")
    assert heading("tied") == heading("pca-pm") == "Of a kind that this version of monolex does not know"
    rows = read_json(tmp_path / "eval" / "metrics.json")
    names = {row["name"] for row in rows if row["kind"] in ("tied", "pca") and row["path"] and not row["other"]}
    assert len(names) > 3 and all(name in page for name in names)
    for site in SITES:
        part = page[page.index(f">{site}</h2>") :]
        assert heading("tied") in part and f"tied{UNKNOWN}" in part and f"pca-pm{UNKNOWN}" in part


@pytest.mark.usefixtures("_unknown")
def test_an_unknown_kind_has_a_colour_in_the_charts_of_patches_and_scores():
    patch = causal_json.patch()
    for part in describe("patch-1", patch)["sites"]:
        labels = {group.label for table in part["tables"] for group in table.groups}
        assert heading("tied") in labels and "Baselines" in labels and "Trained" not in labels
    assert patch_charts.pictures(patch)
    listed = [one | {"label": one["name"]} for one, _ in fake_scores.plan(("s.0",))]
    looks = score_charts.looks(listed)
    assert {looks[name].colour for name in ("tied-a1e-3-r2-s0", "pca")} == {NEUTRAL}
    assert looks["neurons"].colour == FAMILIES["neurons"].colour


def test_a_dictionary_of_an_unknown_kind_loads_while_its_activation_is_known(tmp_path):
    (saved,) = trained(config(kinds=("untied",), steps=1), {SITE: planted().x}, 1).dictionaries()
    Dictionary(dataclasses.replace(saved.config, kind="unheard"), saved.weights).save(tmp_path)
    x = planted(8).x
    assert load(tmp_path).config.kind == "unheard" and torch.equal(load(tmp_path).encode(x), saved.encode(x))
    further = config(kinds=("untied",), init=str(tmp_path), steps=1)
    with pytest.raises(UserError, match=r"init = '.*' is unheard at resid_post.0"):
        Trainer(members(further, {SITE: 16}), further, 1, start=load(tmp_path))
