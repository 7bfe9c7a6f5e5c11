"""What a small language model can do: name-swapping (IOI) with practised and held-out parts, and loss by document.

Prompts are drawn independently, so that the bootstrap may resample them one by one. Only names that are one token
take part; the others are named in the row, since leaving them out silently would flatter the tokenizer.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from monolex import stats
from monolex.causal.prompts import wordings as words
from monolex.causal.prompts.pairs import single_token
from monolex.causal.prompts.tasks import fill
from monolex.stats import Estimate

PER_WORDING = 60
BATCH = 32
IGNORED = -100


class IOIRow(NamedTuple):
    """One cell of the table of wordings by names."""

    wordings: str
    """`practised` or `held-out`."""
    names: str
    """`practised` or `held-out`."""
    accuracy: Estimate
    """How often P(IO) > P(S); guessing gives 0.5."""
    logit_difference: Estimate
    """Mean of logit(IO) - logit(S)."""
    left_out: tuple[str, ...]
    """Names of this set that are not one token after a space."""


def ioi_table(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> list[IOIRow]:
    """Practised and held-out wordings by practised and held-out names, 60 prompts a wording.

    The task of Wang et al. (arXiv 2211.00593) with random roles; intervals are bootstraps over prompts.
    """
    wordings = {"practised": words.WORDINGS_PRACTISED, "held-out": words.WORDINGS_HELD_OUT}
    people = {"practised": words.NAMES_PRACTISED, "held-out": words.NAMES_HELD_OUT}
    return [
        _ioi_row(model, tokenizer, wording_set, name_set, seed)
        for wording_set in wordings.items()
        for name_set in people.items()
    ]


def _ioi_row(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    wordings: tuple[str, Sequence[str]],
    people: tuple[str, Sequence[str]],
    seed: int,
) -> IOIRow:
    ids = single_token(tokenizer, people[1])
    left_out = tuple(name for name in people[1] if name not in ids)
    if len(ids) < 2:
        nothing = stats.not_applicable("fewer than two of the names are one token")
        return IOIRow(wordings[0], people[0], nothing, nothing, left_out)
    rng = random.Random(f"{seed} {wordings[0]} {people[0]}")
    prompts = [fill(wording, tuple(ids), rng) for wording in wordings[1] for _ in range(PER_WORDING)]
    logits = last_logits(model, tokenizer, [prompt.text for prompt in prompts])
    rows = torch.arange(len(prompts))
    right = logits[rows, [ids[prompt.indirect] for prompt in prompts]]
    wrong = logits[rows, [ids[prompt.subject] for prompt in prompts]]
    difference = (right - wrong).numpy()
    return IOIRow(
        wordings[0],
        people[0],
        stats.mean(difference > 0, "prompts", seed=seed),
        stats.mean(difference, "prompts", seed=seed),
        left_out,
    )


@torch.inference_mode()
def last_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Float[Tensor, "texts vocab"]:
    """Logits (float32, on the CPU) of what follows each text, read as the start of a document."""
    was_training = model.training
    model.eval()
    last_rows, documents = [], encode(tokenizer, texts)
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        tokens = _padded(batch, 0).to(model.device)
        last = torch.tensor([len(ids) - 1 for ids in batch])
        # Padding stands to the right of every token that is read, so that causal attention never sees it.
        logits = model(input_ids=tokens, use_cache=False).logits
        last_rows.append(logits[torch.arange(len(batch)), last].float().cpu())
    model.train(was_training)
    return torch.cat(last_rows)


@torch.inference_mode()
def document_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int
) -> Estimate:
    """Cross-entropy in nats a token over ``texts`` cut into windows of ``context``, with an interval over documents.

    The first token of a window is context only.
    """
    was_training = model.training
    model.eval()
    documents = encode(tokenizer, texts)
    windows = [
        (number, ids[start : start + context])
        for number, ids in enumerate(documents)
        for start in range(0, len(ids) - 1, context)
    ]
    windows = [(number, ids) for number, ids in windows if len(ids) > 1]
    total, count = torch.zeros(len(texts), dtype=torch.float64), torch.zeros(len(texts), dtype=torch.float64)
    for first in range(0, len(windows), BATCH):
        batch = windows[first : first + BATCH]
        tokens = _padded([ids for _, ids in batch], IGNORED)
        logits = model(input_ids=tokens.clamp(min=0).to(model.device), use_cache=False).logits[:, :-1].float().cpu()
        losses = cross_entropy(logits.transpose(1, 2), tokens[:, 1:], ignore_index=IGNORED, reduction="none")
        owner = torch.tensor([number for number, _ in batch])
        total.index_add_(0, owner, losses.double().sum(1))
        count.index_add_(0, owner, (tokens[:, 1:] != IGNORED).double().sum(1))
    model.train(was_training)
    return stats.ratio(total.numpy(), count.numpy(), "documents")


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text behind the document separator; a text that spells the separator does not contain it."""
    if not texts:
        return []
    start = tokenizer.convert_tokens_to_ids(str(tokenizer.bos_token))
    assert isinstance(start, int), f"the separator {tokenizer.bos_token} is not one token"
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [[start, *ids] for ids in encoded]  # pyright: ignore[reportReturnType]  # a list of texts gives lists of ids


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
