"""The simulator for OpenAI-compatible endpoints that give log-probabilities of a prompt's own tokens.

Two ways are known: `echo` with `logprobs` (the completions API of 2022, which vLLM and some providers still serve) and
vLLM's own `prompt_logprobs`. Which of them works is tried once, on a few tokens. At every tab before an `unknown` the
expected number is taken over those of 0 … 10 that are among the most probable tokens; where there is none the token is
missing (OpenAI's code predicts 0), and the job a failure where too many are
(:data:`monolex.interp.simulate.batch.MOST_MISSING`). vLLM must run without prefix caching, or its values may be stale.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from monolex.errors import UserError
from monolex.interp import protocol
from monolex.interp.llm.client import NOT_RECORDED, require_answered
from monolex.interp.llm.prompts import UNKNOWN, Part, PromptLine, simulation_end, simulation_start, written
from monolex.interp.records import TOP, Client, Failure, Job, Prediction, Reply, Request
from monolex.interp.simulate.batch import within_limit

Params = tuple[tuple[str, Any], ...]
MOST_PROBABLE = 15
"""Tokens whose log-probabilities are asked for at every position, as in OpenAI's code."""
ECHO: Params = (("echo", True), ("logprobs", MOST_PROBABLE), ("max_tokens", 1), ("temperature", 0.0))
"""The completions API of 2022."""
PROMPT_LOGPROBS: Params = (("max_tokens", 1), ("prompt_logprobs", MOST_PROBABLE), ("temperature", 0.0))
"""vLLM's own parameter."""

# Of a prompt, to see that it was not cut on the left; the very first token has no odds and may be missing.
_OPENING = slice(20, 120)


class Reading(NamedTuple):
    """A prompt as an endpoint's model read it."""

    tokens: list[str]
    """Texts of its tokens; the last ones may be newly written."""
    logprobs: list[dict[str, float] | None]
    """Of each what could have stood in its place, as far as it is known."""


@final
class Completions:
    """Simulates by an endpoint; a :class:`monolex.interp.records.Simulator`; made by :func:`connect`."""

    def __init__(self, client: Client, params: Params, top: int) -> None:
        self._client = client
        self._params = params
        self._top = top

    @property
    def kind(self) -> str:
        """The scale of the labels, which the tokenizer decides, and the model."""
        return f"completions 0-{self._top} of {self._client.model}"

    def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        """Expected values, 0 … 10 (or 9), of every job."""
        start = simulation_start(self._top)
        prompts = [(*start, *simulation_end(job.explanation.text, job.texts)) for job in jobs]
        replies = self._client.ask([Request(prompt=written(prompt), params=self._params) for prompt in prompts])
        both = zip(prompts, jobs, replies, strict=True)
        return [
            reply if isinstance(reply, Failure) else predicted(prompt, len(job.texts), reply, self._top)
            for prompt, job, reply in both
        ]


def connect(client: Client) -> Completions:
    """Try what the endpoint can do and how its model spells numbers.

    Raises:
        UserError: it gives no log-probabilities of a prompt, or its tokenizer no token for every digit.
    """
    probe = "".join(f"a\t{number}\n" for number in range(TOP + 1))
    reasons = []
    for params in (ECHO, PROMPT_LOGPROBS):
        (reply,) = client.ask([Request(prompt=probe, params=params)])
        require_answered(client, reply)
        reading = reply if isinstance(reply, Failure) else read(reply)
        labels = reading if isinstance(reading, Failure) else _spelled(reading)
        if not isinstance(labels, Failure):
            return Completions(client, params, _top(labels, client.model))
        reasons.append(f"{'echo' if params is ECHO else 'prompt_logprobs'}: {labels.reason}")
        if labels.reason == NOT_RECORDED and params is PROMPT_LOGPROBS:
            raise UserError(f"offline: no reply of {client.model!r} to this simulator is kept; ask the endpoint first")
    raise UserError(
        f"llm = {client.model!r}: its endpoint gives no log-probabilities of a prompt ({'; '.join(reasons)}); serve "
        "the model with vLLM without prefix caching, or take simulator = 'exact' or 'json'"
    )


