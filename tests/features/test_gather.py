"""Evidence against a naive recomputation from dense codes, and what must not change it: blocks, runs, the machine."""

import dataclasses
import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.naive_features import Naive, check, everything, packed_rows, source
from helpers.tiny import tiny
from torch import Tensor

from monolex.config import FeaturesConfig
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.errors import UserError
from monolex.features import coactivation, gather, spill
from monolex.features.stage import from_source
from monolex.features.store import FeatureStore
from monolex.text.rows import Rows

SMALL = FeaturesConfig(
    fragment_tokens=4,
    top=3,
    quantiles=3,
    per_quantile=2,
    near_zero=2,
    random=3,
    inactive=4,
    tokens=4,
    neighbours=3,
    direct=3,
    coactive_rows=40,
    features_device="cpu",
)
LM = tiny("gpt_neox")


def whole_numbers(d_in: int, d_sae: int, activation: str = "relu", seed: int = 0, **changed: Any) -> Dictionary:
    """Weights of small whole numbers; feature 0 is dead and feature 1 always active."""
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randint(-2, 3, (d_sae, d_in), generator=generator).float()
    bias = torch.randint(-12, 0, (d_sae,), generator=generator).float()
    if activation != "linear" and d_sae > 2:
        bias[0], bias[1] = -1000, 1000
    weights = {
        "W_enc": encoder,
        "b_enc": bias,
        "W_dec": torch.randn(d_sae, d_in, generator=generator),
        "b_dec": torch.zeros(d_in),
        "centre": torch.zeros(d_in),
    }
    config = DictionaryConfig(activation, activation, d_in, d_in, d_sae, site="resid_post.1", **changed)
    return Dictionary(config, weights)


def gathered(folder: Path, dictionary: Dictionary, config: FeaturesConfig, packed: Rows | None = None):
    """A store and the reference over the same rows."""
    rows = source(config, dictionary.config.d_in, packed=packed)
    paths = from_source(folder, rows, LM, {"it": dictionary}, config)
    naive = Naive(rows.packed, rows.contexts, rows.positions, dictionary.encode(rows.x), config)
    return FeatureStore(paths["it"]), naive


