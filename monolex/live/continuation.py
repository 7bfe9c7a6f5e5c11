"""A prompt continued, token by token with the features that fire on it, with and without interventions."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import torch

from monolex.config import require
from monolex.errors import UserError
from monolex.interp.llm.sampling import end_tokens, pick
from monolex.live.interventions import Intervention, idle
from monolex.live.prompt import LivePrompt, special_tokens
from monolex.live.reading import TokenFeatures, Wanted, require_fitting, token_features
from monolex.live.session import LiveModel, TokenCost
from monolex.live.trace import Tape

Why = Literal["length", "end", "context", "stopped"]
"""Why no token follows: all that were wanted are there; the model ended the text; its last position; or the caller."""
BATCH: Final = 32
"""Tokens that are encoded at once, at most: a wide dictionary costs a token less where several share its weights."""
PATIENCE: Final = 0.1
"""Seconds for which a token waits for others to be encoded with, and other threads for the model."""
NOTHING: Final = Wanted(())
"""No features."""


@dataclass(frozen=True)
class Sampling:
    """By which rule tokens are chosen.

    Raises:
        UserError: no token, a temperature below 0, or a ``top_p`` that is no probability.
    """

    max_new_tokens: int = 50
    """Tokens at most."""
    temperature: float = 0.0
    """0: the most probable token; 1: as the model says; above, more evenly."""
    top_p: float = 1.0
    """Draw from the most probable tokens that together have this probability."""
    seed: int = 0
    """Of the draws: token i of every continuation uses the same number, so that pairs differ by their edits alone."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, f"max_new_tokens = {self.max_new_tokens}: give at least 1")
        require(0 <= self.temperature < float("inf"), f"temperature = {self.temperature}: give 0 (greedy) or more")
        require(0 < self.top_p <= 1, f"top_p = {self.top_p}: give a probability above 0, up to 1")


class GeneratedToken(NamedTuple):
    """A token that the model has written."""

    position: int
    """Its place, from 0 at the prompt's first token."""
    token: int
    """Its id."""
    text: str
    """Its text alone; what neighbouring tokens are together says :func:`monolex.text.characters.joined`."""
    special: bool
    """Whether it is a special token."""
    probability: float
    """That the model gave it, under the interventions, at temperature 1."""
    features: dict[str, TokenFeatures]
    """What fires on it, by dictionary."""


class Continued(NamedTuple):
    """How a continuation ended."""

    prompt: LivePrompt
    """The prompt with what was written."""
    why: Why
    """Why no token follows."""
    cost: TokenCost
    """Tokens that were computed, prompt and continuation, and that were not."""
    notes: tuple[str, ...]
    """What a reader must know, a sentence each."""


class Side(NamedTuple):
    """An event of one of two continuations."""

    side: Literal["base", "edited"]
    """Without or with the interventions."""
    event: GeneratedToken | Continued
    """A token, or its end."""


class TwoContinued(NamedTuple):
    """How two continuations of a prompt ended."""

    base: Continued
    """Without interventions."""
    edited: Continued
    """With them."""
    differ_at: int | None
    """Position of the first token that is not the same in both, or that only one has; None where all are the same."""


