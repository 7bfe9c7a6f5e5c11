"""Language models that are asked: one whose answers are a function of the request, a tiny one; and what is asked."""

from collections.abc import Callable, Sequence

import numpy as np
from helpers.tiny import tiny_hf
from transformers import PreTrainedTokenizerBase

from monolex.config import ModelConfig
from monolex.interp.records import Examples, Explanation, Failure, Fragment, Job, Reply, Request
from monolex.model.language_model import LanguageModel
from monolex.model.load import load_tokenizer, wrap

Answer = Reply | Failure | str


class Scripted:
    """A client; keeps what it was asked."""

    model = "scripted"

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.asked: list[Request] = []
        self._answer = answer

    def ask(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        self.asked += requests
        answers = [self._answer(request) for request in requests]
        return [Reply(answer, {}) if isinstance(answer, str) else answer for answer in answers]


def fragment(*pairs: tuple[str, float]) -> Fragment:
    """Tokens with activations."""
    texts, activations = zip(*pairs, strict=True)
    return Fragment(0, 0, tuple(range(len(texts))), texts, np.array(activations, np.float32))


def examples(explain: Sequence[Fragment], silent: Sequence[Fragment] = ()) -> Examples:
    """What explainers are given."""
    maximum = max((own.maximum for own in explain), default=0.0)
    return Examples(0, tuple(explain), tuple(silent), (), (), (), maximum)


def job(*texts: str, said: str = "names of rivers") -> Job:
    return Job(Explanation("test", said), texts)


def bundled() -> PreTrainedTokenizerBase:
    """The demo model's tokenizer: bytes, and 0 to 10 are one token each."""
    return load_tokenizer(ModelConfig())


def tiny(tokenizer: PreTrainedTokenizerBase, architecture: str = "gpt_neox", positions: int = 4096) -> LanguageModel:
    """A random model in float64 with room for the simulator's prompt."""
    shape = {"vocab_size": 4096, "max_position_embeddings": positions}
    return wrap(tiny_hf(architecture, **shape).double(), tokenizer, "tiny")
