"""Explaining and scoring as stages of a small run: complete, resumable, refused in one sentence."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.interp_run import EXPLAIN, HARVEST, SITES, TIED, small_run
from helpers.killed import kill_between_pieces
from helpers.tiny_harvests import contents, corpus_of
from safetensors.numpy import load_file

from monolex import cli
from monolex.activations.harvest import harvest
from monolex.activations.reader import Reader
from monolex.activations.stored import packed_rows
from monolex.artifact import open_artifact, read_json, verify
from monolex.config import ModelConfig
from monolex.dictionaries.base import load
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.interp.explain import saved as stored
from monolex.interp.explain import stage as explaining
from monolex.interp.explain.stage import explain
from monolex.interp.protocol import correlation
from monolex.interp.score import cards
from monolex.interp.score import stage as scoring
from monolex.interp.score.stage import score
from monolex.interp.targets import candidates, targets
from monolex.show.path import show

SCORE = ScoreConfig(resamples=50)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("interp"))


@pytest.fixture(scope="module")
def scored(run: Path) -> Path:
    """The run, explained and scored."""
    explain(run / "explain" / "paper", run, EXPLAIN)
    score(run / "score" / "rules", run / "explain" / "paper", SCORE, run)
    return run


def chosen(run: Path, config: ExplainConfig):
    return targets(candidates(run, config), config)


def names(chosen_targets) -> list[str]:
    return [target.dictionary.key for target in chosen_targets]


def test_which_dictionaries(run):
    explained = chosen(run, EXPLAIN)
    assert names(explained)[0].startswith("subject/resid_post.0/")
    kinds = {target.dictionary.config.kind for target in explained if target.dictionary.model == "subject"}
    assert kinds == {"tied", "neurons", "pca", "pca-topk"}
    assert [target.dictionary.key for target in explained if target.dictionary.model == "random"] == [
        f"random/{site}/{TIED}" for site in SITES
    ]
    for site in SITES:
        of_site = [
            target for target in explained if (target.dictionary.model, target.dictionary.site) == ("subject", site)
        ]
        (tied,) = [target for target in of_site if target.dictionary.trained]
        (topk,) = [target for target in of_site if target.dictionary.config.kind == "pca-topk"]
        assert tied.l0 is not None
        assert abs(topk.dictionary.config.k - tied.l0) == min(abs(k - tied.l0) for k in (2, 5, 16))
        assert topk.method == "pca-topk"
        assert tied.method == TIED
    assert explained[-1].method == f"random model: {TIED}"
    everything = chosen(run, dataclasses.replace(EXPLAIN, matched=False, controls=False))
    assert sum(target.dictionary.config.kind == "pca-topk" for target in everything) == 6
    assert {target.dictionary.model for target in everything} == {"subject"}


def test_dictionaries_along_training(run):
    config = dataclasses.replace(EXPLAIN, checkpoints=True, controls=False, dictionaries=("tied-*",), sites=SITES[:1])
    (early, final) = chosen(run, config)
    assert early.dictionary.step is not None and final.dictionary.step is None
    assert early.dictionary.name == f"{TIED}@{early.dictionary.step}"
    assert early.method == final.method
    assert not np.allclose(early.dictionary.weights().W_enc, final.dictionary.weights().W_enc)


def test_the_artefacts_hold_what_they_say(scored):
    for folder in (scored / "explain" / "paper", scored / "score" / "rules"):
        verify(folder)
    facts = read_json(scored / "explain" / "paper" / "explain.json")
    rows = list(stored.read_lines(scored / "score" / "rules" / "scores.jsonl"))
    content = read_json(scored / "score" / "rules" / "score.json")
    assert content["simulator"] == "rules"
    intervals = 0
    for entry, summary in zip(facts["dictionaries"], content["dictionaries"], strict=True):
        assert entry["asked"] == entry["explained"] + sum(entry["skipped"].values())
        mine = [r for r in rows if all(r[key] == entry[key] for key in ("model", "site", "name"))]
        assert {row["explainer"] for row in mine} == set(EXPLAIN.explainers)
        assert len(mine) == 3 * entry["explained"]
        for explainer in EXPLAIN.explainers:
            values = [r["scores"]["top_and_random"]["value"] for r in mine if r["explainer"] == explainer]
            known = [value for value in values if value is not None]
            reasons = [r["scores"]["top_and_random"]["reason"] for r in mine if r["explainer"] == explainer]
            silent = reasons.count("the predictions are constant")
            mean = summary["explainers"][explainer]["top_and_random"]
            # what says nothing tells nothing: 0 in the mean, and counted
            assert mean["n"] == len(known) + silent
            assert mean["constant"] == silent
            assert sum(mean["missing"].values()) == len(values) - len(known) - silent
            known += [0.0] * silent
            assert mean["value"] == (pytest.approx(np.mean(known)) if known else None)
            if len(known) > 1:
                assert mean["low"] <= mean["value"] <= mean["high"]
                # over features it is about so wide; documents change that somewhat
                scatter = 4 * np.std(known, ddof=1) / np.sqrt(len(known))
                assert 0.6 < (mean["high"] - mean["low"]) / scatter < 4
                intervals += 1
    assert intervals > 20
    pairs = {(d["name"], d["against_model"], d["against"]) for d in content["differences"]}
    assert (TIED, "subject", "neurons") in pairs
    assert (TIED, "random", TIED) in pairs
    assert (TIED, "subject", TIED) not in pairs


def test_scores_are_those_of_the_activations(scored, run):
    """From the stored rows to the score of a feature, step by step in another way."""
    explanations = stored.Explanations(scored / "explain" / "paper")
    rows = {
        (r["model"], r["site"], r["name"], r["feature"], r["explainer"]): r
        for r in stored.read_lines(scored / "score" / "rules" / "scores.jsonl")
    }
    predictions = load_file(scored / "score" / "rules" / "predictions.safetensors")
    checked = 0
    for key in (f"subject/{SITES[0]}/{TIED}", f"random/{SITES[1]}/{TIED}", f"subject/{SITES[1]}/pca"):
        model, site, name = key.split("/")
        home = run if model == "subject" else run / "controls" / model
        reader = Reader(home / "activations", site)
        folder = home / ("baselines/plain" if name == "pca" else "train/main") / site / name
        dictionary, explained = load(folder), explanations.read(key)
        packed = packed_rows(home / "activations", "train")
        for number, of_feature in enumerate(explained.examples):
            actual = []
            for fragment in (*of_feature.top, *of_feature.random):
                x = reader.read(fragment.row, fragment.row + 6)
                actual.append(dictionary.encode(x)[:, of_feature.feature].numpy())
                row, place = (int(read(fragment.row, fragment.row + 1)) for read in (reader.contexts, reader.positions))
                assert fragment.tokens == tuple(packed.tokens[row, place : place + 6].tolist())
            for explainer in EXPLAIN.explainers:
                explanation = explained.explanations[explainer][number]
                cell = rows[model, site, name, of_feature.feature, explainer]["scores"]["top_and_random"]
                if not isinstance(explanation, stored.Explanation):
                    assert cell["value"] is None
                    continue
                guess = np.concatenate(
                    [explanation.rule.predict(f.texts) for f in (*of_feature.top, *of_feature.random)]
                )
                saved = predictions[f"{key}/{explainer}"][number][: len(actual)].ravel()
                assert np.allclose(saved, guess, rtol=1e-4, atol=1e-6)
                value = correlation(np.concatenate(actual), guess).value
                assert cell["value"] == (pytest.approx(value, abs=2e-4) if np.isfinite(value) else None)
                checked += cell["value"] is not None
    assert checked > 20


def test_done_is_done_and_another_request_is_not(scored, monkeypatch):
    before = (scored / "explain" / "paper" / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(explaining, "_dictionary", None)
    monkeypatch.setattr(scoring, "_dictionary", None)
    explain(scored / "explain" / "paper", scored, EXPLAIN)
    score(scored / "score" / "rules", scored / "explain" / "paper", dataclasses.replace(SCORE, calls=3), scored)
    assert (scored / "explain" / "paper" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(TypeError):
        score(scored / "score" / "other", scored / "explain" / "paper", dataclasses.replace(SCORE, shuffles=2), scored)


def test_an_interrupted_run_equals_an_uninterrupted_one(scored, tmp_path, monkeypatch):
    few = dataclasses.replace(EXPLAIN, explainers=("ngram",), sites=SITES[:1], features=4)
    kill_between_pieces(monkeypatch, tmp_path / "explain", lambda folder: explain(folder, scored, few))
    explained = tmp_path / "explain" / "whole"
    kill_between_pieces(monkeypatch, tmp_path / "score", lambda folder: score(folder, explained, SCORE, scored))


def test_equal_seeds_equal_results_and_others_differ(scored, tmp_path):
    config = dataclasses.replace(EXPLAIN, explainers=("token",), controls=False, sites=SITES[:1], mode="modern")
    explain(tmp_path / "a", scored, config)
    explain(tmp_path / "b", scored, config)
    explain(tmp_path / "c", scored, dataclasses.replace(config, explain_seed=1))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    for name in ("a", "b"):
        score(tmp_path / "s" / name, tmp_path / name, SCORE, scored)
    first, second = (contents(tmp_path / "s" / name) for name in ("a", "b"))
    assert first["scores.jsonl"] == second["scores.jsonl"]


def test_a_shuffled_run_scores_lower(scored):
    content = read_json(scored / "score" / "rules" / "score.json")
    for entry in content["dictionaries"]:
        means = entry["explainers"]["ngram"]
        if entry["model"] == "subject" and entry["trained"]:
            assert means["top_and_random"]["value"] > means["chance"]["value"]


def test_what_cards_show(scored):
    by_dictionary = cards.scored(scored)
    by_feature = by_dictionary["subject", SITES[0], TIED]
    feature, explanations = next(iter(by_feature.items()))
    assert [cell.row["explainer"] for cell in explanations] == list(EXPLAIN.explainers)
    for cell in explanations:
        assert cell.row["feature"] == feature
        assert [overlay.group for overlay in cell.overlays] == ["top", "top", "random"]
        for overlay in cell.overlays:
            assert len(overlay.texts) == len(overlay.actual) == 6
            assert overlay.predicted is None or len(overlay.predicted) == 6
    top = explanations[0].overlays[0]
    assert max(top.actual) >= max(explanations[0].overlays[2].actual) * 0.5
    assert cards.scored(scored, ["none of this name"]) == {}


def test_linked_folders_of_stages_keep_their_overlays(scored, tmp_path):
    """Of scores or explanations on another disk, and of the run by a link to it."""
    run = tmp_path / "run"
    for part, disk in (("explain/paper", "explanations"), ("score/rules", "deep/scores")):
        shutil.copytree(scored / part, tmp_path / disk)
        (run / part).parent.mkdir(parents=True)
        (run / part).symlink_to(tmp_path / disk)
    (tmp_path / "link").symlink_to(run)
    known = cards.scored(scored)
    assert any(cell.overlays for by in known.values() for cells in by.values() for cell in cells)
    for path in (run, tmp_path / "link"):
        assert cards.scored(path) == known
        shown = show(path)
        assert f"{path / 'explain' / 'paper'}: explain, " in shown and f"{path / 'score' / 'rules'}: score, " in shown


def test_one_dictionary_is_read_alone(scored, monkeypatch):
    everything = cards.scored(scored)
    read = []
    examples = stored.Explanations.examples
    monkeypatch.setattr(
        stored.Explanations, "examples", lambda artefact, key: read.append(key) or examples(artefact, key)
    )
    key = "subject", SITES[0], TIED
    assert cards.scored(scored, only=key) == {key: everything[key]}
    assert read == ["/".join(key)]
    monkeypatch.setattr(stored, "read_lines", None)
    assert cards.scored(scored, only=("subject", SITES[0], "no such")) == {}


@pytest.mark.parametrize("gone", [True, False])
def test_predictions_are_never_paired_with_other_fragments(scored, tmp_path, gone):
    for part in ("explain/paper", "score/rules"):
        shutil.copytree(scored / part, tmp_path / part)
    assert cards.scored(tmp_path) == cards.scored(scored)
    if gone:
        shutil.rmtree(tmp_path / "explain")
    else:
        changes = {"features": 3, "explain_seed": 7, "dictionaries": ("tied-*",), "explainers": ("token",)}
        explain(tmp_path / "explain" / "paper", scored, dataclasses.replace(EXPLAIN, **changes))
    unpaired = cards.scored(tmp_path)
    old = {
        key: {n: [cell.row for cell in cells] for n, cells in by.items()} for key, by in cards.scored(scored).items()
    }
    assert {key: {n: [cell.row for cell in cells] for n, cells in by.items()} for key, by in unpaired.items()} == old
    assert not any(cell.overlays for by in unpaired.values() for cells in by.values() for cell in cells)


def test_few_explanations_are_shown_without_what_directions_write(scored, tmp_path):
    changes = {"features": 2, "dictionaries": ("tied-*",), "sites": SITES[:1], "controls": False}
    explain(tmp_path / "few", scored, dataclasses.replace(EXPLAIN, **changes, explainers=("token",)))
    kept = list(stored.read_lines(tmp_path / "few" / "explanations.jsonl"))
    assert [row["explainer"] for row in kept] == ["token", "token", "output", "output"]
    shown = show(tmp_path / "few").splitlines()
    lines = shown[[line.split()[:1] for line in shown].index(["feature"]) + 1 :]
    wanted = [f"{SITES[0]}/{TIED}:{row['feature']}" for row in kept[:2]]
    assert [line.split()[:2] for line in lines] == [[name, "token"] for name in wanted]


def test_show_and_the_command_line(scored, capsys):
    assert "resid_post.0" in show(scored / "explain" / "paper")
    assert "simulator rules" in show(scored / "score" / "rules")
    assert cli.main(["score", str(scored), "--explanations", "nothing"]) == 2
    assert "holds paper" in capsys.readouterr().err
    assert cli.main(["score"]) == 2
    assert "RUN is missing" in capsys.readouterr().err
    assert cli.main(["explain", str(scored), "--explainers", "openai"]) == 2
    assert "llm is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dictionaries": ("nothing-*",)}, "the run has none like it"),
        ({"sites": ("mlp_act.0",)}, "mlp_act.0"),
        ({"fragment_tokens": 40}, "lower fragment_tokens"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(run, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        explain(tmp_path / "out", run, dataclasses.replace(EXPLAIN, **changes))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_fragments_of_another_corpus(scored, tmp_path):
    stored_model = open_artifact(scored / "activations").data["model"]["model_config"]
    corpus = corpus_of(tmp_path, documents=90, context_length=32, corpus_seed=5)
    harvest(tmp_path / "acts", ModelConfig(model=stored_model["model"], device="cpu"), corpus, HARVEST)
    config = dataclasses.replace(EXPLAIN, activations=str(tmp_path / "acts"), explainers=("token",))
    explain(tmp_path / "out", scored, config)
    facts = read_json(tmp_path / "out" / "explain.json")
    assert {entry["model"] for entry in facts["dictionaries"]} == {"subject"}
    assert facts["fragments"]["subject"] < 90
    control = scored / "controls" / "random" / "activations"
    with pytest.raises(UserError, match="another model"):
        explain(tmp_path / "no", scored, dataclasses.replace(config, activations=str(control)))


def test_a_dictionary_of_which_nothing_can_be_explained_stays(scored, tmp_path):
    config = dataclasses.replace(
        EXPLAIN, explainers=("token",), controls=False, sites=SITES[:1], features=2, dictionaries=("tied-*", "pca")
    )
    plain, alive = explaining.draw, []

    def none(reader, weights, fragments, config, key):
        drawn = plain(reader, weights, fragments, config, key)
        if "tied" in key:
            cut = {name: getattr(drawn, name)[:0] for name in stored.DRAWN}
            moments = type(drawn.moments)(*(column[:0] for column in drawn.moments))
            return dataclasses.replace(drawn, skipped={"too rare": 2}, moments=moments, **cut)
        alive.append(key)
        return drawn

    explaining.draw = none
    try:
        explain(tmp_path / "explain", scored, config)
    finally:
        explaining.draw = plain
    assert alive
    score(tmp_path / "score", tmp_path / "explain", SCORE, scored)
    (tied,) = [d for d in read_json(tmp_path / "score" / "score.json")["dictionaries"] if d["trained"]]
    assert tied["skipped"] == {"too rare": 2}
    assert tied["explainers"]["token"]["top_and_random"]["reason"] == "no feature was explained"
    assert "too rare" in show(tmp_path / "score")


def test_damage_is_named(scored, tmp_path):
    for name in ("explanations.jsonl", "examples.safetensors"):
        copy = tmp_path / name
        shutil.copytree(scored / "explain" / "paper", copy)
        size = (copy / name).stat().st_size
        (copy / name).write_bytes(b"{" * size)
        with pytest.raises(UserError, match="is damaged"):
            score(tmp_path / "out", copy, SCORE, scored)


def test_a_name_of_a_table_that_is_not_there(tmp_path):
    from monolex.run_toml import read_run

    path = tmp_path / "run.toml"
    head = '[harvest]\nsites = ["resid_post.0"]\n[train.a]\n[explain.paper]\n'
    path.write_text(head + '[score.rules]\nexplanations = "papr"\n')
    with pytest.raises(UserError, match=r"name one of the tables \[explain.NAME\]"):
        read_run(path)
    path.write_text(head + '[score.rules]\nexplanations = "paper"\n')
    assert read_run(path).tables["score"]["rules"].simulator == "rules"
    assert json.dumps(read_run(path).tables["explain"]["paper"].explainers)
