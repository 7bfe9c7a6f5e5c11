"""A run published in every format and taken in again: what comes back, what is refused, and why."""

import dataclasses
import gzip
import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.explained_run import NAME, OTHER, SITE, explained_run
from safetensors.torch import load_file

from monolex import cli
from monolex.activations.reader import Reader
from monolex.activations.stored import packed_rows
from monolex.artifact import finish, open_artifact, read_json, verify, write_bytes
from monolex.dictionaries.listing import RunDictionary, run_dictionaries
from monolex.errors import UserError
from monolex.features.known import open_store
from monolex.interp.explain.saved import Explanations, read_lines
from monolex.interp.protocol import correlation
from monolex.interp.records import Explanation
from monolex.publish.adopt import ROWS, adopt, imported
from monolex.publish.config import ImportConfig, PublishConfig
from monolex.publish.explained import explained_features
from monolex.publish.incoming import read_features
from monolex.publish.neuron_explainer import explained_share
from monolex.publish.publish import publish
from monolex.publish.read_batch import read_batch
from monolex.publish.schema import problem, schema
from monolex.show.path import show

TITLE = f"{SITE}/{NAME}"
Published = dict[str, Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explained_run(tmp_path_factory.mktemp("publish"))


@pytest.fixture(scope="module")
def published(run: Path) -> Published:
    """The folder of the first dictionary by format."""
    folders = {}
    for name in ("neuronpedia", "neuron-explainer", "delphi"):
        folder = run.parent / name
        publish(folder, run, PublishConfig(format=name, publish_device="cpu"))
        folders[name] = folder / TITLE
    return folders


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """The run, to be taken into."""
    for name in ("activations", "train", "features", "explain", "score"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(run / name)
    return tmp_path / "run"


def dictionary(run: Path, name: str = NAME) -> RunDictionary:
    return next(d for d in run_dictionaries(run) if d.name == name)


def texts(run: Path) -> dict[tuple[int, str], str]:
    """What the run says of the features of the first dictionary, by feature and explainer."""
    explained = Explanations(run / "explain" / "paper").read(f"subject/{TITLE}")
    return {
        (example.feature, explainer): said[i].text
        for explainer, said in explained.explanations.items()
        for i, example in enumerate(explained.examples)
        if isinstance(said[i], Explanation)
    }


def scores(run: Path) -> dict[tuple[int, str], float]:
    rows = [r for r in read_lines(run / "score" / "rules" / "scores.jsonl") if r["name"] == NAME]
    return {(row["feature"], row["explainer"]): row["scores"]["top_and_random"]["value"] for row in rows}


def compressed(folder: Path) -> list[dict]:
    paths = sorted(folder.glob("*.jsonl.gz"))
    return [json.loads(line) for path in paths for line in gzip.decompress(path.read_bytes()).splitlines()]


def batch_without(published: Published, *names: str, shift: int = 0) -> dict:
    """A batch whose features lack some fields, and have other numbers."""
    value = json.loads((published["neuronpedia"] / "batch-0.json").read_text())
    numbers = [feature["feature_index"] for feature in value["features"]]
    for i, feature in enumerate(value["features"]):
        feature["feature_index"] = numbers[(i + shift) % len(numbers)]
        for name in names:
            feature.pop(name, None)
    return value


def test_every_context_of_the_store_is_in_the_batch(run, published):
    batch = read_batch(published["neuronpedia"] / "batch-0.json")
    with closing(open_store(dictionary(run))) as store:
        for number in batch.features:
            evidence, back = store.feature(number), batch.evidence(number)
            wanted = {(c.texts, c.activations) for group in evidence.examples.values() for c in group}
            assert {(c.texts, c.activations) for group in back.examples.values() for c in group} == wanted
            assert np.array_equal(back.histogram, evidence.histogram)
            assert back.summary.n_active == evidence.summary.n_active
        alive = {summary.id for summary in store.summaries("n_active > 0")}
        rows = store.meta["rows"]
    skipped = read_json(published["neuronpedia"] / "skipped_indexes.json")
    assert set(batch.features) == alive
    assert sorted([*alive, *skipped["skipped_indexes"]]) == list(range(dictionary(run).config.d_sae))
    assert skipped["log_sparsity"] == pytest.approx(-np.log10(rows))
    settings = read_json(published["neuronpedia"] / "run_settings.json")
    assert settings["n_prompts_total"] == len(packed_rows(run / "activations", "train").tokens)
    assert (settings["layer"], settings["sae_set"]) == (1, f"resid_post-{NAME}")


def test_dead_features_are_left_out_and_listed(run, published):
    """The other seed has some, or the first; in both, all numbers are accounted for."""
    dead = 0
    for name in (NAME, OTHER):
        folder = published["neuronpedia"].parent / name
        skipped = read_json(folder / "skipped_indexes.json")["skipped_indexes"]
        listed = read_batch(folder / "batch-0.json").features
        assert not set(skipped) & set(listed)
        dead += len(skipped)
        with closing(open_store(dictionary(run, name))) as store:
            assert len(skipped) == sum(summary.n_active == 0 for summary in store.summaries())
    assert dead > 0


def test_logits_are_those_of_the_weights(run, published):
    """The largest of the histogram are those that the store has; every token is in a bar."""
    batch = read_batch(published["neuronpedia"] / "batch-0.json")
    with closing(open_store(dictionary(run))) as store:
        vocabulary = store.meta["tokenizer_size"]
        for number, feature in list(batch.features.items())[:8]:
            evidence = store.feature(number)
            values, heights = feature["logits_hist_data_bar_values"], feature["logits_hist_data_bar_heights"]
            width = values[1] - values[0]
            assert len(values) == len(heights) == 50 and sum(heights) == vocabulary
            assert values[-1] + width / 2 == pytest.approx(evidence.promoted[0].weight, rel=1e-3)
            assert values[0] - width / 2 == pytest.approx(evidence.suppressed[0].weight, rel=1e-3)


def test_a_feature_takes_little_room(published):
    raw = (published["neuronpedia"] / "batch-0.json").read_bytes()
    assert len(gzip.compress(raw)) / len(json.loads(raw)["features"]) < 4000


def test_explanations_come_back(run, own, published):
    batches = [*published["neuronpedia"].glob("explanations/*.gz"), published["neuronpedia"] / "batch-0.json"]
    folder = adopt(own, batches, ImportConfig(TITLE, name="again"))
    rows = list(read_lines(folder / ROWS))
    said = {(row["feature"], row["explainer"]): row for row in rows if row["text"] is not None}
    assert {key: row["text"] for key, row in said.items()} == texts(run) and said
    for key, row in said.items():
        assert row["score"] == scores(run)[key]
        assert row["method"].startswith("correlation") == (row["score"] is not None)
        assert row["source"]["file"] == "batch-0.jsonl.gz" and len(row["source"]["sha256"]) == 64
    numbers = {row["feature"]: row["numbers"] for row in rows if row["numbers"]}
    with closing(open_store(dictionary(run))) as store:
        for summary in store.summaries("n_active > 0"):
            assert numbers[summary.id] == {"frac_nonzero": summary.density, "active": summary.n_active}
    manifest = verify(folder)
    assert manifest.data["proof"]["by"] == "directions" and manifest.data["proof"]["agreement"] > 0.9999
    assert imported(own, dictionary(own))[rows[0]["feature"]][0] == rows[0]
    assert imported(own, dictionary(own, OTHER)) == {}
    assert f"{len(said)} explanations" in show(folder)


def test_scores_are_published_beside_chance_and_rules_are_no_models(run, own, tmp_path):
    """A second artefact of the rules and one of a model: none takes the place of another."""
    (own / "score").unlink()
    shutil.copytree(run / "score", own / "score")
    for name, simulator in (("again", "rules"), ("zmodel", "exact: some model")):
        folder = own / "score" / name
        shutil.copytree(own / "score" / "rules", folder)
        lines = [row | {"simulator": simulator} for row in read_lines(folder / "scores.jsonl")]
        before = open_artifact(folder)
        entry = write_bytes(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in lines).encode())
        files = {**before.files, "scores.jsonl": entry}
        finish(folder, before.kind, before.config | {"name": name}, before.parents, files, before.data)
    rows = {(r["feature"], r["explainer"]): r for r in read_lines(run / "score" / "rules" / "scores.jsonl")
            if r["name"] == NAME}  # fmt: skip
    for source, artefacts in ((run, ["rules"]), (own, ["again", "rules", "zmodel"])):
        publish(tmp_path / source.parent.name / "out", source, PublishConfig(dictionaries=(NAME,), logits=False))
        seen = 0
        for line in compressed(tmp_path / source.parent.name / "out" / TITLE / "explanations"):
            notes = json.loads(line["notes"])["monolex"]
            scores = rows[int(line["index"]), notes["explainer"]]["scores"]
            value = scores["top_and_random"]
            assert [score["path"] for score in notes["scores"]] == [f"score/{name}" for name in artefacts]
            for score in notes["scores"]:
                assert [score[end] for end in ("value", "low", "high")] == [value[e] for e in ("value", "low", "high")]
                assert score["chance"] == scores["chance"]["value"]
                assert score["content"] == open_artifact(source / score["path"]).content
            assert line["scoreV1"] == (None if artefacts == ["rules"] else value["value"])
            seen += value["value"] is not None
        assert seen
    readme = (tmp_path / run.parent.name / "out" / "README.md").read_text(encoding="utf-8")
    assert "where only rules simulated it is null" in readme


def test_simulations_come_back(run, own, published):
    files = sorted(published["neuron-explainer"].glob("explanations/1/*.jsonl"))
    folder = adopt(own, files, ImportConfig(TITLE, author="monolex"))
    rows = list(read_lines(folder / ROWS))
    said = {(row["feature"], row["text"]): row["score"] for row in rows}
    assert said == {(key[0], text): scores(run)[key] for key, text in texts(run).items()}
    assert {row["explainer"] for row in rows} == {"monolex"}
    assert open_artifact(folder).data["proof"]["by"] == "activations"


def test_records_are_the_fragments(run, published):
    features = explained_features(run, dictionary(run), PublishConfig(format="neuron-explainer"))
    assert features
    for feature in features:
        path = published["neuron-explainer"] / "collated-activations" / "1" / f"{feature.feature}.json"
        record = read_json(path)
        top = record["most_positive_activation_records"]
        peaks = [max(each["activations"]) for each in top]
        assert peaks == sorted(peaks, reverse=True)
        assert len(top) == len(feature.examples.explain) + len(feature.examples.top)
        assert [each["tokens"] for each in record["random_sample"]] == [list(f.texts) for f in feature.examples.random]
        for each, fragment in zip(record["random_sample"], feature.examples.random, strict=True):
            assert np.array_equal(np.array(each["activations"], np.float32), fragment.activations)
        for name, value in zip(("mean", "variance", "skewness", "kurtosis"), feature.moments, strict=True):
            assert record[name] == value
        (back,) = read_features(path)
        assert back.number == feature.feature and back.layer == 1 and back.numbers


def test_the_scores_of_a_simulation_are_recomputed_from_it(run, published):
    for path in published["neuron-explainer"].glob("explanations/1/*.jsonl"):
        for explanation in json.loads(path.read_text())["scored_explanations"]:
            scored = explanation["scored_simulation"]
            pairs = [
                (each["true_activations"], each["simulation"]["expected_activations"])
                for each in scored["scored_sequence_simulations"]
            ]
            actual, predicted = (np.concatenate(side) for side in zip(*pairs, strict=True))
            whole = correlation(actual, predicted).value
            assert scored["ev_correlation_score"] == (pytest.approx(whole, abs=1e-6) if whole == whole else None)
            square, size = explained_share(actual, predicted)
            assert scored["rsquared_score"] == pytest.approx(square, rel=1e-4)
            assert scored["absolute_dev_explained_score"] == pytest.approx(size, rel=1e-4)


def test_delphi_gets_every_explanation_and_activation(run, published):
    folder = published["delphi"]
    for (feature, explainer), text in texts(run).items():
        path = folder / "explanations" / explainer / f"{SITE}_latent{feature}.txt"
        assert json.loads(path.read_text(encoding="utf-8")) == text
    record = dictionary(run)
    arrays = load_file(folder / "latents" / SITE / f"0_{record.config.d_sae - 1}.safetensors")
    reader = Reader(run / "activations", SITE, "held_out")
    packed = packed_rows(run / "activations", "held_out").tokens
    assert torch.equal(arrays["tokens"], packed) and arrays["locations"].dtype == torch.uint16
    dense = torch.zeros(*packed.shape, record.config.d_sae)
    row, position, feature = arrays["locations"].long().T
    dense[row, position, feature] = arrays["activations"].float()
    codes = record.weights().encode(reader.read(0, len(reader)))
    codes[codes.abs() <= 1e-5] = 0
    rows = reader.contexts(0, len(reader)).long(), reader.positions(0, len(reader)).long()
    assert torch.allclose(dense[rows], codes, rtol=1e-3)
    assert int((dense != 0).sum()) == int((codes != 0).sum())
    config = read_json(folder / "latents" / SITE / "config.json")
    assert not problem(config, schema("delphi-config"), written=True) and config["n_tokens"] == packed.numel()


def test_a_single_explainer_needs_no_folder(run, tmp_path):
    config = PublishConfig(format="delphi", dictionaries=(NAME,), explainers=("token",), latents="none")
    publish(tmp_path / "out", run, config)
    kept = [path for path in (tmp_path / "out" / TITLE).rglob("*") if path.is_file()]
    assert {path.parent.name for path in kept} == {"explanations"}
    assert len(kept) == sum(explainer == "token" for _, explainer in texts(run))


def test_without_proof_numbers_are_not_believed(own, published):
    alone = list(published["neuronpedia"].glob("explanations/*.gz"))
    with pytest.raises(UserError, match="nothing in the files shows .* or --unproved"):
        adopt(own, alone, ImportConfig(TITLE))
    assert not (own / "imported").exists()
    folder = adopt(own, alone, ImportConfig(TITLE, unproved=True))
    data = open_artifact(folder).data
    assert data["proof"] is None and "their numbers were believed" in data["warnings"][0]
    assert "not proved" in show(folder) and "WARNING" in show(folder)


@pytest.mark.parametrize("unproved", [False, True])
def test_directions_of_another_dictionary_are_refused(own, published, unproved):
    with pytest.raises(UserError, match=r"feature \d+: its vector has cosine -?0\.\d+ .* another dictionary"):
        adopt(own, [published["neuronpedia"] / "batch-0.json"], ImportConfig(f"{SITE}/{OTHER}", unproved=unproved))


LOGITS = ("pos_str", "pos_values", "neg_str", "neg_values")


@pytest.mark.parametrize(("left_out", "by"), [(("vector",), "promoted tokens"), (("vector", *LOGITS), "activations")])
def test_tokens_tell_dictionaries_and_numberings_apart(own, published, tmp_path, left_out, by):
    path = tmp_path / "batch-0.json"
    path.write_text(json.dumps(batch_without(published, *left_out)))
    data = open_artifact(adopt(own, [path], ImportConfig(TITLE))).data
    assert data["proof"]["by"] == by and data["proof"]["agreement"] > 0.9
    with pytest.raises(UserError, match=f"by their {by} .* are not those of {SITE}/{OTHER}"):
        adopt(own, [path], ImportConfig(f"{SITE}/{OTHER}", unproved=True))
    path.write_text(json.dumps(batch_without(published, *left_out, shift=1)))
    with pytest.raises(UserError, match=f"by their {by}"):
        adopt(own, [path], ImportConfig(TITLE))


def test_features_and_layers_and_widths_that_do_not_fit_are_refused(own, published, tmp_path):
    value = batch_without(published)
    path, first = tmp_path / "batch-0.json", value["features"][0]
    cases = (
        ({"layer": 2}, {}, r"feature \d+ is of layer 2, and .* of 1"),
        ({}, {"feature_index": 10_000}, r"feature 10000 is there, and .* has features 0 to 95"),
        ({}, {"vector": [1.0, 2.0]}, "its vector has 2 numbers and those of .* have 192"),
    )
    for whole, part, said in cases:
        path.write_text(json.dumps({**value, **whole, "features": [{**first, **part}]}))
        with pytest.raises(UserError, match=said):
            adopt(own, [path], ImportConfig(TITLE, unproved=True))


def test_files_of_others_in_all_their_ways(own, tmp_path):
    """No dataclass names, null and NaN, the later name of a simulation, a line a value, features of Neuronpedia."""
    sequence = {"sequence_simulation": {"tokens": ["a"], "expected_activations": [None]}, "true_activations": [0.0]}
    simulation = {"scored_sequence_simulations": [sequence], "ev_correlation_score": float("nan")}
    results = {"neuron_id": {"layer_index": 1, "neuron_index": 5}, "scored_explanations": [
        {"explanation": "</script> 🎉", "scored_simulation": simulation},
        {"explanation": "b", "scored_simulation": None},
    ]}  # fmt: skip
    record = {"neuron_id": results["neuron_id"], "most_positive_activation_records": [], "mean": None, "variance": 2.0}
    (tmp_path / "a.jsonl").write_text(json.dumps(results) + "\n\n" + json.dumps(record) + "\n")
    feature = {"modelId": "m", "layer": "1-res", "index": "7", "vector": None, "explanations": [
        {"description": "c", "typeName": "np_max-act", "explanationModelName": "gpt-4o", "scoreV1": None}]}  # fmt: skip
    line = {"index": 8, "description": "d", "layer": "1-x", "typeName": "oai_token-act-pair", "notes": "not JSON"}
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps([feature, line]).encode()))
    files = [tmp_path / "a.jsonl", tmp_path / "b.json.gz"]
    rows = list(read_lines(adopt(own, files, ImportConfig(TITLE, unproved=True)) / ROWS))
    assert [(r["feature"], r["explainer"], r["text"], r["score"]) for r in rows] == [
        (5, "", "</script> 🎉", None), (5, "", "b", None), (5, "", None, None),
        (7, "np_max-act gpt-4o", "c", None), (8, "openai", "d", None),
    ]  # fmt: skip
    assert rows[2]["numbers"] == {"variance": 2.0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "says nothing of any feature"),
        ('{"a": 1}', "line 1 is of no format that is read"),
        ("3", "line 1 is of no format that is read"),
        ('{"index": "x", "description": "a"}', "index is 'x' where the number of a feature"),
        ('{"index": 1, "description": 2}', "description is 2 where string is needed"),
        ('\n{"neuron_id": {}, "scored_explanations": []}', "line 2: neuron_id.layer_index is missing"),
        ('{"index": 1, "description": "a"}\n{"ind', "line 2 is no JSON"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(own, tmp_path, content, said):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as refused:
        adopt(own, [path], ImportConfig(TITLE, unproved=True))
    assert said in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_dictionary_that_was_made_anew_has_nothing(own, run, published):
    adopt(own, [published["neuronpedia"] / "batch-0.json"], ImportConfig(TITLE))
    assert imported(own, dictionary(own))
    changed = dataclasses.replace(dictionary(own), folder=dictionary(own, OTHER).folder)
    assert imported(own, changed) == {}


def test_what_is_done_is_found_done(run, published, tmp_path):
    folder = published["neuronpedia"].parents[1]
    before = (folder / "manifest.json").read_bytes()
    publish(folder, run, PublishConfig(publish_device="cpu"))
    assert (folder / "manifest.json").read_bytes() == before
    again = tmp_path / "again"
    publish(again, run, PublishConfig(publish_device="cpu"))
    assert open_artifact(again).content == open_artifact(folder).content


def test_the_model_need_not_be_there(run, tmp_path, monkeypatch):
    def gone(*_: object) -> None:
        raise UserError("the model is gone")

    monkeypatch.setattr("monolex.publish.publish.stored_model", gone)
    publish(tmp_path / "out", run, PublishConfig(dictionaries=(NAME,), features=(0, 3), vectors=False))
    batch = read_batch(tmp_path / "out" / TITLE / "batch-0.json")
    assert list(batch.features) == [0, 3]
    assert all(f["logits_hist_data_bar_values"] == [] and "vector" not in f for f in batch.features.values())


def test_what_cannot_be_published_is_refused(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="features = 96: .* has features 0 to 95"):
        publish(out, run, PublishConfig(features=(96,)))
    with pytest.raises(UserError, match="explanations = 'papers': .* did you mean 'paper'"):
        publish(out, run, PublishConfig(explanations=("papers",)))
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("explain", "score", "features"))
    with pytest.raises(UserError, match="run monolex explain first"):
        publish(out, bare, PublishConfig(format="delphi"))
    with pytest.raises(UserError, match="run monolex features for it first"):
        publish(out, bare, PublishConfig())


