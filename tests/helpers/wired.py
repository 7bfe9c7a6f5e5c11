"""A language model of one block whose every number is set by hand: what it does can be worked out on paper."""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap


class Scale(nn.Module):
    """A final norm that changes nothing, so that the logits are linear in the residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def blank(vocab: int, width: int, *, heads: int, positions: int, neurons: int) -> GPT2LMHeadModel:
    """A GPT-2 of one block in float64 whose weights are all 0 and whose norms change nothing."""
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=width,
        n_layer=1,
        n_head=heads,
        n_positions=positions,
        n_inner=neurons,
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    block = model.transformer.h[0]
    block.ln_1, block.ln_2, model.transformer.ln_f = Scale(width), Scale(width), Scale(width)
    return model


def wired(
    embedding: Tensor,
    unembedding: Tensor,
    into: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> LanguageModel:
    """``logits = unembedding · (x + out · relu(into · x + bias))`` of ``x = embedding[token]``, in float64.

    ``into`` is [neurons, width], ``out`` [width, neurons]; left out, the block does nothing.
    """
    vocab, width = embedding.shape
    model = blank(vocab, width, heads=1, positions=16, neurons=1 if into is None else len(into))
    block = model.transformer.h[0]
    with torch.no_grad():
        model.transformer.wte.weight.copy_(embedding)
        model.lm_head.weight.copy_(unembedding)
        if into is not None and bias is not None and out is not None:
            block.mlp.c_fc.weight.copy_(into.T)
            block.mlp.c_fc.bias.copy_(bias)
            block.mlp.c_proj.weight.copy_(out.T)
    return wrap(model, name="wired")


def directions(rows: Tensor, site: str) -> Dictionary:
    """Codes are how far ``x`` goes along each of some unit rows, where that is more than rounding."""
    features, width = rows.shape
    config = DictionaryConfig(
        kind="tied", activation="threshold", threshold=1e-9, d_in=width, d_out=width, d_sae=features, site=site
    )
    zeros = torch.zeros(features, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    weights = {"W_enc": rows, "W_dec": rows, "b_enc": zeros[0], "b_dec": zeros[1], "centre": zeros[1]}
    return Dictionary(config, weights)
