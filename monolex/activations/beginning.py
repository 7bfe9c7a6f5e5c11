"""Which token a model expects before a text, by measuring.

The probe is the beginning of the corpus's first documents behind each of the tokenizer's candidates; the candidate with
the lowest loss on it wins. A tokenizer's own first choice stays unless another is better by more than chance.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch.nn import functional as F

from monolex.artifact import open_artifact
from monolex.config import CorpusConfig, ModelConfig, identity
from monolex.errors import UserError
from monolex.model.hooks import logits
from monolex.model.language_model import LanguageModel
from monolex.model.load import load
from monolex.runtime import log
from monolex.text.documents import documents
from monolex.text.encode import encode_texts
from monolex.text.report import Report
from monolex.text.separator import candidates, named, spelled, use_separator

PROBES: Final = 16
PROBE_TOKENS: Final = 48
LEAST_GAIN: Final = 0.01
"""Nats a token by which another candidate must be better than the tokenizer's own."""


class Beginning(NamedTuple):
    """The separator, and why it is that."""

    token: int | None
    """Its id; None: there is none."""
    text: str
    """As the tokenizer spells it; empty for none."""
    reason: str
    """What decided."""
    losses: dict[str, float]
    """Nats a token behind each candidate, where it was measured."""


def choose(lm: LanguageModel, corpus: CorpusConfig, model: ModelConfig) -> Beginning:
    """The separator that ``corpus.separator`` means for ``lm``, which from now on encodes its texts behind it.

    A control model takes the one of the model it is a control of, so that both read the same rows.

    Raises:
        UserError: ``separator`` is no single token of the tokenizer.
    """
    assert lm.tokenizer is not None, "a corpus needs a tokenizer"
    tokenizer, options = lm.tokenizer, candidates(lm.tokenizer)
    if corpus.separator != "auto":
        token = named(tokenizer, corpus.separator)
        beginning = Beginning(token, spelled(tokenizer, token), "as ordered", {})
    elif len(options) < 2:
        token = options[0] if options else None
        beginning = Beginning(token, spelled(tokenizer, token), "the tokenizer has no other", {})
    else:
        trained = lm if model.control == "none" else load(dataclasses.replace(model, control="none"))
        beginning = _measured(trained, options, corpus)
        losses = ", ".join(f"{text} {loss:.3f}" for text, loss in beginning.losses.items())
        log.info("separator: %s (%s; nats a token: %s)", beginning.text, beginning.reason, losses)
    use_separator(tokenizer, beginning.token, ordered=corpus.separator != "auto")
    return beginning


def recorded(folder: Path, lm: LanguageModel, corpus: CorpusConfig) -> Beginning | None:
    """The separator that finished activations of this model and corpus in ``folder`` were read with, which stays.

    A measurement on another device, or by a later version, could decide a close call otherwise.
    """
    try:
        manifest = open_artifact(folder, "activations")
    except UserError:
        return None
    wanted = identity(corpus)
    if manifest.parents.get("model") != lm.fingerprint or wanted != {n: manifest.config.get(n) for n in wanted}:
        return None
    assert lm.tokenizer is not None, "a corpus needs a tokenizer"
    beginning = Beginning(**manifest.data["corpus"]["separator"])
    use_separator(lm.tokenizer, beginning.token, ordered=corpus.separator != "auto")
    return beginning


@torch.no_grad()
def losses(lm: LanguageModel, options: Sequence[int], texts: Sequence[str]) -> list[float]:
    """Nats a token that ``lm`` loses on the beginnings of ``texts`` behind each of ``options``."""
    assert lm.tokenizer is not None
    room = min(PROBE_TOKENS, lm.max_context - 1)
    encoded = [ids[:room] for ids in encode_texts(list(texts), room, lm.tokenizer)]
    sums, count = [0.0] * len(options), sum(map(len, encoded))
    for ids in encoded:
        if ids:
            batch = torch.tensor([[option, *ids] for option in options])
            logit = logits(lm, batch, mask=torch.ones_like(batch))[:, :-1].float()
            loss = F.cross_entropy(logit.transpose(1, 2), batch[:, 1:].to(logit.device), reduction="none").sum(1)
            sums = [total + value for total, value in zip(sums, loss.tolist(), strict=True)]
    return [total / max(count, 1) for total in sums]


def _measured(lm: LanguageModel, options: Sequence[int], corpus: CorpusConfig) -> Beginning:
    assert lm.tokenizer is not None
    texts = [document.text for document in itertools.islice(documents(corpus, lm.tokenizer, Report()), PROBES)]
    by_option = losses(lm, options, texts)
    best = min(range(len(options)), key=lambda number: by_option[number])
    better = by_option[0] - by_option[best] > LEAST_GAIN
    token = options[best if better else 0]
    reason = "the lowest loss" if better else "the tokenizer's own, and none is better"
    texts_of_options = [spelled(lm.tokenizer, option) for option in options]
    return Beginning(token, spelled(lm.tokenizer, token), reason, dict(zip(texts_of_options, by_option, strict=True)))
