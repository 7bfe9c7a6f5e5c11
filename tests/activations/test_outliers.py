"""A sink at every row's first position, words of an extreme norm, and values that no narrow precision holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_harvests import SITES, corpus_of, make_lm, small_shards, store
from helpers.tiny_texts import sentence, write_jsonl
from torch import Tensor

from monolex.activations import outliers, stream
from monolex.activations.norms import centre, row_norms, usual
from monolex.activations.reader import Reader, Split
from monolex.activations.rule import RowFilter, RowRule, row_rule
from monolex.activations.stream import ModelStream
from monolex.activations.writer import keeps
from monolex.artifact import WARNINGS, open_artifact
from monolex.config import CorpusConfig, FeaturesConfig
from monolex.features.rows import ModelRows
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel
from monolex.text.corpus import build

SPLITS: tuple[Split, ...] = ("train", "held_out")
SITE = "resid_post.0"
LOUD = 20
"""A token whose activations are far from all others."""


def loud(factor: float = 300.0) -> LanguageModel:
    """A model in which one word is loud."""
    lm = make_lm()
    with torch.no_grad():
        lm.embedding[LOUD] *= factor
    return lm


def sinking() -> LanguageModel:
    """A model whose position 0 is a sink, as trained ones have: GPT-2 with a huge first position embedding."""
    lm = make_lm("gpt2")
    with torch.no_grad():
        lm.hf.get_parameter("transformer.wpe.weight")[0] *= 1000
    return lm


def scaled(factor: float, bias: float = 0.0) -> LanguageModel:
    """A model whose first MLP writes ``factor`` times as much, and ``bias`` times its constant."""
    lm = make_lm()
    with torch.no_grad():
        lm.structure.blocks[0].mlp.dense_4h_to_h.weight.mul_(factor)  # pyright: ignore
        lm.structure.blocks[0].mlp.dense_4h_to_h.bias.mul_(bias)  # pyright: ignore
    return lm


def said(data: dict[str, Any]) -> list[str]:
    """What a harvest warns of, but for the size of the corpus."""
    return [sentence for sentence in data[WARNINGS] if not sentence.startswith("corpus = ")]


def rows_of(folder: Path, site: str = SITE, split: Split = "train") -> Tensor:
    reader = Reader(folder, site, split)
    return reader.read(0, reader.n_rows)


def test_the_rule_looks_at_all_rows_and_holds_at_every_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    lm, corpus = loud(), corpus_of(tmp_path)
    every = store(tmp_path / "all", lm, corpus, max_norm=0)
    manifest = store(tmp_path / "some", lm, corpus)
    assert every.data["dropped"]["train"]["norm"] == 0 and every.data["sites"][SITE]["norm_limit"] is None
    facts = manifest.data["sites"]
    limits = {site: 10 * float(rows_of(tmp_path / "all", site).norm(dim=1).median()) for site in SITES}
    for split in SPLITS:
        whole = {site: rows_of(tmp_path / "all", site, split) for site in SITES}
        counts = torch.stack([x.norm(dim=1) <= limits[site] for site, x in whole.items()]).all(0)
        assert manifest.data["dropped"][split]["norm"] == int((~counts).sum()) > 0
        assert manifest.data["rows"][split] == int(counts.sum())
        reader = Reader(tmp_path / "all", SITE, split)
        tokens = reader.tokens(0, reader.n_rows)
        assert set(tokens[~counts].tolist()) == {LOUD}
        for site in SITES:
            kept = Reader(tmp_path / "some", site, split)
            expected = whole[site][counts]
            assert torch.equal(kept.read(0, kept.n_rows), expected)
            assert torch.equal(kept.tokens(0, kept.n_rows), tokens[counts])
            assert torch.allclose(kept.norms(), expected.norm(dim=1))
            assert all(torch.equal(kept.read(i, i + 3), expected[i : i + 3]) for i in range(len(expected) - 2))
            index = torch.randperm(len(expected), generator=torch.Generator().manual_seed(0))
            assert torch.equal(kept.gather(index), expected[index])
    for site in SITES:
        assert facts[site]["norm_limit"] == pytest.approx(limits[site])
        squares = rows_of(tmp_path / "all", site).double().square().sum(1)
        beyond = squares > limits[site] ** 2
        assert facts[site]["outliers"] == {
            "rows": int(beyond.sum()), "share": pytest.approx(float(squares[beyond].sum() / squares.sum()))
        }  # fmt: skip
    named = manifest.data["outlier_tokens"]
    both = sum(manifest.data["dropped"][split]["norm"] for split in SPLITS)
    assert [(entry["token"], entry["count"]) for entry in named] == [(LOUD, both)] and named[0]["text"]


def test_a_sink_never_reaches_a_row(tmp_path: Path) -> None:
    """1.5 % of the rows would hold 99 % of the squared norm; with the separator in front of each row none does."""
    lm = sinking()
    data = store(tmp_path / "out", lm, corpus_of(tmp_path)).data
    assert data["dropped"]["train"]["norm"] == 0 and not said(data)
    reader = Reader(tmp_path / "out", SITE)
    assert 0 not in reader.positions(0, reader.n_rows)
    plain = corpus_of(tmp_path, row_separator=False)
    store(tmp_path / "plain", lm, plain, max_norm=0)
    reader = Reader(tmp_path / "plain", SITE)
    squares = reader.norms().square()
    assert squares[reader.positions(0, reader.n_rows) == 0].sum() > 0.9 * squares.sum(), "or there was no sink"
    filtered = store(tmp_path / "filtered", lm, plain).data
    assert filtered["sites"][SITE]["outliers"]["share"] > 0.9 and filtered["dropped"]["train"]["norm"] > 0
    assert 0 not in Reader(tmp_path / "filtered", SITE).positions(0, filtered["rows"]["train"])
    assert float(row_norms(rows_of(tmp_path / "filtered")).max()) <= filtered["sites"][SITE]["norm_limit"]


def test_few_rows_with_much_of_the_norm_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = store(tmp_path / "out", loud(30), corpus_of(tmp_path), max_norm=0, sites=("resid_pre.0",))
    (sentence,) = said(manifest.data)
    assert sentence.startswith("resid_pre.0: the 1% of the rows") and "a lower max_norm" in sentence
    assert sentence in caplog.text
    many = store(tmp_path / "many", loud(), corpus_of(tmp_path), sites=("resid_pre.0",)).data
    assert len(said(many)) == 1 and "left out at all of them" in said(many)[0]


def test_the_rule_of_live_activations_is_the_harvests(tmp_path: Path) -> None:
    lm, corpus = loud(), corpus_of(tmp_path)
    store(tmp_path / "out", lm, corpus)
    rule, rows = row_rule(tmp_path / "out", SITE), build(corpus, lm.tokenizer).train  # pyright: ignore[reportArgumentType]
    x = capture(lm, rows.tokens.long(), [SITE]).activations[SITE]
    counts = rule.counts(rows.tokens, x)
    assert counts.shape == rows.tokens.shape
    assert int((counts & rows.keep).sum()) == open_artifact(tmp_path / "out").data["rows"]["train"]
    assert RowRule().counts(rows.tokens, x).all()
    store(tmp_path / "every", lm, corpus, max_norm=0, drop_bos=False)
    assert row_rule(tmp_path / "every", SITE) == RowRule()


def test_a_stream_from_the_model_leaves_them_out_too(tmp_path: Path) -> None:
    lm = loud()
    rows = build(corpus_of(tmp_path), lm.tokenizer).train  # pyright: ignore[reportArgumentType]
    streams = {
        most: ModelStream(lm, rows, [SITE], 32, 0, 128, row_filter=RowFilter(max_norm=most)) for most in (10.0, 0.0)
    }
    assert streams[10.0].content != streams[0.0].content
    batches = {most: [next(s) for s in [stream.batches()] for _ in range(9)] for most, stream in streams.items()}
    limit = 10 * streams[10.0].usual[SITE].norm
    replaced = 0
    for filtered, whole in zip(batches[10.0], batches[0.0], strict=True):
        beyond = whole[SITE].norm(dim=1) > limit
        assert torch.equal(filtered[SITE][~beyond], whole[SITE][~beyond])
        assert (filtered[SITE].norm(dim=1) <= limit).all()
        replaced += int(beyond.sum())
    assert replaced > 0
    again = ModelStream(lm, rows, [SITE], 32, 0, 128).batches(5)
    assert torch.equal(next(again)[SITE], batches[10.0][5][SITE])


def test_evidence_from_the_model_leaves_them_out_too(tmp_path: Path) -> None:
    lm, corpus = loud(), corpus_of(tmp_path)
    store(tmp_path / "out", lm, corpus, sites=(SITE,))
    rows = build(corpus, lm.tokenizer).train  # pyright: ignore[reportArgumentType]
    source = ModelRows(lm, rows, SITE, FeaturesConfig(), batch_rows=4)
    assert torch.equal(torch.cat(list(source.chunks(7))), rows_of(tmp_path / "out"))
    assert len(source.table) == Reader(tmp_path / "out", SITE).n_rows
    every = ModelRows(lm, rows, SITE, FeaturesConfig(feature_rows=30), row_filter=RowFilter(max_norm=0))
    assert sum(map(len, every.chunks(7))) == 30


@pytest.mark.parametrize(
    ("factor", "dtype"), [(1.0, "fp16"), (3e5, "bf16"), (1e-6, "bf16"), (1e-7, "bf16"), (1e-12, "bf16")]
)
def test_auto_takes_what_holds_the_values(factor: float, dtype: str, tmp_path: Path) -> None:
    """An rms of 6e-8 is 28 % off in fp16, and one of 6e-9 is zero."""
    lm, sites = scaled(factor), ("mlp_out.0", "attn_out.0")
    store(tmp_path / "auto", lm, corpus_of(tmp_path), dtype="auto", sites=sites)
    store(tmp_path / "fp32", lm, corpus_of(tmp_path), sites=sites)
    auto, exact = Reader(tmp_path / "auto", "mlp_out.0"), Reader(tmp_path / "fp32", "mlp_out.0")
    assert auto.dtype == dtype and exact.dtype == "fp32"
    assert Reader(tmp_path / "auto", "attn_out.0").dtype == "fp16", "each site has its own precision"
    x, stored = exact.read(0, exact.n_rows), auto.read(0, auto.n_rows)
    assert float((stored - x).norm() / x.norm()) < 2**-8
    assert float(x.norm()) > 0


def test_what_varies_decides_and_not_what_is_large(tmp_path: Path) -> None:
    """Beside a constant a hundred thousand times as large, what varies is rounded away by any sixteen bits."""
    manifest = store(tmp_path / "out", scaled(1e-6, 1.0), corpus_of(tmp_path), dtype="auto", sites=("mlp_out.0",))
    assert manifest.data["sites"]["mlp_out.0"]["dtype"] == "fp32"


@pytest.mark.parametrize("dtype", ["auto", "fp16"])
def test_a_late_row_that_does_not_fit_widens_its_shard(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch, 1)
    lm, site = loud(1.0), "resid_pre.0"
    path = write_jsonl(tmp_path / "late.jsonl", [*(sentence(number) for number in range(60)), "a £ cat sat on the mat"])
    corpora = (corpus_of(tmp_path, corpus=str(path), corpus_seed=seed) for seed in range(20))
    late = lm.tokenizer("£").input_ids[0]  # pyright: ignore[reportOptionalCall]
    # with whole shards before and behind it
    corpus = next(corpus for corpus in corpora if 4 < _row_of(late, corpus, lm) < 20)
    with torch.no_grad():
        lm.embedding[late] *= 1e8
    manifest = store(tmp_path / "out", lm, corpus, dtype=dtype, sites=(site,), max_norm=0)
    store(tmp_path / "fp32", lm, corpus, sites=(site,), max_norm=0)
    facts = manifest.data["sites"][site]
    assert len(manifest.data["shards"]["train"]) > 7, "or both buffers would not have been used again"
    assert facts["dtype"] == "fp16" and len(facts["widened"]) == 1 and facts["peak"] > 65504
    reader, exact = Reader(tmp_path / "out", site), Reader(tmp_path / "fp32", site)
    x = reader.read(0, reader.n_rows)
    assert x.isfinite().all() and torch.allclose(x, exact.read(0, exact.n_rows), rtol=2**-10, atol=1e-6)
    order = torch.randperm(reader.n_rows, generator=torch.Generator().manual_seed(1))
    assert torch.equal(reader.gather(order), x[order])
    assert torch.equal(reader.gather(order, raw=True).float(), x[order])


def _row_of(token: int, corpus: CorpusConfig, lm: LanguageModel) -> int:
    """The first training row with a token, -1 for none."""
    rows = build(corpus, lm.tokenizer).train.tokens.tolist()  # pyright: ignore[reportArgumentType]
    return next((number for number, row in enumerate(rows) if token in row), -1)


def test_a_histogram_counts_every_row() -> None:
    norms = torch.tensor([0.0, 1e-9, 1.0, 1.0, 1.0, 1.99, 2.0, 5e9])
    counts, edges = outliers.histogram(norms, 1.0), outliers.edges()
    assert sum(counts) == len(norms) and len(edges) == len(counts) + 1
    at = {round(edges[i], 3): n for i, n in enumerate(counts) if n}
    assert at == {round(2**-6, 3): 2, 1.0: 3, round(2 ** (7 / 8), 3): 1, 2.0: 1, round(2 ** (10 - 1 / 8), 3): 1}
    assert outliers.histogram(torch.zeros(3), 0.0)[0] == 3


def test_the_centre_is_not_moved_by_few_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1000, 8, generator=generator) + 3
    spoiled = rows.clone()
    spoiled[:20] += 1e5
    assert (centre(spoiled) - 3).abs().max() < 0.2 < (spoiled.mean(0) - 3).abs().max()
    assert torch.allclose(centre(rows), rows.mean(0), atol=0.1)
    assert torch.equal(centre(torch.ones(5, 4)), torch.ones(4)) and torch.equal(
        centre(torch.zeros(5, 4)), torch.zeros(4)
    )


def test_where_most_rows_are_zero_none_is_left_out() -> None:
    """Ten times a median of zero would leave out every row that holds anything."""
    norms = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])
    assert outliers.limit(norms, 10.0) is None
    facts = outliers.site_facts(norms, outliers.beyond(norms, None), None)
    assert facts["outliers"] == {"rows": 0, "share": 0.0} and facts["median_norm"] == 0
    assert outliers.limit(norms + 1, 10.0) == 10.0


def test_a_stream_from_the_model_leaves_a_row_out_at_all_sites_or_none(tmp_path: Path) -> None:
    """Sites are served in step: what is replaced for one of them is replaced at the other, by the same row."""
    lm, sites = loud(), ("resid_pre.0", "attn_out.0")
    rows = build(corpus_of(tmp_path), lm.tokenizer).train  # pyright: ignore[reportArgumentType]
    taken, every = (
        ModelStream(lm, rows, sites, 32, 0, 128, row_filter=RowFilter(max_norm=most)).batches() for most in (10.0, 0.0)
    )
    replaced = 0
    for filtered, whole in ((next(taken), next(every)) for _ in range(9)):
        differs = [(filtered[site] != whole[site]).any(1) for site in sites]
        assert torch.equal(*differs)
        replaced += int(differs[0].sum())
    assert replaced > 0


def test_a_stream_from_the_model_keeps_a_site_that_is_mostly_zero(tmp_path: Path) -> None:
    lm = make_lm()
    with torch.no_grad():
        lm.embedding.zero_()
        lm.embedding[LOUD] = 1.0
    rows = build(corpus_of(tmp_path), lm.tokenizer).train  # pyright: ignore[reportArgumentType]
    stream = ModelStream(lm, rows, ["resid_pre.0"], 32, 0, 128)
    assert stream.usual["resid_pre.0"].norm == 0
    batches = stream.batches()
    assert sum(int(next(batches)["resid_pre.0"].any(1).sum()) for _ in range(9)) > 0


def test_evidence_from_the_model_leaves_the_rows_it_is_given_alone(tmp_path: Path) -> None:
    lm = loud()
    rows = build(corpus_of(tmp_path), lm.tokenizer).train  # pyright: ignore[reportArgumentType]
    before = rows.keep.clone()
    source = ModelRows(lm, rows, SITE, FeaturesConfig(), row_filter=RowFilter(drop_bos=False))
    assert len(source.table) < int(before.sum()) and torch.equal(rows.keep, before)


class Metal(Tensor):
    """What lies on a device without float64."""

    def double(self) -> Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64")

    def cpu(self) -> Tensor:
        return self.as_subclass(Tensor)


def test_a_precision_is_chosen_on_devices_without_float64() -> None:
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).as_subclass(Metal)
    assert keeps(x, 5.0, torch.float16) and not keeps(x, 1e5, torch.float16)


def test_the_unit_is_not_moved_by_few_rows() -> None:
    rows = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    spoiled = rows.clone()
    spoiled[:20] *= 1e5
    assert usual(rows).norm == float(rows.norm(dim=1).median())
    assert usual(spoiled).scale == pytest.approx(usual(rows).scale, rel=0.02)


def test_the_next_row_that_counts_takes_an_outliers_place() -> None:
    beyond = torch.tensor([True, False, True, True, False, True])
    assert stream._next_not(beyond).tolist() == [1, 1, 4, 4, 4, 1]
    assert stream._next_not(~torch.ones(3, dtype=torch.bool)).tolist() == [0, 1, 2]
