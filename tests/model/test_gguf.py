"""Models in GGUF files: the numbers of the model they were made from, what the manifest says, what is refused."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
from helpers.gguf_file import write_gguf
from helpers.tiny import tiny_hf
from helpers.tiny_texts import make_tokenizer, sentence, write_jsonl
from huggingface_hub import constants

from monolex.activations.harvest import harvest
from monolex.config import CorpusConfig, HarvestConfig, ModelConfig
from monolex.errors import UserError
from monolex.model import gguf
from monolex.model.hooks import logits
from monolex.model.load import load, n_layers, wrap
from monolex.show.path import show

VOCAB = len(make_tokenizer())
IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture(autouse=True)
def unpacked_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "monolex"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny-1K-Base.F32.gguf"
    write_gguf(path, tiny_hf("llama", vocab_size=VOCAB))
    return path


def config(path: Path, **settings: str) -> ModelConfig:
    return ModelConfig(model=str(path), model_dtype="fp32", device="cpu", **settings)  # pyright: ignore[reportArgumentType]


def test_a_file_of_floats_is_the_model_itself(file: Path):
    lm, parent = load(config(file)), wrap(tiny_hf("llama", vocab_size=VOCAB))
    assert torch.equal(logits(lm, IDS), logits(parent, IDS))
    assert lm.title == "Tiny-1K-Base (F32)"
    assert n_layers(config(file)) == 3


def test_its_tokenizer_reads_text_as_the_original(file: Path):
    lm, original = load(config(file)), make_tokenizer()
    assert lm.tokenizer is not None
    for text in ("the cat sat on 3.14 dogs", "é 日本\n\n  x", "<|im_start|>the mat<|im_end|>"):
        assert lm.tokenizer(text, add_special_tokens=False).input_ids == original(text).input_ids


def test_quantised_weights_are_near_their_parents_and_no_nearer(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    parent = tiny_hf("llama", vocab_size=VOCAB)
    write_gguf(path, parent, quantised=("attn_output", "token_embd"))
    read, of_floats = load(config(path)).hf.state_dict(), parent.state_dict()
    for name, weights in of_floats.items():
        error = float((read[name] - weights).norm() / weights.norm())
        rounded = "o_proj" in name or "embed_tokens" in name
        assert 1e-4 < error < 0.01 if rounded else error == 0, name


def test_where_a_file_lies_is_no_part_of_the_model(file: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere.GGUF"
    moved.write_bytes(file.read_bytes())
    assert load(config(file)).fingerprint == load(config(moved)).fingerprint


def test_a_file_is_unpacked_once_and_a_changed_one_anew(file: Path, unpacked_here: Path):
    load(config(file))
    (folder,) = unpacked_here.iterdir()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    load(config(file))
    assert [(folder / "model.safetensors").stat().st_mtime_ns] == [before]
    write_gguf(file, tiny_hf("llama", vocab_size=VOCAB), quantised=("attn_output",))
    other = load(config(file))
    assert len(list(unpacked_here.iterdir())) == 2
    parent = tiny_hf("llama", vocab_size=VOCAB).state_dict()["model.layers.0.self_attn.o_proj.weight"]
    assert not torch.equal(other.hf.state_dict()["model.layers.0.self_attn.o_proj.weight"], parent)


def test_what_fails_leaves_nothing_behind(file: Path, unpacked_here: Path):
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(UserError):
        load(config(file))
    assert list(unpacked_here.rglob("*")) == []


def test_a_tied_unembedding_stays_tied(tmp_path: Path):
    path = tmp_path / "tied.gguf"
    parent = tiny_hf("llama", vocab_size=VOCAB, tie_word_embeddings=True)
    write_gguf(path, parent)
    lm = load(config(path))
    assert lm.unembedding.data_ptr() == lm.embedding.data_ptr()
    assert torch.equal(logits(lm, IDS), logits(wrap(parent), IDS))


def test_two_processes_may_unpack_at_a_time(file: Path, unpacked_here: Path, monkeypatch: pytest.MonkeyPatch):
    """The one that is second finds the folder and keeps the first's."""
    first = gguf.unpacked(file)
    inside = (first / "model.safetensors").stat().st_mtime_ns
    second = unpacked_here / "second"
    second.mkdir()
    gguf._settle(second, first)
    assert (first / "model.safetensors").stat().st_mtime_ns == inside


@pytest.mark.parametrize("control", ["random", "shuffled"])
def test_controls_are_made_of_it(control: str, file: Path):
    lm = load(config(file, control=control))
    assert lm.n_layers == 3
    assert not torch.equal(logits(lm, IDS), logits(load(config(file)), IDS))


def test_the_manifest_says_that_it_is_dequantised(tmp_path: Path):
    path = tmp_path / "Tiny.Q8_0.gguf"
    write_gguf(path, tiny_hf("llama", vocab_size=VOCAB), quantised=("attn_output",))
    corpus = write_jsonl(tmp_path / "text.jsonl", [sentence(number) for number in range(40)])
    text = CorpusConfig(corpus=str(corpus), max_tokens=600, context_length=16, separator="<s>")
    harvest(tmp_path / "acts", config(path), text, HarvestConfig(sites=("resid_post.1",)))
    told = show(tmp_path / "acts")
    assert "dequantised from GGUF (27 tensors F32, 3 tensors Q8_0)" in told or "3 tensors Q8_0" in told
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in told
    assert "not known" in told


def test_a_damaged_file_is_refused(file: Path):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(config(file))
    file.write_bytes(b"not it" + whole)
    with pytest.raises(UserError, match="does not begin as a GGUF file does"):
        load(config(file))


def test_what_cannot_be_read_is_refused_in_a_sentence(file: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        load(config(tmp_path / "none.gguf"))
    part = tmp_path / "big-00001-of-00003.gguf"
    part.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="gguf-split --merge"):
        load(config(part))
    with pytest.raises(UserError, match="only hub models have revisions"):
        load(config(file, revision="main"))


def test_missing_packages_are_named(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else object())
    with pytest.raises(UserError, match=r"needs accelerate: pip install 'monolex\[gguf\]'"):
        load(config(file))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct (Q4_1)"),
        ("gemma-3-270m-Q4_K_M.gguf", "gemma-3-270m (Q4_K_M)"),
        ("llama-IQ2_XXS.gguf", "llama (IQ2_XXS)"),
        ("model-BF16.gguf", "model (BF16)"),
        ("Qwen3.gguf", "Qwen3"),
    ],
)
def test_titles(name: str, said: str):
    assert gguf.title(Path(name)) == said
