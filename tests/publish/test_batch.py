"""A feature's evidence and a batch's feature: what is known goes there and comes back."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_store import HOSTILE, fake_codes, fake_store

from monolex.errors import UserError
from monolex.features.evidence import BINS, GROUPS, Context, Evidence
from monolex.features.store import FeatureStore
from monolex.pages.card import card_html
from monolex.publish.batch import ABSENT, FeaturesSource, LogitsHistogram, evidence_of, exact, short, written
from monolex.publish.read_batch import read_batch
from monolex.publish.schema import problem, schema
from monolex.show.files import show_feature
from monolex.show.path import show

SOURCE = FeaturesSource(8, 128, "text", 5)
DIRECTION = np.array([0.5, -2.0, 0.25, 1.0], np.float32)
DEAD, ALIVE = 3, (0, 1, 2, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return fake_store(tmp_path_factory.mktemp("s") / "resid_post.1" / "tied-a1.sqlite")


def feature(evidence: Evidence, source: FeaturesSource = SOURCE, *, vector: bool = True) -> dict:
    return written(evidence, source, DIRECTION, LogitsHistogram([0.0, 1.0], [3, 4]), vector)


def contents(evidence: Evidence) -> Counter:
    """Tokens and activations of every context that is kept, each once."""
    contexts = {c.id: c for group in evidence.examples.values() for c in group}
    return Counter((c.texts, c.activations) for c in contexts.values())


@pytest.mark.parametrize("number", ALIVE)
def test_contexts_come_back_as_they_are(store, number):
    evidence = store.feature(number)
    back = evidence_of(json.loads(json.dumps(feature(evidence))))
    assert contents(back) == contents(evidence)
    first = [(c.texts, c.activations) for c in evidence.examples["top"]]
    assert [(c.texts, c.activations) for c in back.examples["top"]] == first


@pytest.mark.parametrize("number", ALIVE)
def test_numbers_come_back(store, number):
    evidence = store.feature(number)
    back = evidence_of(feature(evidence))
    for name in ("id", "n_active", "density"):
        assert getattr(back.summary, name) == getattr(evidence.summary, name)
    assert back.summary.max == pytest.approx(evidence.summary.max, rel=1e-5)
    assert np.array_equal(back.histogram, evidence.histogram) and back.histogram.dtype == np.int64
    assert back.summary.mean_active == pytest.approx(evidence.summary.mean_active, abs=evidence.summary.max / BINS)
    for side in ("promoted", "suppressed"):
        assert [t.text for t in getattr(back, side)] == [t.text for t in getattr(evidence, side)]
        assert [t.weight for t in getattr(back, side)] == pytest.approx(
            [t.weight for t in getattr(evidence, side)], 1e-3
        )


def test_it_is_what_the_importers_read(store):
    for number in range(len(store)):
        assert problem(feature(store.feature(number)), schema("feature"), written=True) == ""
    known = feature(store.feature(0))
    assert known["neuron_alignment_indices"] == [3, 0, 2]
    assert known["neuron_alignment_values"] == [1.0, 0.5, 0.25]
    assert known["neuron_alignment_l1"] == [short(v / 3.75) for v in (1.0, 0.5, 0.25)]
    assert known["vector"] == DIRECTION.tolist() and "vector" not in feature(store.feature(0), vector=False)
    assert all(known[name] == [] for name in ABSENT)
    assert known["logits_hist_data_bar_heights"] == [3, 4]


@pytest.mark.parametrize("number", ALIVE)
def test_intervals_say_what_a_context_is(store, number):
    evidence = store.feature(number)
    for row in feature(evidence)["activations"]:
        peak = max(row["values"])
        low, high, share = row["bin_min"], row["bin_max"], row["bin_contains"]
        assert row["values"][row["qualifying_token_index"]] == peak
        assert len(row["tokens"]) == len(row["values"])
        assert low <= peak <= high and share <= 1
        assert (high == 0) == (peak == 0) and (low == -1) == (share == -1)
    tops = sum(row["bin_min"] == -1 for row in feature(evidence)["activations"])
    assert tops == len(evidence.examples["top"])


def test_a_window_is_cut_around_the_strongest_token(store):
    evidence = store.feature(0)
    whole, cut = (feature(evidence, SOURCE._replace(window=n))["activations"] for n in (0, 5))
    for row, part in zip(whole, cut, strict=True):
        at = row["qualifying_token_index"]
        assert len(part["tokens"]) == 5 and part["tokens"][part["qualifying_token_index"]] == row["tokens"][at]
        assert max(part["values"]) == max(row["values"])
    wider = feature(evidence, SOURCE._replace(window=1000))["activations"]
    assert wider == whole


def test_groups_may_be_left_out(store):
    rows = feature(store.feature(0), SOURCE._replace(groups=("top", "quantile")))["activations"]
    assert len(rows) < len(feature(store.feature(0))["activations"])
    assert all(row["bin_max"] > 0 and row["bin_contains"] != 1 for row in rows)


def test_the_same_context_is_there_once(store):
    for number in ALIVE:
        kept = {c.id for group in store.feature(number).examples.values() for c in group}
        assert len(feature(store.feature(number))["activations"]) == len(kept)


def test_a_foreign_file_repeats_contexts_and_is_read_without():
    row = {"bin_min": 0, "bin_max": 1.0, "bin_contains": 0.99, "tokens": ["a", "b"], "values": [0, 0.5]}
    top = {**row, "bin_min": -1, "bin_contains": -1}
    silent = {**row, "values": [0, 0]}
    upper = {**row, "bin_min": 1.0, "bin_max": 2.0, "values": [0, 1.5]}
    back = evidence_of({"feature_index": 4, "activations": [top, row, row, upper, silent, silent]})
    assert {name: len(contexts) for name, contexts in back.examples.items()} == {
        "top": 1, "quantile": 1, "near_zero": 0, "random": 0, "inactive": 1, "negative": 0,
    }  # fmt: skip
    assert back.summary.max == 1.5 and back.summary.n_active == 0


def test_fifty_bars_that_begin_above_zero_keep_their_counts():
    values = [0.3 + 0.1 * i for i in range(50)]
    heights = [100.0 - i for i in range(50)]
    back = evidence_of(
        {"feature_index": 0, "freq_hist_data_bar_values": values, "freq_hist_data_bar_heights": heights,
         "frac_nonzero": 0.01}
    )  # fmt: skip
    assert back.histogram.sum() == sum(heights) == back.summary.n_active
    assert back.token_histogram.sum() == sum(heights)
    assert back.summary.max == pytest.approx(5.25)
    odd = evidence_of(
        {"feature_index": 0, "freq_hist_data_bar_values": values[:7], "freq_hist_data_bar_heights": heights[:7]}
    )
    assert len(odd.histogram) == BINS and odd.histogram.sum() == sum(heights[:7])


def test_a_dead_feature_and_an_empty_entry_are_evidence(store):
    for value in (feature(store.feature(DEAD)), {"feature_index": DEAD}):
        back = evidence_of(value)
        assert back.summary.n_active == 0 and back.summary.mean_active is None
        assert set(back.examples) == set(GROUPS) and len(back.histogram) == BINS


@pytest.mark.parametrize("value", [1.0, 0.1, 37.57846, 1e-7, 123456.79, 3.0e38, 0.0])
def test_exact_is_the_same_float32(value):
    single = np.float32(value)
    assert np.float32(exact(float(single))) == single
    assert len(repr(exact(float(single)))) <= len(repr(float(single)))


def batch_file(folder: Path, store: FeatureStore, name: str = "batch-0.json") -> Path:
    features = [feature(store.feature(number)) for number in range(len(store))]
    raw = json.dumps({"model_id": "m", "layer": 1, "sae_set": "s", "features": features}).encode()
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize("name", ["batch-0.json", "batch-0.json.gz"])
def test_a_file_stands_alone(store, tmp_path, name):
    path = batch_file(tmp_path, store, name)
    batch = read_batch(path)
    assert batch.title == "m 1 s" and list(batch.features) == list(range(8))
    assert contents(batch.evidence(5)) == contents(store.feature(5))
    text = show(path)
    assert text.startswith(f"{path}: m 1 s, 8 features") and len(text.splitlines()) == 10
    one = show_feature(path, 5)
    assert "feature 5 of m 1 s" in one and HOSTILE.split("<")[0] in one
    with pytest.raises(UserError, match="feature 9: m 1 s has no such feature"):
        show_feature(path, 9)


def test_a_card_is_drawn_from_it(store, tmp_path):
    batch = read_batch(batch_file(tmp_path, store))
    shown = card_html(batch.evidence(5), batch.meta(5))
    assert "onerror=&#34;alert" in shown and "<img src=x" not in shown
    # what the file does not say is not shown as nothing
    assert "Density" in shown and "Kurtosis" not in shown and "of 0" not in shown
    assert card_html(batch.evidence(DEAD), batch.meta(DEAD))


def test_other_json_is_shown_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"features": [1]}')
    assert json.loads(show(tmp_path / "a.json")) == {"features": [1]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON"),
        (b"\xff", "is damaged"),
        (b"[1]", "is no batch of features"),
        (b'{"model_id": "m", "features": 3}', "features is 3 where array is needed"),
        (b'{"model_id": "m", "features": [{"feature_index": "a"}]}', 'features[0].feature_index is "a" where integer'),
        (b'{"model_id": "m", "features": [{"feature_index": 1}, {"feature_index": 1}]}', "feature 1 is there twice"),
        (
            b'{"model_id": "m", "features": [{"feature_index": 1, "pos_str": ["a"], "pos_values": [1, 2]}]}',
            "the lists of features[0] differ in length (pos_str 1, pos_values 2)",
        ),
        (
            b'{"sae_set":"","features":[{"feature_index": 1, "activations": [{"tokens": ["a"], "values": [1, 2]}]}]}',
            "the lists of features[0].activations[0] differ in length",
        ),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(tmp_path, content, said):
    path = tmp_path / "batch-0.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_batch(path)
    assert said in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_damaged_archives_folders_and_other_endings_are_refused(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"{}" * 999)[:-9])
    (tmp_path / "b.json.gz").write_bytes(b"{}")
    (tmp_path / "c.json").mkdir()
    for name, said in (("a.json.gz", "damaged"), ("b.json.gz", "damaged"), ("c.json", "folder"), ("d.json", "exist"),
                       ("e.txt", "does not end as")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_batch(tmp_path / name)


def test_no_two_contexts_of_different_tokens_are_one():
    """Rows of different tokens and equal activations stay apart."""
    rows = [{"tokens": [t], "values": [1.0]} for t in ("a", "b", "a")]
    back = evidence_of({"feature_index": 0, "activations": rows})
    kept: list[Context] = [c for group in back.examples.values() for c in group]
    assert [c.texts for c in kept] == [("a",), ("b",)]


def test_codes_of_the_store_are_those_of_the_batch(store):
    """Counted from the codes themselves."""
    codes, _ = fake_codes()
    for number in ALIVE:
        value = feature(store.feature(number))
        active = int((codes[:, number] > 0).sum())
        assert sum(value["freq_hist_data_bar_heights"]) == active
        assert value["frac_nonzero"] == active / len(codes)
