"""Dictionaries that read one site and reconstruct another: trained, saved, measured, gathered, found, explained."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers.model_folder import tiny_folder
from helpers.planted import SITE, MemoryStream, config, planted
from helpers.random_pairs import pairs as random_pairs
from helpers.tiny_harvests import corpus_of, make_lm

from monolex.activations.harvest import harvest
from monolex.activations.norms import usual
from monolex.activations.reader import Reader
from monolex.activations.rule import row_rule
from monolex.activations.stored import held_out_rows, stored_model
from monolex.causal.chosen_features import chosen_features
from monolex.causal.config import PatchConfig
from monolex.causal.edits import Projection, ablate
from monolex.causal.patch.patch import prepare_patch
from monolex.causal.patch.stage import patch
from monolex.config import EvalConfig, FeaturesConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.base import Dictionary, DictionaryConfig, load
from monolex.dictionaries.listing import run_dictionaries
from monolex.errors import UserError
from monolex.evals.evaluate import METRICS, evaluate
from monolex.evals.fidelity import CLEAN, ZERO, fidelity
from monolex.evals.fidelity import metrics as fidelity_metrics
from monolex.evals.reconstruction import metrics, reconstructions
from monolex.features.find import find
from monolex.features.query import FindConfig
from monolex.features.stage import features
from monolex.features.store import FeatureStore
from monolex.features.weights import way_to_logits
from monolex.interp.config import ExplainConfig
from monolex.interp.explain.stage import explain
from monolex.kinds import KINDS
from monolex.model.sites import Site
from monolex.text.corpus import build
from monolex.train_config import TrainConfig
from monolex.training.data import model_source, stored_source
from monolex.training.members import members
from monolex.training.sweep import Trainer
from monolex.training.trainer import train, train_from

TARGET = "mlp_out.0"
UNTIED = [name for name, row in KINDS.items() if not row.tied and not row.frozen and not row.reads_back]


def pairs(n: int = 4096) -> dict[str, torch.Tensor]:
    """What is read, and what the same codes are at other directions and in other units."""
    data = planted(n)
    g = torch.Generator().manual_seed(3)
    others = torch.nn.functional.normalize(torch.randn(len(data.rows), 11, generator=g))
    codes = data.x @ torch.linalg.pinv(data.rows)
    return {SITE: 5 * data.x, TARGET: 40 * codes.relu() @ others + 7}


def trained(kind: str, x: dict[str, torch.Tensor], steps: int, **fields) -> Trainer:
    made = config(kinds=(kind,), target="mlp_out", batch_size=64, steps=steps, preprocess="scale", **fields)
    widths = {SITE: x[SITE].shape[1]}
    trainer = Trainer(
        members(made, widths, {TARGET: x[TARGET].shape[1]}), made, steps,
        usual={site: usual(rows) for site, rows in x.items()},
    )  # fmt: skip
    stream = MemoryStream(x, 64)
    for step in range(steps):
        trainer.step(stream.at(step))
    return trainer


@pytest.mark.parametrize(("kind", "skip"), [*((kind, False) for kind in UNTIED), ("untied", True), ("topk", True)])
def test_a_transcoder_learns_another_site_and_saves_what_it_learned(kind, skip):
    x = pairs()
    trainer = trained(kind, x, 250, lrs=(1e-2,), ratios=(4.0,), ks=(4,), alphas=(1e-2,), preset="modern", skip=skip)
    trainer.metrics()
    (dictionary,), (member,) = trainer.dictionaries(), trainer.members
    assert member.name.endswith("-to-mlp_out.0" + ("-skip" if skip else ""))
    c = dictionary.config
    assert (c.site, c.target, c.d_in, c.d_out) == (SITE, TARGET, 16, 11) and ("W_skip" in dictionary.weights) == skip
    error = (x[TARGET] - dictionary.reconstruct(x[SITE])).square().sum()
    fvu = float(error / (x[TARGET] - x[TARGET].mean(0)).square().sum())
    assert fvu < 0.6, fvu
    # the parameters say the same in their own units as the saved one does in the model's
    stream = MemoryStream(x, 64)
    before = trainer.dictionaries()[0]
    batch = stream.at(999)
    trainer.step(batch)
    row = trainer.metrics()[0]
    if KINDS[kind].activation in ("relu", "topk"):
        mse = (batch[TARGET] - before.reconstruct(batch[SITE])).square().mean()
        assert row["mse"] == pytest.approx(float(mse), rel=1e-3)
    assert row["fvu"] == pytest.approx(row["mse"] / float(
        (batch[TARGET] - batch[TARGET].mean(0)).square().mean()), rel=1e-4)  # fmt: skip


def test_a_linear_map_is_all_skip():
    x = planted(4096).x
    turned = x @ torch.randn(16, 9, generator=torch.Generator().manual_seed(0)) + 3
    fvus = {}
    for skip in (False, True):
        made = {"lrs": (1e-2,), "ks": (1,), "preset": "modern", "skip": skip}
        trainer = trained("topk", {SITE: x, TARGET: turned}, 400, **made)
        missed = turned - trainer.dictionaries()[0].reconstruct(x)
        fvus[skip] = float(missed.square().sum() / (turned - turned.mean(0)).square().sum())
    assert fvus[True] < 0.02 < 0.2 < fvus[False]


def test_a_transcoder_continues():
    x = pairs(512)
    for skip in (False, True):
        first = trained("jumprelu", x, 20, lrs=(1e-2,), preset="modern", skip=skip).dictionaries()[0]
        made = config(
            kinds=("jumprelu",), target="mlp_out", batch_size=64, steps=5, preset="modern", lrs=(1e-30,), skip=skip
        )
        known = {site: usual(rows) for site, rows in x.items()}
        again = Trainer(members(made, {SITE: 16}, {TARGET: 11}), made, 5, usual=known, start=first)
        again.step(MemoryStream(x, 64).at(0))
        weights = again.dictionaries()[0].weights
        for name, tensor in first.weights.items():
            if name != "threshold":  # which the controller moves
                torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)
        other = config(kinds=("jumprelu",), target="mlp_out", preset="modern", skip=not skip)
        with pytest.raises(UserError, match="linear skip"):
            Trainer(members(other, {SITE: 16}, {TARGET: 11}), other, 5, start=first)


def test_a_transcoder_without_a_decoder_bias_continues_too():
    x = pairs(512)
    first = trained("untied", x, 20, lrs=(1e-2,), preset="paper").dictionaries()[0]
    made = config(kinds=("untied",), target="mlp_out", batch_size=64, steps=5, preprocess="scale", lrs=(1e-30,))
    known = {site: usual(rows) for site, rows in x.items()}
    again = Trainer(members(made, {SITE: 16}, {TARGET: 11}), made, 5, usual=known, start=first)
    again.step(MemoryStream(x, 64).at(0))
    for name, tensor in again.dictionaries()[0].weights.items():
        torch.testing.assert_close(tensor, first.weights[name], rtol=1e-3, atol=1e-4)


def test_codes_alone_are_no_reconstruction_where_there_is_a_skip():
    weights = {name: torch.zeros(3, 2) for name in ("W_enc", "W_dec")} | {"b_enc": torch.zeros(3)}
    weights |= {"centre": torch.ones(2), "b_dec": torch.zeros(2), "W_skip": torch.eye(2)}
    dictionary = Dictionary(DictionaryConfig("untied", "relu", 2, 2, 3), weights)
    x = torch.randn(4, 2)
    torch.testing.assert_close(dictionary.reconstruct(x), x - 1)
    with pytest.raises(UserError, match=r"has a linear skip: decode\(codes, x\)"):
        dictionary.decode(dictionary.encode(x))
    with pytest.raises(UserError, match="W_skip should be"):
        Dictionary(dictionary.config, weights | {"W_skip": torch.zeros(3, 2)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model: autoencoders and transcoders of the attention's heads and the MLP's input."""
    home = tmp_path_factory.mktemp("transcoders")
    model = ModelConfig(model=str(tiny_folder(home / "model")), device="cpu")
    sites = ("attn_z.1", "attn_out.1", "mlp_in.1", "mlp_out.1")
    harvest(home / "run" / "activations", model, corpus_of(home), HarvestConfig(sites=sites, dtype="fp32"))
    run = home / "run"
    made = TrainConfig(kinds=("topk",), ks=(4,), ratios=(2.0,), steps=60, batch_size=32, train_device="cpu")
    plain = {**vars(made), "sites": ("mlp_in.1", "mlp_out.1")}
    train(run / "train" / "plain", run / "activations", TrainConfig(**plain))
    across = {**vars(made), "sites": ("mlp_in.1",), "target": "mlp_out", "lrs": (1e-2,), "preset": "modern"}
    train(run / "train" / "across", run / "activations", TrainConfig(**across))
    train(run / "train" / "skip", run / "activations", TrainConfig(**{**across, "skip": True}))
    return run


