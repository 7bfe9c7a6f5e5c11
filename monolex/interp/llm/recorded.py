"""A client that asks for what the store of replies lacks, and what stages need of it."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Self, TypeVar, final

from monolex import runtime
from monolex.artifact import Manifest
from monolex.interp.config import LlmConfig
from monolex.interp.llm.client import NOT_RECORDED, Answer, Backend, Keep, More, key_of
from monolex.interp.llm.dialect import OWN_TEMPERATURE, SENT
from monolex.interp.llm.identity import named
from monolex.interp.llm.meter import BudgetSpent, Meter
from monolex.interp.llm.replies import Replies
from monolex.interp.records import Failure, Reply, Request
from monolex.pieces import Work
from monolex.runtime import log

T = TypeVar("T")


@final
class Absent:
    """Nobody to ask: what the store does not hold is a failure."""

    def __init__(self, model: str, identity: str) -> None:
        self.model, self.identity = model, identity

    def answer(self, requests: Sequence[Request], keep: Keep, more: More) -> None:  # noqa: ARG002
        """As :meth:`monolex.interp.llm.client.Backend.answer`."""
        for number in range(len(requests)):
            keep(Answer(number, Failure(NOT_RECORDED, again=True)))

    def close(self) -> None:
        """Nothing to give up."""


@final
class Recorded:
    """A client that looks into the store first, asks a model for what is missing, and keeps every reply as it comes."""

    def __init__(self, backend: Backend, store: Replies, meter: Meter | None = None) -> None:
        self.backend, self.store, self.meter = backend, store, meter or Meter()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Recorded({self.model}, {self.store.path}, {self.meter})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the model's connections and the store, and say what was spent."""
        if self.meter.calls + self.meter.recorded + self.meter.failures.total():
            log.info("%s: %s", self.model, self.meter)
        self.backend.close()
        self.store.close()

    @property
    def model(self) -> str:
        """The model's name; of a local one with its precision and weights, of which there may be several."""
        kind, _, rest = self.backend.identity.partition(":")
        dtype, _, weights = rest.partition(":")
        return named(self.backend.model, dtype, weights) if kind == "local" else self.backend.model

    def ask(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """An answer a request, in order; equal requests are asked once, and all replies stay in memory meanwhile.

        Raises:
            BudgetSpent: the budget did not last; what was answered is in the store.
            UserError: the model cannot be asked (any longer), or the store cannot be used; likewise.
        """
        keys = [key_of(self.backend.identity, request) for request in requests]
        answers: dict[str, Reply | Failure] = {**self.store.get(keys)}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
        with self._lock:
            self.meter.recorded += len(requests) - len(missing)
        if missing:
            self._ask(missing, answers)
        if any(key not in answers for key in missing):
            raise BudgetSpent(
                f"{self.meter.spent} is spent: {self.meter}; all replies are kept in {self.store.path}, and the same "
                "command with a larger budget goes on from there"
            )
        replies = [answer for key in keys if isinstance(answer := answers[key], Reply)]
        with self._lock:
            self.meter.replied += len(replies)
            self.meter.own_temperature += sum(OWN_TEMPERATURE in reply.choice.get(SENT, ()) for reply in replies)
        return [answers[key] for key in keys]

    def _ask(self, missing: dict[str, Request], answers: dict[str, Reply | Failure]) -> None:
        keys, requests = list(missing), list(missing.values())

        def keep(answer: Answer) -> None:
            kept = _encodable(answer.reply)
            answer = answer._replace(reply=kept)
            if isinstance(kept, Reply):
                kept = self.store.put(keys[answer.number], self.backend, requests[answer.number], answer)
            with self._lock:
                answers[keys[answer.number]] = kept
                if bar is not None:
                    bar.update(1)
                self.meter.count(answer)

        quiet = len(requests) == 1 or isinstance(self.backend, Absent)
        with nullcontext() if quiet else runtime.progress(len(requests), self.model, "call") as bar:
            self.backend.answer(requests, keep, self._more)

    def _more(self) -> bool:
        with self._lock:
            return not self.meter.spent


def opened_unless_found(
    stack: ExitStack,
    work: Work,
    config: LlmConfig,
    opened: Callable[[], AbstractContextManager[T]],
    weights: Callable[[T], str],
) -> Manifest | tuple[Work, T]:
    """The artefact of ``work`` if it is found; else the work, and what is ``opened`` for it until ``stack`` is left.

    An endpoint need not be there when all is done; of a local model the ``weights`` are part of the request.
    """
    if not config.local and (manifest := work.answer()):
        return manifest
    model = stack.enter_context(opened())
    if config.local:
        work = Work(work.folder, work.kind, config, {**work.parents, "llm": weights(model)})
        if manifest := work.answer():
            return manifest
    return work, model


def unanswered(client: Recorded | None) -> Callable[[], Counter[str]]:
    """How many calls went unanswered so far, by reason: asked by :class:`monolex.pieces.Work` around a piece."""
    return lambda: Counter() if client is None else Counter(client.meter.unanswered)


def _encodable(reply: Reply | Failure) -> Reply | Failure:
    """A failure in place of a text that no file can hold: half of a surrogate pair, which JSON lets through."""
    try:
        if isinstance(reply, Reply):
            reply.text.encode()
    except UnicodeEncodeError:
        return Failure("text that cannot be encoded")
    return reply
