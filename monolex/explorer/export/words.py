"""The search of an export: which features have a token and which a word, in shards by the letter that it begins with.

The words are those of the run's index, so SQLite has cut and folded them; how a search ranks is that of
:mod:`monolex.explorer.views.search`, done by a script out of these counts.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monolex.explorer import labels
from monolex.explorer.export.choice import Numbers
from monolex.explorer.fill import SHIFT
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views.search import DEEP, HITS
from monolex.features.displayed import PICTURES
from monolex.pages import tokens
from monolex.pages.interest import ENOUGH
from monolex.text.characters import quoted

DIACRITICS = {code: None for code in range(0x300, 0x370)}
DOCUMENTS = "documents"
"""Shard of what a search must know of every feature."""


def beginning(text: str) -> str:
    """The shard of a token or of a word: its first letter or digit without accents, or the block that it is of.

    >>> beginning(" Éa"), beginning("+="), beginning("字")
    ('e', '_', 'u5b')
    """
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).translate(DIACRITICS)).lower()
    first = next((letter for letter in plain if letter.isalnum()), "")
    if not first or first.isascii():
        return first or "_"
    return f"u{ord(first) >> 8:x}"


def word_shards(run: ExploredRun, chosen: Sequence[IndexedDictionary], numbers: Numbers) -> dict[str, Any]:
    """The values of every shard of the search, by name; a feature is the place of its dictionary, and its number."""
    shards: dict[str, Any] = defaultdict(lambda: {"tokens": {}, "words": {}})
    place = {d.id: i for i, d in enumerate(chosen)}
    kept = {d.id: numbers[d.key] for d in chosen}
    for text, share, dictionary, number in run.index.rows(
        "SELECT text, share, dictionary, number FROM token ORDER BY text, dictionary, number"
    ):
        if number in kept.get(dictionary, ()):
            shown = shards[f"words/{beginning(text)}"]["tokens"].setdefault(text, [str(tokens.line(quoted(text)))])
            shown += (place[dictionary], number, float(f"{share:.9g}"))
    lengths: dict[tuple[int, int], int] = defaultdict(int)
    for term, row, explained, told in _instances(run):
        dictionary, number = row >> SHIFT, row & (1 << SHIFT) - 1
        if number in kept.get(dictionary, ()):
            lengths[dictionary, number] += explained + told
            postings = shards[f"words/{beginning(term)}"]["words"].setdefault(term, [])
            postings += (place[dictionary], number, explained, told)
    documents = [_documents(run, d, numbers, lengths) for d in chosen]
    # as FTS5 counts: rows without a word too, and none of features that were never active and have no explanation
    rows = sum(
        row & (1 << SHIFT) - 1 in kept.get(row >> SHIFT, ()) for (row,) in run.index.rows("SELECT rowid FROM words")
    )
    corpus = {"rows": rows, "mean": sum(lengths.values()) / max(1, rows)}
    return {**shards, DOCUMENTS: {"dictionaries": documents, **corpus}}


def search_facts(
    run: ExploredRun, chosen: Sequence[IndexedDictionary], numbers: Numbers, shards: Iterable[str]
) -> dict[str, Any]:
    """What the script of a search is told in its page."""
    place = {d.hash: i for i, d in enumerate(chosen)}
    return {
        "shards": sorted(name.partition("/")[2] for name in shards if name.startswith("words/")),
        "pictures": {chr(code): text for code, text in PICTURES.items()},
        "most": HITS,
        "deep": DEEP,
        "enough": ENOUGH,
        "labels": [
            [place[label.hash], label.number, label.text, label.note, str(tokens.line(_called(label.text)))]
            for label in labels.everything(run.index)
            if label.hash in place and label.number in numbers[chosen[place[label.hash]].key]
        ],
    }


def _called(label: str) -> str:
    return f"you call it {quoted(label)}" if label else "in your note"


def _instances(run: ExploredRun) -> list[tuple[str, int, int, int]]:
    """Every word of every row of the index, with how often explanations and tokens hold it."""
    run.index.rows("CREATE VIRTUAL TABLE IF NOT EXISTS temp.instances USING fts5vocab('main', 'words', 'instance')")
    return run.index.rows(
        "SELECT term, doc, sum(col = 'explanations'), sum(col = 'tokens') FROM temp.instances GROUP BY term, doc "
        "ORDER BY term, doc"
    )


def _documents(
    run: ExploredRun, dictionary: IndexedDictionary, numbers: Numbers, lengths: Mapping[tuple[int, int], int]
) -> dict[str, Any]:
    """Of every feature of a dictionary how often it was active, up to what is enough, and of how many words it is."""
    kept = numbers[dictionary.key]
    active = run.index.rows(
        "SELECT number, n_active FROM feature WHERE dictionary = ? ORDER BY number", (dictionary.id,)
    )
    return {
        "numbers": [n for n, _ in active if n in kept],
        "active": [min(count, ENOUGH) for n, count in active if n in kept],
        "lengths": [lengths.get((dictionary.id, n), 0) for n, _ in active if n in kept],
    }