@pytest.mark.parametrize(
    ("config", "values", "said"),
    [
        (PublishConfig, {"features": (-1,)}, "features = -1: features are numbered from 0"),
        (PublishConfig, {"window": -1}, "window = -1"),
        (PublishConfig, {"dictionaries": "a"}, "dictionaries = 'a' is one text"),
        (ImportConfig, {}, "dictionary is missing: give --dictionary"),
        (ImportConfig, {"dictionary": "a", "name": "../b"}, "name = '../b' is no name of a folder"),
    ],
)
def test_settings_are_refused_by_name(config, values, said):
    with pytest.raises(UserError, match=said):
        config(**values)


def test_the_verbs(own, published, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["publish", str(own), str(out), "--dictionaries", NAME, "--features", "1", "2", "--no-logits"]) == 0
    assert "format neuronpedia" in capsys.readouterr().out
    path = out / TITLE / "batch-0.json"
    assert cli.main(["show", str(path), "--feature", "2"]) == 0
    assert "promotes directly" in capsys.readouterr().out
    assert cli.main(["import", str(own), str(path), "--dictionary", TITLE]) == 0
    assert "known by the directions of 2 features" in capsys.readouterr().out
    assert cli.main(["import", str(own), str(path), "--dictionary", f"{SITE}/{OTHER}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["show", "--verify", str(out)]) == 0
    page = (out / "README.md").read_text(encoding="utf-8")
    assert "correlated_features_pearson" in page and TITLE in page