def test_what_is_read_and_reconstructed_follows_the_sites_that_are_stored(run):
    of = {"kinds": ("topk",), "ks": (2,), "ratios": (1.0,), "batch_size": 32}
    data = stored_source(run / "activations", TrainConfig(**of, target="mlp_out"))
    assert (set(data.sites), set(data.targets)) == ({"attn_z.1", "attn_out.1", "mlp_in.1"}, {"mlp_out.1"})
    named = stored_source(run / "activations", TrainConfig(**of, sites=("attn_z.*",), target="attn_out.1"))
    assert (set(named.sites), set(named.targets)) == ({"attn_z.1"}, {"attn_out.1"})
    for target, said in (("mlp_act", "mlp_act.1"), ("mlp_in", "is read too"), ("nothing", "unknown kind 'nothing'")):
        with pytest.raises(UserError, match=said):
            stored_source(run / "activations", TrainConfig(**of, sites=("mlp_in.1",), target=target))


def test_a_transcoder_trains_straight_from_the_model(tmp_path):
    lm = make_lm()
    text = build(corpus_of(tmp_path, held_out=0.0), lm.tokenizer)  # pyright: ignore[reportArgumentType]
    of = {"kinds": ("topk",), "ks": (2,), "ratios": (1.0,), "batch_size": 32, "buffer_rows": 256, "steps": 6}
    for preprocess in ("scale", "whiten"):
        made = TrainConfig(**of, sites=("mlp_in.*",), target="mlp_out", preprocess=preprocess)
        manifest = train_from(tmp_path / preprocess, model_source(lm, text.train, made, batch_rows=4), made)
        assert [member["target"] for member in manifest.data["members"]] == ["mlp_out.0", "mlp_out.1", "mlp_out.2"]
        assert set(manifest.data["targets"]) == {"mlp_out.0", "mlp_out.1", "mlp_out.2"}


