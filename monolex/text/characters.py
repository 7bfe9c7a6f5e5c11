r"""Texts of tokens that hold parts of characters: what such a token is called alone, and what tokens are together.

Tokenizers that work on bytes cut characters (most of Chinese, emoji, curly quotes) over several tokens. The text of
such a token, as it is shown and stored, has its bytes in hexadecimal: ``\xe5\x8c``. Where a token's own text would look
like that, its backslashes are doubled. So the text of a token says exactly of which bytes it is, and neighbouring
tokens are joined into the characters that they are without the tokenizer.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

BYTE = re.compile(r"\\x[89a-f][0-9a-f]")
"""A byte that is no character by itself, in the text of a token; only bytes from 0x80 on are ever cut off."""
_ESCAPE = re.compile(r"\\(?:\\|x([89a-f][0-9a-f]))")
_RAW = re.compile("[\\\\\udc80-\udcff]")
_LONE = re.compile("[\udc80-\udcff]")
# Python keeps bytes that are no text as lone surrogates, from 0xdc80 on.
_KEEP = "surrogateescape"
_SURROGATES = 0xDC00


class Piece(NamedTuple):
    """The fewest neighbouring tokens that share no character with others: nearly always one."""

    start: int
    """Number of the first token."""
    stop: int
    """Number behind the last."""
    text: str
    """What they are together; a byte that is part of no whole character is spelled as in :func:`alone`."""


def alone(raw: bytes) -> str:
    r"""The text of a token of these bytes.

    >>> print(alone(" “".encode()), alone(" “".encode()[:3]), alone(rb"\xff"))
     “  \xe2\x80 \\xff
    """
    text = raw.decode("utf-8", _KEEP)
    return _RAW.sub(_escaped, text) if _LONE.search(text) or BYTE.search(text) else text


def raw_bytes(text: str) -> bytes:
    """The bytes of a token whose text, by :func:`alone`, is ``text``."""
    return _content(text).encode("utf-8", _KEEP)


def pieces(texts: Sequence[str]) -> list[Piece]:
    r"""The texts of neighbouring tokens, those that share characters joined.

    >>> pieces(["a", "\\xc3", "\\xa9", "b"])
    [Piece(start=0, stop=1, text='a'), Piece(start=1, stop=3, text='é'), Piece(start=3, stop=4, text='b')]
    """
    joint: list[Piece] = []
    for cut, run in groupby(enumerate(texts), lambda pair: "\\x" in pair[1] and BYTE.search(pair[1]) is not None):
        numbers, run_texts = zip(*run, strict=True)
        if cut:
            joint += _joint(numbers[0], run_texts)
        else:
            joint += [Piece(number, number + 1, text) for number, text in zip(numbers, run_texts, strict=True)]
    return joint


def joined(texts: Iterable[str]) -> str:
    r"""The text that neighbouring tokens are.

    >>> joined(["caf", "\\xc3", "\\xa9", " ", "\\xf0\\x9f"])
    'café \\xf0\\x9f'
    """
    texts = list(texts)
    plain = "".join(texts)
    return "".join(piece.text for piece in pieces(texts)) if "\\x" in plain else plain


def quoted(text: str) -> str:
    r"""The text of a token between quotation marks, as Python writes it but for bytes, which stay as they are shown.

    >>> print(quoted("\\xe5"), quoted("\n"), quoted(" a"))
    '\xe5' '\n' ' a'
    """
    return _quoted(text, repr)


def json_quoted(text: str) -> str:
    r"""As :func:`quoted`, but as JSON writes it.

    >>> print(json_quoted("\\xe5"), json_quoted("\n"), json_quoted(" é"))
    "\xe5" "\n" " é"
    """
    return _quoted(text, partial(json.dumps, ensure_ascii=False))


def _quoted(text: str, quote: Callable[[str], str]) -> str:
    return quote(text).replace("\\\\", "\\") if BYTE.search(text) else quote(text)


def _content(text: str) -> str:
    """The text of a token with every byte that is no character as a lone surrogate."""
    if not BYTE.search(text):
        return text
    return _ESCAPE.sub(lambda m: chr(_SURROGATES + int(m[1], 16)) if m[1] else "\\", text)


def _escaped(raw: re.Match[str]) -> str:
    return "\\\\" if raw[0] == "\\" else f"\\x{ord(raw[0]) - _SURROGATES:02x}"


def _joint(first: int, texts: Sequence[str]) -> list[Piece]:
    """The pieces of tokens that all hold bytes, the first of which is number ``first``."""
    contents = [_content(text).encode("utf-8", _KEEP) for text in texts]
    whole = b"".join(contents).decode("utf-8", _KEEP)
    # a token may end wherever a character does; every lone byte is a character of its own here
    ends, at = {0: 0}, 0
    for number, character in enumerate(whole, 1):
        at += len(character.encode("utf-8", _KEEP))
        ends[at] = number
    joint, start, begin, at = [], 0, 0, 0
    for number, content in enumerate(contents, 1):
        at += len(content)
        if at in ends:
            text = _LONE.sub(_escaped, whole[begin : ends[at]])
            joint.append(Piece(first + start, first + number, text))
            start, begin = number, ends[at]
    return joint
