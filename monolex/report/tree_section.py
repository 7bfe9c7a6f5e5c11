"""The report's section on trees: which earlier features cause a feature."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex.pages import tokens, tree_diagram
from monolex.pages.html import estimate, number
from monolex.pages.tables import Column, bare, table
from monolex.report.section import CAUSES, Artefacts, Section, parts_of_kind

Facts = Mapping[str, Any]
Linked = Callable[[Facts], tree_diagram.Address]
NODES = (
    Column("effect", "Effect", "what the parent's activation loses without it; below zero it inhibits"),
    Column("standard_error", "Standard error", "of the effect, over contexts"),
    Column("share", "Share", "the effect over the parent's mean activation"),
    Column("pre_effect", "Before the activation", "what the parent's pre-activation loses"),
    Column("activation", "Activation", "its own mean, in its own contexts"),
    Column("active", "Candidates", "features of the site before that are active in its contexts", whole=True),
    Column("confirmed", "Ablated", "those of them that were ablated one by one", whole=True),
    Column("correlation", "Rank correlation", "of the attribution with the effect, among those"),
)
LEAVES = (
    Column("effect", "Loss", "of log-probability, nats, without the root"),
    Column("standard_error", "Standard error", "of the loss, over contexts"),
    Column("logit", "Loss of logit", "the same of its logit"),
    Column("probability", "Probability", "mean, with the root"),
)


def section(run: Path, artefacts: Artefacts, _listed: Collection[str] | None) -> Section:
    """Everything of the trees of a run."""

    return Section(CAUSES, parts_of_kind("tree", run, artefacts, describe))


def describe(key: str, content: Facts, linked: Linked = lambda _tree: lambda _site, _feature: "") -> dict[str, Any]:
    """The trees of an artefact; ``linked`` gives of a tree where the boxes of its features lead."""
    return {"roots": [_tree(f"{key}-{i}", facts, linked(facts)) for i, facts in enumerate(content["trees"], 1)]}


def _tree(key: str, tree: Facts, address: tree_diagram.Address) -> dict[str, Any]:
    nodes = [("", _nodes(tree["nodes"], None, 0))]
    tables = [table(f"{key}-nodes", "What acts on what", "Node", NODES, nodes, folded=True)]
    if tree["logits"]:
        leaves = [("", [(tokens.token(leaf["text"]), _leaf_row(leaf).get) for leaf in tree["logits"]])]
        caption = "Tokens that lose most without the root"
        tables.append(table(f"{key}-tokens", caption, "Token", LEAVES, leaves, folded=True))
    return {
        "title": f"What causes {tree['root']}",
        "words": tokens.plain(tree["nodes"][0]["label"]),
        "said": tree_said(tree),
        "chart": tree_diagram.diagram(tree, address).chart(),
        "tables": tables,
    }


def tree_said(tree: Facts) -> str:
    """The strongest child of the root, and what no feature accounts for."""
    root = tree["nodes"][0]
    below = [n for n in tree["nodes"] if n["parent"] == root["id"] and n["effect"] and n["effect"]["value"] is not None]
    features = [node for node in below if node["kind"] == "feature"]
    said = f"Its mean activation in {root['contexts']:,} contexts is {number(root['activation'])}."
    between = tree_diagram.spans(tree)
    said += f" Effects go all ways through what lies between sites: {between}." if between else ""
    if not features:
        return f"{said} No feature of the site before moves it for certain."
    first = max(features, key=lambda node: abs(node["effect"]["value"]))
    said += f" Most of what a single feature does to it is done by {tree_diagram.called(first)}"
    said += f" {tokens.plain(first['label'])}".rstrip() + f": {estimate(first['effect'])}"
    said += "" if first["share"] is None else f", {tree_diagram.percent(first['share'])} of it"
    error = next((node for node in below if node["kind"] == "error"), None)
    if error is not None:
        said += f"; the reconstruction error there does {estimate(error['effect'])}"
    return said + "."


def _nodes(nodes: Sequence[Facts], parent: int | None, depth: int) -> list[Any]:
    """Rows of a node's children, each followed by its own."""
    rows = []
    for node in tree_diagram.ordered(nodes, parent):
        label = f"{'· ' * depth}{tree_diagram.called(node)} {tokens.plain(node['label'])}"
        label = f"{'· ' * depth}{tree_diagram.called(node)}" if node["kind"] != "feature" else label.rstrip()
        rows.append((label + (", repeated" if node["same_as"] is not None else ""), _node_row(node).get))
        rows += _nodes(nodes, node["id"], depth + 1)
    return rows


def _node_row(node: Facts) -> dict[str, Any]:
    none = "the root has no parent" if node["parent"] is None else "one context only"
    ends = "the tree ends here" if node["kind"] == "feature" else "no single feature"
    row = {name: node[name] or bare(None, none) for name in ("effect", "pre_effect")}
    row |= {name: bare(node[name], none) for name in ("standard_error", "share")}
    row |= {name: bare(node[name] or None, ends) for name in ("active", "confirmed")}
    row["correlation"] = bare(node["correlation"], "fewer than three were ablated")
    return row | {"activation": bare(node["activation"], "no single feature")}


def _leaf_row(leaf: Facts) -> dict[str, Any]:
    return {**leaf, **{name: bare(leaf[name], "one context only") for name in ("standard_error", "probability")}}
