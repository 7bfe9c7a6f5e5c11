"""Where numbers come from: what an answer says of a dictionary, and of the artefact that a number was read off."""

from typing import Any

from monolex.explorer.explorer import Explorer, PlacedDictionary
from monolex.explorer.run import ExploredRun, IndexedDictionary

Said = dict[str, Any]
"""A part of an answer: plain values."""
COUNTED = "counted over all rows: no interval"


def dictionary_facts(run: ExploredRun, dictionary: IndexedDictionary) -> Said:
    """What a dictionary is, with the hash by which every tool takes it."""
    head = {"run": run.slug, "dictionary": dictionary.key, "hash": dictionary.hash, "title": dictionary.title}
    return head | {name: getattr(dictionary, name) for name in ("kind", "trained", "d_sae", "alive", "rows")}


def source(run: ExploredRun, path: str) -> Said:
    """An artefact of a run and the hash of its content.

    Raises:
        UserError: it is not there, or damaged.
    """
    return {"run": run.slug, "path": path, "content": run.manifest(path).content}


def weights_source(run: ExploredRun, dictionary: IndexedDictionary) -> Said:
    """The sweep or the baselines that a dictionary is of."""
    return source(run, run.record(dictionary.key).source.relative_to(run.folder).as_posix())


def place_of(explorer: Explorer, run: ExploredRun, site: str, name: str) -> PlacedDictionary | None:
    """The dictionary of a run that artefacts call so; None where it is gone or of a control model."""
    places = (place for place in explorer.places() if place.run is run)
    return next((place for place in places if (place.dictionary.site, place.dictionary.name) == (site, name)), None)


def number(value: float | None, low: float | None, high: float | None, n: int | None, over: str, **more: Any) -> Said:
    """A number with its interval, how many units that is over, and what stands beside it."""
    return {"value": value, "low": low, "high": high, "n": n, "over": over, **more}


def count(value: float | None, n: int | None, over: str, **more: Any) -> Said:
    """A number that was counted over everything and has no interval."""
    return number(value, None, None, n, over, reason=COUNTED, **more)


def cut(value: Any, limit: int) -> tuple[Any, Said]:
    """A value with lists of at most ``limit`` entries and without histograms, and how many each list had, by its place.

    Numbers of lists inside lists share a place.
    """
    whole: Said = {}
    return _cut(value, limit, "", whole), whole


def _cut(value: Any, limit: int, place: str, whole: Said) -> Any:
    if isinstance(value, dict):
        inner = {name: entry for name, entry in value.items() if not _histogram(entry)}
        return {name: _cut(entry, limit, f"{place}.{name}".strip("."), whole) for name, entry in inner.items()}
    if isinstance(value, list):
        if len(value) > limit:
            whole[place] = max(len(value), whole.get(place, 0))
        return [_cut(entry, limit, f"{place}[]", whole) for entry in value[:limit]]
    return value


def _histogram(value: Any) -> bool:
    return isinstance(value, dict) and "edges" in value and "counts" in value