def read(reply: Reply) -> Reading | Failure:
    """Tokens and log-probabilities out of a reply of either kind."""
    echoed, extra = reply.choice.get("logprobs"), reply.choice.get("prompt_logprobs")
    if isinstance(extra, list):
        try:
            entries = [[(str(t["decoded_token"]), t["logprob"]) for t in (place or {}).values()] for place in extra]
        except (AttributeError, KeyError, TypeError):
            return Failure("log-probabilities of another form")
        # of an entry the token that stands there comes first, behind it the most probable ones
        tokens = [entry[0][0] if entry else "" for entry in entries]
        return Reading(tokens, [_by_text(entry) if entry else None for entry in entries])
    if not isinstance(echoed, dict):
        return Failure("no log-probabilities in the reply")
    tokens, top = echoed.get("tokens"), echoed.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(top, list) or len(tokens) != len(top):
        return Failure("log-probabilities of another form")
    logprobs = [_by_text(entry.items()) if isinstance(entry, dict) else None for entry in top]
    return Reading([str(token) for token in tokens], logprobs)


def predicted(prompt: Sequence[Part], count: int, reply: Reply, top: int) -> Prediction | Failure:
    """Expected values at the labels of the last ``count`` lines of a prompt.

    Labels are told by what comes before them: a tab, then a token that begins `unknown`. The reply must have as many
    such places as the prompt; of which characters a token consists before the tab does not matter, so that subject
    tokens may be split, merged, or unprintable pieces of a character. A label at which no number can be read is NaN;
    of too many the most frequent reason is the failure's.
    """
    reading = read(reply)
    if isinstance(reading, Failure):
        return reading
    text, echoed = written(prompt), "".join(reading.tokens)
    prompt_places, reply_places = _unknowns(text), _unknowns(echoed)
    if len(reply_places) != len(prompt_places) or text[_OPENING] not in echoed:
        return Failure("the reply does not spell the prompt")
    wanted = set(_labels(prompt)[-count:] if count else ())
    begins = dict(zip(_offsets(reading.tokens), range(len(reading.tokens)), strict=True))
    values = [
        _label(reading, begins.get(reply_place), top)
        for reply_place, prompt_place in zip(reply_places, prompt_places, strict=True)
        if prompt_place in wanted
    ]
    reasons = Counter(value.reason for value in values if isinstance(value, Failure))
    prediction = np.array([math.nan if isinstance(value, Failure) else value for value in values], dtype=np.float64)
    return within_limit(prediction, max(reasons, key=lambda reason: reasons[reason], default=""))


def _label(reading: Reading, token: int | None, top: int) -> float | Failure:
    """The expected number at the label that begins with a token of the reply."""
    if token is None:
        return Failure("a token of the reply spans a tab and the label behind it")
    odds = reading.logprobs[token]
    if odds is None:
        return Failure("no log-probabilities at a label")
    value = protocol.expected_value(odds, top)
    return Failure("no number among the most probable labels") if value is None else value


def _spelled(reading: Reading) -> list[str] | Failure:
    """The first token of every label of the probe."""
    text = "".join(reading.tokens)
    begins = dict(zip(_offsets(reading.tokens), range(len(reading.tokens)), strict=True))
    places = [match.end() for match in re.finditer("\t(?=[0-9])", text)]
    if len(places) != TOP + 1:
        return Failure("the reply does not spell the prompt")
    first_tokens = [begins.get(place) for place in places]
    if any(token is not None and reading.logprobs[token] is None for token in first_tokens):
        return Failure("no log-probabilities of the prompt's tokens")
    return ["" if token is None else reading.tokens[token] for token in first_tokens]


def _top(labels: Sequence[str], model: str) -> int:
    """The largest number that is one token."""
    if list(labels[:TOP]) != [str(number) for number in range(TOP)]:
        raise UserError(
            f"llm = {model!r}: its tokenizer does not give every digit a token of its own, so that no number can be "
            "read off; choose another model, or simulator = 'json'"
        )
    return TOP if labels[TOP] == str(TOP) else TOP - 1


def _unknowns(text: str) -> list[int]:
    """Where `unknown` begins behind a tab."""
    return [match.end() for match in re.finditer(f"\t(?={UNKNOWN})", text)]


def _labels(prompt: Iterable[Part]) -> list[int]:
    """Where the label of every line begins, in characters."""
    begins, at = [], 0
    for part in prompt:
        if isinstance(part, PromptLine):
            begins.append(at + len(part.token) + 1)
        at += len(written([part]))
    return begins


def _offsets(tokens: Iterable[str]) -> list[int]:
    """Where every token begins in the text that they make."""
    begins, at = [], 0
    for token in tokens:
        begins.append(at)
        at += len(token)
    return begins


def _by_text(pairs: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """The largest of those with the same text; what is no number is left out."""
    largest: dict[str, float] = {}
    for text, value in pairs:
        if isinstance(value, int | float) and math.isfinite(value):
            largest[text] = max(value, largest.get(text, -math.inf))
    return largest
