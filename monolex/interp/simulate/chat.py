"""What any chat endpoint can do: judge fragments, and simulate by a JSON list (weaker than the other simulators)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from monolex.interp.llm.answers import answered, last_list
from monolex.interp.llm.client import require_answered
from monolex.interp.llm.prompts import judge_chat, list_chat
from monolex.interp.records import TOP, Client, Explanation, Failure, Job, Prediction, Reply, Request

ALTERNATIVES = 5
"""Tokens whose log-probabilities are asked for at every verdict."""


class Question(NamedTuple):
    """Several fragments that are judged by one explanation, in one call."""

    explanation: Explanation
    """Of which feature is not said."""
    fragments: tuple[str, ...]
    """As text; for fuzzing as :func:`monolex.interp.llm.prompts.marked`."""
    marks: bool = False
    """Whether it is asked if the marks are right (fuzzing), not if the feature is active (detection)."""


class Verdict(NamedTuple):
    """What is said of one fragment."""

    yes: bool
    """The feature is active, or the marks are right."""
    probability: float | None
    """Of yes, among yes and no; None where the endpoint gives no log-probabilities."""


class ChatJudge(NamedTuple):
    """A chat model that is asked for verdicts, and how."""

    client: Client
    """The model."""
    logprobs: bool = True
    """Whether it is asked for log-probabilities too; some endpoints refuse calls that do."""
    reply_tokens: int | None = None
    """Tokens that a reply may take; None: what a list needs."""


@final
class JsonSimulator:
    """Simulates by any chat endpoint; a :class:`monolex.interp.records.Simulator`."""

    def __init__(self, client: Client, reply_tokens: int | None = None) -> None:
        self._client, self._reply_tokens = client, reply_tokens

    @property
    def kind(self) -> str:
        """The model; the scale is always 0 … 10."""
        return f"json 0-{TOP} of {self._client.model}"

    def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        """Numbers of every job; an answer that is not one for each token is a failure."""
        requests = [
            Request(list_chat(job.explanation.text, job.texts), params=_params(len(job.texts), self._reply_tokens))
            for job in jobs
        ]
        predictions: list[Prediction | Failure] = []
        for job, reply in zip(jobs, self._client.ask(requests), strict=True):
            text = reply if isinstance(reply, Failure) else answered(reply)
            numbers = text if isinstance(text, Failure) else parse(text, len(job.texts), TOP)
            predictions.append(numbers if isinstance(numbers, Failure) else np.array(numbers, dtype=np.float64))
        return predictions


def judge(by: ChatJudge, questions: Sequence[Question]) -> list[list[Verdict] | Failure]:
    """A verdict a fragment of every question, by detection or fuzzing; each question is one call."""
    extra = {"logprobs": True, "top_logprobs": ALTERNATIVES} if by.logprobs else {}
    requests = [
        Request(
            judge_chat(question.explanation.text, question.fragments, marks=question.marks),
            params=_params(len(question.fragments), by.reply_tokens, **extra),
        )
        for question in questions
    ]
    verdicts: list[list[Verdict] | Failure] = []
    for question, reply in zip(questions, by.client.ask(requests), strict=True):
        verdicts.append(reply if isinstance(reply, Failure) else _verdicts(reply, len(question.fragments)))
    return verdicts


def gives_logprobs(client: Client, reply_tokens: int | None = None) -> bool:
    """Whether an endpoint answers chats that ask for log-probabilities, which some refuse; tried once, on two words.

    ``reply_tokens`` as in :class:`ChatJudge`.

    Raises:
        UserError: it could not be asked.
    """
    params = _params(1, reply_tokens, logprobs=True, top_logprobs=ALTERNATIVES)
    (reply,) = client.ask([Request((("user", "Write 1."),), params=params)])
    require_answered(client, reply)
    return isinstance(reply, Reply)


def parse(text: str, count: int, top: int) -> list[float] | Failure:
    """The last list of ``count`` numbers, 0 … ``top``, in an answer, as :func:`monolex.interp.llm.answers.last_list`.

    >>> parse("Here it is: [0, 3]; [2] is doubtful", 2, 10), parse("[0, 11]", 2, 10)
    ([0.0, 3.0], Failure(reason='the answer holds something else than whole numbers from 0 to 10', again=False))
    """
    listed = last_list(text, count, top)
    return listed if isinstance(listed, Failure) else listed.numbers


def _params(items: int, reply_tokens: int | None, **extra: Any) -> tuple[tuple[str, Any], ...]:
    """Room for a list of so many numbers, with their commas, and for a fence around it."""
    limit = 32 + 4 * items if reply_tokens is None else reply_tokens
    return tuple(sorted({"max_tokens": limit, "temperature": 0.0, **extra}.items()))


def _verdicts(reply: Reply, count: int) -> list[Verdict] | Failure:
    text = answered(reply)
    if isinstance(text, Failure):
        return text
    listed = last_list(text, count, 1)
    if isinstance(listed, Failure):
        return listed
    odds, before = _odds(reply), len(reply.text) - len(text)
    return [
        Verdict(number == 1, odds.get(before + place))
        for number, place in zip(listed.numbers, listed.places, strict=True)
    ]


def _odds(reply: Reply) -> Mapping[int, float]:
    """The probability of 1 among 0 and 1, by the character at which either was written."""
    try:
        content = reply.choice["logprobs"]["content"]
        tokens = [
            (str(entry["token"]), {other["token"]: float(other["logprob"]) for other in entry["top_logprobs"]})
            for entry in content
        ]
    except (KeyError, TypeError):  # none, or of another form
        return {}
    if "".join(token for token, _ in tokens) != reply.text:
        return {}
    odds, at = {}, 0
    for token, known in tokens:
        digits = [i for i, character in enumerate(token) if character in "01"]
        if len(digits) == 1:
            # the same token with the other digit: providers write " 1" or "1," as one
            no, yes = (token[: digits[0]] + digit + token[digits[0] + 1 :] for digit in "01")
            weights = [math.exp(known.get(text, -math.inf)) for text in (no, yes)]
            if sum(weights) > 0:
                odds[at + digits[0]] = weights[1] / sum(weights)
        at += len(token)
    return odds
