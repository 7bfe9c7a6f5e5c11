"""The reference simulator: a local language model, read exactly.

One forward pass over the prompt gives at every tab before an `unknown` the odds of all numbers, from logits restricted
to their token ids: nothing is cut to the most probable tokens and nothing is parsed. The task and the worked examples,
most of the prompt, are the same for all jobs: they are run once, and every batch continues from their keys and values;
so does, for all fragments of an explanation, the explanation.
Prompts are plain text without a chat template, as in OpenAI's protocol, for base and instruct models alike.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Cache

from monolex.config import ModelConfig
from monolex.errors import UserError
from monolex.interp.config import LlmConfig
from monolex.interp.llm.identity import named, precision
from monolex.interp.records import Failure, Job, Prediction
from monolex.interp.simulate.prompt_ids import PromptIds, Speller
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.load import load


class SharedPrefix(NamedTuple):
    """The beginning of all prompts, run once."""

    cache: Cache
    """Keys and values of every layer, ``[1, …]``; batches continue from copies."""
    length: int
    """Its tokens."""


@final
class Exact:
    """Simulates by a local model; a :class:`monolex.interp.records.Simulator`."""

    def __init__(self, lm: LanguageModel, batch_tokens: int = 4096) -> None:
        """Run the task and the worked examples.

        Args:
            lm: Any causal language model that monolex reads, in any precision, on any device.
            batch_tokens: Tokens in a forward pass, without those of the beginning.

        Raises:
            UserError: no tokenizer, one whose digits are no tokens of their own, or too short a context.
        """
        if lm.tokenizer is None:
            raise UserError(f"llm = {lm.name!r} has no tokenizer: give a model with one")
        self._lm = lm
        self._batch_tokens = batch_tokens
        self._speller = Speller(lm.tokenizer, lm.name)
        start = self._speller.start()
        self._room = lm.max_context - len(start.ids)
        needed = len(self._speller.said("")) + len(self._speller.lines(["a"]).ids)
        if self._room < needed:
            raise UserError(
                f"llm = {lm.name!r}: the simulator's prompt has {len(start.ids)} tokens before any fragment and the "
                f"model {lm.max_context} positions; choose a model with a longer context"
            )
        self._shared = share(lm, start.ids)

    @property
    def kind(self) -> str:
        """The scale of the labels, which the tokenizer decides, and the model: name, precision, weights."""
        return f"exact 0-{self._speller.top} of {named(self._lm.name, precision(self._lm), self._lm.fingerprint)}"

    @property
    def weights(self) -> str:
        """Fingerprint of the model."""
        return self._lm.fingerprint

    def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        """Expected values, 0 … 10 (or 9), of every job; a prompt beyond the model's context is a failure.

        Jobs of the same explanation share what it adds to the beginning, too, and are batched together.
        """
        rows = [self._speller.lines(job.texts) for job in jobs]
        by_text: dict[str, list[int]] = {}
        for number, job in enumerate(jobs):
            by_text.setdefault(job.explanation.text, []).append(number)
        predictions: list[Prediction | Failure] = [np.zeros(0)] * len(jobs)
        for text, numbers in by_text.items():
            nonempty = [number for number in numbers if jobs[number].texts]
            of_text = self._predictions(text, [rows[number] for number in nonempty])
            for number, prediction in zip(nonempty, of_text, strict=True):
                predictions[number] = prediction
        return predictions

    def _predictions(self, explanation: str, rows: Sequence[PromptIds]) -> list[Prediction | Failure]:
        """Predictions of one explanation."""
        said = self._speller.said(explanation)
        fitting = [number for number, row in enumerate(rows) if len(said) + len(row.ids) <= self._room]
        too_long = Failure(
            f"prompt longer than the {self._lm.max_context} positions of the model, of which the worked examples take "
            f"{self._shared.length}"
        )
        predictions: list[Prediction | Failure] = [too_long] * len(rows)
        if not fitting:
            return predictions
        shared = share(self._lm, said, self._shared)
        for batch in _batches(fitting, [len(row.ids) for row in rows], self._batch_tokens):
            logits = label_logits(self._lm, [rows[number] for number in batch], self._speller.numbers, shared)
            for number, row_logits in zip(batch, logits, strict=True):
                finite = bool(np.isfinite(row_logits).all())
                predictions[number] = expected(row_logits) if finite else Failure("the model's logits are not finite")
        return predictions


def local(config: LlmConfig) -> Exact:
    """The simulator of a local model, `llm`.

    Raises:
        UserError: as :func:`monolex.model.load.load` and :class:`Exact`.
    """
    lm = load(ModelConfig(model=config.llm, model_dtype=config.llm_dtype, device=config.llm_device))
    return Exact(lm, config.batch_tokens)


def share(lm: LanguageModel, ids: list[int], before: SharedPrefix | None = None) -> SharedPrefix:
    """Run the beginning of prompts, behind another one if it is given, and keep its keys and values."""
    with _reading(lm, torch.tensor([0]), torch.tensor([len(ids) - 1])):
        out = _forward(lm, [ids], before, keep=True)
    return SharedPrefix(out.past_key_values, len(ids) + (before.length if before else 0))


def label_logits(
    lm: LanguageModel, rows: Sequence[PromptIds], numbers: Sequence[int], shared: SharedPrefix | None = None
) -> list[Float64[NDArray, "labels numbers"]]:
    """Logits of the ids ``numbers`` where every row's labels begin, of one forward pass in the model's own precision.

    Rows continue ``shared`` if it is given; without, they are whole prompts. Only the labels' places go through the
    model's own head, so that whatever it does to logits (Gemma's soft cap) is done.
    """
    counts = [len(row.labels) for row in rows]
    which = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
    where = torch.tensor([at for row in rows for at in row.labels], dtype=torch.int64)
    with _reading(lm, which, where):
        out = _forward(lm, [row.ids for row in rows], shared)
    # float32 first, because some accelerators know no float64
    logits = out.logits[0, :, list(numbers)]
    in_float64 = (logits if logits.dtype == torch.float64 else logits.float()).cpu().double()
    return [part.numpy() for part in in_float64.split(counts)]


def _forward(lm: LanguageModel, rows: Sequence[list[int]], shared: SharedPrefix | None, *, keep: bool = False) -> Any:
    """The model's output for rows that continue ``shared``, padded on the right, where nothing real attends to."""
    before = shared.length if shared else 0
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    hooks.require_tokens(lm, ids)
    lengths = torch.tensor([before + len(row) for row in rows])
    # a copy, because layers append to their cache
    cache = copy.deepcopy(shared.cache) if shared else None
    if cache is not None:
        cache.batch_repeat_interleave(len(rows))
    return lm.hf(
        ids.to(lm.device),
        attention_mask=(torch.arange(before + width) < lengths[:, None]).long().to(lm.device),
        position_ids=torch.arange(before, before + width).expand(len(rows), -1).to(lm.device),
        past_key_values=cache,
        use_cache=keep or cache is not None,
    )


def expected(logits: Float64[NDArray, "labels numbers"]) -> Prediction:
    """The mean number at every label, among the numbers alone."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return (weights @ np.arange(logits.shape[1])) / weights.sum(1)


@contextmanager
def _reading(lm: LanguageModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Forward passes inside compute logits, ``[1, places, vocab]``, at these places alone, without dropout."""
    head = lm.hf.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal language model has an unembedding"

    def gather(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        return x[rows.to(x.device), columns.to(x.device)][None], *args[1:]

    handle = head.register_forward_pre_hook(gather)
    try:
        with hooks.edit(lm, {}), torch.no_grad():
            yield
    finally:
        handle.remove()


def _batches(chosen: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """``chosen`` numbers, the shortest first, in batches of at most so many tokens with their padding, or of one."""
    batch: list[int] = []
    for number in sorted(chosen, key=lambda number: lengths[number]):
        if batch and lengths[number] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
