"""Tiny randomly initialised language models, one for each architecture monolex promises to read."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from monolex.model.hooks import Captured, capture
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap
from monolex.model.sites import KINDS, Site

VOCAB = 101
_NO_SPECIAL = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_GROUPED = {**_NO_SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
_FAMILIES: dict[str, tuple[type, type[PreTrainedModel], dict[str, Any]]] = {
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, _NO_SPECIAL),
    "gpt_neox-serial": (GPTNeoXConfig, GPTNeoXForCausalLM, {**_NO_SPECIAL, "use_parallel_residual": False}),
    "gpt2": (GPT2Config, GPT2LMHeadModel, {**_NO_SPECIAL, "n_inner": 48}),
    "llama": (LlamaConfig, LlamaForCausalLM, _GROUPED),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {**_GROUPED, "head_dim": 16}),
    "gemma3_text": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {**_GROUPED, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, _GROUPED),
    "phi3": (Phi3Config, Phi3ForCausalLM, {**_NO_SPECIAL, "num_key_value_heads": 2}),
    "mistral": (MistralConfig, MistralForCausalLM, {**_GROUPED, "sliding_window": 4}),
    "opt": (OPTConfig, OPTForCausalLM, {**_NO_SPECIAL, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}),
}
ARCHITECTURES = tuple(_FAMILIES)
EDITED = ("gpt_neox", "gpt_neox-serial", "gpt2", "llama", "gemma3_text", "qwen3", "opt")
"""What the tests of edits run over."""


def tiny_hf(architecture: str, **overrides: Any) -> PreTrainedModel:
    """A seeded 3-layer model of width 32 whose norms and biases are not at their trivial initial values."""
    config_class, model_class, extra = _FAMILIES[architecture]
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    if architecture in ("gpt2", "opt"):  # called otherwise there: what `extra` says
        del shape["intermediate_size"]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = model_class(config_class(**{**shape, **extra, **overrides}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tiny(architecture: str, *, double: bool = False, **overrides: Any) -> LanguageModel:
    """:func:`tiny_hf` wrapped (and so verified), in float64 if ``double``; ``overrides`` are configuration fields."""
    model = tiny_hf(architecture, **overrides)
    return wrap(model.double() if double else model, name=f"tiny-{architecture}")


@cache
def model(architecture: str) -> LanguageModel:
    """The float64 model of an architecture, shared between tests: leave it as it was."""
    return tiny(architecture, double=True)


def tokens(batch: int = 2, length: int = 10, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def all_sites(lm: LanguageModel) -> list[Site]:
    return [Site(kind, layer) for layer in range(lm.n_layers) for kind in KINDS if kind in lm.structure.places[layer]]


def read(lm: LanguageModel, site: str, ids: Tensor) -> Tensor:
    return capture(lm, ids, [site]).activations[site]


def full(result: Captured) -> Tensor:
    assert result.logits is not None
    return result.logits


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))
