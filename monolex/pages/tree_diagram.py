"""A causal tree as a diagram: earlier layers on the left, the root on the right, and right of it what it predicts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monolex.pages.ablate_charts import label
from monolex.pages.html import MISSING, number
from monolex.pages.picture import Box, Diagram, Edge
from monolex.pages.tokens import plain

Facts = Mapping[str, Any]
Address = Callable[[str, int], str]
"""Where a feature is looked at, by site and number; empty for nowhere."""
WIDE, APART, TOKEN = 216.0, 84.0, 150.0
"""Widths of a node, of the room between two columns, and of a token."""
TALL, LOW = 40.0, 21.0
"""Heights of a feature and of what is no feature."""
GAP, GROUP, HEADS, MARGIN = 7.0, 12.0, 26.0, 14.0
"""Between nodes, more between those of two parents, above the nodes, and around all."""
LETTERS = 29
"""Of a line of a node, at most."""
THIN, THICK = 1.0, 10.0
"""Edges of no effect, and of one as large as the parent's whole activation."""
NAMES = {"error": "reconstruction error", "rest": "all features"}
SHORT = {"error": "error", "rest": "all features"}
"""What is no single feature."""


def diagram(tree: Facts, address: Address = lambda _site, _feature: "") -> Diagram:
    """A tree, a box a node; an edge is as thick as the effect is large in units of its parent's mean activation.

    ``address`` gives where the box of a feature, by site and number, leads.
    """
    nodes = {node["id"]: node for node in tree["nodes"]}
    root = tree["nodes"][0]
    columns = {number: _generation(nodes, node) for number, node in nodes.items()}
    deepest = max(columns.values())
    middles, stop = _middles(tree["nodes"])
    room = max(stop, HEADS + (TALL + GAP) * len(tree["logits"]))
    # tokens beside a small tree may need more height than it has
    shift = max(0.0, (room - stop) / 2)
    places = {n: (MARGIN + (deepest - columns[n]) * (WIDE + APART), middles[n] + shift) for n in nodes}
    boxes = [
        _box(node, *places[number], root=node is root)._replace(address=_leads(node, address))
        for number, node in nodes.items()
    ]
    edges = [
        _edge(node, nodes, (places[number][0] + WIDE, places[number][1]), places[node["parent"]])
        for number, node in nodes.items()
        if node["parent"] is not None
    ]
    x, middle = places[root["id"]]
    tokens = _tokens(tree, x + WIDE + APART, (x + WIDE, middle), room)
    heads = {columns[number]: node["site"] for number, node in nodes.items()}
    named = [(MARGIN + (deepest - column) * (WIDE + APART), site) for column, site in heads.items()]
    named += [(x + WIDE + APART, "tokens it raises")] if tokens else []
    width = x + WIDE + MARGIN + (APART + TOKEN if tokens else 0)
    return Diagram(
        tree["root"].replace("/", "-").replace(":", "-"),
        f"{tree['root']} {plain(root['label'])}: what causes it, and what it causes",
        (*boxes, *(box for box, _ in tokens)),
        (*edges, *(edge for _, edge in tokens)),
        tuple(named),
        width,
        room + MARGIN,
    )


def diagrams(artifact: Facts) -> list[Diagram]:
    """What is drawn of an artefact, a file each."""
    return [diagram(tree) for tree in artifact["trees"]]


def called(node: Facts) -> str:
    """A node by layer and number, or what it is if no feature."""
    return NAMES[node["kind"]] if node["feature"] is None else f"{node['site'].rpartition('.')[2]}.{node['feature']}"


def spans(tree: Facts) -> str:
    """Between which sites more than one block lies, which is run as it is; empty where none are."""
    said = []
    sites = list(dict.fromkeys(node["site"] for node in tree["nodes"]))
    for later, earlier in zip(sites, sites[1:], strict=False):
        # resid_pre of a block is resid_post of the one before it
        before, after = (int(site.rpartition(".")[2]) + site.startswith("resid_post") for site in (earlier, later))
        if after - before > 1:
            said.append(f"{after - before} blocks lie between {earlier} and {later}")
    return ", ".join(said)


def effect(node: Facts) -> str:
    """A node's effect on its parent with its standard error, and its share of the parent's activation."""
    if node["effect"] is None:
        return f"mean activation {number(node['activation'])}"
    if node["effect"]["value"] is None:
        return f"{MISSING}: {node['effect']['reason']}"
    error = "" if node["standard_error"] is None else f" ± {number(node['standard_error'])}"
    share = "" if node["share"] is None else f" ({percent(node['share'])})"
    return number(node["effect"]["value"]) + error + share


def percent(share: float) -> str:
    """A share that may be below zero, in whole percents."""
    return f"{100 * share:.0f} %".replace("-", "−")