def test_evaluation_measures_what_is_reconstructed(run, tmp_path):
    sources = [run / "train" / name for name in ("plain", "across", "skip")]
    config = EvalConfig(rows=64, contexts=4, resamples=20, eval_device="cpu")
    evaluate(tmp_path / "eval", run / "activations", sources, {}, config)
    rows = json.loads((tmp_path / "eval" / METRICS).read_text())
    x, y = (Reader(run / "activations", site, "held_out") for site in ("mlp_in.1", "mlp_out.1"))
    for source, skip in (("across", ""), ("skip", "-skip")):
        name = f"topk-k4-r2-s0-to-mlp_out.1{skip}"
        dictionary = load(run / "train" / source / "mlp_in.1" / name)
        mine = {row["metric"]: row for row in rows if row["name"] == name and not row["other"]}
        result = reconstructions({"": dictionary}, x, 64, target=y)[""]
        assert mine["fvu"]["value"] == metrics(result, config)["fvu"].value and mine["fvu"]["target"] == "mlp_out.1"
        held = min(64, x.n_rows)
        whole = y.read(0, y.n_rows)
        if held == x.n_rows:
            missed = (whole - dictionary.reconstruct(x.read(0, held))).square().sum()
            expected = float(missed / (whole - whole.mean(0)).square().sum())
            assert mine["fvu"]["value"] == pytest.approx(expected, rel=1e-4)
        mean, contexts = result.mean, held_out_rows(run / "activations", 4)
        lm, rule = stored_model(run / "activations", "cpu"), row_rule(run / "activations", "mlp_in.1")
        loss = fidelity(lm, ("mlp_in.1", "mlp_out.1"), {name: dictionary}, contexts, mean, rule=rule)
        assert mine["ce"]["value"] == pytest.approx(fidelity_metrics(loss, name, config)["ce"].value, rel=1e-6)
        assert mine["unembedding_cosine"]["value"] is not None
    assert {row["site"] for row in rows} == {"mlp_in.1", "mlp_out.1"}
    # what its loss is to be read beside: its own target, ablated
    ablated = {(row["name"], row["target"]) for row in rows if row["kind"] == "reference" and row["site"] == "mlp_in.1"}
    assert ("zero-ablation", None) in ablated and ("zero-ablation of mlp_out.1", "mlp_out.1") in ablated