def stream(
    live: LiveModel,
    prompt: LivePrompt,
    sampling: Sampling = Sampling(),
    *,
    interventions: Sequence[Intervention] = (),
    wanted: Wanted = NOTHING,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[GeneratedToken | Continued, None, None]:
    """Tokens as they are written, each with its features, and at last how it ended.

    The prompt is read before this returns. Features come from the forward pass that predicts the token after them:
    there is no second one. ``stop`` is asked before every token. Everything is kept, also where the iterator is closed
    early: a second turn costs its new tokens alone.

    Raises:
        UserError: as :meth:`LiveModel.run` and :func:`monolex.live.reading.read`.
    """
    with live.lock:
        require_fitting(live, wanted)
        tape = live.tape(prompt, interventions)
        live.keep(tape)
    draws = torch.Generator().manual_seed(sampling.seed)
    goal = len(prompt.ids) + sampling.max_new_tokens
    rule = _Rule(sampling, draws, end_tokens(live.lm), goal, live.lm.max_context, stop)
    return _generated(live, prompt, tape, rule, wanted)


def pair(
    live: LiveModel,
    prompt: LivePrompt,
    interventions: Sequence[Intervention],
    sampling: Sampling = Sampling(),
    *,
    wanted: Wanted = NOTHING,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Side | TwoContinued, None, None]:
    """The continuations without and with ``interventions``, a token of each in turn, and at last where they part.

    Raises:
        UserError: as :func:`stream`.
    """
    base = stream(live, prompt, sampling, wanted=wanted, stop=stop)
    edited = stream(live, prompt, sampling, interventions=interventions, wanted=wanted, stop=stop)
    return _in_turn(base, edited)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place at which two texts hold other tokens, or only one holds any; None where they are the same.

    >>> first_difference([1, 2], [1, 2]), first_difference([1, 2], [1, 3]), first_difference([1], [1, 2])
    (None, 1, 1)
    """
    both = min(len(a), len(b))
    apart = next((at for at in range(both) if a[at] != b[at]), both)
    return None if apart == len(a) == len(b) else apart


def _in_turn(
    base: Generator[GeneratedToken | Continued, None, None], edited: Generator[GeneratedToken | Continued, None, None]
) -> Generator[Side | TwoContinued, None, None]:
    ends: dict[str, Continued] = {}
    going: dict[Literal["base", "edited"], Generator[GeneratedToken | Continued, None, None]] = {
        "base": base,
        "edited": edited,
    }
    with closing(base), closing(edited):
        while going:
            for side in tuple(going):
                event = next(going[side])
                if isinstance(event, Continued):
                    ends[side] = event
                    del going[side]
                yield Side(side, event)
    apart = first_difference(ends["base"].prompt.ids, ends["edited"].prompt.ids)
    yield TwoContinued(ends["base"], ends["edited"], apart)


class _Rule(NamedTuple):
    """What decides over the next token, and over the last."""

    sampling: Sampling
    draws: torch.Generator
    ends: set[int]
    goal: int
    room: int
    stop: Callable[[], bool]

    def enough(self, tokens: int) -> Why | None:
        if tokens >= self.goal:
            return "length"
        if tokens >= self.room:
            return "context"
        return "stopped" if self.stop() else None


class _Burst(NamedTuple):
    """Tokens that were generated one after another."""

    tokens: list[int]
    probabilities: list[float]
    why: Why | None
    error: UserError | None


def _generated(
    live: LiveModel, prompt: LivePrompt, tape: Tape, rule: _Rule, wanted: Wanted
) -> Generator[GeneratedToken | Continued, None, None]:
    special, why = special_tokens(live.lm), None
    try:
        while why is None:
            with live.lock:
                burst = _burst(tape, rule)
                new = _with_features(live, tape, burst, special, wanted)
            yield from new
            prompt, why = _longer(prompt, new), burst.why
            if burst.error is not None:
                raise burst.error
    finally:
        with live.lock:
            trace = live.keep(tape)
    notes = (*prompt.notes, *idle(trace.edits, trace.effects))
    yield Continued(prompt, why, TokenCost(tape.computed, tape.reused), notes)


def _burst(tape: Tape, rule: _Rule) -> _Burst:
    """As many tokens as may wait for each other, at least one if there is any left."""
    begun, tokens, probabilities = time.monotonic(), [], []
    with tape.hooked():
        while not tokens or (len(tokens) < BATCH and time.monotonic() - begun < PATIENCE):
            why = rule.enough(len(tape.ids))
            if why is not None:
                return _Burst(tokens, probabilities, why, None)
            log_p = tape.logits.cpu().double().log_softmax(-1)
            token = pick(log_p, rule.sampling.temperature, rule.sampling.top_p, rule.draws)
            try:
                tape.feed([token])
            except UserError as error:  # what was generated before is shown first
                return _Burst(tokens, probabilities, None, error)
            tokens.append(token)
            probabilities.append(float(log_p[token].exp()))
            if token in rule.ends:
                return _Burst(tokens, probabilities, "end", None)
    return _Burst(tokens, probabilities, None, None)


def _with_features(
    live: LiveModel, tape: Tape, burst: _Burst, special: set[int], wanted: Wanted
) -> list[GeneratedToken]:
    """Tokens with what fires on them; of every dictionary all tokens at once."""
    start = len(tape.ids) - len(burst.tokens)
    read: dict[str, list[TokenFeatures]] = {}
    for title in wanted.dictionaries if burst.tokens else ():
        dictionary = live.dictionary(title)
        read[title] = token_features(dictionary, tape.rows(dictionary.site, start), burst.tokens, wanted)
    known, new = dict(live.texts.of(burst.tokens)), []
    for number, (token, probability) in enumerate(zip(burst.tokens, burst.probabilities, strict=True)):
        features = {title: of_tokens[number] for title, of_tokens in read.items()}
        new.append(GeneratedToken(start + number, token, known[token], token in special, probability, features))
    return new


def _longer(prompt: LivePrompt, new: Sequence[GeneratedToken]) -> LivePrompt:
    return replace(
        prompt,
        ids=(*prompt.ids, *(token.token for token in new)),
        texts=(*prompt.texts, *(token.text for token in new)),
        special=(*prompt.special, *(token.special for token in new)),
        generated=(*prompt.generated, *(True for _ in new)),
    )
