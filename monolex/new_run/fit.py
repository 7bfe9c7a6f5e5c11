"""The richest step of the ladder whose estimate, of the very file that is written, fits, and that has enough text."""

import math
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from monolex.errors import UserError
from monolex.estimate import total
from monolex.new_run.sizes import LADDER, Rung, Sizes, Spent, Subject, Text
from monolex.new_run.template import TEMPLATE, written
from monolex.plan import plan
from monolex.run_toml import run_config
from monolex.runtime import size
from monolex.speed import Speed

TOKENS = tuple(int(digits * 10**power) for power in (4, 5, 6, 7) for digits in (1, 1.5, 2, 3, 4, 5, 7))
"""Sizes of a corpus that are tried."""
ROWS_A_FEATURE = 300
"""Activations that a dictionary should see for each of its features; the demo's see some 250 to 1,000."""


def most_tokens(subject: Subject, text: Text, rung: Rung, most: Spent, speed: Speed) -> int:
    """The largest corpus that fits at a rung.

    Raises:
        UserError: not even the smallest does.
    """

    def spent(tokens: int) -> Spent:
        return estimated(written(subject, text, Sizes(rung, tokens, 1)), subject, speed)

    for tokens in reversed(TOKENS):
        if _fits(spent(tokens), most):
            return tokens
    least = spent(TOKENS[0])
    raise UserError(
        f"minutes = {most.minutes:g}: the smallest run of {subject.name} takes {math.ceil(least.minutes)} "
        f"minutes or so, {size(least.disk)} of disk and {size(least.memory)} of memory here, and {size(most.disk)} and "
        f"{size(most.memory)} are to spare; give more --minutes, or a smaller model"
    )


def choose(subject: Subject, text: Text, most: Spent, speed: Speed) -> Sizes:
    """The first step of the ladder that fits and has enough text; the last one with whatever there is."""
    for sizes in _candidates(text):
        enough = sizes.worth >= ROWS_A_FEATURE * sizes.rung.ratio * subject.width or sizes.rung == LADDER[-1]
        if enough and _fits(estimated(written(subject, text, sizes), subject, speed), most):
            return sizes
    raise AssertionError("the smallest corpus fitted when it was asked for")


def _candidates(text: Text) -> Iterator[Sizes]:
    """By rung, the most text first."""
    lengths = (text.tokens, *(tokens for tokens in TOKENS if tokens < text.tokens))
    for rung in LADDER:
        sizes = [Sizes(rung, tokens, epochs) for tokens in lengths for epochs in (1, 2, 4)]
        yield from sorted(sizes, key=lambda candidate: -candidate.worth)


def _fits(spent: Spent, most: Spent) -> bool:
    return all(a <= b for a, b in zip(spent, most, strict=True))


def estimated(toml: str, subject: Subject, speed: Speed) -> Spent:
    """What a run is estimated to take, at ``speed``."""
    run = run_config(tomllib.loads(toml), TEMPLATE)
    run = replace(run, model=replace(run.model, model_dtype=subject.dtype))
    return Spent(*total(run, plan(run, Path("run")), subject.shape, speed))
