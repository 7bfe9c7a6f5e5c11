"""What held and what did not: the paper's claims, each with what this run says of it, the figure and its table."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from monolex.artifact import CONTROLS, MANIFEST, Manifest, open_artifact
from monolex.errors import UserError
from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun
from monolex.explorer.views.causes import KINDS
from monolex.interp.config import FigureConfig
from monolex.report.paper.catalog import CATALOG
from monolex.report.paper.figure import VERDICTS
from monolex.report.section import notice

NOT_SAID = "not measured"
"""Verdict of a claim for which the run lacks artefacts."""


def claims(explorer: Explorer, slug: str) -> Page:
    """Every claim of the paper that a figure of its is about, decided by its intervals; those without artefacts too."""
    run = explorer.run(slug)
    listed = run.remembered("claims", lambda: [_claim(run, row) for row in CATALOG])
    data = {"run": slug, "claims": listed}

    def draw(links: Links) -> dict[str, Any]:
        decided = [claim for claim in listed if claim["verdict"] in VERDICTS]
        return {
            "decided": [(claim, VERDICTS[claim["verdict"]], _address(claim, slug, links)) for claim in decided],
            "missing": [claim for claim in listed if claim["verdict"] == NOT_SAID],
        }

    return Page("claims.html", f"Claims: {slug}", data, draw)


def _claim(run: ExploredRun, row: Any) -> dict[str, Any]:
    head = {name: getattr(row, name) for name in ("name", "number", "title", "claim", "tested", "way")}
    try:
        numbers = row.numbers(run.folder, FigureConfig())
    except UserError as lacking:  # damaged, too: the other claims do not depend on it
        why = str(lacking).replace(f"{run.folder}/", "").replace(str(run.folder), run.slug)
        return {**head, "verdict": NOT_SAID, "said": [why], "setting": "", "made_of": [], "stale": ""}
    reading = row.read(numbers)
    made_of = list(numbers.get("made_of", ()))
    return {
        **head,
        "verdict": reading.verdict,
        "said": list(reading.said),
        "setting": reading.setting,
        "made_of": made_of,
        "stale": _stale(run, made_of),
    }


def _stale(run: ExploredRun, made_of: Iterable[str]) -> str:
    """What the artefacts behind a figure do not agree with in the run now, in a sentence; empty if nothing."""
    manifests = run.remembered("whole", lambda: _whole(run))
    said = (_older(run.folder, manifests[path], manifests) for path in made_of if path in manifests)
    return next((text for text in said if text), "")


def _older(run: Path, manifest: Manifest, manifests: Mapping[str, Manifest]) -> str:
    """What an artefact was made of that is another by now; a score is of explanations, wherever these lie."""
    if manifest.kind in ("patch", "ablate", "tree", "stability"):
        return notice(run, manifest, manifests)
    if manifest.kind != "score":
        return ""
    explained = {other.content for other in manifests.values() if other.kind == "explain"}
    return "" if set(manifest.parents.values()) & explained else "Its explanations were made again since: score them."


def _address(claim: dict[str, Any], slug: str, links: Links) -> str:
    """Where its tables are: of the experiment that it is read off, or the report."""
    experiment = next((path for path in claim["made_of"] if path.partition("/")[0] in KINDS), None)
    return links.causes(slug, experiment) if experiment else links.report(slug, "glance")


def _whole(run: ExploredRun) -> dict[str, Manifest]:
    """The artefacts of a run that are whole, by path; a damaged one says nothing of the others."""
    places = ("*", "*/*", f"{CONTROLS}/*/*", f"{CONTROLS}/*/*/*")
    manifests = {}
    for path in (path.parent for place in places for path in run.folder.glob(f"{place}/{MANIFEST}")):
        with suppress(UserError):
            manifests[path.relative_to(run.folder).as_posix()] = open_artifact(path)
    return manifests
