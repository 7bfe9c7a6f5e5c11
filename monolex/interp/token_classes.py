"""Classes of tokens by what they look like."""

import re
from collections.abc import Mapping
from functools import lru_cache

from monolex.text.characters import BYTE

CLASSES: Mapping[str, str] = {
    "parts of characters": rf"(?s:.*)(?:{BYTE.pattern})(?s:.*)",
    "line breaks": r"\s*\n\s*",
    "blanks": r"[^\S\n]+",
    "digits": r"\s?\d+",
    "opening brackets": r"\s?[(\[{<]+",
    "closing brackets": r"\s?[)\]}>]+",
    "quotation marks": r"\s?[\"'`“”‘’]+",
    "sentence ends": r"\s?[.!?]+",
    "other punctuation": r"\s?[^\w\s]+",
    "capitals": r"\s?[A-Z]{2,}",
    "capitalised words": r" [A-Z][a-z]*",
    "capitalised pieces": r"[A-Z][a-z]*",
    "lower-case words": r" [a-z]+",
    "lower-case pieces": r"[a-z]+",
    "underscored": r"\s?\w*_\w*",
    "other letters": r"\s?\w+",
}
"""Classes of tokens by what they look like, as regular expressions of the whole token; the first that fits is its
class, so that every token has at most one."""
_COMPILED = {name: re.compile(pattern) for name, pattern in CLASSES.items()}
NO_CLASS = "anything else"
CLASS_NUMBERS = {name: number for number, name in enumerate((*CLASSES, NO_CLASS))}


@lru_cache(maxsize=2**16)
def class_of(text: str) -> str:
    """The class of a token.

    >>> class_of(" def"), class_of("42"), class_of("),"), class_of("")
    ('lower-case words', 'digits', 'other punctuation', 'anything else')
    """
    return next((name for name, pattern in _COMPILED.items() if pattern.fullmatch(text)), NO_CLASS)