def ordered(nodes: Sequence[Facts], parent: int | None) -> list[Facts]:
    """Children of a node: features from the most exciting to the most inhibiting, then what is no feature."""
    return sorted(
        (node for node in nodes if node["parent"] == parent),
        key=lambda node: (node["kind"] != "feature", node["kind"], -_value(node)),
    )


def _generation(nodes: Mapping[int, Facts], node: Facts) -> int:
    return 0 if node["parent"] is None else 1 + _generation(nodes, nodes[node["parent"]])


def _middles(nodes: Sequence[Facts]) -> tuple[dict[int, float], float]:
    """The height of every node's middle, and where the last one ends; a parent is in the middle of its children."""
    # leaves are set one below the other first: only then is it known where the middle of a parent's children is
    middles: dict[int, float] = {}
    used = HEADS

    def place(node: Facts) -> None:
        nonlocal used
        below = ordered(nodes, node["id"])
        for child in below:
            place(child)
        if below:
            middles[node["id"]] = (middles[below[0]["id"]] + middles[below[-1]["id"]]) / 2
            used = max(used + GROUP, middles[node["id"]] + TALL / 2 + GAP)
        else:
            tall = _tall(node)
            middles[node["id"]] = used + tall / 2
            used += tall + GAP

    place(nodes[0])
    return middles, used


def _leads(node: Facts, address: Address) -> str:
    return "" if node["feature"] is None else address(node["site"], node["feature"])


def _tall(node: Facts) -> float:
    return TALL if node["kind"] == "feature" else LOW


def _box(node: Facts, x: float, middle: float, *, root: bool) -> Box:
    tall = _tall(node)
    said = f"{called(node)} {plain(node['label'])}".strip() if node["kind"] == "feature" else called(node)
    again = node["same_as"] is not None
    short = f"{effect(node)}{', repeated' if again else ''}"
    lines = (said, short) if node["kind"] == "feature" else (f"{SHORT[node['kind']]}  {effect(node)}",)
    style = "root" if root else "" if node["kind"] == "feature" else "quiet"
    letters = LETTERS if style != "quiet" else LETTERS + 8
    return Box(
        x, middle - tall / 2, WIDE, tall, tuple(_cut(line, letters) for line in lines), style, _title(node, said)
    )


def _title(node: Facts, said: str) -> str:
    """What a pointer resting on a node shows."""
    lines = [said, f"{node['site']}: {effect(node)}"]
    if node["effect"] and node["effect"]["low"] is not None:
        corrected = "" if node["q"] is None else f", q {number(node['q'])}, both corrected for the choice from many"
        lines.append(f"interval {number(node['effect']['low'])} to {number(node['effect']['high'])}{corrected}")
    if node["active"]:
        lines.append(f"{node['active']:,} features active before it, {node['confirmed']:,} of them ablated")
    return "\n".join(lines)


def _edge(node: Facts, nodes: Mapping[int, Facts], start: tuple[float, float], parent: tuple[float, float]) -> Edge:
    share = min(1.0, abs(node["share"] or 0.0))
    lowers = _value(node) < 0
    colour = "ink" if node["kind"] != "feature" else "vermilion" if lowers else "blue"
    said = f"{called(node)} on {called(nodes[node['parent']])}: {effect(node)}"
    faint = node["kind"] != "feature"
    return Edge(start, parent, THIN + (THICK - THIN) * share, colour, lowers, faint, said)


def _tokens(tree: Facts, x: float, root: tuple[float, float], height: float) -> list[tuple[Box, Edge]]:
    """The tokens that lose most without the root, right of it; edges in units of the largest."""
    rows = tree["logits"]
    largest = max((abs(token["effect"]["value"] or 0) for token in rows), default=0) or 1
    top = min(max(HEADS, root[1] - (TALL + GAP) * len(rows) / 2), height - (TALL + GAP) * len(rows))
    drawn = []
    for i, token in enumerate(rows):
        value, error = token["effect"]["value"], token["standard_error"]
        y = top + (TALL + GAP) * i
        said = f"{number(value)} nats" if error is None else f"{number(value)} ± {number(error)} nats"
        box = Box(x, y, TOKEN, TALL, (label(token["text"]), said), "token", f"{plain(token['text'])}\nloses {said}")
        thick = THIN + (THICK - THIN) * 0.6 * abs(value or 0) / largest
        colour = "vermilion" if (value or 0) < 0 else "blue"
        drawn.append((box, Edge(root, (x, y + TALL / 2), thick, colour, (value or 0) < 0, title=box.title)))
    return drawn


def _value(node: Facts) -> float:
    return 0.0 if node["effect"] is None or node["effect"]["value"] is None else node["effect"]["value"]


def _cut(line: str, letters: int) -> str:
    return line if len(line) <= letters else line[: letters - 1] + "…"
