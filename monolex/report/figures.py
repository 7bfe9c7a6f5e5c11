"""Pictures of experiments and of scores, as SVG and PNG files beside the numbers they are drawn from."""

from collections.abc import Callable
from pathlib import Path

from monolex import stages
from monolex.artifact import open_artifact, read_json, write_bytes
from monolex.config import require
from monolex.pages.picture import Drawing, svg_file
from monolex.pages.png import png

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
