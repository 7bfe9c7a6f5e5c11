"""Loading models and their controls, wrapping, and what a model says of itself."""

import dataclasses
import importlib.util
import json
import time
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from helpers.tiny import ARCHITECTURES, VOCAB, tiny, tiny_hf
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from monolex.config import ModelConfig
from monolex.errors import UserError
from monolex.model.files import DEMO, source
from monolex.model.hooks import capture, logits
from monolex.model.language_model import _counted
from monolex.model.load import load, wrap

IDS = torch.arange(12).reshape(2, 6)


def save(model: PreTrainedModel, folder: Path, *, shard: str = "1GB", tokenizer: bool = True) -> ModelConfig:
    """``model`` in the Hugging Face layout, with a tokenizer of whole words, and the config that loads it."""
    model.save_pretrained(folder, max_shard_size=shard)
    if tokenizer:
        words = WordLevel({f"w{index}": index for index in range(VOCAB)}, unk_token="w0")
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(folder)
    return ModelConfig(model=str(folder), device="cpu")


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return dataclasses.replace(save(tiny_hf("gpt_neox"), tmp_path / "m"), model_dtype="fp32")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_loads_as_it_was(architecture: str, tmp_path: Path) -> None:
    original = tiny(architecture)
    lm = load(save(original.hf, tmp_path))
    assert torch.equal(logits(lm, IDS), logits(original, IDS))
    assert lm.fingerprint == original.fingerprint
    assert not lm.hf.training
    assert lm.tokenizer is not None
    assert lm.tokenizer.encode("w7") == [7]
    assert lm.name == str(tmp_path)


