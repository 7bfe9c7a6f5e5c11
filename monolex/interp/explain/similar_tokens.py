"""Tokens that resemble a token: by their embedding, and by their spelling."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from monolex.model.language_model import LanguageModel
from monolex.text.vocabulary import Texts

NEAREST = 8
"""Tokens with the most similar embedding."""
AT_ONCE = 1024
"""Tokens that are compared with the whole vocabulary in one product."""


@torch.no_grad()
def similar_tokens(lm: LanguageModel, tokens: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """For each of ``tokens`` the nearest rows of the embedding by cosine, then those of its other spellings that are
    single tokens; none is special to the tokenizer or beyond its entries."""
    ids = sorted(set(tokens))
    spelt = _spellings(lm, ids)
    table = lm.embedding.float()
    table = table / table.norm(dim=1, keepdim=True).clamp_min(1e-12)
    allowed = _allowed(lm)
    count = min(NEAREST, int(allowed.sum()) - 1)
    similar = {}
    for part in torch.tensor(ids, dtype=torch.int64, device=table.device).split(AT_ONCE):
        cosine = (table[part] @ table.T).masked_fill(~allowed, -2)
        cosine[torch.arange(len(part), device=table.device), part] = -2
        nearest = cosine.topk(max(count, 0), dim=1).indices
        for token, near in zip(part.tolist(), nearest.tolist(), strict=True):
            similar[token] = tuple(dict.fromkeys((*near, *spelt.get(token, ()))))
    return similar


def _allowed(lm: LanguageModel) -> Bool[Tensor, "vocab"]:
    rows = len(lm.embedding)
    allowed = torch.ones(rows, dtype=torch.bool, device=lm.device)
    if lm.tokenizer is not None:
        allowed[len(lm.tokenizer) :] = False
        allowed[[special for special in lm.tokenizer.all_special_ids if special < rows]] = False
    return allowed


def _spellings(lm: LanguageModel, tokens: Sequence[int]) -> dict[int, list[int]]:
    """Tokens that differ from each of ``tokens`` in case or in a leading space alone."""
    if lm.tokenizer is None:
        return {}
    texts = Texts(lm)
    forms = {token: _forms(text) for token, text in texts.of(tokens)}
    written = list(dict.fromkeys(form for of_token in forms.values() for form in of_token))
    if not written:
        return {}
    encoded = lm.tokenizer(written, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    single = {form: ids[0] for form, ids in zip(written, encoded, strict=True) if len(ids) == 1}
    # a tokenizer that puts a space of its own before every text gives another token than was asked for
    read = dict(texts.of(single.values()))
    exact = {form: token for form, token in single.items() if read[token] == form}
    return {token: [exact[form] for form in of_token if form in exact] for token, of_token in forms.items()}


def _forms(text: str) -> list[str]:
    """Other spellings of a word, itself left out; none of what has no letter or sign."""
    word = text.removeprefix(" ")
    if not word.strip():
        return []
    cased = dict.fromkeys((word, word.lower(), word.capitalize(), word.upper()))
    return [form for spelling in cased for form in (spelling, f" {spelling}") if form != text]
