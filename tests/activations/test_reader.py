"""Readers over real harvests, and streams over rows that tell their own number."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from helpers.tiny_harvests import SITES, corpus_of, make_lm, numbered, small_shards, store
from torch import Tensor

from monolex.activations.reader import Reader
from monolex.activations.rule import RowFilter
from monolex.activations.shuffle import Mixing
from monolex.activations.stored import packed_rows
from monolex.activations.stream import ModelStream, Stream
from monolex.errors import UserError
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel
from monolex.text.corpus import build
from monolex.text.rows import Rows


class Numbered:
    """Rows in memory: column 0 is the row's number; ``per_document`` neighbours belong together."""

    def __init__(self, n_rows: int, per_document: int = 10, dtype: torch.dtype = torch.float32) -> None:
        self.n_rows, self._dtype = n_rows, dtype
        self._docs = torch.arange(n_rows) // per_document
        self.gathered: list[int] = []

    def gather(self, index: Tensor, *, raw: bool = False) -> Tensor:
        self.gathered.append(len(index))
        rows = numbered(self.n_rows)[index]
        return rows.to(self._dtype) if raw else rows

    def docs(self, start: int, stop: int) -> Tensor:
        return self._docs[start:stop]


def served(stream: Stream, batches: int, start_step: int = 0) -> list[Tensor]:
    return [batch["a"][:, 0].long() for batch in itertools.islice(stream.batches(start_step), batches)]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return make_lm()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Path:
    """A harvest in shards of 16 rows or fewer each, in fp16."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch, 1)
        store(folder / "out", lm, corpus_of(folder), dtype="fp16", batch_rows=1)
    return folder / "out"


def test_ranges_and_chunks_cross_shards(folder: Path) -> None:
    reader = Reader(folder, SITES[1])
    whole = reader.read(0, reader.n_rows)
    assert whole.shape == (reader.n_rows, reader.d_in) == (reader.n_rows, 48) and whole.dtype == torch.float32
    assert reader.dtype == "fp16" and reader.model["name"] == "tiny" and len(reader.content) == 64
    docs = reader.docs(0, reader.n_rows)
    for start, stop in [(0, 0), (0, 1), (13, 53), (14, 17), (reader.n_rows - 1, reader.n_rows)]:
        assert torch.equal(reader.read(start, stop), whole[start:stop])
        assert torch.equal(reader.docs(start, stop), docs[start:stop])
    assert torch.equal(reader.read(reader.n_rows, reader.n_rows), whole[:0])
    starts, parts = zip(*reader.chunks(37), strict=True)
    assert torch.equal(torch.cat(parts), whole) and starts == tuple(range(0, reader.n_rows, 37))
    assert [len(part) for _, part in reader.chunks(37, limit=50)] == [37, 13]
    assert sum(len(part) for _, part in reader.chunks(37, limit=10**9)) == reader.n_rows


def test_gather_takes_any_rows_in_any_order(folder: Path) -> None:
    reader = Reader(folder, SITES[0])
    whole = reader.read(0, reader.n_rows)
    index = torch.randint(reader.n_rows, (500,), generator=torch.Generator().manual_seed(0))
    for rows in (index, torch.tensor([3, 3, 0]), torch.tensor([reader.n_rows - 1]), torch.empty(0, dtype=torch.long)):
        assert torch.equal(reader.gather(rows), whole[rows])
        assert torch.equal(reader.gather(rows, raw=True), whole[rows].half())
        assert reader.gather(rows, raw=True).dtype == torch.float16
    assert reader.gather(torch.empty(0, dtype=torch.long)).shape == (0, 32)


def test_what_cannot_be_read_is_one_sentence(folder: Path, tmp_path: Path, lm: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"no site 'resid_post.1'; it holds resid_post.0, mlp_act.1, resid_post.2"):
        Reader(folder, "resid_post.1")
    with pytest.raises(UserError, match="no finished activations artefact"):
        Reader(tmp_path, "resid_post.1")
    with pytest.raises(UserError, match="split = 'valid': choose train or held_out"):
        Reader(folder, SITES[0], "valid")  # pyright: ignore[reportArgumentType]
    store(tmp_path, lm, corpus_of(tmp_path / "text"))
    shard = tmp_path / SITES[0] / "train-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"has {len(content) - 1} bytes instead of {len(content)}"):
        Reader(tmp_path, SITES[0])
    shard.write_bytes(b"\xff" * len(content))
    with pytest.raises(UserError, match="train-00000.safetensors is damaged"):
        Reader(tmp_path, SITES[0]).read(0, 1)
    corpus = tmp_path / "corpus.safetensors"
    corpus.write_bytes(b"\xff" * corpus.stat().st_size)
    with pytest.raises(UserError, match="corpus.safetensors is damaged .*; delete its manifest and harvest again"):
        packed_rows(tmp_path, "train")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        Reader(tmp_path, SITES[0])


@pytest.mark.parametrize(("n_rows", "window"), [(1000, 5000), (1000, 1000), (1003, 128), (1003, 700), (997, 32)])
def test_an_epoch_serves_every_row_once(n_rows: int, window: int) -> None:
    stream = Stream({"a": Numbered(n_rows)}, 32, 0, window)
    assert stream.steps_per_epoch == n_rows // 32
    batches = served(stream, 2 * stream.steps_per_epoch)
    epochs = [torch.cat(batches[: len(batches) // 2]), torch.cat(batches[len(batches) // 2 :])]
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch) == n_rows // 32 * 32 and int(epoch.max()) < n_rows
    assert not torch.equal(*epochs)


@pytest.mark.parametrize(
    ("batch", "window", "block"), [(32, 64, 1), (32, 300, 1), (32, 5000, 1), (17, 300, 2), (11, 700, 7), (5, 800, 16)]
)
def test_a_batch_follows_from_seed_and_number(batch: int, window: int, block: int) -> None:
    def stream(seed: int = 0) -> Stream:
        return Stream({"a": Numbered(1003)}, batch, seed, window)

    # a last block that is short, wherever blocks are of more than a row
    assert stream()._block == block and (block == 1 or 1003 % block > 0)
    per_epoch = stream().steps_per_epoch
    expected = torch.cat(served(stream(), 2 * per_epoch + 10)).split(batch)
    for start in (*range(0, 2 * per_epoch, 5), per_epoch - 1, per_epoch, per_epoch + 1):
        found = torch.cat(served(stream(), 10, start))
        assert torch.equal(found, torch.cat(expected[start : start + 10])), start
    assert not torch.equal(served(stream(1), 1)[0], expected[0])


def test_sites_move_in_step_and_come_as_float32() -> None:
    stream = Stream({"a": Numbered(500), "b": Numbered(500, dtype=torch.float16)}, 50, 0, 100)
    for batch in itertools.islice(stream.batches(), 20):
        assert torch.equal(batch["a"], batch["b"]) and batch["b"].dtype == torch.float32
        assert batch["a"].shape == (50, 2)


def test_a_split_that_fits_one_window_is_read_once_and_permuted_uniformly() -> None:
    source = Numbered(64)
    stream = Stream({"a": source}, 64, 0, 64)
    firsts = torch.stack([batch[0] for batch in served(stream, 1000)])
    assert source.gathered == [64]
    counts = torch.bincount(firsts, minlength=64)
    # 1000 draws from 64: mean 15.6, standard deviation 3.9.
    assert int(counts.min()) >= 1 and int(counts.max()) <= 36


def test_larger_data_never_takes_more_than_its_windows() -> None:
    source = Numbered(10_000)
    stream = Stream({"a": source}, 32, 0, 1024)
    served(stream, 2 * stream.steps_per_epoch)
    assert max(source.gathered) <= 1024 + 16 and 20 <= len(source.gathered) <= 22


@pytest.mark.parametrize(
    ("n_rows", "batch", "window", "per_document"),
    [
        (40_000, 256, 256, 7),
        (40_000, 256, 1024, 7),
        (40_000, 256, 8192, 50),
        (40_000, 256, 40_000, 1),
        (900, 300, 400, 5),
    ],
)
def test_batches_mix_documents(n_rows: int, batch: int, window: int, per_document: int) -> None:
    mixing = Stream({"a": Numbered(n_rows, per_document)}, batch, 0, window).mixing()
    assert 0.9 <= mixing.ratio <= 1.1
    assert mixing.ratio == pytest.approx(mixing.distinct / mixing.ideal)


def test_mixing_counts_documents_of_the_real_batches() -> None:
    source = Numbered(2000, per_document=20)
    stream = Stream({"a": source}, 100, 0, 500)
    distinct = [len((rows // 20).unique()) for rows in served(stream, 4)]
    mixing = stream.mixing(4)
    assert mixing.distinct == sum(distinct) / 4
    draws = torch.Generator().manual_seed(0)
    uniform = [len((torch.randperm(2000, generator=draws)[:100] // 20).unique()) for _ in range(300)]
    assert mixing.ideal == pytest.approx(sum(uniform) / 300, rel=0.02)
    assert Stream({"a": Numbered(40, 40)}, 40, 0, 40).mixing() == Mixing(1.0, 1.0, 1.0)


def test_streams_refuse_what_cannot_work() -> None:
    with pytest.raises(UserError, match="batch_size = 64 is above the 63 rows"):
        Stream({"a": Numbered(63)}, 64, 0, 100)
    with pytest.raises(UserError, match="buffer_rows = 8 is below batch_size = 16"):
        Stream({"a": Numbered(63)}, 16, 0, 8)
    with pytest.raises(UserError, match="different numbers of rows"):
        Stream({"a": Numbered(63), "b": Numbered(64)}, 16, 0, 32)
    with pytest.raises(UserError, match="no site"):
        Stream({}, 16, 0, 32)


def test_a_failing_read_reaches_the_trainer() -> None:
    class Broken(Numbered):
        def gather(self, index: Tensor, *, raw: bool = False) -> Tensor:
            if len(self.gathered) == 2:
                raise UserError("the disk is gone")
            return super().gather(index, raw=raw)

    batches = Stream({"a": Broken(1000)}, 10, 0, 100).batches()
    with pytest.raises(UserError, match="the disk is gone"):
        for _ in range(100):
            next(batches)


def test_a_stream_of_stored_sites_serves_stored_rows(folder: Path) -> None:
    readers = {site: Reader(folder, site) for site in SITES}
    stream = Stream(readers, 64, 0, 128)
    batches = list(itertools.islice(stream.batches(), stream.steps_per_epoch))
    for site, reader in readers.items():
        assert_rows_of(torch.cat([batch[site] for batch in batches]), reader.read(0, reader.n_rows))


def assert_rows_of(found: Tensor, whole: Tensor) -> None:
    """Every found row is one of ``whole`` (up to the rounding of another batch), none more often than there."""
    near = torch.cdist(found.double(), whole.double()) < 1e-4
    twins = torch.cdist(whole.double(), whole.double()) < 1e-4
    assert bool(near.any(1).all()) and bool((near.sum(0) <= twins.sum(0)).all())
    assert len(found) > len(whole) - 64


@pytest.fixture(scope="module")
def rows(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    corpus = corpus_of(tmp_path_factory.mktemp("corpus"), held_out=0.0)
    return build(corpus, lm.tokenizer).train  # pyright: ignore[reportArgumentType]


def model_stream(lm: LanguageModel, rows: Rows, window: int, seed: int = 0, drop_bos: bool = True) -> ModelStream:
    filtered = RowFilter(drop_bos)
    return ModelStream(lm, rows, ["resid_post.0", "mlp_act.2"], 32, seed, window, batch_rows=4, row_filter=filtered)


@pytest.mark.parametrize("window", [100, 333, 10_000])
@pytest.mark.parametrize("drop_bos", [True, False])
def test_an_epoch_from_the_model_serves_every_token_once(
    window: int, drop_bos: bool, lm: LanguageModel, rows: Rows
) -> None:
    stream = model_stream(lm, rows, window, drop_bos=drop_bos)
    keep = rows.keep & (rows.tokens != 0) if drop_bos else rows.keep
    assert stream.steps_per_epoch == int(keep.sum()) // 32
    batches = list(itertools.islice(stream.batches(), stream.steps_per_epoch))
    seen = capture(lm, rows.tokens.long(), ["resid_post.0", "mlp_act.2"]).activations
    for site, values in seen.items():
        found = torch.cat([batch[site] for batch in batches])
        assert found.dtype == torch.float32 and not found.is_inference()
        assert_rows_of(found, values[keep])


@pytest.mark.parametrize("window", [100, 10_000])
def test_a_batch_from_the_model_follows_from_seed_and_number(window: int, lm: LanguageModel, rows: Rows) -> None:
    def take(count: int, start: int = 0, seed: int = 0) -> list[Tensor]:
        batches = model_stream(lm, rows, window, seed).batches(start)
        return [torch.cat(list(batch.values()), 1) for batch in itertools.islice(batches, count)]

    per_epoch = model_stream(lm, rows, window).steps_per_epoch
    expected = take(per_epoch + 6)
    for start in (1, 4, per_epoch - 1, per_epoch, per_epoch + 2):
        assert all(map(torch.equal, take(4, start), expected[start:]))
    assert not torch.equal(take(1, seed=1)[0], expected[0])


def test_the_content_of_a_stream_from_the_model_follows_what_it_serves(lm: LanguageModel, rows: Rows) -> None:
    def content(
        sites: tuple[str, ...] = ("resid_post.0",), batch: int = 32, seed: int = 0, window: int = 100,
        *, of: Rows = rows, lm: LanguageModel = lm, batch_rows: int = 16, drop_bos: bool = True, max_norm: float = 10,
    ) -> str:  # fmt: skip
        return ModelStream(lm, of, sites, batch, seed, window, batch_rows, RowFilter(drop_bos, max_norm)).content

    changed = [
        content(("resid_post.1",)),
        content(batch=16),
        content(seed=1),
        content(window=200),
        content(drop_bos=False),
        content(max_norm=9),
        content(of=Rows(rows.tokens.flip(0), rows.docs.flip(0), rows.keep.flip(0))),
        content(of=Rows(rows.tokens, rows.docs, rows.keep & (torch.arange(16) > 1))),
        content(lm=make_lm("llama")),
    ]
    assert len({content(), *changed}) == 1 + len(changed)
    # which tokens are kept, even where that changes neither their number nor that of windows
    everything = torch.ones_like(rows.keep)
    every_other = everything & (torch.arange(16) % 2 > 0)
    kept = [Rows(rows.tokens, rows.docs, keep) for keep in (every_other, ~every_other)]
    assert len({content(of=part, drop_bos=False) for part in kept}) == 2
    marked = rows.tokens.clone()
    marked[:, 0] = 0
    whole = Rows(marked, rows.docs, everything)
    assert content(of=whole, window=10_000) != content(of=whole, window=10_000, drop_bos=False)
    assert content(batch_rows=4) == content(batch_rows=8) == content()


def test_batches_from_the_model_mix_documents(lm: LanguageModel, rows: Rows) -> None:
    spread = model_stream(lm, rows, 600).mixing()
    assert 0.9 <= spread.ratio <= 1.3 and spread.distinct == spread.ratio * spread.ideal
    # A window of two packed rows cannot draw from many documents, and says so.
    assert model_stream(lm, rows, 32).mixing().ratio < 0.5


def test_a_stream_from_the_model_refuses_unknown_sites_and_small_corpora(lm: LanguageModel, rows: Rows) -> None:
    with pytest.raises(UserError, match="layer"):
        ModelStream(lm, rows, ["resid_post.9"], 32, 0, 64)
    with pytest.raises(UserError, match="batch_size = 100000 is above"):
        ModelStream(lm, rows, ["resid_post.0"], 100_000, 0, 200_000)
