"""Experiments of a run on what features cause: patching curves, ablations, trees; their features are linked."""

from functools import partial
from typing import Any

from monolex import stages
from monolex.artifact import open_artifact
from monolex.errors import UserError
from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun, NotThere
from monolex.pages.tree_diagram import Address
from monolex.report import tree_section
from monolex.report.page import finished
from monolex.report.section import parts_of_kind

KINDS = {"patch": "Patching", "ablate": "Ablations", "tree": "Trees", "score": "Explanations", "stability": "Seeds"}
"""Kinds of experiments, in the order of the page."""


def causes(explorer: Explorer, slug: str) -> Page:
    """The experiments of a run."""
    run = explorer.run(slug)
    listed = [
        {"kind": kind, "heading": heading, "path": path, "features": _features(run, path)}
        for kind, heading in KINDS.items()
        for path in run.experiments(kind)
    ]
    damaged = {path: why for path, why in run.damaged.items() if path.partition("/")[0] in KINDS}
    return Page("causes.html", f"Causes: {slug}", {"run": slug, "experiments": listed, "damaged": damaged})


def experiment(explorer: Explorer, slug: str, path: str) -> Page:
    """One experiment, as the report draws it, and the features that it names.

    Raises:
        NotThere: no finished experiment at that path.
        UserError: it is damaged.
    """
    run = explorer.run(slug)
    kind = path.partition("/")[0]
    if path in run.damaged:
        raise UserError(run.damaged[path])
    if kind not in KINDS or path not in run.experiments(kind):
        raise NotThere(f"{path} is no finished experiment of {slug}; look at the list of those that there are")
    manifest = open_artifact(run.folder / path)
    data = {
        "run": slug,
        "path": path,
        "kind": kind,
        "content": manifest.content,
        "features": _features(run, path),
        "result": run.content(f"{path}/{kind}.json"),
    }

    def draw(links: Links) -> dict[str, Any]:
        others = {name: m for name, m in finished(run.folder, damaged=False) if m.kind != kind or name == path}
        if kind == "tree":
            parts = parts_of_kind(kind, run.folder, others, partial(tree_section.describe, linked=_linked(run, links)))
            return {"heading": KINDS[kind], "parts": parts}
        stage = stages.of_kind(kind)
        parts = stage.load("section")(run.folder, others, None).parts if stage else []
        return {"heading": KINDS[kind], "parts": parts}

    return Page("experiment.html", f"{path} of {slug}", data, draw)


def _linked(run: ExploredRun, links: Links) -> tree_section.Linked:
    """Where the boxes of a tree lead: to the pages of their features."""
    keys = {(d.site, d.name): d.key for d in run.dictionaries.values() if d.gathered}

    def of_tree(tree: tree_section.Facts) -> Address:
        names = tree["dictionaries"]

        def address(site: str, feature: int) -> str:
            key = keys.get((site, names.get(site, "")))
            return links.feature(key, feature) if key else ""

        return address

    return of_tree


def _features(run: ExploredRun, path: str) -> list[dict[str, Any]]:
    """The features that an experiment names, each once."""
    query = (
        "SELECT dictionary.hash, site || '/' || name, membership.number, min(part), top_token, min(membership.place) "
        "FROM membership JOIN dictionary ON dictionary.id = membership.dictionary LEFT JOIN feature ON "
        "feature.dictionary = membership.dictionary AND feature.number = membership.number WHERE experiment = ? "
        "GROUP BY membership.dictionary, membership.number ORDER BY top_token IS NULL, 6, layer DESC, membership.number"
    )
    names = ("dictionary", "title", "number", "part", "top_token", "place")
    rows = run.index.rows(query, (path,))
    return [dict(zip(names, (key[:12], *rest), strict=True)) for key, *rest in rows]
