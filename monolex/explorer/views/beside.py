"""Two features side by side: of two runs (a base model and a fine-tuned one), seeds, layers or kinds."""

from collections.abc import Mapping
from typing import Any

from monolex.config import require
from monolex.errors import UserError
from monolex.explorer.directions import space
from monolex.explorer.explorer import Explorer, PlacedDictionary
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.run import NotThere
from monolex.pages.card import Look, card


def beside(explorer: Explorer, parameters: Mapping[str, str]) -> Page:
    """The cards of two features, and the cosine of their directions where these are as wide.

    Raises:
        NotThere: no such dictionary or feature.
        UserError: parameters that are none, or nothing gathered of one of the two.
    """
    require(set(parameters) == {"a", "b"}, f"{sorted(parameters)}: give a and b, each KEY/NUMBER")
    sides = [_side(explorer, parameters[name]) for name in ("a", "b")]
    data = {
        "sides": [
            {
                "run": place.run.slug,
                "dictionary": place.dictionary,
                "number": number,
                "evidence": place.run.store(place.dictionary.key).feature(number),
            }
            for place, number in sides
        ],
        "cosine": _cosine(explorer, *sides),
    }

    def draw(links: Links) -> dict[str, Any]:
        cards = []
        for (place, number), shown in zip(sides, data["sides"], strict=True):
            key = place.dictionary.key
            store, scored = place.run.store(key), place.run.scored(key).get(number, ())
            link = _linked(links, key)
            cards.append(card(shown["evidence"], store.meta, text=store.text, link=link, scored=scored))
        return {"cards": cards}

    return Page("beside.html", "Two features", data, draw)


def _linked(links: Links, key: str) -> Look:
    return lambda other: links.feature(key, other)


def _side(explorer: Explorer, text: str) -> tuple[PlacedDictionary, int]:
    key, _, number = text.partition("/")
    require(number.isdecimal() and len(number) < 10, f"{text!r} is no feature: write KEY/NUMBER")
    place = explorer.place(key)
    if int(number) >= place.dictionary.d_sae:
        last = place.dictionary.d_sae - 1
        raise NotThere(f"feature {number}: {place.dictionary.title} has features 0 to {last}")
    return place, int(number)


def _cosine(explorer: Explorer, a: tuple[PlacedDictionary, int], b: tuple[PlacedDictionary, int]) -> float | None:
    """Of their decoder rows; None where the weights are gone, of different widths, or in different spaces."""
    if len({space(place.run.record(place.dictionary.key).config) for place, _ in (a, b)}) > 1:
        return None
    try:
        rows = [explorer.directions.of(place.run, place.dictionary.key)[number] for place, number in (a, b)]
    except UserError:
        return None
    return float(rows[0] @ rows[1]) if len(rows[0]) == len(rows[1]) else None