def test_a_sharded_checkpoint_loads(tmp_path: Path) -> None:
    original = tiny("llama")
    config = save(original.hf, tmp_path, shard="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert load(config).fingerprint == original.fingerprint


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
@pytest.mark.parametrize("control", ["none", "random", "shuffled"])
def test_every_dtype_and_control_loads_in_that_dtype(config: ModelConfig, name, dtype: torch.dtype, control) -> None:
    lm = load(replace(config, model_dtype=name, control=control))
    assert lm.dtype == dtype
    assert {p.dtype for p in lm.hf.parameters()} == {dtype}
    assert {b.dtype for b in lm.hf.buffers()} == {torch.float32}


def test_the_demo_loads() -> None:
    lm = load(ModelConfig(device="cpu"))
    assert (lm.architecture, lm.n_layers, lm.d_model, lm.vocab_size, lm.max_context) == ("gpt_neox", 6, 192, 4096, 512)
    assert lm.name == "demo"


def test_a_model_describes_itself() -> None:
    lm = tiny("gemma3_text")
    assert (lm.architecture, lm.n_layers, lm.d_model, lm.vocab_size, lm.max_context) == (
        "gemma3_text",
        3,
        32,
        VOCAB,
        64,
    )
    assert lm.device == torch.device("cpu")
    assert lm.embedding.shape == lm.unembedding.shape == (VOCAB, 32)
    assert not lm.embedding.requires_grad
    assert lm.tokenizer is None


def test_logits_are_the_unembedding_of_the_final_norm() -> None:
    lm = tiny("gpt_neox", double=True)
    seen = capture(lm, IDS, ["resid_post.2"], logits=True)
    assert torch.equal(lm.final_norm(seen.activations["resid_post.2"]) @ lm.unembedding.T, seen.logits)


# Fingerprint


def test_the_fingerprint_is_of_weights_and_configuration() -> None:
    base = tiny("gpt_neox").fingerprint
    assert len(base) == 64
    assert tiny("gpt_neox").fingerprint == base
    assert tiny("gpt_neox", double=True).fingerprint != base
    assert tiny("gpt_neox", layer_norm_eps=1e-3).fingerprint != base
    hf = tiny_hf("gpt_neox")
    with torch.no_grad():
        hf.lm_head.weight[3, 4] += 1e-6
    assert wrap(hf).fingerprint != base


def test_the_name_is_not_part_of_the_fingerprint(tmp_path: Path) -> None:
    first, second = (load(save(tiny_hf("gpt2"), tmp_path / name)) for name in "ab")
    assert first.name != second.name
    assert first.fingerprint == second.fingerprint


# Controls


@pytest.mark.parametrize("control", ["random", "shuffled"])
def test_controls_are_deterministic_and_differ_by_seed(config: ModelConfig, control) -> None:
    prints = [load(replace(config, control=control, control_seed=seed)).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1]
    assert len({*prints, load(config).fingerprint}) == 3
    assert load(replace(config, control=control)).name.endswith(f"({control}, seed 0)")


@pytest.mark.parametrize("control", ["none", "random", "shuffled"])
def test_loading_leaves_the_global_generator_alone(config: ModelConfig, control) -> None:
    before = torch.get_rng_state()
    load(replace(config, control=control))
    assert torch.equal(torch.get_rng_state(), before)


def test_shuffled_keeps_every_matrix_as_a_set_and_every_vector_as_it_is(config: ModelConfig) -> None:
    original = dict(load(config).hf.named_parameters())
    for name, parameter in load(replace(config, control="shuffled")).hf.named_parameters():
        assert torch.equal(parameter.flatten().sort().values, original[name].flatten().sort().values)
        assert torch.equal(parameter, original[name]) == (parameter.ndim < 2), name


def test_shuffled_keeps_tied_weights_tied(tmp_path: Path) -> None:
    config = save(tiny_hf("gpt2"), tmp_path)
    lm = load(replace(config, control="shuffled"))
    assert lm.embedding.data_ptr() == lm.unembedding.data_ptr()
    assert not torch.equal(lm.embedding, load(config).embedding)


def test_a_control_does_not_write_to_the_checkpoint(config: ModelConfig) -> None:
    weights = Path(config.model) / "model.safetensors"
    before = weights.read_bytes()
    load(replace(config, control="shuffled"))
    assert weights.read_bytes() == before


def test_random_is_the_architectures_own_initialisation(tmp_path: Path) -> None:
    config = save(tiny_hf("gpt_neox", initializer_range=0.05), tmp_path)
    parameters = dict(load(replace(config, control="random")).hf.named_parameters())
    assert parameters["gpt_neox.embed_in.weight"].std().item() == pytest.approx(0.05, rel=0.1)
    assert not parameters["gpt_neox.layers.0.mlp.dense_h_to_4h.bias"].any()
    assert (parameters["gpt_neox.final_layer_norm.weight"] == 1).all()


def test_random_needs_no_weights_and_is_the_same_in_every_dtype(config: ModelConfig) -> None:
    (Path(config.model) / "model.safetensors").unlink()
    wide, narrow = (load(replace(config, control="random", model_dtype=name)) for name in ("fp32", "bf16"))
    assert torch.equal(wide.embedding.bfloat16(), narrow.embedding)


# What a user can get wrong


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no configuration"),
        ("model.safetensors", "no safetensors weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_an_incomplete_folder_says_what_it_lacks(config: ModelConfig, missing: str, message: str) -> None:
    (Path(config.model) / missing).unlink()
    with pytest.raises(UserError, match=message):
        load(config)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        load(ModelConfig(model=str(tmp_path / "nothing")))


def test_a_name_the_hub_cannot_be_asked_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="'someone/some-model' is neither a folder nor a model"):
        load(ModelConfig(model="someone/some-model"))


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(UserError, match="'someone/some-model' is neither a folder nor a model") as caught:
        load(ModelConfig(model="someone/some-model"))
    assert time.monotonic() - started < 5 and "\n" not in str(caught.value)


def test_a_model_in_the_hubs_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--some-model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("c" * 40)
    (cached / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("c" * 40) / "config.json").write_text("{}")
    assert source(ModelConfig(model="someone/some-model")).name == "someone/some-model"


def test_a_revision_of_a_folder(config: ModelConfig) -> None:
    with pytest.raises(UserError, match="revision = 'main'"):
        load(replace(config, revision="main"))


def test_device_map_with_a_control(config: ModelConfig) -> None:
    with pytest.raises(UserError, match="device_map = 'auto' cannot make control = 'shuffled'"):
        load(replace(config, device_map="auto", control="shuffled"))


def test_device_map_without_accelerate(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install accelerate"):
        load(replace(config, device_map="auto"))


def test_weights_out_of_memory_have_no_fingerprint() -> None:
    lm = tiny("gpt2")
    head = lm.hf.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    head.weight = torch.nn.Parameter(head.weight.to("meta"))
    with pytest.raises(UserError, match="device_map moved .* out of memory"):
        _ = lm.fingerprint


def test_a_device_that_is_not_here(config: ModelConfig) -> None:
    with pytest.raises(UserError, match="device = 'cuda:63'"):
        load(replace(config, device="cuda:63"))


def test_weights_that_are_missing_from_a_checkpoint(config: ModelConfig) -> None:
    weights = Path(config.model) / "model.safetensors"
    tensors = load_file(weights)
    del tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="dense_4h_to_h.weight"):
        load(config)


def test_weights_of_another_shape(config: ModelConfig) -> None:
    weights = Path(config.model) / "model.safetensors"
    tensors = load_file(weights)
    tensors["gpt_neox.final_layer_norm.weight"] = torch.ones(31)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="final_layer_norm.weight"):
        load(config)


