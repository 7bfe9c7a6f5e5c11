"""What language models are asked: to explain a feature, to simulate one, and to judge fragments by an explanation.

The prompts for explaining and for simulating all at once have the structure of OpenAI's protocol (Bills et al. 2023):
a line a token, worked examples, and, for simulators, the word `unknown` where a number is wanted, so that a single
reading of the prompt gives the odds of every number at every token. All sentences and examples are our own.

Tokens that are parts of one character are shown as that character, with the largest of their activations.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from monolex.interp import protocol
from monolex.interp.llm.few_shots import SHOTS, Record
from monolex.interp.records import TOP, Examples, Fragment
from monolex.text.characters import joined, pieces

Chat = tuple[tuple[str, str], ...]
"""Role and content of every message."""
UNKNOWN = "unknown"
"""Stands where a simulator is to say a number."""
SPARSE = 0.2
"""Below this share of numbers above 0 explainers see the active tokens a second time, alone."""
STRONG = 0.3
"""Tokens above this share of the maximum are marked for explainers."""
OPENING = "it becomes active on"
"""Begins every explanation."""
ANSWER = "DESCRIPTION:"
"""Stands before the answer of the prompt with examples."""
MARKS = ("«", "»")
"""Stand around marked tokens."""

_EXPLAIN = (
    "You are shown what single features inside a language model respond to. A feature is active on certain tokens of "
    "a text and silent on all others. Work out from the tokens on which it is active, and from what surrounds them, "
    "what the feature stands for, and say it in one sentence. Describe what the tokens have in common; do not list "
    "them.\n\nEvery token has a line of its own: the token, a tab, and the activation as a whole number from 0 to "
    "{top}. 0 says that the feature is silent; the larger the number, the more active it is."
)
_SIMULATE = (
    "A short description tells you what a single feature inside a language model responds to. Say for each token of a "
    "text how active the feature is on it.\n\nEvery token has a line of its own: the token, a tab, and the activation "
    "as a whole number from 0 to {top}, or the word unknown where the number is kept from you. A feature is silent on "
    "most tokens: most numbers are 0.\n"
)
_EXAMPLES = (
    "You find out what a single feature inside a language model responds to. First come fragments of text on which it "
    "is active, as JSON strings: the tokens on which it is most active stand between {0} and {1}, which are not part "
    "of the text, and under each fragment are its active tokens with their activations as whole numbers up to {top}. "
    "Then come fragments on which the feature is silent, if there are any. Find what the marked tokens share, or what "
    "leads up to them, that the silent fragments lack. Answer with one line that begins with {answer} and goes on, in "
    "at most 25 words, with what the feature is active on."
)
_LIST = (
    "A short description tells you what a single feature inside a language model responds to. You get the tokens of a "
    "text as a JSON list of strings. Answer with a JSON list of whole numbers from 0 to {top}, one a token and in "
    "their order, that say how active the feature is on each: 0 where it is silent, as it is on most tokens, {top} "
    "where it could not be more active. Write the list and nothing else."
)
_DETECT = (
    "A short description tells you what a single feature inside a language model responds to. You get numbered "
    "fragments of text as JSON strings. Decide for each whether the feature is active on any of its tokens. Answer "
    "with a JSON list, one number a fragment and in their order: 1 where it is active, 0 where it is not. Write the "
    "list and nothing else."
)
_FUZZ = (
    "A short description tells you what a single feature inside a language model responds to. You get numbered "
    "fragments of text as JSON strings, in each of which some tokens stand between {0} and {1}. Decide for each "
    "whether it is the marked tokens that the feature is active on; others may have been marked instead. Answer with "
    "a JSON list, one number a fragment and in their order: 1 where the marks are right, 0 where they are not. Write "
    "the list and nothing else."
)


class PromptLine(NamedTuple):
    """A token and what is said of it: `token<tab>label` and a line break."""

    token: str
    """Text of the token, whatever it is: it may be empty, a tab or a line break."""
    label: str
    """A number or :data:`UNKNOWN`."""


Part = str | PromptLine
"""Of a prompt: running text, or a line whose tab and label a simulator has to find again."""


def written(parts: Iterable[Part]) -> str:
    """A prompt as text."""
    return "".join(part if isinstance(part, str) else f"{part.token}\t{part.label}\n" for part in parts)


def simulation_start(top: int = TOP) -> tuple[Part, ...]:
    """What the prompt of every simulation begins with: the task and the worked examples, on the scale 0 … ``top``."""
    parts: list[Part] = [_SIMULATE.format(top=top)]
    for number, shot in enumerate(SHOTS, 1):
        records = zip(shot.records, _labels(shot.records, top), shot.revealed, strict=True)
        shown = [zip(record.tokens, (UNKNOWN,) * at + labels[at:], strict=True) for record, labels, at in records]
        parts += [_described(number, shot.explanation), "\nActivations: ", *_block(shown), "\n"]
    return tuple(parts)


def simulation_end(explanation: str, texts: Sequence[str]) -> tuple[Part, ...]:
    """What follows :func:`simulation_start`: one explanation, and a fragment all of whose activations are unknown."""
    described = _described(len(SHOTS) + 1, explanation.strip())
    return described, "\nActivations: ", *_block([[(text, UNKNOWN) for text in texts]])


def explanation_chat(fragments: Sequence[Fragment]) -> Chat:
    """Asks, by tokens with activations, for what goes on behind :data:`OPENING`; the scale's end is their maximum."""
    messages = [("system", _EXPLAIN.format(top=TOP))]
    for number, shot in enumerate(SHOTS, 1):
        messages.append(("user", _evidence(number, shot.records)))
        messages.append(("assistant", f" {shot.explanation}."))
    shown = [_whole(fragment) for fragment in fragments]
    return *messages, ("user", _evidence(len(SHOTS) + 1, shown))