def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three rows and runs of some dozen codes."""
    monkeypatch.setattr(spill, "CHUNK", 1)
    monkeypatch.setattr(spill, "CHUNK_ROWS", 3)
    monkeypatch.setattr(spill, "ENTRY_BYTES", 10**6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("kind", ["relu", "linear", "topk", "threshold"])
def test_every_number_is_that_of_dense_codes(tmp_path, kind, disjoint, seed):
    changed = {"topk": {"k": 3}, "threshold": {"threshold": 2.0}}.get(kind, {})
    config = dataclasses.replace(SMALL, disjoint=disjoint, features_seed=seed)
    store, naive = gathered(tmp_path, whole_numbers(32, 17, kind, seed, **changed), config)
    assert store.meta["rows"] == naive.n
    assert store.meta["signed"] == (kind == "linear")
    for feature in range(17):
        check(store, naive, feature)


def negated(dictionary: Dictionary) -> Dictionary:
    """The signed dictionary whose codes are those of ``dictionary`` with the other sign."""
    weights = {name: -w if name in ("W_enc", "b_enc") else w for name, w in dictionary.weights.items()}
    return Dictionary(dictionary.config, weights)


def contexts_of(store: FeatureStore, feature: int, group: str) -> list[tuple]:
    """The contexts of a group with their activations above or below zero, whichever it holds."""
    return [(c.rank, c.id, c.doc, c.start, c.tokens, c.activations) for c in store.feature(feature).examples[group]]


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 17, 10**6])
def test_the_negative_side_is_the_top_of_negated_codes(tmp_path, monkeypatch, disjoint, chunk):
    monkeypatch.setattr(spill, "CHUNK", 1)
    monkeypatch.setattr(spill, "CHUNK_ROWS", chunk)
    config = dataclasses.replace(SMALL, disjoint=disjoint, fragment_tokens=3, top=12)
    dictionary, packed = whole_numbers(32, 17, "linear"), packed_rows(rows=30)
    store, _ = gathered(tmp_path / "it", dictionary, config, packed)
    other, _ = gathered(tmp_path / "negated", negated(dictionary), config, packed)
    for feature in range(17):
        below = contexts_of(store, feature, "negative")
        above = contexts_of(other, feature, "top")
        assert len(below) == config.top and max(value for *_, values in below for value in values) <= 0
        assert [(*head, [-v for v in values]) for *head, values in below] == [(*h, list(v)) for *h, v in above]
        summary = store.feature(feature).summary
        assert (summary.min, summary.max) == (-other.feature(feature).summary.max, -other.feature(feature).summary.min)
        assert min(below[0][-1]) == summary.min
    assert store.meta["negative"] and store.meta["signed"]


def test_a_signed_code_that_is_never_negative_has_no_negative_side(tmp_path):
    dictionary = whole_numbers(32, 5, "linear")
    dictionary.weights["b_enc"][:] = 1000
    store, naive = gathered(tmp_path, dictionary, SMALL)
    for feature in range(5):
        check(store, naive, feature)
        assert store.feature(feature).examples["negative"] == () and store.feature(feature).summary.min == 0
    assert store.rows("SELECT * FROM below") == [] and store.meta["negative"]


def test_the_smallest_code_is_known_although_no_context_is_kept(tmp_path):
    config = dataclasses.replace(SMALL, top=0)
    dictionary = whole_numbers(32, 5, "linear")
    store, naive = gathered(tmp_path, dictionary, config)
    for feature in range(5):
        check(store, naive, feature)
        assert store.feature(feature).summary.min < 0 and store.feature(feature).examples["negative"] == ()


def test_a_number_of_minus_one_is_a_number(tmp_path):
    """What is no token is -1 as well."""
    dictionary = whole_numbers(32, 3, "linear")
    dictionary.weights["W_enc"][:] = 0
    dictionary.weights["b_enc"][:] = torch.tensor([-1.0, 0.0, 1.0])
    store, _ = gathered(tmp_path, dictionary, SMALL)
    assert [(s.min, s.max, s.top_token is None) for s in store.summaries()] == [
        (-1, 0, True),
        (0, 0, True),
        (0, 1, False),
    ]
    assert len(store.feature(0).examples["negative"]) == SMALL.top


def test_unsigned_kinds_have_no_negative_side(tmp_path):
    """And a signed one's positive side is that of the dictionary with a ReLU: nothing else has changed its meaning."""
    signed, packed = whole_numbers(32, 9, "linear"), packed_rows(rows=20)
    unsigned = Dictionary(dataclasses.replace(signed.config, kind="relu", activation="relu"), signed.weights)
    both = [everything(gathered(tmp_path / k, d, SMALL, packed)[0]) for k, d in (("u", unsigned), ("s", signed))]
    assert both[0]["below"] == [] and not any(row[1] == "negative" for row in both[0]["example"])
    for name in ("token", "before", "direct", "neighbour", "coactive", "activation"):
        assert both[0][name] == both[1][name]
    assert both[0]["example"] == [row for row in both[1]["example"] if row[1] != "negative"]
    at = [0, 1, 2, 3, 4, *range(6, 24)]  # all but the smallest code
    assert [[row[i] for i in at] for row in both[0]["feature"]] == [[row[i] for i in at] for row in both[1]["feature"]]
    assert {row[5] for row in both[0]["feature"]} == {0.0}


def test_a_dead_feature_has_only_silent_contexts(tmp_path):
    store, naive = gathered(tmp_path, whole_numbers(32, 9), SMALL)
    evidence = store.feature(0)
    assert evidence.summary.n_active == 0
    assert evidence.summary.skew is None
    assert not evidence.tokens
    assert {group: len(contexts) for group, contexts in evidence.examples.items() if contexts} == {"inactive": 4}
    assert store.meta["alive"] == sum(any(naive.column(f)) for f in range(9)) < 9


