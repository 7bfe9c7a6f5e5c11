"""Sites at which nothing ever changes: all activations equal, so that there is nothing to decompose or to explain."""

from collections.abc import Sequence
from pathlib import Path

from monolex.activations.reader import Reader, Split, stored_sites


def constant_sites(folder: Path, names: Sequence[str] = (), split: Split = "train") -> dict[str, str]:
    """The sites of an activations artefact, of those that ``names`` mean, with one row over and over; why each is left
    out, in a sentence.

    Of a site that is not constant the first rows are read, until two differ.

    Raises:
        UserError: as :func:`~monolex.activations.reader.stored_sites`, or a split without rows.
    """
    reasons = {}
    for site in stored_sites(folder, names):
        reader = Reader(folder, site, split)
        first = reader.read(0, 1)
        if all(bool((rows == first).all()) for _, rows in reader.chunks(1024)):
            what = "zero" if not bool(first.any()) else "one and the same row"
            reasons[site] = f"{site} is left out: all of its {len(reader):,} {split} activations are {what}"
    return reasons
