"""One chat -> the text its model was trained on, and where in it every message's content lies.

The tokenizer's own template renders the chat. Few templates carry the ``{% generation %}`` marks from which
transformers could derive a mask, so the contents are located here: the chat is rendered a second time with a marker in
the place of every content, which leaves the template's own words between the markers; the contents are what stands
between those words in the real text. This stays exact where a content also occurs elsewhere ("user", "assistant"),
where a template refuses half a conversation, and where it strips or shortens what it is given.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from monolex.config import require


class Span(NamedTuple):
    """The content of one message within the rendered chat."""

    start: int
    """First character."""
    end: int
    """One past the last character."""
    role: str
    """Who says it."""


class Part(NamedTuple):
    """One piece of text in a chat: a content, or a text part of a content that is a list."""

    holder: dict[str, Any]
    """The mapping that holds the text."""
    key: str
    """Its key there."""
    role: str
    """Role of the message it belongs to."""


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot render a chat.

    Raises:
        UserError: no chat template, or no offsets from tokens to characters (a tokenizer in pure Python).
    """
    require(
        bool(tokenizer.chat_template),
        f"corpus_format = 'chat': the tokenizer {tokenizer.name_or_path!r} has no chat template; "
        "use a chat model's, or plain text",
    )
    require(
        bool(tokenizer.is_fast),
        f"corpus_format = 'chat': the tokenizer {tokenizer.name_or_path!r} is not a fast one, which finding messages "
        "needs; install the `tokenizers` version of it",
    )


def render(tokenizer: PreTrainedTokenizerBase, messages: Any, *, answer: bool = False) -> tuple[str, list[Span]]:
    """Render ``messages`` with the tokenizer's template; with ``answer`` up to where the assistant's answer begins.

    Returns:
        The text and the spans of its contents, in order; a message without text (a tool call) has none.

    Raises:
        ValueError: not a list of ``{"role", "content"}``, refused by the template, or rendered so that its contents
            cannot be told from the template's words.
    """
    chat = _copy(messages)
    try:
        text = _template(tokenizer, chat, answer)
        parts = list(_parts(chat))
        contents = [part.holder[part.key] for part in parts]
        marks = [_mark(i) for i in range(len(parts))]
        for part, mark in zip(parts, marks, strict=True):
            part.holder[part.key] = mark
        skeleton = _template(tokenizer, chat, answer)
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses it ({error})") from error
    words = _words(skeleton, marks)
    spans = _verbatim(words, contents, text) or _between(words, text)
    return text, [Span(start, end, part.role) for (start, end), part in zip(spans, parts, strict=True)]


def _mark(number: int) -> str:
    # Private-use characters: no template strips them and no other marker starts the same way.
    return f"\ue000{number}\ue001"


def _copy(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` is not a list of messages")
    chat = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError("a message has no role")
        message, content = dict(message), message.get("content")
        if isinstance(content, list):
            message["content"] = [dict(part) if isinstance(part, dict) else part for part in content]
        elif content is not None and not isinstance(content, str):
            raise ValueError("a message's content is not text")
        chat.append(message)
    return chat


def _parts(chat: list[dict[str, Any]]) -> Iterator[Part]:
    """The non-empty texts: a template may leave out the frame of an empty one, so those are never replaced."""
    for message in chat:
        content = message.get("content")
        holders = [(message, "content")] if isinstance(content, str) else [(part, "text") for part in content or ()]
        for holder, key in holders:
            if isinstance(holder, dict) and isinstance(holder.get(key), str) and holder[key].strip():
                yield Part(holder, key, message["role"])


def _template(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]], answer: bool) -> str:
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer)
    assert isinstance(text, str), f"the chat template gave {type(text).__name__}, not text"
    return text


def _words(skeleton: str, marks: list[str]) -> list[str]:
    words, rest = [], skeleton
    for mark in marks:
        before, separator, rest = rest.partition(mark)
        if not separator:
            raise ValueError("the chat template leaves out or reorders messages")
        words.append(before)
    return [*words, rest]


def _verbatim(words: list[str], contents: list[str], text: str) -> list[tuple[int, int]] | None:
    for shown in (contents, [content.strip() for content in contents]):
        if text == "".join(a + b for a, b in zip(words, [*shown, ""], strict=True)):
            spans, at = [], 0
            for word, content in zip(words, shown, strict=False):
                spans.append((at + len(word), at + len(word) + len(content)))
                at = spans[-1][1]
            return spans
    return None


def _between(words: list[str], text: str) -> list[tuple[int, int]]:
    """Spans of contents that the template changed: from the end of one of its words to the next one."""
    first, *rest = words
    if not text.startswith(first) or not text.endswith(words[-1]):
        raise ValueError("the chat template changes with the contents")
    spans, start, limit = [], len(first), len(text) - len(words[-1])
    for number, word in enumerate(rest):
        end = limit if number == len(rest) - 1 else text.find(word, start, limit)
        # An empty word would be found anywhere.
        if end < start or (not word and number < len(rest) - 1):
            raise ValueError("the chat template changes with the contents")
        spans.append((start, end))
        start = end + len(word)
    return spans