def test_an_always_active_feature_has_no_silent_context(tmp_path):
    store, _ = gathered(tmp_path, whole_numbers(32, 9), SMALL)
    evidence = store.feature(1)
    assert evidence.summary.density == 1
    assert evidence.examples["inactive"] == ()
    assert len(evidence.examples["top"]) == 3


def test_a_constant_feature_has_no_moments(tmp_path):
    dictionary = whole_numbers(32, 3)
    dictionary.weights["W_enc"][1] = 0
    dictionary.weights["b_enc"][1] = 0.1
    store, _ = gathered(tmp_path, dictionary, SMALL)
    summary = store.feature(1).summary
    assert (summary.variance, summary.skew, summary.kurtosis) == (0, None, None)


def test_a_dictionary_of_one_feature(tmp_path):
    store, naive = gathered(tmp_path, whole_numbers(32, 1), SMALL)
    check(store, naive, 0)
    assert store.feature(0).neighbours == store.feature(0).coactive == ()


def test_rows_can_be_cut_short(tmp_path):
    config = dataclasses.replace(SMALL, feature_rows=31)
    store, naive = gathered(tmp_path, whole_numbers(32, 6), config)
    assert store.meta["rows"] == 31
    for feature in range(6):
        check(store, naive, feature)


def test_nothing_asked_for_is_nothing_kept(tmp_path):
    none = dict.fromkeys(("top", "per_quantile", "near_zero", "random", "inactive"), 0)
    store, naive = gathered(tmp_path, whole_numbers(32, 6), dataclasses.replace(SMALL, **none))
    for feature in range(6):
        check(store, naive, feature)
    assert store.rows("SELECT * FROM context") == []


def test_disjoint_contexts_are_of_different_documents(tmp_path):
    config = dataclasses.replace(SMALL, disjoint=True, top=50, inactive=50)
    store, _ = gathered(tmp_path, whole_numbers(32, 17), config)
    for feature in range(17):
        examples = store.feature(feature).examples
        docs = {c.id: c.doc for group in examples.values() for c in group}
        assert len(set(docs.values())) == len(docs)


def test_features_of_one_document_each_have_their_own_context_of_it(tmp_path):
    packed = packed_rows(rows=3)
    packed = dataclasses.replace(packed, docs=torch.zeros_like(packed.docs))
    config = dataclasses.replace(SMALL, disjoint=True)
    store, naive = gathered(tmp_path, whole_numbers(32, 17), config, packed)
    for feature in range(17):
        check(store, naive, feature)


@pytest.mark.parametrize("capacity", range(7, 20))
def test_a_buffer_of_any_size_turns_rows_into_features(tmp_path, capacity):
    codes = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)).relu().numpy()
    buffer = spill.Buffer(tmp_path / "0", 7, capacity, coactivation.Sample(40, SMALL))
    for row in codes:
        features = row.nonzero()[0].astype(np.int32)
        buffer.add(spill.Positive(np.array([len(features)], np.int32), features, row[features]))
    found = buffer.finish()
    assert len(found.runs) > 3
    for first, last in ((0, 7), (0, 1), (2, 5), (6, 7)):
        block = found.block(first, last)
        turned = np.zeros((last - first, 40), np.float32)
        turned[np.repeat(np.arange(last - first), np.diff(block.offsets)), block.rows] = block.values
        assert (turned == codes.T[first:last]).all()


@pytest.mark.parametrize("kind", ["relu", "linear"])
def test_runs_and_blocks_leave_no_trace(tmp_path, monkeypatch, kind):
    dictionary, packed = whole_numbers(32, 40, kind), packed_rows(rows=30)
    whole, naive = gathered(tmp_path / "whole", dictionary, SMALL, packed)
    small_runs(monkeypatch)
    monkeypatch.setattr(gather, "CODE_BYTES", 10**6)
    monkeypatch.setattr(gather, "PAIR_BYTES", 10**5)
    monkeypatch.setattr(coactivation, "DENSE", 0)
    monkeypatch.setattr(spill, "_require_disk", lambda *_: None)
    written = []
    monkeypatch.setattr(
        spill.Buffer, "_write", lambda self, run, old=spill.Buffer._write: (written.append(1), old(self, run))
    )
    blocks = []
    monkeypatch.setattr(
        gather, "_block", lambda first, entries, old=gather._block: (blocks.append(first), old(first, entries))[1]
    )
    parts, _ = gathered(tmp_path / "parts", dictionary, dataclasses.replace(SMALL, memory_mb=64), packed)
    assert len(written) > 5
    assert len(blocks) > 5
    assert everything(parts) == everything(whole)
    for feature in range(40):
        check(parts, naive, feature)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["it.sqlite"]


