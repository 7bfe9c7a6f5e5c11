"""Two dictionaries beside each other: features that both have, and features that only one has."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from monolex.config import EvalConfig, require
from monolex.errors import UserError
from monolex.evals.similarity import mmcs, random_like
from monolex.explorer.directions import space
from monolex.explorer.explorer import Explorer, PlacedDictionary
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun
from monolex.features.seeds import ALIKE, Nearest, nearest_in
from monolex.stats import Estimate

SHOWN = 30
"""Features of each of the three lists."""
MOST = 2**29
"""Cosines that are computed while somebody waits."""


class ComparedDictionaries(NamedTuple):
    """What is common to two dictionaries."""

    nearest: Nearest
    """Of every feature of the first, the nearest of the second."""
    back: Nearest
    """The other way round."""
    mmcs: Estimate
    """Mean over features of the first of the largest cosine to one of the second."""
    mmcs_back: Estimate
    """The other way round."""
    mmcs_random: Estimate
    """The first's to as many random directions: the floor."""


def compare(explorer: Explorer, parameters: Mapping[str, str]) -> Page:
    """Two dictionaries, or the choice of them.

    Raises:
        NotThere: no dictionary of one of the hashes.
        UserError: directions of different widths or sites of different spaces, or too many features to compare at once.
    """
    unknown = set(parameters) - {"a", "b"}
    require(not unknown, f"{sorted(unknown)[:1]} is no parameter: give a and b, hashes of dictionaries")
    first, second = parameters.get("a", ""), parameters.get("b", "")
    offered = comparable(explorer)
    data: dict[str, Any] = {"a": first, "b": second, "offered": offered, "counts": None, "pairs": ()}
    if not (first and second):
        return Page("compare.html", "Compare", data)
    a, b = explorer.place(first), explorer.place(second)
    _require_comparable(a, b)
    known = _compared(a.run, a.dictionary.key, b.run, b.dictionary.key)
    alike = known.nearest.alike
    order = known.nearest.likeness.argsort(descending=True).tolist()
    dead_first, dead_second = _dead(a), _dead(b)
    both = [i for i in order if alike[i]]
    alone = [i for i in reversed(order) if not alike[i] and i not in dead_first]
    other = [i for i in known.back.likeness.argsort().tolist() if not known.back.alike[i] and i not in dead_second]
    data |= {
        "first": {"run": a.run.slug, "dictionary": a.dictionary},
        "second": {"run": b.run.slug, "dictionary": b.dictionary},
        "mmcs": known.mmcs,
        "mmcs_back": known.mmcs_back,
        "mmcs_random": known.mmcs_random,
        "alike": ALIKE,
        "counts": {
            "both": len(both),
            "only_first": len(alone),
            "only_second": len(other),
            "dead_first": len(dead_first),
            "dead_second": len(dead_second),
        },
        "both": [_pair(a, b, i, int(known.nearest.partner[i]), float(known.nearest.likeness[i])) for i in both[:SHOWN]],
        "only_first": _only(a, b, alone, known.nearest),
        "only_second": _only(b, a, other, known.back),
    }
    return Page("compare.html", f"{a.dictionary.title} and {b.dictionary.title}", data)


def comparable(explorer: Explorer) -> dict[str, dict[str, str]]:
    """Titles of gathered dictionaries by key, by the space in which they can be compared; none that is alone there."""
    spaces: dict[str, dict[str, str]] = {}
    titles = explorer.titles
    for run, dictionary in explorer.places():
        if dictionary.gathered:
            config = run.record(dictionary.key).config
            spaces.setdefault(f"{space(config)}, {config.d_out} wide", {})[dictionary.key] = titles[dictionary.key]
    return {name: of_space for name, of_space in spaces.items() if len(of_space) > 1}


@lru_cache(32)
def _compared(run_a: ExploredRun, a: str, run_b: ExploredRun, b: str) -> ComparedDictionaries:
    first, second = run_a.record(a).weights(), run_b.record(b).weights()
    config = EvalConfig()
    floor = mmcs(first, random_like(second, 0), config)
    return ComparedDictionaries(
        nearest_in(first, second),
        nearest_in(second, first),
        mmcs(first, second, config),
        mmcs(second, first, config),
        floor,
    )


def _require_comparable(a: PlacedDictionary, b: PlacedDictionary) -> None:
    require(a.dictionary.key != b.dictionary.key or a.run is not b.run, "a and b are the same dictionary: give two")
    count = a.dictionary.d_sae * b.dictionary.d_sae
    require(
        count <= MOST,
        f"{a.dictionary.title} and {b.dictionary.title} have {count:.1e} pairs of features, more than the {MOST:.1e} "
        "that are compared while one waits; use `monolex eval`, whose MMCS has no such limit",
    )
    widths = [place.run.record(place.dictionary.key).config.d_out for place in (a, b)]
    spaces = {space(place.run.record(place.dictionary.key).config) for place in (a, b)}
    if widths[0] != widths[1] or len(spaces) > 1:
        raise UserError(
            f"{a.dictionary.title} and {b.dictionary.title} write to different spaces ({widths[0]} and {widths[1]} "
            "wide), so their directions cannot be compared; give two of one site, or of the residual stream"
        )


def _pair(a: PlacedDictionary, b: PlacedDictionary, first: int, second: int, likeness: float) -> dict[str, Any]:
    return {"first": _row(a, first), "second": _row(b, second), "likeness": likeness}


def _dead(place: PlacedDictionary) -> set[int]:
    """Features that were never active in what was gathered: they are not what a dictionary has and another lacks."""
    query = "SELECT number FROM feature WHERE dictionary = ? AND n_active = 0"
    return {number for (number,) in place.run.index.rows(query, (place.dictionary.id,))}


def _only(
    place: PlacedDictionary, other: PlacedDictionary, numbers: list[int], nearest: Nearest
) -> list[dict[str, Any]]:
    """Features that are active, the least like any of the other dictionary first."""
    return [
        {
            "first": _row(place, n),
            "second": _row(other, int(nearest.partner[n])),
            "likeness": float(nearest.likeness[n]),
        }
        for n in numbers[:SHOWN]
    ]


def _row(place: PlacedDictionary, number: int) -> dict[str, Any]:
    names = "density, top_token, share, explanation, score, chance"
    query = f"SELECT {names} FROM feature WHERE dictionary = ? AND number = ?"
    rows = place.run.index.rows(query, (place.dictionary.id, number))
    values = rows[0] if rows else (None,) * 6
    head = {"dictionary": place.dictionary.key, "number": number}
    return head | dict(zip(names.split(", "), values, strict=True))
