"""Features of the subject model on many short texts at once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from monolex.activations.rule import EVERY_ROW, RowRule
from monolex.dictionaries.base import Dictionary
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.text.separator import separator


class ActivationQuery(NamedTuple):
    """A text, and the feature whose activation at its last token is wanted."""

    tokens: tuple[int, ...]
    """Token ids, at least one; the corpus's separator goes before them."""
    feature: int
    """Number of the feature."""


ReadActivations = Callable[[Sequence[ActivationQuery]], Float64[NDArray, "queries"]]
"""Activations of features at the last tokens of texts."""


def subject_reader(
    lm: LanguageModel, dictionary: Dictionary, site: str, batch_tokens: int, rule: RowRule = EVERY_ROW
) -> ReadActivations:
    """Reads features of ``dictionary`` at ``site``, in forwards of at most ``batch_tokens`` tokens (or of one text).

    Texts of one length share a forward, which ends at the site: nothing is padded, so that a text gives what it would
    give alone. A text that several features are asked of is run once.

    Raises:
        UserError: the model has no such site.
    """
    lm.place(site)
    start = None if lm.tokenizer is None else separator(lm.tokenizer)

    def read(queries: Sequence[ActivationQuery]) -> Float64[NDArray, "queries"]:
        activations = np.zeros(len(queries))
        of_text: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, query in enumerate(queries):
            of_text[_led(query.tokens, start)].append(number)
        by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for tokens in of_text:
            by_length[len(tokens)].append(tokens)
        for length, texts in by_length.items():
            size = max(1, batch_tokens // length)
            for batch in (texts[first : first + size] for first in range(0, len(texts), size)):
                rows = [row for row, tokens in enumerate(batch) for _ in of_text[tokens]]
                numbers = [number for tokens in batch for number in of_text[tokens]]
                features = [queries[number].feature for number in numbers]
                activations[numbers] = _codes(lm, dictionary, (site, rule), torch.tensor(batch), rows, features)
        return activations

    return read


def _led(tokens: tuple[int, ...], start: int | None) -> tuple[int, ...]:
    """A text behind the separator; one that is shown from its document's beginning has it already."""
    return tokens if start is None or tokens[0] == start else (start, *tokens)


@torch.no_grad()
def _codes(
    lm: LanguageModel,
    dictionary: Dictionary,
    place: tuple[str, RowRule],
    ids: Int[Tensor, "texts tokens"],
    rows: Sequence[int],
    features: Sequence[int],
) -> Float64[NDArray, "queries"]:
    """Codes of ``features`` at the ends of the texts numbered ``rows``; 0 where an end does not count."""
    site, rule = place
    x = hooks.capture(lm, ids, [site], mask=torch.ones_like(ids)).activations[site][:, -1]
    columns, column = np.unique(features, return_inverse=True)
    device = dictionary.W_enc.device
    codes = dictionary.encode_some(x.to(device), torch.from_numpy(columns).to(device))
    codes = codes * rule.counts(ids[:, -1], x).to(device)[:, None]
    return codes[torch.tensor(rows, device=device), torch.from_numpy(column).to(device)].cpu().double().numpy()
