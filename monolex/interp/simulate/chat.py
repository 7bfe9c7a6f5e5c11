"""What any chat endpoint can do: judge fragments, and simulate by a JSON list (weaker than the other simulators)."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np

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


@final
class JsonSimulator:
    """Simulates by any chat endpoint; a :class:`monolex.interp.records.Simulator`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def kind(self) -> str:
        """The model; the scale is always 0 … 10."""
        return f"json 0-{TOP} of {self._client.model}"

    def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        """Whole numbers of every job; an answer that is not one for each token is a failure."""
        requests = [
            Request(list_chat(job.explanation.text, job.texts), params=_params(len(job.texts)))  # a number and a comma
            for job in jobs
        ]
        predictions: list[Prediction | Failure] = []
        for job, reply in zip(jobs, self._client.ask(requests), strict=True):
            numbers = reply if isinstance(reply, Failure) else parse(reply.text, len(job.texts), TOP)
            predictions.append(numbers if isinstance(numbers, Failure) else np.array(numbers, dtype=np.float64))
        return predictions


def judge(client: Client, questions: Sequence[Question], *, logprobs: bool = True) -> list[list[Verdict] | Failure]:
    """A verdict a fragment of every question, by detection or fuzzing.

    Args:
        client: Of a chat model.
        questions: Each is one call.
        logprobs: Ask for log-probabilities too; some endpoints refuse calls that do.
    """
    extra = {"logprobs": True, "top_logprobs": ALTERNATIVES} if logprobs else {}
    requests = [
        Request(
            judge_chat(question.explanation.text, question.fragments, marks=question.marks),
            params=_params(len(question.fragments), **extra),
        )
        for question in questions
    ]
    verdicts: list[list[Verdict] | Failure] = []
    for question, reply in zip(questions, client.ask(requests), strict=True):
        verdicts.append(reply if isinstance(reply, Failure) else _verdicts(reply, len(question.fragments)))
    return verdicts


def gives_logprobs(client: Client) -> bool:
    """Whether an endpoint answers chats that ask for log-probabilities, which some refuse; tried once, on two words.

    Raises:
        UserError: it could not be asked.
    """
    params = (("logprobs", True), ("max_tokens", 4), ("temperature", 0.0), ("top_logprobs", ALTERNATIVES))
    (reply,) = client.ask([Request((("user", "Write 1."),), params=params)])
    require_answered(client, reply)
    return isinstance(reply, Reply)


def parse(text: str, count: int, top: int) -> list[int] | Failure:
    """The JSON list of ``count`` whole numbers, 0 … ``top``, in an answer; words around it do not matter.

    >>> parse("Here it is: [0, 3]", 2, 10), parse("[0, 11]", 2, 10)
    ([0, 3], Failure(reason='the answer holds something else than whole numbers from 0 to 10'))
    """
    listed = _last_list(text)
    try:
        numbers = json.loads(listed[0]) if listed else None
    except ValueError:
        numbers = None
    if numbers is None:
        return Failure("the answer is no JSON list")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= top for n in numbers):
        return Failure(f"the answer holds something else than whole numbers from 0 to {top}")
    if len(numbers) != count:
        return Failure("the answer has not one number for each item")
    return numbers


def _params(items: int, **extra: Any) -> tuple[tuple[str, Any], ...]:
    """Room for a list of so many numbers, with their commas, and for a fence around it."""
    return tuple(sorted({"max_tokens": 32 + 4 * items, "temperature": 0.0, **extra}.items()))


def _last_list(text: str) -> re.Match[str] | None:
    """The last list in a text; those that are wanted hold no other."""
    return next(reversed(list(re.finditer(r"\[[^\[\]]*\]", text))), None)


def _verdicts(reply: Reply, count: int) -> list[Verdict] | Failure:
    numbers = parse(reply.text, count, 1)
    if isinstance(numbers, Failure):
        return numbers
    listed = _last_list(reply.text)
    assert listed, "a list was parsed"
    places = [listed.start() + match.start() for match in re.finditer("[01]", listed[0])]
    odds = _odds(reply)
    return [Verdict(bool(n), odds.get(place)) for n, place in zip(numbers, places, strict=True)]


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
