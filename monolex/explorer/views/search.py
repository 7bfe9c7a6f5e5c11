"""Search by word: tokens, explanations and labels of all dictionaries as one ranked list, each hit with its reason."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from monolex.config import require
from monolex.errors import nearest
from monolex.explorer.explorer import Explorer
from monolex.explorer.fill import SHIFT
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun
from monolex.explorer.views.listing import HEAD, TABLES, ListedFeature, listed
from monolex.features.displayed import PICTURES, SPACES
from monolex.pages.card import percent
from monolex.pages.interest import ENOUGH
from monolex.text.characters import quoted

HITS = 60
"""Features that a search names, at most."""
DEEP = 200
"""Hits of one way of looking that are ranked."""
AMONG = "among its tokens"
EXPLAINED = "in an explanation of it"
BEGINS = "begins a word "
"""Before the reason of a hit by the beginning of a word alone."""
Place = tuple[int, int]
"""A dictionary of the index and a feature of it."""
LONGEST = 200
"""Letters of a search, at most."""


class Hit(NamedTuple):
    """A feature that a search finds."""

    feature: ListedFeature
    """Which, and what the list shows of it."""
    reasons: tuple[str, ...]
    """Why, a phrase each."""
    weight: float
    """By which hits are ranked: one over its best rank among the ways in which it is a hit."""
    near: bool
    """Whether it is one by a word among its tokens alone, or by one that begins so; those come after all others."""


def search(explorer: Explorer, parameters: Mapping[str, str]) -> Page:
    """The features of all runs that have to do with a word.

    Three ways of looking, each ranked on its own and taken in turns (all firsts, all seconds): the token that is shown
    so, by the share of a feature's activation on it; words of explanations, by BM25; labels that a person wrote. After
    all of these come, by BM25, features with the word among their tokens and those with a longer word that begins so.
    """
    text = parameters.get("q", "")
    unknown = [name for name in parameters if name not in ("q", "run")]
    require(not unknown, f"{unknown[:1]} is no parameter of a search; {nearest((unknown or ['q'])[0], ['q', 'run'])}")
    require(len(text) <= LONGEST, f"q has {len(text):,} letters: search for at most {LONGEST}")
    runs = [explorer.run(parameters["run"])] if parameters.get("run") else list(explorer.runs.values())
    hits = sorted((hit for run in runs for hit in _hits(run, text)), key=_order)[:HITS] if text else []
    data = {"q": text, "run": parameters.get("run", ""), "hits": hits, "most": HITS}

    def draw(links: Links) -> dict[str, Any]:
        return {"titles": explorer.titles, "links": links}

    return Page("search.html", f"Search: {text}" if text else "Search", data, draw)


def _order(hit: Hit) -> tuple[bool, float]:
    return hit.near, -hit.weight


def _hits(run: ExploredRun, text: str) -> list[Hit]:
    words = _by_words(run, text)
    weights: dict[Place, float] = defaultdict(float)
    reasons: dict[Place, list[str]] = defaultdict(list)
    for way in (_by_label(run, text), _by_token(run, text), [hit for hit in words if hit[2] == EXPLAINED][:DEEP]):
        for rank, (dictionary, number, reason) in enumerate(way):
            weights[dictionary, number] = max(weights[dictionary, number], 1 / (1 + rank))
            reasons[dictionary, number].append(reason)
    best = sorted(weights, key=lambda place: (-weights[place], place))[:HITS]
    near: dict[Place, str] = {}
    if len(best) < HITS:
        for dictionary, number, reason in (*words, *_by_beginning(run, text)):
            if (dictionary, number) not in weights:
                near.setdefault((dictionary, number), reason)
    for rank, place in enumerate(list(near)[: HITS - len(best)]):
        weights[place], reasons[place] = 1 / (1 + rank), [near[place]]
        best.append(place)
    features = _features(run, best)
    return [Hit(features[p], tuple(reasons[p]), weights[p], p in near) for p in best if p in features]


def _by_token(run: ExploredRun, text: str) -> list[tuple[int, int, str]]:
    """By the share of a feature's activation on the tokens that look so, with and without a space before and in small.

    Features that were active a few times only stand further down: a share of three activations says little.
    """
    shown = SPACES.sub(lambda m: " " * int(m[1]), text).translate(PICTURES)
    bare = text.strip()
    looks = [look for look in dict.fromkeys((text, shown, bare, f" {bare}", bare.lower(), f" {bare.lower()}")) if look]
    marks = ", ".join("?" * len(looks))
    query = (
        "SELECT token.dictionary, token.number, group_concat(text, char(0)), sum(token.share) FROM token "
        "JOIN feature USING (dictionary, number) "
        f"WHERE text IN ({marks}) GROUP BY token.dictionary, token.number "
        "ORDER BY sum(token.share) * min(1.0, feature.n_active / ?) DESC LIMIT ?"
    )
    rows = run.index.rows(query, (*looks, float(ENOUGH), DEEP))
    return [
        (
            dictionary,
            number,
            f"{percent(share)} of its activation is on {' and '.join(map(quoted, texts.split(chr(0))))}",
        )
        for dictionary, number, texts, share in rows
    ]


def _by_words(run: ExploredRun, text: str, longer: str = "") -> list[tuple[int, int, str]]:
    """By BM25 over explanations and tokens; ``longer`` is ``*`` where the last word may be the beginning of one."""
    words = re.findall(r"\w+", text)
    if not words:
        return []
    match = " ".join(f'"{word}"' for word in words) + longer
    rows = run.index.rows("SELECT rowid, bm25(words, 2.0, 1.0) FROM words WHERE words MATCH ? ORDER BY 2", (match,))
    # which of them have the words in an explanation; its text stands beside, with its score and chance
    query = "SELECT rowid FROM words WHERE words MATCH ?"
    said = {row for (row,) in run.index.rows(query, (f"explanations : ({match})",))}
    return [(row >> SHIFT, row & (1 << SHIFT) - 1, EXPLAINED if row in said else AMONG) for row, _ in rows]


def _by_beginning(run: ExploredRun, text: str) -> list[tuple[int, int, str]]:
    return [(dictionary, number, BEGINS + reason) for dictionary, number, reason in _by_words(run, text, "*")]


def _by_label(run: ExploredRun, text: str) -> list[tuple[int, int, str]]:
    """Labels and notes that hold the text."""
    pattern = "%" + re.sub(r"([%_\\])", r"\\\1", text.strip()) + "%"
    query = (
        "SELECT dictionary.id, label.number, label.text FROM label JOIN dictionary USING (hash) "
        "WHERE label.text LIKE ? ESCAPE '\\' OR label.note LIKE ? ESCAPE '\\' "
        "ORDER BY pinned DESC, changed DESC LIMIT ?"
    )
    rows = run.index.rows(query, (pattern, pattern, DEEP)) if text.strip() else []
    return [(d, n, f"you call it {quoted(label)}" if label else "in your note") for d, n, label in rows]


def _features(run: ExploredRun, places: list[tuple[int, int]]) -> dict[tuple[int, int], ListedFeature]:
    columns = ["density", "max", "score", "reappears", "effect"]
    head = f"SELECT dictionary.id, {HEAD}, {', '.join(columns)} FROM {TABLES}"
    if not places:
        return {}
    marks = ", ".join("(?, ?)" for _ in places)
    where = f"(feature.dictionary, feature.number) IN (VALUES {marks})"
    rows = run.index.rows(f"{head} WHERE {where}", [value for place in places for value in place])
    return {(row[0], row[3]): listed(run, row[1:], columns) for row in rows}
