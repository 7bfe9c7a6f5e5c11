"""Pictures of experiments and of scores, as SVG and PNG files beside the numbers they are drawn from."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monolex import stages
from monolex.artifact import open_artifact, read_json, write_bytes, write_json
from monolex.config import require
from monolex.interp.config import FIGURES, FigureConfig
from monolex.interp.score import figures as numbers
from monolex.interp.score import tables
from monolex.pages import score_charts, sheets
from monolex.pages.picture import Drawing, svg_file
from monolex.pages.png import png

FOLDER = "figures"
"""Of a run: its figures of the paper."""
ENDINGS: dict[str, Callable[[Drawing], bytes]] = {".svg": svg_file, ".png": png}


def draw(folder: Path) -> list[Path]:
    """Draw the artefact in ``folder``, of a stage with a ``draw``; the pictures' paths, ``KIND-….svg`` and ``.png``.

    Pictures of these names that lie there already are replaced or removed; nothing else is touched.

    Raises:
        UserError: no finished artefact there, or one of which nothing can be drawn.
    """
    folder = Path(folder)
    manifest = open_artifact(folder)
    kind = manifest.kind
    drawn = {stage.kind: stage.load("draw") for stage in stages.STAGES if stage.draw}
    require(kind in drawn, f"{folder} holds {kind}, of which there are no pictures; give one of {', '.join(drawn)}")
    paths = []
    for picture in drawn[kind](read_json(folder / f"{kind}.json")):
        for ending, write in ENDINGS.items():
            paths.append(folder / f"{kind}-{picture.name}{ending}")
            write_bytes(paths[-1], write(picture))
    for ending in ENDINGS:
        for path in set(folder.glob(f"{kind}-*{ending}")) - set(paths):
            path.unlink()
    return paths


def paper(run: Path, config: FigureConfig | None = None, out: Path | None = None) -> list[Path]:
    """Make figures and tables of the paper of a run's scores; the files' paths, ``WHICH.json``, ``.svg`` and ``.png``.

    They are written to ``out``, by default RUN/figures; of all of them, those for which there are scores.

    Raises:
        UserError: there are no scores for any of what is asked; a name in ``config`` is of nothing that was scored.
    """
    run, config = Path(run), config or FigureConfig()
    folder = run / FOLDER if out is None else out
    if config.which != "all":
        return _write(folder / config.which, _numbers(run, config.which, config))
    written: list[Path] = []
    for which in FIGURES:
        with contextlib.suppress(numbers.NoScores):
            written += _write(folder / which, _numbers(run, which, config))
    require(
        bool(written), f"none of the scores in {run} is for a figure; run `monolex explain {run}` on more dictionaries"
    )
    return written


def _numbers(run: Path, which: str, config: FigureConfig) -> dict[str, Any]:
    make = tables.table if which in tables.TITLES else numbers.figure
    return make(run, which, config)


def _write(path: Path, content: dict[str, Any]) -> list[Path]:
    """The numbers of a figure and what they look like."""
    drawing = sheets.sheet(content) if "tables" in content else score_charts.picture(content)
    write_json(path.with_suffix(".json"), content)
    for ending, write in ENDINGS.items():
        write_bytes(path.with_suffix(ending), write(drawing))
    return [path.with_suffix(ending) for ending in (".json", *ENDINGS)]
