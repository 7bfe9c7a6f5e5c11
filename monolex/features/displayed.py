"""A token by what pages show of it: looked for among the texts of the stores, where no tokenizer encodes it anew.

Many tokenizers put a space before whatever they encode, or cut what is shown as one token in two.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress

from monolex.dictionaries.listing import RunDictionary
from monolex.errors import UserError
from monolex.features.known import open_store
from monolex.text.characters import quoted

PICTURES = str.maketrans({"␣": " ", "↵": "\n", "→": "\t", "␍": "\r", "⍽": "\xa0"})
"""What pages draw for characters that cannot be seen."""
SPACES = re.compile("␣×([0-9]+)")
NEAREST = 5
"""Tokens that a refusal names, at most."""


def displayed_token(chosen: Sequence[RunDictionary], text: str) -> tuple[int, str]:
    """The token of the run's model that the stores of ``chosen`` show as ``text``, and its text.

    If there is none, what pages draw for spaces and line breaks is read, then the escapes of JSON, then ``#`` and the
    token's number.

    Raises:
        UserError: there is none, or several look the same.
    """
    for reading in dict.fromkeys(_readings(text)):
        tokens = _tokens(chosen, "text = ?", reading)
        if len(tokens) > 1:
            numbers = " or ".join(f"#{token}" for token in sorted(tokens))
            raise UserError(f"on = {text!r} is how {len(tokens)} tokens are shown: say which by its number, {numbers}")
        if tokens:
            return tokens.popitem()
    if re.fullmatch("#[0-9]{1,9}", text):
        numbered = _tokens(chosen, "token = ?", int(text[1:]))
        if numbered:
            return numbered.popitem()
    known = sorted(set(_tokens(chosen, "?", 1).values()))
    near = ", ".join(map(quoted, _nearest(text, known)))
    raise UserError(f"on = {text!r} is how no token of what was gathered is shown; the nearest are {near}")


def _readings(text: str) -> Iterator[str]:
    yield text
    yield SPACES.sub(lambda m: " " * int(m[1]), text).translate(PICTURES)
    with suppress(json.JSONDecodeError):
        yield json.loads(f'"{text}"')


def _tokens(chosen: Sequence[RunDictionary], where: str, value: str | int) -> dict[int, str]:
    """Tokens of the stores with their texts, those that an SQL condition keeps."""
    texts: dict[int, str] = {}
    for dictionary in chosen:
        with closing(open_store(dictionary)) as store:
            texts.update(store.rows(f"SELECT token, text FROM vocabulary WHERE {where}", (value,)))
    return texts


def _nearest(text: str, known: Sequence[str]) -> list[str]:
    """Those that differ in case and in spaces alone, then the most similar."""
    bare = text.strip().casefold()
    alike = [other for other in known if other.strip().casefold() == bare]
    close = difflib.get_close_matches(text, known, 3, 0.4) or difflib.get_close_matches(text, known, 3, 0.0)
    return list(dict.fromkeys([*alike, *close]))[:NEAREST]