def test_a_transcoder_that_is_the_models_own_map_loses_nothing(run):
    """From the heads to the attention's contribution the model is linear: a skip can be all of it."""
    lm = stored_model(run / "activations", "cpu")
    projection = lm.place(Site.parse("attn_z.1")).module
    weight, bias = projection.weight.detach(), projection.bias.detach()
    wide, width = weight.shape[1], weight.shape[0]
    weights = {"W_enc": torch.zeros(1, wide), "b_enc": torch.zeros(1), "centre": torch.zeros(wide)}
    weights |= {"W_dec": torch.zeros(1, width), "b_dec": bias.clone(), "W_skip": weight.clone()}
    settings = DictionaryConfig("untied", "relu", wide, width, 1, site="attn_z.1", target="attn_out.1")
    exact = Dictionary(settings, weights)
    half = Dictionary(settings, weights | {"W_skip": weight / 2})
    rows = held_out_rows(run / "activations", 4)
    result = fidelity(lm, ("attn_z.1", "attn_out.1"), {"exact": exact, "half": half}, rows, torch.zeros(width))
    assert result.divergence["exact"].sum() < 1e-6 < 1e-4 < result.divergence["half"].sum()
    assert result.divergence[ZERO].sum() > result.divergence["half"].sum() / 10 and not result.divergence[CLEAN].any()


def test_evidence_search_and_explanations_of_transcoders(run):
    sources = [run / "train" / name for name in ("plain", "across", "skip")]
    asked = FeaturesConfig(fragment_tokens=4, features_device="cpu", coactive_rows=64)
    features(run / "features", run / "activations", sources, asked)
    name = "topk-k4-r2-s0-to-mlp_out.1"
    with closing(FeatureStore(run / "features" / "mlp_in.1" / f"{name}.sqlite")) as store:
        assert store.meta["target"] == "mlp_out.1"
        promoted = store.rows("SELECT feature, token, weight FROM direct WHERE side = 1 AND rank = 0")
    dictionary, lm = load(run / "train" / "across" / "mlp_in.1" / name), stored_model(run / "activations", "cpu")
    # its directions are of what it writes, and reach the logits from there
    way = way_to_logits(lm, Site.parse("mlp_out.1"), dictionary)
    assert way.through is not None and len(promoted) > 0
    logits = way.through(dictionary.W_dec) @ (lm.unembedding - lm.unembedding.mean(0)).detach()[: len(lm.tokenizer)].T
    centred = logits - logits.mean(1, keepdim=True)
    for feature, token, weight in promoted[:5]:
        assert int(centred[feature].argmax()) == token and weight == pytest.approx(
            float(logits[feature, token]), abs=1e-2
        )
    hits = find(run, FindConfig(sort="density", dictionaries=(f"mlp_in.1/{name}",), limit=3)).rows
    assert len(hits) == 3
    config = ExplainConfig(
        features=2, fragment_tokens=4, explainers=("token",), dictionaries=(f"mlp_in.1/{name}",),
        explain_device="cpu",
    )  # fmt: skip
    assert explain(run / "explain" / "across", run, config).data


def test_what_edits_a_site_refuses_dictionaries_that_do_not_reconstruct_it(run):
    title = "mlp_in.1/topk-k4-r2-s0-to-mlp_out.1"
    dictionary = load(run / "train" / "across" / title)
    with pytest.raises(UserError, match=r"reconstructs mlp_out.1, not the site that it reads"):
        ablate(dictionary, [0])
    with pytest.raises(UserError, match=r"reconstructs mlp_out.1, not the site that it reads"):
        Projection(dictionary, [0])
    lm = stored_model(run / "activations", "cpu")
    with pytest.raises(UserError, match="does not fit mlp_in.1"):
        prepare_patch(lm, random_pairs(), "mlp_in.1", dictionary)
    with pytest.raises(UserError, match=r"reconstructs mlp_out.1 from mlp_in.1, so its features are no part"):
        chosen_features(run, (f"{title}:0",))
    with pytest.raises(UserError, match="reconstruct another site than they read"):
        patch(run / "patch", run, PatchConfig(task="ioi", sites=("mlp_in.1",), dictionaries=("*-to-*",)))
    assert any(dictionary.config.target for dictionary in run_dictionaries(run))
