"""Figures of the paper as files: the numbers as JSON, pictures as SVG and PNG, and all of them on one page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from monolex.artifact import write_bytes, write_json
from monolex.errors import UserError
from monolex.interp.config import FigureConfig
from monolex.interp.score.comparable import NoScores, NotScored
from monolex.report.figures import ENDINGS
from monolex.report.paper.catalog import CATALOG
from monolex.report.paper.figure import Facts, Missing, PaperFigure, ReadOff
from monolex.report.paper.page import page

FOLDER, PAGE = "figures", "index.html"
"""Of a run: its figures of the paper, and the page of them all."""
NO_SCORES = "it has no scores of this kind"


class Gallery(NamedTuple):
    """All figures of a run."""

    page: Path
    """Of them all."""
    drawn: dict[str, ReadOff]
    """What those say that could be drawn, by name."""
    missing: dict[str, str]
    """Why the others could not, by name."""
    paths: list[Path]
    """Files, but for the page."""


def figure(run: Path, which: str, config: FigureConfig, out: Path | None = None) -> list[Path]:
    """Make one figure or table: ``WHICH.json``, ``.svg`` and ``.png`` in ``out``, by default RUN/figures.

    Of several pictures the second is called ``WHICH-2``, and so on; pictures of before that are no more are removed.

    Raises:
        UserError: the run lacks what it is made of; a name in ``config`` is of nothing that was scored.
    """
    known = next(row for row in CATALOG if row.name == which)
    try:
        content = known.numbers(Path(run), config)
    except Missing as missing:
        raise UserError(f"{which}: of {run} {missing}; {known.way}") from missing
    return _write(run / FOLDER if out is None else out, known, content, known.read(content))


def gallery(run: Path, config: FigureConfig, out: Path | None = None) -> Gallery:
    """Make every figure and table that there is something of, and a page of all, in ``out``, by default RUN/figures.

    A figure whose artefacts are damaged or of another version is left out like one that has none, with what is wrong.

    Raises:
        UserError: there is nothing of any; a name in ``config`` is of nothing that was scored.
    """
    run = Path(run)
    folder = run / FOLDER if out is None else out
    contents, missing = _contents(run, config)
    rows = {row.name: row for row in CATALOG}
    readings = {name: rows[name].read(content) for name, content in contents.items()}
    paths = [path for name, content in contents.items() for path in _write(folder, rows[name], content, readings[name])]
    for name in missing:
        _remove_others(folder, name, [])
    write_bytes(folder / PAGE, page(run, folder, contents, readings, missing).encode())
    return Gallery(folder / PAGE, readings, missing, paths)


def _contents(run: Path, config: FigureConfig) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The numbers of every figure, or why there are none.

    Raises:
        UserError: there are none of any.
    """
    contents: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    nothing = f"{run} holds nothing that a figure of the paper is made of; run `monolex run`, or `monolex eval` on its"
    wrong = [UserError(f"{nothing} dictionaries")]
    for row in CATALOG:
        try:
            contents[row.name] = row.numbers(run, config)
        except NotScored:
            raise
        except NoScores:
            missing[row.name] = NO_SCORES
        except UserError as lacking:
            missing[row.name] = str(lacking)
            wrong += [] if isinstance(lacking, Missing) else [lacking]
    if not contents:
        raise wrong[:2][-1]
    return contents, missing


def _write(folder: Path, row: PaperFigure, content: Facts, reading: ReadOff) -> list[Path]:
    """The numbers of a figure, what they say, and what they look like."""
    said = {"verdict": reading.verdict, "said": reading.said, "setting": reading.setting}
    paper = {"number": row.number, "claim": row.claim, "tested": row.tested, "setting": row.setting}
    files = {folder / f"{row.name}.json": {"figure": row.name, **content, "paper": paper, "reading": said}}
    for path, value in files.items():
        write_json(path, value)
    paths = [*files, *_pictures(folder, row, content)]
    _remove_others(folder, row.name, paths)
    return paths


def _pictures(folder: Path, row: PaperFigure, content: Facts) -> Iterator[Path]:
    for picture in row.pictures(content):
        for ending, write in ENDINGS.items():
            path = folder / f"{picture.name}{ending}"
            write_bytes(path, write(picture))
            yield path


def _remove_others(folder: Path, name: str, paths: list[Path]) -> None:
    """Remove what a figure left earlier and is no longer of it."""
    before = [folder / f"{name}.json"]
    before += [
        path for ending in ENDINGS for path in (folder / f"{name}{ending}", *folder.glob(f"{name}-[0-9]{ending}"))
    ]
    for path in set(before) - set(paths):
        path.unlink(missing_ok=True)
