"""A harvest is checked against the model itself: every stored row is what a forward pass of its packed row gives."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.tiny import tiny, tiny_hf
from helpers.tiny_harvests import SITES, contents, corpus_of, make_lm, small_shards, store
from helpers.tiny_texts import make_tokenizer, write_chats
from safetensors.torch import load_file

from monolex import artifact
from monolex.activations.harvest import disk_need
from monolex.activations.reader import Reader, Split
from monolex.artifact import Manifest, open_artifact, verify
from monolex.config import CorpusConfig
from monolex.errors import UserError
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap
from monolex.text.corpus import build

SPLITS: tuple[Split, ...] = ("train", "held_out")


class Stored(NamedTuple):
    lm: LanguageModel
    corpus: CorpusConfig
    folder: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return make_lm()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Stored:
    folder = tmp_path_factory.mktemp("harvest")
    corpus = corpus_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
        return Stored(lm, corpus, folder / "out", store(folder / "out", lm, corpus))


def crash_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> list[Path]:
    """Let ``writes`` files be written and raise at the next, as a kill would end the process."""
    write, written = artifact.write_bytes, []

    def failing(path: Path, content: bytes) -> artifact.FileEntry:
        if len(written) == writes:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, content)

    monkeypatch.setattr(artifact, "write_bytes", failing)
    return written


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_is_what_the_model_gives(stored: Stored, split: Split) -> None:
    built = build(stored.corpus, stored.lm.tokenizer)  # pyright: ignore[reportArgumentType]
    rows = {"train": built.train, "held_out": built.held_out}[split]
    seen = [capture(stored.lm, part.long(), SITES).activations for part in rows.tokens.split(4)]
    keep = rows.keep & (rows.tokens != 0)
    assert 0 < keep.sum() < keep.numel()
    context, position = keep.nonzero(as_tuple=True)
    for site in SITES:
        reader = Reader(stored.folder, site, split)
        n = reader.n_rows
        expected = torch.cat([batch[site] for batch in seen])[keep]
        assert torch.equal(reader.read(0, n), expected)
        assert torch.equal(reader.tokens(0, n), rows.tokens[keep])
        assert torch.equal(reader.docs(0, n), rows.docs[keep])
        assert torch.equal(reader.contexts(0, n).long(), context)
        assert torch.equal(reader.positions(0, n).long(), position)


def test_the_manifest_tells_what_is_there(stored: Stored) -> None:
    manifest = verify(stored.folder)
    data = manifest.data
    assert manifest == stored.manifest and manifest.content == stored.manifest.content
    assert manifest.parents["model"] == stored.lm.fingerprint == data["model"]["fingerprint"]
    assert len(data["shards"]["train"]) > 2 and data["rows"]["train"] == sum(data["shards"]["train"])
    assert {site: facts["d_in"] for site, facts in data["sites"].items()} == {
        "resid_post.0": 32, "mlp_act.1": 48, "resid_post.2": 32,
    }  # fmt: skip
    built = build(stored.corpus, stored.lm.tokenizer)  # pyright: ignore[reportArgumentType]
    for split, rows in (("train", built.train), ("held_out", built.held_out)):
        dropped = data["dropped"][split]
        assert dropped["bos"] == int((rows.keep & (rows.tokens == 0)).sum()) > 0
        assert data["rows"][split] + sum(dropped.values()) == rows.tokens.numel()
    assert manifest.parents["corpus"] == built.digest == data["corpus"]["digest"]
    assert data["warnings"] == built.report.warnings and " of max_tokens = 2,000,000" in data["warnings"][0]
    present = {str(path.relative_to(stored.folder)) for path in stored.folder.rglob("*") if path.is_file()}
    assert present == {*manifest.files, "manifest.json"}


def test_the_packed_corpus_lies_beside(stored: Stored) -> None:
    packed = load_file(stored.folder / "corpus.safetensors")
    built = build(stored.corpus, stored.lm.tokenizer)  # pyright: ignore[reportArgumentType]
    for split, rows in (("train", built.train), ("held_out", built.held_out)):
        assert torch.equal(packed[f"{split}.tokens"], rows.tokens)
        assert torch.equal(packed[f"{split}.docs"], rows.docs)
        assert torch.equal(packed[f"{split}.keep"], rows.keep)


@pytest.mark.parametrize("site", SITES)
def test_a_site_alone_gives_the_same_rows(site: str, stored: Stored, tmp_path: Path) -> None:
    store(tmp_path, stored.lm, stored.corpus, sites=(site,))
    alone, together = Reader(tmp_path, site), Reader(stored.folder, site)
    assert torch.equal(alone.read(0, alone.n_rows), together.read(0, together.n_rows))
    assert len(open_artifact(tmp_path).data["shards"]["train"]) == 1


def test_positions_and_separator_by_option(stored: Stored, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, positions="3:")
    manifest = store(tmp_path / "out", stored.lm, corpus, drop_bos=False)
    reader = Reader(tmp_path / "out", SITES[0])
    assert set(reader.positions(0, reader.n_rows).tolist()) == set(range(3, 16))
    assert (reader.tokens(0, reader.n_rows) == 0).any()
    dropped = manifest.data["dropped"]["train"]
    assert dropped["bos"] == 0 and dropped["position_or_role"] * 13 == manifest.data["rows"]["train"] * 3


def test_the_separator_of_a_tokenizer_without_a_bos_is_left_out(tmp_path: Path) -> None:
    lm = wrap(tiny_hf("gpt_neox", vocab_size=330), make_tokenizer(bos=False, eos=True), "tiny")
    end = lm.tokenizer.eos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    manifest = store(tmp_path / "out", lm, corpus_of(tmp_path))
    packed = load_file(tmp_path / "out" / "corpus.safetensors")
    separators = int((packed["train.tokens"] == end)[packed["train.keep"]].sum())
    assert manifest.data["dropped"]["train"]["bos"] == separators > 0
    reader = Reader(tmp_path / "out", SITES[0])
    assert end not in reader.tokens(0, reader.n_rows)


def test_batches_without_a_kept_token_are_passed_over(lm: LanguageModel, tmp_path: Path, monkeypatch) -> None:
    small_shards(monkeypatch, 1)
    chat = [("user", "the cat sat on a mat and the red house saw two dogs run"), ("assistant", "two")]
    path = write_chats(tmp_path / "chats.jsonl", *[chat] * 3)
    corpus = corpus_of(tmp_path, corpus=str(path), held_out=0.0, row_separator=False)
    shards = store(tmp_path / "out", lm, corpus, batch_rows=1).data["shards"]["train"]
    assert 0 in shards and sum(shards) > 0
    reader = Reader(tmp_path / "out", SITES[0])
    tokens = lm.tokenizer.decode(reader.tokens(0, reader.n_rows).tolist())  # pyright: ignore[reportOptionalMemberAccess]
    assert tokens == "two" * 2, "the third lies in the last, dropped row"
    assert torch.equal(reader.gather(torch.arange(reader.n_rows)), reader.read(0, reader.n_rows))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_nan_from_the_model_is_named(wrong: float, tmp_path: Path) -> None:
    lm = make_lm()
    corpus = corpus_of(tmp_path)
    rows = build(corpus, lm.tokenizer).train  # pyright: ignore[reportArgumentType]
    token = int(rows.tokens[-1, -1])
    first = int((rows.tokens == token).any(1).int().argmax())
    with torch.no_grad():
        lm.embedding[token] = wrong
    with pytest.raises(UserError, match=rf"NaN or infinity at resid_pre.0, first in packed row {first}: .*fp32"):
        store(tmp_path / "out", lm, corpus, sites=("resid_pre.0",), dtype="auto", max_norm=3.0)


def test_done_is_not_done_again(stored: Stored, monkeypatch, caplog) -> None:
    crash_after(monkeypatch, 0)
    caplog.set_level("INFO")
    (stored.folder / "progress.json").write_text("left by a kill after the manifest")
    again = store(stored.folder, stored.lm, stored.corpus, batch_rows=7)
    assert again == stored.manifest and "is done" in caplog.text
    assert not (stored.folder / "progress.json").exists()


@pytest.mark.parametrize(
    "changes", [{"sites": ("resid_post.1",)}, {"dtype": "bf16"}, {"drop_bos": False}, {"max_norm": 1.5}]
)
def test_another_request_starts_anew(changes: dict[str, object], stored: Stored, tmp_path: Path) -> None:
    shutil.copytree(stored.folder, tmp_path / "reused")
    (tmp_path / "reused" / "notes.txt").write_text("mine")
    store(tmp_path / "reused", stored.lm, stored.corpus, **changes)
    store(tmp_path / "fresh", stored.lm, stored.corpus, **changes)
    assert contents(tmp_path / "reused") == {**contents(tmp_path / "fresh"), "notes.txt": b"mine"}


def test_a_crash_at_any_write_resumes_to_the_same_bytes(lm: LanguageModel, tmp_path: Path, monkeypatch) -> None:
    small_shards(monkeypatch)
    corpus = corpus_of(tmp_path, 14, held_out=0.3)
    whole = store(tmp_path / "whole", lm, corpus)
    assert all(len(numbers) > 0 for numbers in whole.data["shards"].values())
    shards = sum(len(numbers) for numbers in whole.data["shards"].values())
    corpus_and_manifest, rows_and_progress = 2, 2
    for before in range(corpus_and_manifest + shards * (len(SITES) + rows_and_progress)):
        folder = tmp_path / str(before)
        with monkeypatch.context() as patch:
            written = crash_after(patch, before)
            with pytest.raises(KeyboardInterrupt):
                store(folder, lm, corpus)
        assert len(written) == before and not (folder / "manifest.json").exists()
        assert store(folder, lm, corpus).content == whole.content
        assert contents(folder) == contents(tmp_path / "whole"), f"killed after {before} writes"


def test_resuming_recomputes_only_what_is_missing(stored: Stored, tmp_path: Path, monkeypatch) -> None:
    small_shards(monkeypatch)
    with monkeypatch.context() as patch:
        crash_after(patch, 1 + 2 * (len(SITES) + 2) + 1)
        with pytest.raises(KeyboardInterrupt):
            store(tmp_path, stored.lm, stored.corpus)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/train-0000[01]*")}
    assert len(kept) == 2 * (len(SITES) + 1)
    store(tmp_path, stored.lm, stored.corpus, batch_rows=64)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert contents(tmp_path) == contents(stored.folder), "the recorded batch_rows is kept"


@pytest.mark.parametrize("damage", ["truncated", "missing", "progress"])
def test_a_damaged_remainder_is_not_built_upon(damage: str, stored: Stored, tmp_path: Path, monkeypatch) -> None:
    small_shards(monkeypatch)
    with monkeypatch.context() as patch:
        crash_after(patch, 1 + 2 * (len(SITES) + 2))
        with pytest.raises(KeyboardInterrupt):
            store(tmp_path, stored.lm, stored.corpus)
    shard = tmp_path / SITES[0] / "train-00000.safetensors"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "missing":
        shard.unlink()
    else:
        (tmp_path / "progress.json").write_text('{"request": 1')
    store(tmp_path, stored.lm, stored.corpus)
    assert contents(tmp_path) == contents(stored.folder)


@pytest.mark.parametrize("other", ["option", "text", "weights"])
def test_a_killed_harvest_of_something_else_is_not_built_upon(
    other: str, stored: Stored, tmp_path: Path, monkeypatch
) -> None:
    """Its shards are whole, of the same sites and as many rows."""
    small_shards(monkeypatch)
    lm, corpus, changes = stored.lm, stored.corpus, {}
    if other == "option":
        changes = {"max_norm": 1e6}
    elif other == "text":
        corpus = replace(corpus, corpus_seed=7)
    else:
        lm = make_lm()
        with torch.no_grad():
            lm.hf.get_input_embeddings().weight.mul_(1.5)
    with monkeypatch.context() as patch:
        crash_after(patch, 1 + 2 * (len(SITES) + 2))
        with pytest.raises(KeyboardInterrupt):
            store(tmp_path / "killed", lm, corpus, **changes)
    assert list((tmp_path / "killed").glob("*/train-00001*"))
    store(tmp_path / "killed", stored.lm, stored.corpus)
    assert contents(tmp_path / "killed") == contents(stored.folder)


SCRIPT = """
import sys, time
from pathlib import Path
from helpers.tiny_harvests import corpus_of, make_lm, store
from monolex.activations import harvest
harvest._shard_batches = lambda *_: 2
forward = harvest.forward
def slow(*args):
    time.sleep(0.1)
    return forward(*args)
