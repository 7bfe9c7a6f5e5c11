"""What a tree of features is made of, as data, and where its nodes are drawn."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from monolex.stats import Estimate

Kind = Literal["feature", "error", "rest"]


@dataclass(frozen=True)
class Node:
    """A feature, or a part of the stream that is no feature, and what its parent loses without it."""

    id: int
    """Its place in :attr:`Tree.nodes`."""
    parent: int | None
    """Id of the node that it acts on; None for the root."""
    site: str
    """Where it is."""
    feature: int | None
    """Its number; None for parts that are no single feature."""
    kind: Kind
    """`feature`; `error`: the reconstruction error, ablated alone; `rest`: all features at once, so that only error
    and bias are left. The last two are the scale on which the features' effects are read."""
    label: str
    """Words for it."""
    effect: Estimate | None
    """What the parent's activation loses, in its own units; negative where this node inhibits it. None for the root.

    The interval of a feature is corrected for its choice from many (:mod:`monolex.causal.tree.grow`)."""
    standard_error: float | None
    """Of the effect; None for the root, or with one text only."""
    share: float | None
    """The effect over the parent's mean activation."""
    pre_effect: Estimate | None
    """What the parent's pre-activation loses: goes on where the activation is zero already."""
    q: float | None
    """Of a feature below the root: p-value of the effect, corrected for all the features that were looked at."""
    activation: float | None
    """Mean activation at the tokens where its own texts end; None where it is no feature or has no texts."""
    maximum: float | None
    """Largest stored activation."""
    contexts: int
    """Its own texts, of as many documents."""
    active: int
    """Features of the nearest earlier site that are active in them; 0 where the tree ends."""
    confirmed: int
    """How many of these were ablated one by one."""
    correlation: float | None
    """Spearman correlation of first-order estimate and effect among the confirmed; None for fewer than three."""
    same_as: int | None
    """Id of the node below which this feature's own children stand, where it was reached before."""


class Leaf(NamedTuple):
    """A token that the root makes likelier, one of those that lose most probability without it."""

    token: int
    """Its number."""
    text: str
    """The token as people read it."""
    effect: Estimate
    """What its log-probability (nats) as next token loses without the root: the total effect, through all blocks."""
    standard_error: float | None
    """Of that effect."""
    logit: Estimate
    """The same of its logit, which for all tokens differs by the same amount."""
    probability: float
    """Its mean probability with the root."""


@dataclass(frozen=True)
class Tree:
    """Nodes, each after its parent, and the tokens above the root."""

    nodes: tuple[Node, ...]
    """The root, then generation by generation."""
    logits: tuple[Leaf, ...]
    """The tokens whose log-probability falls most, strongest first."""

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values, every number in full."""
        return {
            "nodes": [_plain(asdict(node)) for node in self.nodes],
            "logits": [_plain(leaf._asdict()) for leaf in self.logits],
        }


def layout(tree: Tree) -> dict[int, tuple[float, float]]:
    """A place in the unit square for every node, by id.

    The root is at x = 1, the earliest generation at x = 0. Ends of the tree share y evenly from 0 down to 1, and a
    parent stands in the middle of its children: features from the most exciting to the most inhibiting, then error and
    rest. Two nodes of a generation are at least one end's share apart.
    """
    below: dict[int | None, list[Node]] = {}
    for node in tree.nodes:
        below.setdefault(node.parent, []).append(node)
    generation: dict[int | None, int] = {None: -1}
    for node in tree.nodes:
        generation[node.id] = generation[node.parent] + 1
    deepest = max(1, *generation.values())
    ends = sum(node.id not in below for node in tree.nodes)
    heights: dict[int, float] = {}
    used = 0

    def place(node: Node) -> None:
        nonlocal used
        under = sorted(below.get(node.id, ()), key=_order)
        for child in under:
            place(child)
        if under:
            heights[node.id] = (heights[under[0].id] + heights[under[-1].id]) / 2
        else:
            heights[node.id] = (used + 0.5) / ends
            used += 1

    place(tree.nodes[0])
    return {node.id: (1 - generation[node.id] / deepest, heights[node.id]) for node in tree.nodes}


def _order(node: Node) -> tuple[bool, str, float]:
    value = 0.0 if node.effect is None or node.effect.value is None else node.effect.value
    return node.kind != "feature", node.kind, -value


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Estimate) else value for name, value in row.items()}
