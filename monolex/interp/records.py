"""What explaining, simulating and scoring hand to each other: fragments, explanations, rules, predictions, failures.

An explanation is a text and, where a program can apply it, a rule. A simulator predicts a feature's activations on
tokens from an explanation; whether a language model or a rule does so, the same jobs go in and the same predictions
come out, so that all of them are scored alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from monolex.interp.rules import Rule

TOP = 10
"""Activations are written for language models as whole numbers from 0 to this one."""


@dataclass(frozen=True, eq=False)
class Fragment:
    """Neighbouring tokens of one document with a feature's activation on each."""

    doc: int
    """Its document."""
    row: int
    """Number of its first token among the activations' rows."""
    tokens: tuple[int, ...]
    """Token ids."""
    texts: tuple[str, ...]
    """The tokens, decoded one by one."""
    activations: Float32[NDArray, "tokens"]
    """The feature's activation on each, as the dictionary gives it: negative values are kept."""

    @property
    def maximum(self) -> float:
        """Its largest activation."""
        return float(self.activations.max())


@dataclass(frozen=True, eq=False)
class Examples:
    """What a feature is explained from and what its explanation is scored on: never the same fragment."""

    feature: int
    """Number of the feature."""
    explain: tuple[Fragment, ...]
    """Fragments with the feature that an explainer may see, the strongest first."""
    explain_silent: tuple[Fragment, ...]
    """Fragments on which it is nowhere above zero, for explainers that contrast and for thresholds."""
    top: tuple[Fragment, ...]
    """Scored: among the strongest."""
    random: tuple[Fragment, ...]
    """Scored: drawn at random from the others with any variation; in ``modern`` mode two from each fifth of them."""
    silent: tuple[Fragment, ...]
    """Scored by detection and fuzzing alone: nowhere above zero, verified token by token."""
    maximum: float
    """Largest activation in ``explain``."""


@dataclass(frozen=True)
class Explanation:
    """What a feature is said to respond to."""

    explainer: str
    """Who says so."""
    text: str
    """For people and language models."""
    rule: Rule | None = None
    """The same for a program; None where a language model wrote the text."""


Key = tuple[str, str, str]
"""Model (`subject`, or a control's name), site and name of a dictionary."""


def dictionary_of(row: Mapping[str, Any]) -> Key:
    """The dictionary that a row of an artefact is of; joined by slashes it is the dictionary's name in one."""
    return row["model"], row["site"], row["name"]


class Failure(NamedTuple):
    """Something that was asked for and did not come; counted, never a number."""

    reason: str
    """Why, in a few words that are the same for the same kind of failure."""
    again: bool = False
    """Whether asking once more may help: a call that went unanswered. An answer that is no use would come again."""


class Job(NamedTuple):
    """One prediction that is wanted."""

    explanation: Explanation
    """Of which feature is not said."""
    texts: tuple[str, ...]
    """The tokens of a fragment."""


Prediction = Float[NDArray[np.float64], "_tokens"]
"""Predicted activations, in any unit: correlation does not mind. NaN at a missing token: the simulator says nothing."""


class Simulator(Protocol):
    """Predicts activations from explanations."""

    @property
    def kind(self) -> str:
        """Which method and model; scores of different kinds are not comparable."""
        ...

    def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        """One prediction of as many numbers as tokens a job, in order."""
        ...


class Request(NamedTuple):
    """One call of a language model."""

    messages: tuple[tuple[str, str], ...] = ()
    """Role and content of every message of a chat; empty for a completion."""
    prompt: str = ""
    """Of a completion; empty for a chat."""
    params: tuple[tuple[str, Any], ...] = ()
    """Parameters of the call by name, sorted: max_tokens, temperature, logprobs, echo …"""
    sample: int = 0
    """Tells apart several draws of the same request."""


class Reply(NamedTuple):
    """What came back."""

    text: str
    """The text that was written (of an echoed completion, with the prompt)."""
    choice: dict[str, Any]
    """The first choice of the endpoint's answer as plain JSON values: its log-probabilities, why it stopped."""


class Client(Protocol):
    """Calls one language model."""

    @property
    def model(self) -> str:
        """Its name."""
        ...

    def ask(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """An answer a request, in order; several may be under way at once."""
        ...


class Overlay(NamedTuple):
    """A scored fragment with what was true and what was predicted, for people to look at."""

    group: str
    """`top` or `random`."""
    doc: int
    """Its document."""
    texts: tuple[str, ...]
    """Its tokens."""
    actual: tuple[float, ...]
    """The feature's activations."""
    predicted: tuple[float | None, ...] | None
    """What the simulator says, in its own unit, None at a missing token; None where it failed."""


class Scored(NamedTuple):
    """An explanation of one feature with its scores."""

    row: dict[str, Any]
    """Its line in scores.jsonl."""
    overlays: tuple[Overlay, ...]
    """Some of its scored fragments."""