def test_co_activation_takes_fewer_rows_where_there_are_too_many_pairs(tmp_path, monkeypatch):
    dictionary = whole_numbers(32, 12)
    rows = source(SMALL, 32)
    monkeypatch.setattr(coactivation, "PAIRS", 300)
    naive = Naive(rows.packed, rows.contexts, rows.positions, dictionary.encode(rows.x), SMALL)
    pairs, kept = 0, []
    for row in naive.sampled:
        pairs += sum(value > 0 for value in naive.codes[row]) ** 2
        if pairs > 300:
            break
        kept.append(row)
    naive.sampled = kept
    store = FeatureStore(from_source(tmp_path, rows, LM, {"it": dictionary}, SMALL)["it"])
    assert store.meta["coactive_rows"] == len(kept) < 40
    for feature in range(12):
        check(store, naive, feature)


def test_several_dictionaries_in_one_pass_are_those_of_their_own(tmp_path):
    both = {"a": whole_numbers(32, 12, seed=1), "b": whole_numbers(32, 5, "linear", seed=2)}
    rows = source(SMALL, 32)
    paths = from_source(tmp_path / "both", rows, LM, both, SMALL)
    for name, dictionary in both.items():
        alone = from_source(tmp_path / name, rows, LM, {name: dictionary}, SMALL)[name]
        assert everything(FeatureStore(paths[name])) == everything(FeatureStore(alone))


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*_: object) -> Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr("monolex.features.weights.neighbours", broken)
    with pytest.raises(RuntimeError, match="broken"):
        gathered(tmp_path, whole_numbers(32, 5), SMALL)
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_said_before_the_rest_is_encoded(tmp_path, monkeypatch):
    small_runs(monkeypatch)
    monkeypatch.setattr(spill, "ENTRY_BYTES", 10**15)
    with pytest.raises(UserError, match="sorting the codes of all features needs .* lower feature_rows"):
        gathered(tmp_path, whole_numbers(32, 5), SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_while_sorting_is_one_sentence(tmp_path, monkeypatch):
    """/dev/full refuses every byte as a full disk does."""
    small_runs(monkeypatch)
    monkeypatch.setattr(spill, "_require_disk", lambda *_: None)
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: real(Path("/dev/full") if mode == "wb" else path, mode))
    with pytest.raises(UserError) as refused:
        gathered(tmp_path, whole_numbers(32, 40), dataclasses.replace(SMALL, memory_mb=64), packed_rows(rows=30))
    said = r"cannot write \S+ k?B to \S+/0-0: No space left on device; \S+ has \S+ [kMGT]?B free: make room or choose"
    assert re.match(said, str(refused.value)), refused.value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pages", [4, 16])
def test_a_full_disk_while_a_store_is_written_is_one_sentence(tmp_path, monkeypatch, pages):
    """At the tables or at a row: SQLite says the same of a file that may not grow as of a full disk."""
    real = sqlite3.connect

    def limited(path, **options):
        db = real(path, **options)
        db.execute("PRAGMA page_size=8192")
        db.execute(f"PRAGMA max_page_count={pages}")
        return db

    monkeypatch.setattr("monolex.features.store_writer.sqlite3.connect", limited)
    with pytest.raises(UserError) as refused:
        gathered(tmp_path, whole_numbers(32, 40), SMALL, packed_rows(rows=30))
    said = rf"cannot write \S+ k?B to {tmp_path}/it.sqlite: database or disk is full; {tmp_path} has \S+ \S+ free: make"
    assert re.match(said, str(refused.value)), refused.value
    assert list(tmp_path.iterdir()) == []
