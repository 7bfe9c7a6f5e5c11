"""A prompt continued, token by token with the features that fire on it, with and without interventions."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
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
from monolex.live.session import Cost, LiveModel
from monolex.live.trace import Tape

BATCH: Final = 32
"""Tokens that are encoded at once, at most: a wide dictionary costs a token less where several share its weights."""
PATIENCE: Final = 0.1
"""Seconds for which a token may wait for others to be encoded with: shorter than anybody sees."""
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
    why: Literal["length", "end", "context", "stopped"]
    """All tokens that were wanted; the model ended the text; its last position; or the caller stopped."""
    cost: Cost
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
    return _written(live, prompt, tape, sampling, wanted, stop)


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


def _written(
    live: LiveModel, prompt: LivePrompt, tape: Tape, sampling: Sampling, wanted: Wanted, stop: Callable[[], bool]
) -> Generator[GeneratedToken | Continued, None, None]:
    ends, special, room = end_tokens(live.lm), special_tokens(live.lm), live.lm.max_context
    draws = torch.Generator().manual_seed(sampling.seed)
    waiting: list[GeneratedToken] = []
    texts: list[str] = []
    begun, why = time.monotonic(), None
    try:
        while why is None:
            why = _no_more(len(tape.ids), len(prompt.ids), room, sampling, stop)
            if why is None:
                with live.lock:
                    log_p = _wide_log_p(tape)
                    token = pick(log_p, sampling.temperature, sampling.top_p, draws)
                    ((_, text),) = live.texts.of([token])
                    texts.append(text)
                    place = len(tape.ids)
                    tape.feed([token])
                chance = float(log_p[token].exp())
                waiting.append(GeneratedToken(place, token, text, token in special, chance, {}))
                why = "end" if token in ends else None
            if waiting and (why or len(waiting) == BATCH or time.monotonic() - begun > PATIENCE):
                yield from _with_features(live, tape, waiting, wanted)
                waiting, begun = [], time.monotonic()
    except UserError:
        yield from _with_features(live, tape, waiting, wanted)
        raise
    finally:
        with live.lock:
            trace = live.keep(tape)
    new = tape.ids[len(prompt.ids) :]
    longer = replace(
        prompt,
        ids=tuple(tape.ids),
        texts=(*prompt.texts, *texts),
        special=(*prompt.special, *(token in special for token in new)),
        generated=(*prompt.generated, *(True,) * len(new)),
    )
    notes = (*prompt.notes, *idle(trace.edits, trace.effects))
    yield Continued(longer, why, Cost(tape.computed, tape.reused), notes)


def _no_more(
    now: int, before: int, room: int, sampling: Sampling, stop: Callable[[], bool]
) -> Literal["length", "context", "stopped"] | None:
    if now - before >= sampling.max_new_tokens:
        return "length"
    if now >= room:
        return "context"
    return "stopped" if stop() else None


def _wide_log_p(tape: Tape) -> torch.Tensor:
    return tape.logits.cpu().double().log_softmax(-1)


def _with_features(
    live: LiveModel, tape: Tape, waiting: Sequence[GeneratedToken], wanted: Wanted
) -> Iterator[GeneratedToken]:
    """Tokens with what fires on them; of every dictionary all tokens at once."""
    ids = [token.token for token in waiting]
    read: dict[str, list[TokenFeatures]] = {}
    with live.lock:
        for title in wanted.dictionaries:
            dictionary = live.dictionary(title)
            read[title] = token_features(dictionary, tape.rows(dictionary.site, waiting[0].position), ids, wanted)
    for number, token in enumerate(waiting):
        yield token._replace(features={title: features[number] for title, features in read.items()})
