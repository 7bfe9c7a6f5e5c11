"""A random feature of a tiny model, ready to be ablated, and what naive references of that share."""

from typing import NamedTuple

import pytest
import torch
from helpers import random_pairs, tiny
from torch import Tensor

from monolex.causal.ablate.ablation import ablate_feature
from monolex.causal.ablate.records import Ablation
from monolex.causal.config import AblateConfig
from monolex.causal.occurrences import Occurrences
from monolex.dictionaries.base import Dictionary
from monolex.model.language_model import LanguageModel

IDS = tiny.tokens(14, 9, seed=3)
MEAN = 0.11


class Case(NamedTuple):
    lm: LanguageModel
    dictionary: Dictionary
    feature: int
    occurrences: Occurrences

    def run(self, **options) -> Ablation:
        calls = {name: options.pop(name) for name in ("metric", "advance") if name in options}
        config = AblateConfig(**{"top": self.lm.vocab_size, "resamples": 50, **options})
        return ablate_feature(self.lm, self.dictionary, self.feature, self.occurrences, config, text=str, **calls)


def case(lm: LanguageModel, site: str, activation: str = "relu", ids: Tensor = IDS) -> Case:
    """The feature that is active most often, at the last token of each row where it is; two rows are a document."""
    dictionary = random_pairs.dictionary(lm.width(site), 40, activation, site=site).to(lm.dtype)
    codes = dictionary.encode(tiny.read(lm, site, ids)).clamp_min(0)
    feature = int((codes > 0).any(1).sum(0).argmax())
    return Case(lm, dictionary, feature, occurring(codes[..., feature], ids))


def occurring(code: Tensor, ids: Tensor) -> Occurrences:
    rows = (code > 0).any(1).nonzero()[:, 0]
    # different lengths, so that contexts are padded
    end = torch.stack([(code[row] > 0).nonzero()[:, 0][-1 - int(row) % 2 :][0] for row in rows])
    width = int(end.max()) + 1
    tokens = ids[rows, :width] * (torch.arange(width) <= end[:, None])
    return Occurrences(
        tokens, end, code[rows, end], rows // 2, float(code.max()), int((code > 0).sum()), MEAN, code.flatten()
    )


def over_documents(values: Tensor, doc: Tensor) -> Tensor:
    return torch.stack([values[doc == one].mean(0) for one in doc.unique()])


def add(edit: Tensor | float):
    return lambda x: torch.cat([x[:, :-1], x[:, -1:] + edit], 1)


def same_numbers(a, b) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            same_numbers(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same_numbers(x, y)
    else:
        assert a == (pytest.approx(b, rel=1e-5, abs=1e-9) if isinstance(a, float) else b)
