r"""Tokens as people read them, decoded one by one.

A token that holds part of a character is shown as its bytes, ``\xe5\x8c``; neighbouring tokens are joined into the text
that they are by :meth:`Texts.joined`, or from their texts alone by :func:`monolex.text.characters.joined`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import final

from monolex.model.language_model import LanguageModel
from monolex.text.characters import alone, joined

UNREADABLE = "\ufffd"
SPACE = "\u2581"
"""How SentencePiece writes a space, the first of which is dropped where a single token is decoded."""
FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""How SentencePiece writes a byte of a character that it has no token for."""
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTABLE)
BYTE_LEVEL = {chr(b): b for b in _PRINTABLE} | {chr(256 + number): b for number, b in enumerate(_OTHERS)}
"""The bytes that the characters of a byte-level tokenizer's pieces stand for (GPT-2's table)."""


@final
class Texts:
    """The text of every token of a model; each is decoded once."""

    def __init__(self, lm: LanguageModel) -> None:
        self._tokenizer = lm.tokenizer
        self._known: dict[int, str] = {}

    def of(self, tokens: Iterable[int]) -> list[tuple[int, str]]:
        """Pairs of a token and its text, in ascending order; without a tokenizer a token is its number.

        These are the texts of the tokens alone: put together by ``"".join`` they are not what the tokens say wherever a
        character is cut; :meth:`joined` is.
        """
        ids = sorted(set(tokens))
        for token in ids:
            if token not in self._known:
                self._known[token] = self._decode(token)
        return [(token, self._known[token]) for token in ids]

    def joined(self, tokens: Sequence[int]) -> str:
        """The text that neighbouring tokens are."""
        known = dict(self.of(tokens))
        return joined(known[token] for token in tokens)

    def _decode(self, token: int) -> str:
        if self._tokenizer is None:
            return str(token)
        text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(text, str) or not isinstance(piece, str):
            return str(token)
        if UNREADABLE in text:
            raw = _bytes(piece)
            return piece if raw is None else alone(raw)
        spaced = piece.replace(SPACE, " ")
        # what the tokenizer writes is the piece itself, less a leading space
        return alone((spaced if spaced != piece and spaced.endswith(text) else text).encode())


def _bytes(piece: str) -> bytes | None:
    """The bytes of a piece that is no text; None where the tokenizer does not work on bytes."""
    fallback = FALLBACK.fullmatch(piece)
    if fallback:
        return bytes([int(fallback[1], 16)])
    return bytes(BYTE_LEVEL[c] for c in piece) if all(c in BYTE_LEVEL for c in piece) else None
