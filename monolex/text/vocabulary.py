"""Tokens as people read them, decoded one by one."""

from collections.abc import Iterable
from typing import final

from monolex.model.language_model import LanguageModel

UNREADABLE = "\ufffd"
SPACE = "\u2581"
"""How SentencePiece writes a leading space, which decoding a single token drops."""


@final
class Texts:
    """The text of every token of a model; each is decoded once."""

    def __init__(self, lm: LanguageModel) -> None:
        self._tokenizer = lm.tokenizer
        self._known: dict[int, str] = {}

    def of(self, tokens: Iterable[int]) -> list[tuple[int, str]]:
        """Pairs of a token and its text, in ascending order.

        A token that is no whole character alone is shown as the tokenizer's own piece; without a tokenizer a token is
        its number.
        """
        ids = sorted(set(tokens))
        for token in ids:
            if token not in self._known:
                self._known[token] = self._decode(token)
        return [(token, self._known[token]) for token in ids]

    def _decode(self, token: int) -> str:
        if self._tokenizer is None:
            return str(token)
        text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(text, str) or not isinstance(piece, str):
            return str(token)
        if UNREADABLE in text:
            return piece
        return f" {text}" if piece.startswith(SPACE) and not text.startswith(" ") else text
