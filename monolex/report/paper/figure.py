"""What a figure of the paper is: where its numbers come from, what they say, and how they are drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from monolex.artifact import MANIFEST, open_artifact, read_json
from monolex.errors import UserError
from monolex.interp.config import FigureConfig
from monolex.pages.picture import Drawing
from monolex.pages.sheets import Grid
from monolex.verdicts import Verdict

Facts = Mapping[str, Any]
VERDICTS: dict[str, str] = {
    "confirmed": "✓ confirmed",
    "contradicted": "✗ contradicted",
    "undecided": "? undecided",
    "cannot say": "– this run cannot say",
    "no claim": "· no claim",
}
"""A sign and a word for what numbers say of a claim."""
MOST = 3
"""Features that a figure of single features shows."""


class Missing(UserError):
    """A run lacks what a figure is made of; the message says what, and not how to get it."""


class ReadOff(NamedTuple):
    """What the numbers of a figure say."""

    verdict: Verdict
    """Of the paper's claim."""
    said: tuple[str, ...]
    """Sentences, each with its numbers and intervals."""
    setting: str = ""
    """What the numbers are of, beside the paper's setting."""
    grids: tuple[Grid, ...] = ()
    """Tables that the verdict is read off."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure or table of the paper, or a measurement that belongs beside them."""

    name: str
    """As the command calls it."""
    number: str
    """As the paper calls it, with the section; or that it is not numbered there."""
    title: str
    """What it shows."""
    claim: str
    """What the paper says of it, in our words."""
    tested: str
    """What the verdict is of, and by which rule; empty where there is none."""
    setting: str
    """What the paper's numbers are of."""
    needs: str
    """Artefacts that it is made of."""
    way: str
    """What makes them."""
    numbers: Callable[[Path, FigureConfig], dict[str, Any]]
    """From a run to plain JSON values, `made_of` of which are artefacts by path in the run; raises `Missing` or
    `NoScores`."""
    read: Callable[[Facts], ReadOff]
    """From those to what they say."""
    pictures: Callable[[Facts], Sequence[Drawing]]
    """From those to what is drawn; files are called as the figure, from the second on with a number."""
    tables: Callable[[Facts], Sequence[Grid]] = lambda _numbers: ()
    """From those to tables that a page shows in the place of pictures."""


def artefacts(run: Path, kind: str) -> dict[str, Any]:
    """The content of every finished artefact RUN/KIND/NAME/KIND.json, by its path in the run.

    Raises:
        UserError: one is damaged.
    """
    contents = {}
    for path in sorted(run.glob(f"{kind}/*/{MANIFEST}")):
        open_artifact(path.parent, kind)
        contents[path.parent.relative_to(run).as_posix()] = read_json(path.parent / f"{kind}.json")
    return contents


def stores(run: Path) -> dict[tuple[str, str], Facts]:
    """What the manifest says of the evidence of every dictionary, by site and name; ``path`` is that in the run.

    Raises:
        UserError: it is damaged.
    """
    folder = run / "features"
    if not (folder / MANIFEST).exists():
        return {}
    entries = open_artifact(folder, "features").data["stores"]
    return {(e["site"], e["name"]): {**e, "path": f"features/{e['path']}"} for e in entries}


def file_name(figure: str, number: int) -> str:
    """What the files of a figure's pictures are called, which are numbered from 1.

    >>> file_name("fig4", 1), file_name("fig4", 2)
    ('fig4', 'fig4-2')
    """
    return figure if number == 1 else f"{figure}-{number}"


def counted(count: int, word: str) -> str:
    """A count with its noun.

    >>> counted(1, "site"), counted(2, "site")
    ('1 site', '2 sites')
    """
    return f"{count:,} {word}{'s' * (count != 1)}"
