"""The report's sections of single features: what ablating one does, and the tree of what causes it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monolex.pages import ablate_charts, svg, tokens, tree_diagram
from monolex.pages.html import MISSING, interval, number
from monolex.pages.tables import Column, Table, table
from monolex.report.section import CAUSES, Artefacts, Section, parts_of_kind

Facts = Mapping[str, Any]
MEASURES = {
    "probability": "probability",
    "logprob": "log-probability",
    "logit": "logit",
    "centred": "logit less the vocabulary's mean",
}
"""What is measured of a token, as a table calls it."""
SIGNIFICANT = 0.05
"""p below which a difference is not called chance."""
NO_TEST = "no test: too few documents have a matched feature"
NO_CONTROL = "no other feature was active with it"
NO_DIRECT = "no direct effect: the site is not in the residual stream"
KL = (
    Column("kl", "KL", "KL(as it is ‖ ablated), nats a prediction"),
    Column("p", "p", "paired test of the feature against this control, over documents"),
)
TOKENS = (
    Column("change", "Change", "of probability: ablated less as it is"),
    Column("direct", "Direct", "the same through the skip connections alone"),
    Column("control", "Control", "the same of another active feature of that size"),
    Column("p", "p", "feature against control over documents, corrected for the size of the vocabulary"),
)
COUNTS = (
    Column("significant", "Tokens that differ", "from the control, at p < 0.05 corrected", whole=True),
    Column("significant_down", "of them losing", "whose change is below zero", whole=True),
    Column("change", "Largest loss", "of one token"),
)
RESCUE = (
    Column("own", "Undone", "share of the squared change that adding the feature back at this site undoes"),
    Column("control", "by a random direction", "the same for a random direction of that size"),
)
INTERACTIONS = (
    Column("alone", "Other alone", "change when only the other feature is ablated"),
    Column("both", "Both", "change when both are"),
    Column("interaction", "Interaction", "both less each alone: 0 where effects add up"),
    Column("p", "p", "of the interaction over documents, corrected for the number of pairs"),
)
NODES = (
    Column("effect", "Effect", "what the parent's activation loses without it; below zero it inhibits"),
    Column("standard_error", "Standard error", "of the effect, over contexts"),
    Column("share", "Share", "the effect over the parent's mean activation"),
    Column("pre_effect", "Before the activation", "what the parent's pre-activation loses"),
    Column("activation", "Activation", "its own mean, in its own contexts"),
    Column("active", "Candidates", "features one block earlier that are active in its contexts", whole=True),
    Column("confirmed", "Ablated", "those of them that were ablated one by one", whole=True),
    Column("correlation", "Rank correlation", "of the attribution with the effect, among those"),
)
LEAVES = (
    Column("effect", "Loss", "of log-probability, nats, without the root"),
    Column("standard_error", "Standard error", "of the loss, over contexts"),
    Column("logit", "Loss of logit", "the same of its logit"),
    Column("probability", "Probability", "mean, with the root"),
)


def ablation_section(run: Path, artefacts: Artefacts, _listed: Collection[str] | None) -> Section:
    """Everything of the ablations of a run."""

    def describe(key: str, content: Facts) -> dict[str, Any]:
        return {"features": [_ablation(f"{key}-{i}", facts) for i, facts in enumerate(content["ablations"], 1)]}

    return Section(CAUSES, parts_of_kind("ablate", run, artefacts, describe))


def tree_section(run: Path, artefacts: Artefacts, _listed: Collection[str] | None) -> Section:
    """Everything of the trees of a run."""

    def describe(key: str, content: Facts) -> dict[str, Any]:
        return {"roots": [_tree(f"{key}-{i}", facts) for i, facts in enumerate(content["trees"], 1)]}

    return Section(CAUSES, parts_of_kind("tree", run, artefacts, describe))


def verdict(ablation: Facts) -> Markup:
    """What the numbers of an ablation say, in a sentence or two."""
    kl, measure = ablation["kl"], ablation["measures"][ablate_charts.MEASURE]
    own, control = kl["feature"], kl["control_feature"]
    if own["value"] is None:
        said = Markup("How much ablating it changes predictions is not known ({}).").format(own["reason"])
    elif control["value"] is None or control["value"] <= 0:
        why = control["reason"] or NO_CONTROL
        said = Markup("Ablating it changes predictions by {} nats; no control to compare with ({}).").format(
            _said(own), why
        )
    else:
        p = kl["p_feature"]
        chance = f"p {_p(p)}" + (", which chance alone can do" if p is not None and p >= SIGNIFICANT else "")
        said = Markup(
            "Ablating it changes predictions {} times as much as ablating another active feature of that size "
            "(KL {} against {} nats; {})."
        ).format(number(own["value"] / control["value"]), _said(own), _said(control), chance)
    losers = measure["suppressed"]
    if losers:
        first = losers[0]
        loss = f"{number(first['change'])} {interval(first['low'], first['high'])}".rstrip()
        said += Markup(" The token that loses most probability is {} ({}; p {}).").format(
            tokens.token(first["text"]), loss, _p(first["p"])
        )
    if measure["significant"] is None:
        return said
    told = " {:,} tokens change otherwise than under the control, {:,} of them lose."
    return said + told.format(measure["significant"], measure["significant_down"])


def _ablation(key: str, one: Facts) -> dict[str, Any]:
    left, right = ablate_charts.panels(one)
    measure = one["measures"][ablate_charts.MEASURE]
    made = [_kl(key, one), _tokens(f"{key}-down", "Tokens that lose most probability", measure["suppressed"])]
    made.append(_tokens(f"{key}-up", "Tokens that gain most", measure["promoted"]))
    made.append(_measures(f"{key}-measures", one["measures"]))
    rescue = [(row["site"], row.get) for row in one["rescue"]]
    made += [table(f"{key}-rescue", "Adding it back", "At", RESCUE, [("", rescue)])] if rescue else []
    made += [_interactions(f"{key}-pairs", one)] if one["interactions"] else []
    return {
        "title": f"feature {one['feature']} of {one['name']} at {one['site']}",
        "words": tokens.plain(one["words"]),
        "verdict": verdict(one),
        "how": _how(one),
        "contexts": [
            (number(each["activation"]), tokens.ending(each["texts"], each["activation"], one["maximum"]))
            for each in one["contexts"]
        ],
        "charts": [(panel.title, panel.chart()) for panel in (left, right)],
        "legend": svg.legend([*left.series, *right.series]),
        "tables": made,
    }


def _how(one: Facts) -> str:
    """What was ablated, where, and what there is to compare it with."""
    where = "at the token alone" if one["positions"] == "token" else "at every token of the context"
    on = f"{one['occurrences']:,} tokens of {one['documents']:,} documents"
    said = f"Its activation is set to {one['to']} {where}, on {on}"
    alone = one["without_control"]
    said += f", on {alone:,} of which no other feature is active" if alone else ""
    ratio = one["size_ratio"]
    return said + (
        "." if ratio is None else f"; the control's own size was {number(ratio)} of its, and is scaled to it."
    )


def _kl(key: str, one: Facts) -> Table:
    kl = one["kl"]
    rows = [
        ("this feature", {"kl": kl["feature"], "p": _bare(None, "this is what is compared")}.get),
        (ablate_charts.CONTROL, {"kl": kl["control_feature"], "p": _bare(kl["p_feature"], NO_TEST)}.get),
        (ablate_charts.DIRECTION, {"kl": kl["control_direction"], "p": _bare(kl["p_direction"], NO_TEST)}.get),
    ]
    return table(f"{key}-kl", "How much predictions change", "Ablated", KL, [("", rows)])


def _tokens(key: str, caption: str, found: Sequence[Facts]) -> Table:
    """A row a token; p is bare, since the change has the interval."""
    rows = []
    for one in found:
        change = {
            "value": one["change"],
            "low": one["low"],
            "high": one["high"],
            "n": 0,
            "over": "documents",
            "reason": "",
        }
        row = {
            "change": change,
            "direct": _bare(one["direct"], NO_DIRECT),
            "control": _bare(one["control"], NO_CONTROL),
        }
        rows.append((tokens.token(one["text"]), (row | {"p": _bare(one["p"], NO_TEST)}).get))
    return table(key, caption, "Token", TOKENS, [("", rows)], folded=True)


def _measures(key: str, measures: Facts) -> Table:
    """How many tokens each way of measuring tells from the control, and which loses most by it."""
    rows = []
    for name, measure in measures.items():
        first = next(iter(measure["suppressed"]), None)
        label = Markup("{}").format(MEASURES.get(name, name))
        label += Markup("; most: {}").format(tokens.token(first["text"])) if first else ""
        counts = {which: _bare(measure[which], NO_TEST) for which in ("significant", "significant_down")}
        rows.append((label, (counts | {"change": _bare(first and first["change"], "no token loses")}).get))
    return table(key, "By way of measuring", "Measure", COUNTS, [("", rows)], folded=True)


def _interactions(key: str, one: Facts) -> Table:
    """Pairs with the features that are most active together with it."""
    rows = [
        (f"with feature {row['feature']}", {**row, "p": _bare(row["p"], "no test: too few documents")}.get)
        for row in one["interactions"]
    ]
    caption = f"Pairs of features: change of the log-probability of {tokens.plain(one['metric_token'])}, nats"
    return table(key, caption, "Pair", INTERACTIONS, [("", rows)], folded=True)


def _tree(key: str, tree: Facts) -> dict[str, Any]:
    drawn = tree_diagram.diagram(tree)
    leaves = [(tokens.token(one["text"]), _bared(one, ("standard_error", "probability")).get) for one in tree["logits"]]
    made = [
        table(f"{key}-nodes", "What acts on what", "Node", NODES, [("", _nodes(tree["nodes"], None, 0))], folded=True)
    ]
    made += (
        [table(f"{key}-tokens", "Tokens that lose most without the root", "Token", LEAVES, [("", leaves)], folded=True)]
        if leaves
        else []
    )
    return {
        "title": f"What causes {tree['root']}",
        "words": tokens.plain(tree["nodes"][0]["label"]),
        "said": _tree_said(tree),
        "chart": drawn.chart(),
        "tables": made,
    }


def _tree_said(tree: Facts) -> str:
    """The strongest child of the root, and what no feature accounts for."""
    root = tree["nodes"][0]
    below = [n for n in tree["nodes"] if n["parent"] == root["id"] and n["effect"] and n["effect"]["value"] is not None]
    features = [node for node in below if node["kind"] == "feature"]
    said = f"Its mean activation in {root['contexts']:,} contexts is {number(root['activation'])}."
    if not features:
        return f"{said} No feature one block earlier moves it for certain."
    first = max(features, key=lambda node: abs(node["effect"]["value"]))
    said += f" Most of what a single feature does to it is done by {tree_diagram.called(first)}"
    said += f" {tokens.plain(first['label'])}".rstrip() + f": {_said(first['effect'])}"
    said += "" if first["share"] is None else f", {_share(first['share'])} of it"
    error = next((node for node in below if node["kind"] == "error"), None)
    if error is not None:
        said += f"; the reconstruction error there does {_said(error['effect'])}"
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
    row = {name: node[name] or _bare(None, none) for name in ("effect", "pre_effect")}
    row |= {name: _bare(node[name], none) for name in ("standard_error", "share")}
    row |= {name: _bare(node[name] or None, ends) for name in ("active", "confirmed")}
    row["correlation"] = _bare(node["correlation"], "fewer than three were ablated")
    return row | {"activation": _bare(node["activation"], "no single feature")}


def _bared(one: Facts, names: Sequence[str]) -> dict[str, Any]:
    return {**one, **{name: _bare(one[name], "one context only") for name in names}}


def _bare(value: float | None, reason: str) -> dict[str, Any]:
    """A number that has no interval of its own, or why there is none."""
    return {"value": value, "low": None, "high": None, "n": 0, "over": "", "reason": reason if value is None else ""}


def _said(found: Facts) -> str:
    if found["value"] is None:
        return f"{MISSING} ({found['reason']})"
    return f"{number(found['value'])} {interval(found['low'], found['high'])}".rstrip()


def _share(value: float) -> str:
    return f"{100 * value:.0f} %".replace("-", "−")


def _p(value: float | None) -> str:
    return f"{MISSING} ({NO_TEST})" if value is None else f"= {number(value)}"
