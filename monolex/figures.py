"""Pictures of the causal experiments, as SVG and PNG files beside the numbers they are drawn from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import open_artifact, read_json, write_bytes
from monolex.config import require
from monolex.pages import curves, effects, trees
from monolex.pages.picture import Diagram, Picture, svg_file
from monolex.pages.png import png

ENDINGS: dict[str, Callable[[Picture | Diagram], bytes]] = {".svg": svg_file, ".png": png}
KINDS: dict[str, Callable[[Any], Sequence[Picture | Diagram]]] = {
    "patch": curves.pictures,
    "ablate": effects.pictures,
    "tree": trees.diagrams,
}
"""What is drawn of an artefact of each kind, from the content of its KIND.json."""


def draw(folder: Path) -> list[Path]:
    """Draw the patch, ablate or tree artefact in ``folder``; the paths of the pictures, ``KIND-….svg`` and ``.png``.

    Pictures of these names that lie there already are replaced or removed; nothing else is touched.

    Raises:
        UserError: no finished artefact there, or one of which nothing can be drawn.
    """
    folder = Path(folder)
    manifest = open_artifact(folder)
    kind = manifest.kind
    require(kind in KINDS, f"{folder} holds {kind}, of which there are no pictures; give one of {', '.join(KINDS)}")
    made = []
    for picture in KINDS[kind](read_json(folder / f"{kind}.json")):
        for ending, write in ENDINGS.items():
            made.append(folder / f"{kind}-{picture.name}{ending}")
            write_bytes(made[-1], write(picture))
    for ending in ENDINGS:
        for path in set(folder.glob(f"{kind}-*{ending}")) - set(made):
            path.unlink()
    return made
