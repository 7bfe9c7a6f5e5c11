"""What is like a feature elsewhere: in other dictionaries of its site, other layers, other seeds, other runs."""

import math
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from monolex.errors import UserError
from monolex.explorer.directions import space
from monolex.explorer.explorer import Explorer
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun, IndexedDictionary, NotThere
from monolex.features.seeds import recipe_of

NAMED = 5
"""Features of another dictionary that are named, at most."""
LIKE = 0.3
"""Cosine below which a feature of another dictionary is not named."""


def matches(explorer: Explorer, key: str, number: int) -> Page:
    """Of every other dictionary whose evidence was gathered, or that is of another seed, the features most like one.

    By the cosine of decoder rows; across layers that makes sense in the residual stream alone. Beside them stands about
    how large the largest cosine to as many random directions would be.

    Raises:
        NotThere: no such dictionary or feature.
    """
    run, dictionary = explorer.place(key)
    if not 0 <= number < dictionary.d_sae:
        raise NotThere(f"feature {number}: {dictionary.title} has features 0 to {dictionary.d_sae - 1}")
    direction = explorer.directions.of(run, dictionary.key)[number]
    config = run.record(dictionary.key).config
    recipe, lies_in = recipe_of(config), space(config)
    rows = []
    for other_run, other in explorer.places():
        itself = other_run is run and other.key == dictionary.key
        if itself or space(other_run.record(other.key).config) != lies_in:
            continue
        if other.gathered or recipe_of(other_run.record(other.key).config) == recipe:
            named = _most_alike(explorer, other_run, other, direction)
            rows += [{"run": other_run.slug, "dictionary": other, **named}] if named else []
    data = {"run": run.slug, "dictionary": dictionary, "number": number, "matches": rows, "least": LIKE}
    return Page("matches.html", f"Like feature {number} of {dictionary.title}", data)


def _most_alike(
    explorer: Explorer, run: ExploredRun, other: IndexedDictionary, direction: Float[Tensor, "d_out"]
) -> dict[str, Any] | None:
    """The likest features; None where the dictionary is gone, or its directions are of another width."""
    try:
        rows = explorer.directions.of(run, other.key)
    except UserError:
        return None
    if rows.shape[1] != len(direction):
        return None
    top = (rows @ direction).topk(min(NAMED, len(rows)))
    named = [(int(i), float(c)) for c, i in zip(*top, strict=True) if c >= LIKE]
    tokens = _tokens(run, other, [number for number, _ in named])
    features = [{"number": n, "cosine": c, "top_token": tokens.get(n)} for n, c in named]
    # of n random directions in d dimensions the largest cosine to a given one is about sqrt(2 ln n / d)
    chance = math.sqrt(2 * math.log(max(2, len(rows))) / rows.shape[1])
    return {"features": features, "chance": min(1.0, chance), "largest": float(top.values[0])}


def _tokens(run: ExploredRun, dictionary: IndexedDictionary, numbers: list[int]) -> Mapping[int, str | None]:
    marks = ", ".join("?" * len(numbers))
    query = f"SELECT number, top_token FROM feature WHERE dictionary = ? AND number IN ({marks})"
    return dict(run.index.rows(query, (dictionary.id, *numbers)))