def test_a_damaged_checkpoint(config: ModelConfig) -> None:
    weights = Path(config.model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(config)


def test_an_architecture_transformers_does_not_know(config: ModelConfig) -> None:
    path = Path(config.model) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "elman"}))
    with pytest.raises(UserError, match="cannot be loaded: .*elman"):
        load(config)


def test_a_model_that_gives_nan_is_refused() -> None:
    hf = tiny_hf("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN .* choose model_dtype fp32"):
        wrap(hf)


# Manners


def test_loading_is_silent_and_leaves_the_loggers_as_they_were(
    config: ModelConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    transformers_logging.enable_progress_bar()
    try:
        load(config)
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
        assert not are_progress_bars_disabled()
    finally:
        transformers_logging.set_verbosity(verbosity)
    assert capfd.readouterr() == ("", "")


def test_wrapping_leaves_the_callers_model_as_it_was() -> None:
    hf = tiny_hf("gpt2").train()
    weights = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    lm = wrap(hf, name="mine")
    assert lm.hf is hf
    assert lm.name == "mine"
    assert all(module.training for module in hf.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in hf.state_dict().items())


def test_the_demo_is_part_of_the_package() -> None:
    assert (DEMO / "README.md").is_file()


def test_a_title_says_what_a_folder_holds(tmp_path, monkeypatch):
    folder = tmp_path / "hf"
    lm = load(save(tiny_hf("llama"), folder))
    count = sum(parameter.numel() for parameter in lm.hf.parameters())
    assert lm.title == f"hf (Llama, {count / 1000:.3g}k parameters)"
    monkeypatch.chdir(folder)
    assert replace(lm, name=".").title == lm.title
    config = json.loads((folder / "config.json").read_text())
    for said, title in (("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"), ("/models/hf", lm.title)):
        (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": said}))
        assert lm.title == title
    cached = tmp_path / "hub" / "models--EleutherAI--pythia-70m" / "snapshots" / "a39f36b"
    cached.mkdir(parents=True)
    assert replace(lm, name=str(cached)).title == "EleutherAI/pythia-70m"
    (folder / "demo").mkdir()
    assert [replace(lm, name=name).title for name in ("demo", "gpt2", "org/name")] == ["demo", "gpt2", "org/name"]


@pytest.mark.parametrize(
    ("number", "said"), [(950, "950"), (25_312, "25.3k"), (134_515_008, "135M"), (1.71e9, "1.71B")]
)
def test_sizes_of_models_are_said_as_people_say_them(number, said):
    assert _counted(int(number)) == said
