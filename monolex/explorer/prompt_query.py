"""What an address of the prompt page says: exact token ids, dictionaries, edits; read strictly, and written again."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monolex.config import require
from monolex.errors import UserError
from monolex.explorer.explorer import Explorer
from monolex.explorer.parameters import parsed as read_query
from monolex.explorer.parameters import written
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.live.interventions import VALUED, Intervention
from monolex.live.prompt import LivePrompt
from monolex.live.prompts import from_chat, from_ids, from_text, with_message, with_text
from monolex.live.session import LiveModel

MOST_FEATURES = 20
"""Features a token and dictionary, at most."""
MOST_DICTIONARIES = 6
"""Dictionaries beside each other, at most."""
MOST_EDITS = 16
EDIT = re.compile(r"([0-9a-f]{12})/([0-9]{1,9}):([a-z]+)(?::([^:]*))?(?::([a-z0-9]+))?")


@dataclass(frozen=True)
class PromptQuery:
    """A prompt and what is looked at; every field is a parameter of its address."""

    run: str = ""
    """Which run; left out where one is open."""
    ids: str = ""
    """Exact token ids, with dots between them: what a shared address replays."""
    generated: str = ""
    """Which of them the model has generated: places FROM-TO, the last not included, with dots between them."""
    text: str = ""
    """A text, which becomes ids; behind those that are there."""
    chat: str = ""
    """Messages as JSON, [[role, content], …], which become ids by the tokenizer's template."""
    literal: bool = False
    """Names of special tokens in the text are ordinary characters."""
    dictionaries: str = ""
    """Keys of dictionaries, with commas between them; left out: one."""
    feature: str = ""
    """KEY/NUMBER of a feature that was come from: its dictionary is shown, and an edit of it is offered."""
    edits: str = ""
    """KEY/NUMBER:HOW:VALUE:WHERE, with commas between them; of a swap VALUE is the other feature."""
    top: int = 5
    """Features a token and dictionary."""
    high: float = 0.1
    """Largest density of a feature that is shown: dense ones are active on anything."""
    special: bool = True
    """Whether special tokens are shown."""
    after: bool = False
    """Whether features are read behind the edits."""

    def __post_init__(self) -> None:
        require(0 <= self.top <= MOST_FEATURES, f"top = {self.top}: give 0 to {MOST_FEATURES} features a token")
        require(0 < self.high <= 1, f"high = {self.high}: give a density above 0, up to 1")
        count = len(self.edits.split(","))
        require(count <= MOST_EDITS, f"edits holds {count} of them: give at most {MOST_EDITS}")

    @property
    def choice(self) -> dict[str, Any]:
        """Parameters of its address, defaults left out."""
        return written(self)


def parsed(parameters: Mapping[str, str]) -> PromptQuery:
    """The query of an address's parameters.

    Raises:
        UserError: one of them is unknown, or says what it cannot.
    """
    return read_query(PromptQuery, parameters)


def prompt_of(live: LiveModel, query: PromptQuery) -> LivePrompt | None:
    """The tokens that a query names; None where it names none.

    Raises:
        UserError: they are no prompt of this model.
    """
    prompt = from_ids(live, _ids(query.ids), generated=_flags(query)) if query.ids else None
    if query.chat:
        messages = _messages(query.chat)
        if prompt is None:
            return from_chat(live, messages)
        require(len(messages) == 1, "chat behind ids is one more message: give one")
        return with_message(live, prompt, messages[0][1], role=messages[0][0])
    if query.text:
        literal = query.literal
        return (
            from_text(live, query.text, literal=literal)
            if prompt is None
            else with_text(live, prompt, query.text, literal=literal)
        )
    return prompt


def named(prompt: LivePrompt) -> dict[str, str]:
    """Parameters ``ids`` and ``generated`` of exactly these tokens."""
    spans, start = [], None
    for at, flag in enumerate((*prompt.generated, False)):
        if flag and start is None:
            start = at
        elif not flag and start is not None:
            spans.append(f"{start}-{at}")
            start = None
    return {"ids": ".".join(map(str, prompt.ids)), "generated": ".".join(spans)}


def shown_dictionaries(explorer: Explorer, run: ExploredRun, query: PromptQuery) -> list[IndexedDictionary]:
    """The dictionaries that a query names, and those of its features.

    Without any it is the trained one with the most active features.

    Raises:
        NotThere: no dictionary of that hash.
        UserError: too many, or one of another run.
    """
    keys = [key for key in query.dictionaries.split(",") if key]
    keys += [query.feature.partition("/")[0]] if query.feature else []
    keys += [match[1] for match in map(EDIT.fullmatch, query.edits.split(",")) if match]
    chosen = [explorer.place(key) for key in dict.fromkeys(keys)]
    wrong = [place.dictionary.title for place in chosen if place.run is not run]
    require(not wrong, f"dictionary {wrong[:1]} is of another run than {run.slug}: give those of one run")
    require(
        len(chosen) <= MOST_DICTIONARIES,
        f"dictionaries holds {len(chosen)} of them: give at most {MOST_DICTIONARIES}",
    )
    if chosen:
        return [place.dictionary for place in chosen]
    gathered = [d for d in run.dictionaries.values() if d.gathered] or list(run.dictionaries.values())
    trained = [d for d in gathered if d.trained] or gathered
    return [max(trained, key=lambda d: d.alive or 0)] if trained else []


def interventions(explorer: Explorer, query: PromptQuery) -> list[Intervention]:
    """The edits that a query names.

    Raises:
        NotThere: no dictionary of that hash.
        UserError: they are no edits.
    """
    return [_intervention(explorer, text) for text in query.edits.split(",") if text]


def _intervention(explorer: Explorer, text: str) -> Intervention:
    match = EDIT.fullmatch(text)
    if match is None:
        raise UserError(f"edits = {text!r}: write KEY/NUMBER:HOW:VALUE:WHERE, as 1f0c9a7b2e4d/17:clamp:5:generated")
    key, number, way, said, where = match.groups()
    dictionary = explorer.place(key).dictionary
    value = _number(text, said) if said and way in VALUED else None
    other = int(said) if said and said.isdecimal() and way == "swap" else None
    place = int(where) if where and where.isdecimal() else where or "all"
    return Intervention(dictionary.title, int(number), way, value, other, place)  # pyright: ignore[reportArgumentType]


def _ids(text: str) -> list[int]:
    require(
        re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})*", text) is not None, "ids are whole numbers with dots between them"
    )
    return [int(part) for part in text.split(".")]


def _flags(query: PromptQuery) -> Sequence[bool]:
    ids = query.ids.count(".") + 1
    flags = [False] * ids
    for span in filter(None, query.generated.split(".")):
        match = re.fullmatch(r"([0-9]{1,6})-([0-9]{1,6})", span)
        inside = match is not None and int(match[1]) < int(match[2]) <= ids
        require(inside, f"generated = {span!r}: give places FROM-TO within the {ids} ids")
        assert match is not None, "required"
        flags[int(match[1]) : int(match[2])] = [True] * (int(match[2]) - int(match[1]))
    return flags


def _messages(text: str) -> list[tuple[str, str]]:
    try:
        said = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError("chat is no JSON: give [[role, content], …]") from error
    right = isinstance(said, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in said
    )
    require(right and len(said) > 0, "chat holds no messages: give [[role, content], …]")
    return [(role, content) for role, content in said]


def _number(text: str, said: str) -> float:
    try:
        return float(said)
    except ValueError as error:
        raise UserError(f"edits = {text!r}: {said!r} is no number; give one") from error