harvest.forward = slow
store(Path(sys.argv[1]) / "out", make_lm(), corpus_of(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_sigkill_at_any_moment(lm: LanguageModel, tmp_path: Path, monkeypatch) -> None:
    small_shards(monkeypatch)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    corpus, command = corpus_of(tmp_path), [sys.executable, "-c", SCRIPT, str(tmp_path)]
    for shards, delay in ((1, 0.0), (3, 0.07), (5, 0.13)):
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(tmp_path.glob("out/rows/*.safetensors"))) < shards:
                time.sleep(0.005)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    store(tmp_path / "out", lm, corpus)
    store(tmp_path / "whole", lm, corpus)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_shards_have_the_size_asked_for(lm: LanguageModel, tmp_path: Path) -> None:
    kinds = ("resid_pre", "resid_post", "mlp_in", "mlp_act", "mlp_out", "attn_out", "attn_z")
    store(tmp_path / "out", lm, corpus_of(tmp_path, 100), sites=tuple(f"{kind}.*" for kind in kinds), shard_mb=1)
    sizes: dict[str, int] = {}
    for path in tmp_path.glob("out/*/train-*.safetensors"):
        sizes[path.name] = sizes.get(path.name, 0) + path.stat().st_size
    assert len(sizes) > 2 and max(sizes.values()) < 1_000_000 < sum(sizes.values())
    assert min(size for name, size in sizes.items() if name != max(sizes)) > 600_000


def test_a_full_disk_is_refused_before_starting(stored: Stored, tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"harvesting \d+ rows of 3 sites needs .* has 100 kB free; lower max_tokens"):
        store(tmp_path / "out", stored.lm, stored.corpus)
    assert "harvest: 3 sites x" in caplog.text and "100 kB free" in caplog.text
    assert not (tmp_path / "out").exists()


def test_disk_need_is_what_is_written(stored: Stored) -> None:
    rows = sum(stored.manifest.data["rows"].values())
    built = build(stored.corpus, stored.lm.tokenizer)  # pyright: ignore[reportArgumentType]
    tokens = built.train.tokens.numel() + built.held_out.tokens.numel()
    written = sum(entry.bytes for entry in stored.manifest.files.values())
    headers = 400 * len(stored.manifest.files)
    assert 0 < written - disk_need([32, 48, 32], rows, tokens, "fp32") < headers
    assert disk_need([32], 10, 0, "auto") == disk_need([32], 10, 0, "fp16") == 10 * (64 + 16 + 4)


def test_unknown_layers_sites_and_tokenizers_are_refused(lm: LanguageModel, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    with pytest.raises(UserError, match="layer"):
        store(tmp_path / "out", lm, corpus, sites=("resid_post.7",))
    with pytest.raises(UserError, match="resid_mid"):
        store(tmp_path / "out", lm, corpus, sites=("resid_mid.1",))
    with pytest.raises(UserError, match="no tokenizer"):
        store(tmp_path / "out", tiny("gpt_neox"), corpus)
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "the"}\n' * 3)
    corpus = corpus_of(tmp_path / "x", corpus=str(path), positions="0:1", held_out=0.0, context_length=2)
    with pytest.raises(UserError, match="no row is left to harvest"):
        store(tmp_path / "out", lm, corpus)


def test_no_held_out_split_is_fine(lm: LanguageModel, tmp_path: Path) -> None:
    manifest = store(tmp_path / "out", lm, corpus_of(tmp_path, held_out=0.0))
    assert manifest.data["shards"]["held_out"] == [] and manifest.data["rows"]["held_out"] == 0
    with pytest.raises(UserError, match="no held_out rows"):
        Reader(tmp_path / "out", SITES[0], "held_out")


def test_every_layer_by_a_star(lm: LanguageModel, tmp_path: Path) -> None:
    manifest = store(tmp_path / "out", lm, corpus_of(tmp_path), sites=("resid_post.*",))
    assert list(manifest.data["sites"]) == ["resid_post.0", "resid_post.1", "resid_post.2"]
