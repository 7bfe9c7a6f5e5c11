"""Which features of earlier layers cause a feature (Fig. 5)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from monolex.interp.config import FigureConfig
from monolex.pages import tree_diagram
from monolex.pages.html import estimate
from monolex.pages.picture import Diagram
from monolex.pages.tokens import plain
from monolex.report.paper.figure import MOST, Facts, Missing, ReadOff, artefacts, file_name
from monolex.report.tree_section import tree_said


def numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """The trees of a run, in the order of their artefacts.

    Raises:
        Missing: there is none.
    """
    listed = [(path, tree) for path, content in artefacts(run, "tree").items() for tree in content["trees"]]
    if not listed:
        raise Missing("no tree was grown")
    made_of = list(dict.fromkeys(path for path, _ in listed[:MOST]))
    title = "Which features of earlier layers cause a feature"
    return {"title": title, "made_of": made_of, "of": len(listed), "trees": [tree for _, tree in listed[:MOST]]}


def pictures(content: Facts) -> list[Diagram]:
    """A diagram a root."""
    drawn = [tree_diagram.diagram(tree) for tree in content["trees"]]
    return [replace(diagram, name=file_name("fig5", i)) for i, diagram in enumerate(drawn, 1)]


def reading(content: Facts) -> ReadOff:
    """The strongest child of every root, without a verdict: children are chosen for their effect."""
    said = []
    for tree in content["trees"]:
        root = tree["nodes"][0]
        said.append(f"{tree['root']} {plain(root['label'])}".rstrip() + f". {tree_said(tree)}")
        if tree["logits"]:
            first = tree["logits"][0]
            said[-1] += (
                f" Without the root {plain(first['text'])} loses {estimate(first['effect'])} nats of log-probability."
            )
    if content["of"] > len(content["trees"]):
        said.append(f"The first {len(content['trees'])} of {content['of']} trees are shown.")
    told = "Here: the roots that this run was asked for; intervals of children are corrected for all candidates."
    why = "Children are chosen for their effect, so that they have one tests nothing; what they mean is for the eye."
    return ReadOff("no claim", (*said, why), told)
