"""What a model keeps of the tokens before the last one of a text, so that versions of that token run alone.

Tokens before an edit do not see it: where the last token alone is edited, their keys and values are those of the text
as it is, and a version costs one token instead of all. The model's own key-value cache holds them, which
:func:`continues` compares with forwards of the whole text before anything is made of it.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site

PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)
"""Kinds of layers of a cache of which it is known that keys and values are all they keep."""
FARTHEST = 0.02
"""Relative distance of the last residual stream that no precision excuses."""


class Past(NamedTuple):
    """Keys and values of some tokens."""

    cache: DynamicCache
    """Of all layers; never changed."""
    length: int
    """Of how many tokens of a text."""

    def of(self, texts: Int[Tensor, "rows"]) -> DynamicCache:
        """A cache of its own for continuations of ``texts`` (numbers, repeated at will)."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer), "as remembered"
            assert isinstance(layer.keys, Tensor) and isinstance(layer.values, Tensor), "filled"
            layer.keys, layer.values = _rows(layer.keys, texts), _rows(layer.values, texts)
        return cache


def _rows(kept: Tensor, texts: Tensor) -> Tensor:
    # versions of a single text share memory until they are run
    return kept.expand(len(texts), -1, -1, -1) if len(kept) == 1 else kept[texts.to(kept.device)]


@torch.no_grad()
def remember(lm: LanguageModel, tokens: Int[Tensor, "texts tokens"]) -> Past | None:
    """What ``lm`` keeps of texts of one length; None where it keeps nothing, or something else than keys and values."""
    with hooks.edit(lm, {}):
        cache = getattr(lm.hf.base_model(tokens.to(lm.device), use_cache=True), "past_key_values", None)
    if not isinstance(cache, DynamicCache) or any(type(layer) not in PLAIN for layer in cache.layers):
        return None
    return Past(cache, tokens.shape[1])


@contextmanager
def after(lm: LanguageModel, past: Past | None, texts: Int[Tensor, "rows"]) -> Iterator[None]:
    """While active, forwards of ``lm`` are of tokens that follow ``texts`` of ``past``; without one nothing differs."""

    def follow(_module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        assert past is not None, "registered for one"
        return args, {**kwargs, "use_cache": True, "past_key_values": past.of(texts)}

    handle = None if past is None else lm.hf.register_forward_pre_hook(follow, with_kwargs=True)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def continues(lm: LanguageModel, tokens: Int[Tensor, "1 tokens"]) -> bool:
    """Whether the last of ``tokens`` after what is kept of the others is what it is in a forward of all of them."""
    past = remember(lm, tokens[:, :-1]) if tokens.shape[1] > 1 else None
    if past is None:
        return False
    last = str(Site("resid_post", lm.n_layers - 1))
    whole = hooks.capture(lm, tokens, [last], mask=torch.ones_like(tokens)).activations[last][0, -1]
    with after(lm, past, torch.zeros(2, dtype=torch.int64)):
        # two at once, as versions are run
        single = tokens[:, -1:].expand(2, 1)
        twice = hooks.capture(lm, single, [last], mask=torch.ones_like(single)).activations[last][:, 0]
    farthest = (twice - whole).double().norm(dim=-1).max() / whole.double().norm()
    return bool(farthest <= min(FARTHEST, torch.finfo(lm.dtype).eps ** 0.5))
