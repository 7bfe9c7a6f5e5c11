"""What a chat model's reply says, without what it thought before: a text, or the list that was asked for.

Models think in a field of their own, which is never read, or in the text before the answer, which is cut off. A reply
that its token limit ended is no answer, whatever it holds: a list may be a draft, half a sentence no explanation.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from monolex.interp.records import Failure, Reply

CUT = Failure("cut at the token limit (reply_tokens)")
"""A reply that was still going on."""
ONLY_REASONING = Failure("reasoning without an answer")
"""A reply that holds nothing behind what the model thought."""
EMPTY = Failure("an empty answer")
NO_LIST = Failure("the answer is no list of numbers")
WRONG_COUNT = Failure("the answer has not one number for each item")

_NAME = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning)"
_HEAD = re.compile(rf"\s*(?:<({_NAME})>.*?(?:</\1>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z))", re.S | re.I)
_CLOSE = rf"(?:</{_NAME}>|\[/THINK\])"
# At the beginning or the end of a line: elsewhere it may be a token that is spoken of.
_TAIL = re.compile(rf"(?:^[ \t]*{_CLOSE}|{_CLOSE}[ \t]*$)", re.M | re.I)
_LIST = re.compile(r"\[[^\[\]]*\]")
_ITEM = re.compile(r"""\s*(["']?)([+-]?(?:\d+\.?\d*|\.\d+))\1\s*""")


def answered(reply: Reply) -> str | Failure:
    """What a chat reply answers: the end of its text, behind all reasoning; never empty."""
    if reply.choice.get("finish_reason") == "length":
        return CUT
    text = without_reasoning(reply.text)
    if text.strip():
        return text
    message = reply.choice.get("message")
    fields = message if isinstance(message, dict) else {}
    thought = reply.text.strip() or fields.get("reasoning_content") or fields.get("reasoning")
    return ONLY_REASONING if thought else EMPTY


def without_reasoning(text: str) -> str:
    """The end of ``text`` behind `<think> … </think>` and its like, also where either of the two is missing.

    >>> [without_reasoning(text) for text in ("<think>hm</think> rivers", "hm\\n</think>rivers", "<think>hm")]
    [' rivers', 'rivers', '']
    """
    while head := _HEAD.match(text):
        text = text[head.end() :]
    tails = list(_TAIL.finditer(text))
    return text[tails[-1].end() :] if tails else text


class Listed(NamedTuple):
    """A list in a text."""

    numbers: list[float]
    """Its numbers."""
    places: list[int]
    """Of each the character of the text at which it begins."""


def last_list(text: str, count: int, top: int) -> Listed | Failure:
    """The last list in an answer that holds ``count`` numbers from 0 to ``top``; whatever stands around it.

    Numbers may be quoted and written as `3.0`, and the last may have a comma behind it. Fractions count where there is
    a number above 1 beside them; else the list may be on a scale from 0 to 1. A single number that is bracketed within
    a line counts only where none stands alone in its line, since notes cite fragments like that.
    """
    fitting, reason = [], NO_LIST
    for match in _LIST.finditer(text):
        listed = _read(match)
        if listed is None:
            continue
        if not _in_range(listed.numbers, top):
            reason = Failure(f"the answer holds something else than whole numbers from 0 to {top}")
        elif len(listed.numbers) != count:
            reason = WRONG_COUNT
        else:
            fitting.append((_alone(match), listed))
    if count == 1 and any(alone for alone, _ in fitting):
        fitting = [(alone, listed) for alone, listed in fitting if alone]
    return fitting[-1][1] if fitting else reason


def _read(match: re.Match[str]) -> Listed | None:
    """The numbers of a bracket; None where something else stands in it."""
    numbers, places = [], []
    for start, item in _items(match):
        number = _ITEM.fullmatch(item)
        if number is None:
            return None
        numbers.append(float(number[2]))
        places.append(start + number.start(2))
    return Listed(numbers, places)


def _items(match: re.Match[str]) -> Iterator[tuple[int, str]]:
    """What stands between commas, and where; a comma behind the last item begins no other."""
    inside, at = match[0][1:-1].rstrip(), match.start() + 1
    items = inside.removesuffix(",").split(",") if inside else []
    for item in items:
        yield at, item
        at += len(item) + 1


def _in_range(numbers: list[float], top: int) -> bool:
    fractions = any(number != int(number) for number in numbers)
    return all(0 <= number <= top for number in numbers) and not (fractions and max(numbers) <= 1)


def _alone(match: re.Match[str]) -> bool:
    before, after = match.string[: match.start()], match.string[match.end() :]
    return not before.rpartition("\n")[2].strip(" `") and not after.partition("\n")[0].strip(" `")
