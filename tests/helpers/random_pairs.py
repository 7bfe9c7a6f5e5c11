"""Prompt pairs of random tokens, and dictionaries of random weights, for tests of causal experiments."""

import torch
from helpers import tiny
from torch import Tensor

from monolex.causal.edits import swap
from monolex.causal.prompts.pairs import PromptPairs
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.model import hooks
from monolex.model.language_model import LanguageModel

LENGTHS = (9, 7, 8, 9, 6)


def pairs(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> PromptPairs:
    """Base and donor differ in their second token (and, where long, in their fourth)."""
    base = tiny.tokens(len(lengths), max(lengths), seed)
    donor = base.clone()
    donor[:, 1] = (donor[:, 1] + 7) % tiny.VOCAB
    donor[::2, 3] = (donor[::2, 3] + 11) % tiny.VOCAB
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return PromptPairs(
        task="random",
        corruption="",
        base=base * real,
        donor=donor * real,
        lengths=torch.tensor(lengths),
        right=tuple((number,) for number in range(len(lengths))),
        wrong=tuple((number + 10, number + 20) for number in range(len(lengths))),
        donor_right=tuple((number + 30,) for number in range(len(lengths))),
        roles={},
        wording=(0,) * len(lengths),
        order=("",) * len(lengths),
        texts=(("", ""),) * len(lengths),
        left_out=(),
    )


def dictionary(
    d_in: int, d_sae: int, activation: str = "relu", *, seed: int = 0, site: str = "", scale: float = 0.3
) -> Dictionary:
    """Random float64 weights whose codes on unit-sized activations are sparse."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    config = DictionaryConfig(
        kind="untied",
        activation=activation,
        d_in=d_in,
        d_out=d_in,
        d_sae=d_sae,
        k=3 if activation == "topk" else None,
        threshold=0.5 if activation == "threshold" else None,
        site=site,
    )
    weights = {
        "W_enc": scale * draw(d_sae, d_in),
        "b_enc": -0.2 * draw(d_sae).abs(),
        "centre": 0.1 * draw(d_in),
        "W_dec": scale * draw(d_sae, d_in),
        "b_dec": 0.1 * draw(d_in),
    }
    return Dictionary(config, weights)


def complete(d_in: int, seed: int = 0, site: str = "") -> Dictionary:
    """An orthonormal basis of all directions with signed codes, as PCA's."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)).Q
    centre = torch.randn(d_in, generator=generator, dtype=torch.float64)
    config = DictionaryConfig(kind="pca", activation="linear", d_in=d_in, d_out=d_in, d_sae=d_in, site=site)
    zeros = torch.zeros(d_in, dtype=torch.float64)
    return Dictionary(config, {"W_enc": basis, "b_enc": zeros, "centre": centre, "W_dec": basis, "b_dec": centre})


def naive_kl(lm: LanguageModel, prompts: PromptPairs, site: str, dictionary: Dictionary, features: list[int]) -> Tensor:
    """One prompt at a time, unpadded, through all layers, encoding anew."""
    values = []
    for number, length in enumerate(prompts.lengths.tolist()):
        base, donor = prompts.base[number : number + 1, :length], prompts.donor[number : number + 1, :length]
        edit = swap(dictionary, tiny.read(lm, site, donor), features)
        # as a plain function: a set of features may change nothing of a prompt
        patched = hooks.logits(lm, base, {site: edit.__call__})[0, -1].log_softmax(-1)
        target = hooks.logits(lm, donor)[0, -1].log_softmax(-1)
        values.append((patched.exp() * (patched - target)).sum())
    return torch.stack(values)
