"""What a person wrote: all labels, notes and pins of the open runs."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from monolex.config import require
from monolex.explorer import labels
from monolex.explorer.explorer import Explorer
from monolex.explorer.labels import Label
from monolex.explorer.page import Page
from monolex.explorer.run import SHORT, NotThere


def marks(explorer: Explorer, hashes: Collection[str] | None = None) -> Page:
    """Labels, notes and pins, those of dictionaries that are gone too; or those of the dictionaries of some hashes."""
    rows = [
        {"run": run.slug, "key": label.hash[:SHORT], "known": label.hash[:SHORT] in run.dictionaries, **label._asdict()}
        for run in explorer.runs.values()
        for label in labels.everything(run.index)
        if hashes is None or label.hash in hashes
    ]
    return Page("labels.html", "Your labels", {"labels": rows})


def lines(explorer: Explorer, hashes: Collection[str] | None = None) -> Iterator[str]:
    """The same as lines of JSON, to be kept or sent."""
    for run in explorer.runs.values():
        yield from labels.lines(run.index, hashes)


def keep(explorer: Explorer, key: str, number: int, said: Mapping[str, Any]) -> Label | None:
    """Write the label of a feature.

    Raises:
        NotThere: no such dictionary or feature.
        UserError: it is not a label, or cannot be kept.
    """
    run, dictionary = explorer.place(key)
    if not 0 <= number < dictionary.d_sae:
        raise NotThere(f"feature {number}: {dictionary.title} has features 0 to {dictionary.d_sae - 1}")
    require(set(said) <= {"text", "note", "pinned"}, f"{sorted(said)} is no label: give text, note and pinned")
    text, note, pinned = said.get("text", ""), said.get("note", ""), said.get("pinned", False)
    right = isinstance(text, str) and isinstance(note, str) and isinstance(pinned, bool)
    require(right, "text and note of a label are texts, and pinned is true or false")
    whole = not re.search("[\ud800-\udfff]", text + note)
    require(whole, "text or note holds half of a character (a surrogate): give whole ones")
    require(run.keeps_labels, f"{run.folder} cannot be written to, so labels are not kept; make it writable")
    return labels.write(run.index, dictionary.hash, number, text=text, note=note, pinned=pinned)
