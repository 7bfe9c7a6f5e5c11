"""The list of features as shards: of every dictionary the columns, as they are shown and by their order.

A number is shown as the server shows it, so it is formatted here; a script sorts by ranks over all that is exported,
which need no format, and filters by the few values that the list can filter by.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monolex.explorer.draw import tools
from monolex.explorer.explorer import Explorer
from monolex.explorer.export.choice import Numbers
from monolex.explorer.export.links import ExportLinks
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views import listing
from monolex.explorer.views.listing import COLUMNS, ListedFeature, ListQuery
from monolex.pages import html

FILTERS = {"density": "density", "score": "score", "kurtosis": "kurtosis", "back": "reappears"}
"""Columns that the list filters by the value of, by what its address calls them."""
NEXT = "<!---->"
"""Between two cells of a page; no text of a token can be so, as text has no markup."""


def list_shards(
    explorer: Explorer, run: ExploredRun, chosen: Sequence[IndexedDictionary], numbers: Numbers, links: ExportLinks
) -> dict[str, Any]:
    """The values of every shard of the list, by name."""
    rows = {d.key: listed_features(run, d, numbers) for d in chosen}
    ranks = {column.key: _ranks(column.key, rows.values()) for column in COLUMNS}
    members = set(run.index.rows("SELECT dictionary, number FROM membership"))
    return {
        f"list/{d.key}": _columns(rows[d.key], ranks, links)
        | {"member": [i for i, row in enumerate(rows[d.key]) if (d.id, row.number) in members]}
        | {"densities": listing.listing(explorer, {"dictionary": d.key}).draw(links)["densities"]}
        for d in chosen
    }


def listed_features(run: ExploredRun, dictionary: IndexedDictionary, numbers: Numbers) -> list[ListedFeature]:
    """The features of a dictionary that are exported, by number."""
    query = ListQuery(dictionary=dictionary.key, state="all", sort="number")
    return [row for row in listing.features(run, query, -1) if row.number in numbers[dictionary.key]]


def _ranks(key: str, rows: Iterable[Sequence[ListedFeature]]) -> Mapping[float | None, int]:
    """The rank of every value of a column, from the smallest on."""
    values = {row.numbers[key] for each in rows for row in each} - {None}
    return {value: rank for rank, value in enumerate(sorted(value for value in values if value is not None))}


def _columns(
    rows: Sequence[ListedFeature], ranks: Mapping[str, Mapping[float | None, int]], links: ExportLinks
) -> dict[str, Any]:
    return {
        "numbers": [row.number for row in rows],
        "kinds": [row.kind for row in rows],
        "words": _words(rows, links),
        "shown": {key: [listing.cell(row, key) for row in rows] for key in ranks},
        "ranks": {key: [of.get(row.numbers[key]) for row in rows] for key, of in ranks.items()},
        "values": {name: [row.numbers[key] for row in rows] for name, key in FILTERS.items()},
        "labelled": [i for i, row in enumerate(rows) if row.label],
        "pinned": [i for i, row in enumerate(rows) if row.pinned],
        "explained": [i for i, row in enumerate(rows) if row.explanation is not None],
        "ablated": [i for i, row in enumerate(rows) if row.numbers["effect"] is not None],
    }


def _words(rows: Sequence[ListedFeature], links: ExportLinks) -> list[str]:
    """What the list says of every feature in words, as markup."""
    drawn = html.page("explorer/words.html", rows=rows, next=NEXT, **tools(links))
    return drawn.split(NEXT)[:-1]