def examples_chat(examples: Examples) -> Chat:
    """Asks, by fragments with marked tokens and silent ones beside them, for a line behind :data:`ANSWER`."""
    parts = ["Fragments on which the feature is active:"]
    for number, fragment in enumerate(examples.explain, 1):
        strong = fragment.activations > STRONG * examples.maximum
        texts, activations = _whole(fragment)
        numbers = protocol.normalise(activations, examples.maximum).tolist()
        pairs = [f"({_quoted(text)}, {n})" for text, n in zip(texts, numbers, strict=True) if n]
        parts.append(f"{number}. {_quoted(marked(fragment.texts, strong))}\n   {', '.join(pairs)}")
    if examples.explain_silent:
        parts.append("\nFragments on which it is silent:")
        silent = (joined(fragment.texts) for fragment in examples.explain_silent)
        parts += [f"{number}. {_quoted(text)}" for number, text in enumerate(silent, 1)]
    return ("system", _EXAMPLES.format(*MARKS, top=TOP, answer=ANSWER)), ("user", "\n".join(parts))


def list_chat(explanation: str, texts: Sequence[str]) -> Chat:
    """Asks for the activations of a fragment as a JSON list."""
    tokens = json.dumps(list(texts), ensure_ascii=False)
    question = f"The feature: {OPENING} {explanation.strip()}\nThe {len(texts)} tokens: {tokens}"
    return ("system", _LIST.format(top=TOP)), ("user", question)


def judge_chat(explanation: str, fragments: Sequence[str], *, marks: bool) -> Chat:
    """Asks of several fragments whether they fit, or with ``marks`` whether the right tokens are :func:`marked`."""
    shown = "\n".join(f"{number}. {_quoted(text)}" for number, text in enumerate(fragments, 1))
    question = f"The feature: {OPENING} {explanation.strip()}\nThe {len(fragments)} fragments:\n{shown}"
    return ("system", _FUZZ.format(*MARKS) if marks else _DETECT), ("user", question)


def marked(texts: Sequence[str], which: Bool[NDArray, "tokens"]) -> str:
    """The text with marks around every run of chosen tokens, and around the whole of a character that they are part of.

    >>> marked(["a", " b", " c", " d"], np.array([False, True, True, False]))
    'a« b c» d'
    """
    shown = pieces(texts)
    chosen = [bool(which[piece.start : piece.stop].any()) for piece in shown]
    edges = np.diff([0, *chosen, 0]).tolist()
    begin, end = MARKS
    parts = zip([*(piece.text for piece in shown), ""], edges, strict=True)
    return "".join({1: begin, -1: end, 0: ""}[edge] + text for text, edge in parts)


def _whole(fragment: Fragment) -> Record:
    """A fragment in whole characters."""
    shown = pieces(fragment.texts)
    largest = (float(fragment.activations[piece.start : piece.stop].max()) for piece in shown)
    return Record(tuple(piece.text for piece in shown), tuple(largest))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _described(number: int, explanation: str) -> str:
    return f"\n\nFeature {number}\nWhat feature {number} responds to: {OPENING} {explanation}"


def _evidence(number: int, records: Sequence[Record]) -> str:
    """A feature's fragments and the beginning of a sentence, for explainers."""
    labels = _labels(records, TOP)
    lines = [list(zip(record.tokens, shown, strict=True)) for record, shown in zip(records, labels, strict=True)]
    parts: list[Part] = [f"\n\nFeature {number}\nActivations:", *_block(lines)]
    active = [[line for line in record if line[1] != "0"] for record in lines]
    if sum(map(len, active)) < SPARSE * sum(map(len, lines)):
        parts += ["\nOnce more, without the tokens at 0:", *_block(active)]
    return written([*parts, f"\nWhat feature {number} responds to: {OPENING}"])


def _labels(records: Sequence[Record], top: int) -> list[tuple[str, ...]]:
    """Whole numbers, 0 … ``top``, on one scale for all the fragments."""
    maximum = protocol.largest([record.activations for record in records])
    return [tuple(map(str, protocol.normalise(record.activations, maximum, top))) for record in records]


def _block(records: Iterable[Iterable[tuple[str, str]]]) -> list[Part]:
    """Tokens with labels of several fragments, each between `<start>` and `<end>`."""
    parts: list[Part] = ["\n"]
    for lines in records:
        parts += ["<start>\n", *(PromptLine(token, label) for token, label in lines), "<end>\n"]
    return parts
