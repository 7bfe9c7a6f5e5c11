"""Features of the subject model on many short texts at once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from monolex.dictionaries.base import Dictionary
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.text.corpus import separator


class Asked(NamedTuple):
    """A feature at the end of a text."""

    tokens: tuple[int, ...]
    """Token ids, at least one; the corpus's separator goes before them."""
    feature: int
    """Number of the feature."""


Read = Callable[[Sequence[Asked]], Float64[NDArray, "asked"]]
"""Activations of features at the last tokens of texts."""


def reader(lm: LanguageModel, dictionary: Dictionary, site: str, batch_tokens: int) -> Read:
    """Reads features of ``dictionary`` at ``site``, in forwards of at most ``batch_tokens`` tokens (or of one text).

    Texts of one length share a forward, which ends at the site: nothing is padded, so that a text gives what it would
    give alone. A text that several features are asked of is run once.

    Raises:
        UserError: the model has no such site.
    """
    lm.place(site)
    start = None if lm.tokenizer is None else separator(lm.tokenizer)

    def read(asked: Sequence[Asked]) -> Float64[NDArray, "asked"]:
        found = np.zeros(len(asked))
        wanted: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, one in enumerate(asked):
            wanted[_led(one.tokens, start)].append(index)
        lengths: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for tokens in wanted:
            lengths[len(tokens)].append(tokens)
        for length, texts in lengths.items():
            size = max(1, batch_tokens // length)
            for part in (texts[first : first + size] for first in range(0, len(texts), size)):
                rows = [row for row, tokens in enumerate(part) for _ in wanted[tokens]]
                indices = [index for tokens in part for index in wanted[tokens]]
                features = [asked[index].feature for index in indices]
                found[indices] = _codes(lm, dictionary, site, torch.tensor(part), rows, features)
        return found

    return read


def _led(tokens: tuple[int, ...], start: int | None) -> tuple[int, ...]:
    """A text behind the separator; one that is shown from its document's beginning has it already."""
    return tokens if start is None or tokens[0] == start else (start, *tokens)


@torch.no_grad()
def _codes(
    lm: LanguageModel,
    dictionary: Dictionary,
    site: str,
    ids: Int[Tensor, "texts tokens"],
    rows: Sequence[int],
    features: Sequence[int],
) -> Float64[NDArray, "asked"]:
    """Codes of ``features`` at the ends of the texts numbered ``rows``."""
    x = hooks.capture(lm, ids, [site]).activations[site][:, -1]
    columns, column = np.unique(features, return_inverse=True)
    device = dictionary.W_enc.device
    codes = dictionary.encode_some(x.to(device), torch.from_numpy(columns).to(device))
    return codes[torch.tensor(rows, device=device), torch.from_numpy(column).to(device)].cpu().double().numpy()
