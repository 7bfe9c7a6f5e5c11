"""What is exported of a run: which dictionaries, which of their features, which pairs of dictionaries."""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import combinations

from monolex.config import require
from monolex.errors import UserError, nearest
from monolex.explorer import labels
from monolex.explorer.explorer import Explorer
from monolex.explorer.export.config import ExportConfig
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views.overview import worth_seeing

CHEAP = 2**22
"""Pairs of features up to which two dictionaries are compared: about a second."""
PAIRS = 100
"""Pairs of dictionaries that are compared, at most."""
PRODUCTS = 2**25
"""Multiplications up to which a feature is compared with all directions of its space: some milliseconds."""
Numbers = Mapping[str, Collection[int]]
"""Features by the key of their dictionary."""
Pair = tuple[IndexedDictionary, IndexedDictionary]


def chosen_dictionaries(run: ExploredRun, config: ExportConfig) -> list[IndexedDictionary]:
    """Those whose evidence was gathered and that fit a pattern.

    Raises:
        UserError: a pattern that fits none.
    """
    gathered = [d for d in run.dictionaries.values() if d.gathered]
    require(bool(gathered), f"{run.folder} has no evidence of features; gather it: monolex features, or monolex run")
    for pattern in config.dictionaries:
        if not any(_fits(d, pattern) for d in gathered):
            raise UserError(f"dictionaries = {pattern!r} fits none; {nearest(pattern, [d.title for d in gathered])}")
    return [d for d in gathered if any(_fits(d, pattern) for pattern in config.dictionaries)]


def chosen_numbers(run: ExploredRun, chosen: list[IndexedDictionary], config: ExportConfig) -> Numbers:
    """The features of the chosen dictionaries that are exported."""
    if config.features is None:
        return {d.key: range(d.d_sae) for d in chosen}
    query = "SELECT number FROM feature WHERE dictionary = ? ORDER BY interest DESC, number LIMIT ?"
    numbers = {d.key: {number for (number,) in run.index.rows(query, (d.id, config.features))} for d in chosen}
    for key, number in (*marked(run), *_members(run), *named(run, config.embed)):
        if key in numbers:
            numbers[key].add(number)
    return {key: frozenset(each) for key, each in numbers.items()}


def marked(run: ExploredRun) -> list[tuple[str, int]]:
    """Features on the front page, and those that are labelled or pinned, each once."""
    shown = [(d.key, number) for d, number in worth_seeing(run)]
    by_hash = {d.hash: d for d in run.dictionaries.values() if d.gathered}
    everything = labels.everything(run.index)
    kept = [(by_hash[label.hash].key, label.number) for label in everything if label.hash in by_hash]
    return list(dict.fromkeys([*shown, *kept]))


def named(run: ExploredRun, features: Collection[str]) -> Iterator[tuple[str, int]]:
    """Key and number of every ``SITE/NAME:NUMBER``.

    Raises:
        UserError: not of this form, or no such feature.
    """
    titles = {d.title: d for d in run.dictionaries.values() if d.gathered}
    for text in features:
        title, _, number = text.rpartition(":")
        require(number.isdecimal(), f"embed = {text!r}: write SITE/NAME:NUMBER")
        require(title in titles, f"embed = {text!r}: {nearest(title, list(titles))}")
        d_sae = titles[title].d_sae
        require(int(number) < d_sae, f"embed = {text!r}: {title} has features 0 to {d_sae - 1}")
        yield titles[title].key, int(number)


def cheap_pairs(explorer: Explorer, chosen: list[IndexedDictionary]) -> list[Pair]:
    """Trained dictionaries that are soon compared, those of one site first."""
    pairs = [
        (a, b)
        for a, b in combinations([d for d in chosen if d.trained], 2)
        if space(a) == space(b) and width(explorer, a) == width(explorer, b) and a.d_sae * b.d_sae <= CHEAP
    ]
    return sorted(pairs, key=lambda pair: pair[0].site != pair[1].site)[:PAIRS]


def cheap_matches(explorer: Explorer, dictionary: IndexedDictionary) -> bool:
    """Whether every feature of a dictionary is soon compared with all others of its space."""
    others = [d for _, d in explorer.places() if d.gathered and space(d) == space(dictionary)]
    return sum(d.d_sae for d in others) * width(explorer, dictionary) <= PRODUCTS


def space(dictionary: IndexedDictionary) -> str:
    """Directions of one space can be compared: those of the residual stream, or those of one other site."""
    return "resid" if dictionary.site.startswith("resid") else dictionary.site


def width(explorer: Explorer, dictionary: IndexedDictionary) -> int:
    """Length of its directions."""
    return explorer.place(dictionary.key).run.record(dictionary.key).config.d_out


def _fits(dictionary: IndexedDictionary, pattern: str) -> bool:
    return fnmatchcase(dictionary.name, pattern) or fnmatchcase(dictionary.title, pattern)


def _members(run: ExploredRun) -> Iterator[tuple[str, int]]:
    query = "SELECT hash, number FROM membership JOIN dictionary ON dictionary.id = membership.dictionary"
    return ((key[:12], number) for key, number in run.index.rows(query))
