"""A prompt tried live: what fires on its tokens, what comes next, and what edits of features change of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from monolex.answers import as_json
from monolex.config import require
from monolex.errors import UserError
from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links
from monolex.explorer.models import rare
from monolex.explorer.page import Page
from monolex.explorer.prompt_query import (
    PromptQuery,
    interventions,
    named,
    parsed,
    prompt_of,
    shown_dictionaries,
)
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.live.continuation import Continued, GeneratedToken, Sampling, Side, TwoContinued, pair, stream
from monolex.live.interventions import Intervention
from monolex.live.lens import lens
from monolex.live.next_token import next_token
from monolex.live.prompt import LivePrompt
from monolex.live.reading import Wanted, read
from monolex.live.session import LiveModel
from monolex.pages.tokens import level
from monolex.text.characters import joined

CHANCES = 10
"""Tokens of a distribution that are shown."""
MOST_NEW = 400
"""Tokens that are written at once, at most."""
MOST_CELLS = 6000
"""Layers times tokens of a grid, at most."""
NUMBERS = {"max_new_tokens": (int,), "temperature": (int, float), "top_p": (int, float), "seed": (int,)}
SAMPLING = tuple(NUMBERS)


class Tried(NamedTuple):
    """What a query is about, ready to be run."""

    run: ExploredRun
    """The run."""
    dictionaries: list[IndexedDictionary]
    """Those whose features are shown."""
    live: LiveModel | None
    """Its model; None where it cannot be loaded."""
    prompt: LivePrompt | None
    """The tokens; None where there are none yet."""
    edits: list[Intervention]
    """What is changed."""
    problem: str
    """Why there is no model, no prompt or no edit, in one sentence; empty otherwise."""


def prompt_page(explorer: Explorer, parameters: Mapping[str, str]) -> Page:
    """The page of a prompt, or the form for one.

    What cannot be done with a prompt (a model that is gone, an edit that cannot be made) is a sentence on the page.

    Raises:
        NotThere: no such run or dictionary.
        UserError: parameters that are none.
    """
    query = parsed(parameters)
    tried = _tried(explorer, query)
    answers, problem = {}, tried.problem
    if tried.live is not None and tried.prompt is not None:
        try:
            answers = _answers(tried, query)
        except UserError as error:
            problem = str(error)
    if problem and query.edits:
        # an edit that was not made has no effect to be shown
        answers = {**answers, "next": None}
    data = {
        "run": tried.run.slug,
        "query": query.choice,
        "exact": named(tried.prompt) if tried.prompt else {"ids": "", "generated": ""},
        "dictionaries": tried.dictionaries,
        "prompt": tried.prompt,
        "edits": _rows_of_edits(query),
        "problem": problem,
        "reading": None,
        "next": None,
        "known": {},
        **answers,
    }

    def draw(links: Links) -> dict[str, Any]:
        exact = {**query.choice, **data["exact"], "text": "", "chat": "", "literal": ""}
        return {
            "chosen": query,
            "prompt_text": query.text or (_text(tried.prompt) if tried.prompt else ""),
            "shown_keys": [d.key for d in tried.dictionaries],
            "level": level,
            "gathered": {d.key for d in tried.dictionaries if d.gathered},
            "titles": _titles(tried.run),
            "keys": {d.title: d.key for d in tried.dictionaries},
            "permanent": links.prompt(**exact) if tried.prompt else "",
            "grid": links.grid(**exact) if tried.prompt else "",
            "rows": _rows(tried.prompt, data["reading"], query) if tried.prompt and data["reading"] else [],
            "chat_roles": tried.live is None or _has_template(tried.live),
            "edited": bool(tried.edits),
        }

    return Page("prompt.html", "Prompt", data, draw)


def exact_address(explorer: Explorer, parameters: Mapping[str, str], links: Links) -> str | None:
    """Where a text or a chat leads, the same page by exact token ids; None where it names these, or cannot be read."""
    query = parsed(parameters)
    if not (query.text or query.chat):
        return None
    tried = _tried(explorer, query)
    if tried.prompt is None:
        return None
    return links.prompt(**{**query.choice, **named(tried.prompt), "text": "", "chat": "", "literal": ""})


def grid_page(explorer: Explorer, parameters: Mapping[str, str]) -> Page:
    """Layers by tokens: what the model would say after each layer, and the strongest feature there.

    Raises:
        NotThere: no such run or dictionary.
        UserError: parameters that are none, no prompt, or too many cells.
    """
    query = parsed(parameters)
    tried = _tried(explorer, query)
    live, prompt = _ready(tried)
    cells = live.lm.n_layers * len(prompt.ids)
    require(cells <= MOST_CELLS, f"the grid would have {cells:,} cells: give a prompt of fewer tokens ({MOST_CELLS:,})")
    chosen = _of_layers(tried.run, query)
    kept = {d.title: rare(tried.run, d, query.high) for d in chosen}
    grid = lens(live, prompt, Wanted(tuple(kept), 1, kept), tried.edits)
    active = {(row.dictionary, f.feature) for row in grid.layers for f in row.strongest if f and row.dictionary}
    data = {"run": tried.run.slug, "query": query.choice, "grid": grid, "known": known(tried.run, chosen, active)}

    def draw(links: Links) -> dict[str, Any]:
        keys = {d.title: d.key for d in chosen}
        return {"keys": keys, "edits": query.edits, "back": links.prompt(**{**query.choice, **named(grid.prompt)})}

    return Page("grid.html", "Layers by tokens", data, draw)


def continuation(explorer: Explorer, said: Mapping[str, Any], stop: Any) -> Iterator[dict[str, Any]]:
    """Events of a continuation, without and (where there are edits) with them, as plain values.

    ``said`` holds ``query`` (parameters of a prompt's address) and what :class:`Sampling` takes.

    Raises:
        UserError: it holds something else, or cannot be done.
    """
    require(set(said) <= {"query", *SAMPLING}, f"{sorted(said)} holds what no continuation has: give query, {SAMPLING}")
    right = isinstance(said.get("query"), dict) and all(isinstance(v, str) for v in said["query"].values())
    require(right, "query is no object of texts: give the parameters of a prompt's address")
    numbers = {name: said[name] for name in SAMPLING if name in said}
    wrong = [name for name, value in numbers.items() if type(value) not in NUMBERS[name]]
    require(not wrong, f"{wrong[:1]} is no number, or no whole one: give one")
    seed = numbers.get("seed", 0)
    require(0 <= seed < 2**63, f"seed = {seed}: give a whole number from 0 to 2**63 - 1")
    sampling = Sampling(**numbers)
    require(sampling.max_new_tokens <= MOST_NEW, f"max_new_tokens = {sampling.max_new_tokens}: give at most {MOST_NEW}")
    query = parsed(said["query"])
    tried = _tried(explorer, query)
    live, prompt = _ready(tried)
    wanted = _wanted(tried, query)
    if tried.edits:
        events: Iterable[Any] = pair(live, prompt, tried.edits, sampling, wanted=wanted, stop=stop)
    else:
        events = (Side("base", event) for event in stream(live, prompt, sampling, wanted=wanted, stop=stop))
    return (_event(tried, event) for event in events)


def known(
    run: ExploredRun, dictionaries: Sequence[IndexedDictionary], features: Iterable[tuple[str, int]]
) -> dict[str, dict[str, Any]]:
    """What the index knows of features, by ``SITE/NAME:NUMBER``: words with score and chance, density, maximum."""
    by_title = {d.title: d for d in dictionaries}
    names = "top_token, explanation, score, chance, density, max"
    facts = {}
    for title in dict.fromkeys(title for title, _ in features):
        numbers = sorted({number for other, number in features if other == title})
        marks = ", ".join("?" * len(numbers))
        query = f"SELECT number, {names} FROM feature WHERE dictionary = ? AND number IN ({marks})"
        for number, *values in run.index.rows(query, (by_title[title].id, *numbers)):
            facts[f"{title}:{number}"] = dict(zip(names.split(", "), values, strict=True))
    return facts


def _tried(explorer: Explorer, query: PromptQuery) -> Tried:
    run = _run(explorer, query)
    dictionaries = shown_dictionaries(explorer, run, query)
    tried = Tried(run, dictionaries, None, None, [], "")
    if not (query.ids or query.text or query.chat):
        return tried
    try:
        tried = tried._replace(live=(live := explorer.live.of(run)))
        tried = tried._replace(prompt=prompt_of(live, query))
        return tried._replace(edits=interventions(explorer, query))
    except UserError as error:
        return tried._replace(problem=str(error))


def _ready(tried: Tried) -> tuple[LiveModel, LivePrompt]:
    """Its model and its tokens.

    Raises:
        UserError: there is no model, no prompt, or an edit that cannot be made.
    """
    live, prompt = tried.live, tried.prompt
    if tried.problem or live is None or prompt is None:
        raise UserError(tried.problem or "ids are missing: give a prompt")
    return live, prompt


def _run(explorer: Explorer, query: PromptQuery) -> ExploredRun:
    if query.run:
        return explorer.run(query.run)
    keys = [query.feature.partition("/")[0], *query.dictionaries.split(","), query.edits.partition("/")[0]]
    first = next((key for key in keys if key), None)
    return explorer.place(first).run if first else next(iter(explorer.runs.values()))


def _answers(tried: Tried, query: PromptQuery) -> dict[str, Any]:
    assert tried.live is not None and tried.prompt is not None, "asked of a prompt"
    edits = tried.edits
    reading = read(tried.live, tried.prompt, _wanted(tried, query), edits if query.after else ())
    distribution = next_token(tried.live, tried.prompt, edits, top=CHANCES)
    active = {(title, f.feature) for title, rows in reading.features.items() for row in rows for f in row.top}
    active |= {(edit.dictionary, feature) for edit in edits for feature in edit.features}
    of_all = list(tried.run.dictionaries.values())
    return {"reading": reading, "next": distribution, "known": known(tried.run, of_all, active)}


def _wanted(tried: Tried, query: PromptQuery) -> Wanted:
    kept = {d.title: rare(tried.run, d, query.high) for d in tried.dictionaries}
    return Wanted(tuple(kept), query.top, kept)


def _rows_of_edits(query: PromptQuery) -> list[dict[str, Any]]:
    """The edits as a form shows them, also those that cannot be made; else the feature that was come from, unedited."""
    rows = []
    for text in filter(None, query.edits.split(",")):
        key, _, rest = text.partition("/")
        number, way, value, where, *_ = [*rest.split(":"), "", "", ""]
        rows.append({"key": key, "feature": number, "how": way, "value": value, "where": where or "all"})
    if not rows and query.feature:
        key, _, number = query.feature.partition("/")
        rows.append({"key": key, "feature": number, "how": "", "value": "", "where": "all"})
    return rows


def _of_layers(run: ExploredRun, query: PromptQuery) -> list[IndexedDictionary]:
    """Of every layer of the residual stream one dictionary: those that the query names, else the first gathered one."""
    named_keys = query.dictionaries.split(",")
    candidates = [d for d in run.dictionaries.values() if d.site.startswith("resid_post.") and d.gathered]
    candidates.sort(key=lambda d: (d.key not in named_keys, not d.trained))
    by_layer: dict[int, IndexedDictionary] = {}
    for dictionary in candidates:
        by_layer.setdefault(dictionary.layer, dictionary)
    return [by_layer[layer] for layer in sorted(by_layer)]


def _titles(run: ExploredRun) -> dict[str, str]:
    """What the dictionaries of a run are called that can be chosen: those whose features have pages, if any has."""
    gathered = {d.key: d.title for d in run.dictionaries.values() if d.gathered}
    return gathered or {d.key: d.title for d in run.dictionaries.values()}


def _rows(prompt: LivePrompt, reading: Any, query: PromptQuery) -> list[dict[str, Any]]:
    """A row a token: what it is, and what fires there by dictionary."""
    return [
        {
            "position": at,
            "id": prompt.ids[at],
            "text": text,
            "special": prompt.special[at],
            "generated": prompt.generated[at],
            "features": {title: rows[at] for title, rows in reading.features.items()},
        }
        for at, text in enumerate(prompt.texts)
        if query.special or not prompt.special[at]
    ]


def _text(prompt: LivePrompt) -> str:
    """What was given, to be changed and read again; nothing of a chat, which is more than its text."""
    if any(prompt.special[1:]):
        return ""
    return joined([text for text, special in zip(prompt.texts, prompt.special, strict=True) if not special])


def _has_template(live: LiveModel) -> bool:
    return live.lm.tokenizer is not None and bool(live.lm.tokenizer.chat_template)


def _event(tried: Tried, event: Side | TwoContinued) -> dict[str, Any]:
    """An event as plain values; tokens with what is known of the features that fire on them."""
    if isinstance(event, TwoContinued):
        return {"differ_at": event.differ_at}
    content = event.event
    if isinstance(content, GeneratedToken):
        active = {(title, f.feature) for title, row in content.features.items() for f in row.top}
        return {"side": event.side, "token": as_json(content), "known": known(tried.run, tried.dictionaries, active)}
    return {"side": event.side, "end": _end(content)}


def _end(content: Continued) -> dict[str, Any]:
    exact = named(content.prompt)
    return {"why": content.why, "cost": as_json(content.cost), "notes": list(content.notes), **exact}
