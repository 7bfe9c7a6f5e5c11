"""What stands behind a client: something that answers requests one by one, and hands over each answer as it comes.

:class:`monolex.interp.records.Client` gives a list when all is done; a reply that was paid for must be kept earlier
than that. So every model is a :class:`Backend`, and
:class:`monolex.interp.llm.recorded.Recorded` keeps what it hands over.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, final

from monolex.artifact import digest
from monolex.config import plain
from monolex.errors import UserError
from monolex.interp.records import Client, Failure, Reply, Request

NOT_RECORDED = "not recorded"
"""Reason of a failure: only the store was asked, and does not know."""


class Usage(NamedTuple):
    """Tokens of one call."""

    read: int = 0
    """Of the prompt."""
    written: int = 0
    """Of what was generated."""


class Answer(NamedTuple):
    """What became of one request."""

    number: int
    """Which of the requests, from 0."""
    reply: Reply | Failure
    """What came back."""
    usage: Usage | None = Usage()
    """What it cost; None where the model does not say."""
    seconds: float = 0.0
    """How long it took, further tries included."""


Keep = Callable[[Answer], None]
"""Is given every answer the moment it is there; may be called from any thread, and from several at once."""
More = Callable[[], bool]
"""Asked before each call: whether it may be started."""


class Backend(Protocol):
    """One language model."""

    @property
    def model(self) -> str:
        """Its name."""
        ...

    @property
    def identity(self) -> str:
        """What tells its replies from another model's: for an endpoint its name, for a local model its weights too."""
        ...

    def answer(self, requests: Sequence[Request], keep: Keep, more: More) -> None:
        """Answer every request, in any order, until ``more`` says no; calls under way are then finished.

        Raises:
            UserError: nothing can be asked of this model, or not any longer.
        """
        ...

    def close(self) -> None:
        """Give up connections and the like; calls still under way fail."""
        ...


def key_of(identity: str, request: Request) -> str:
    """SHA-256 of a request to a model: equal requests have equal replies."""
    messages = [plain(message) for message in request.messages]
    params = sorted((name, plain(value)) for name, value in request.params)
    return digest([identity, messages, request.prompt, params, request.sample])


def collect(backend: Backend, requests: Sequence[Request]) -> list[Reply | Failure]:
    """The answers in order, kept nowhere."""
    replies: dict[int, Reply | Failure] = {}

    def keep(answer: Answer) -> None:
        replies[answer.number] = answer.reply

    backend.answer(requests, keep, lambda: True)
    return [replies[number] for number in range(len(requests))]


def require_answered(client: Client, reply: Reply | Failure) -> None:
    """Let nothing be concluded from a first try that was not answered; what the store lacks offline is an answer.

    Raises:
        UserError: the call failed by something that may pass.
    """
    if isinstance(reply, Failure) and reply.again and reply.reason != NOT_RECORDED:
        raise UserError(f"llm = {client.model!r} could not be tried: {reply.reason}; run the same command again")


def reply(request: Request, text: str, **choice: object) -> Reply:
    """A reply in the layout of an endpoint's choice; ``choice`` holds further entries of it."""
    said = {"message": {"role": "assistant", "content": text}} if request.messages else {"text": text}
    return Reply(text, {"index": 0, **said, **choice})


@final
class ScriptedClient:
    """Answers by a function of the request: for tests, and for trying out what a run would ask.

    Its tokens are words between blanks, since there is no tokenizer to count by.
    """

    def __init__(self, function: Callable[[Request], str | Reply | Failure], model: str = "scripted") -> None:
        self._function, self.model, self.identity = function, model, f"scripted:{model}"

    def ask(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """The function's answers, in order."""
        return collect(self, requests)

    def answer(self, requests: Sequence[Request], keep: Keep, more: More) -> None:
        """As :meth:`Backend.answer`, one request after the other."""
        for number, request in enumerate(requests):
            if not more():
                return
            said = self._function(request)
            if isinstance(said, Failure):
                keep(Answer(number, said))
                continue
            response = reply(request, said, finish_reason="stop") if isinstance(said, str) else said
            prompt = " ".join([request.prompt, *(content for _, content in request.messages)])
            keep(Answer(number, response, Usage(len(prompt.split()), len(response.text.split()))))

    def close(self) -> None:
        """Nothing to give up."""
