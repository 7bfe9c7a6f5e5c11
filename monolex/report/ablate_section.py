"""The report's section on ablations: what taking one feature away does."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monolex.pages import ablate_charts, svg, tokens
from monolex.pages.html import MISSING, estimate, number
from monolex.pages.tables import Column, Table, bare, table
from monolex.report.section import CAUSES, Artefacts, Section, parts_of_kind
from monolex.verdicts import SIGNIFICANT

Facts = Mapping[str, Any]
MEASURES = {
    "probability": "probability",
    "logprob": "log-probability",
    "logit": "logit",
    "centred": "logit less the vocabulary's mean",
}
"""What is measured of a token, as a table calls it."""
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
"""Columns of a table of tokens; :func:`token_row` fills them."""
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


def section(run: Path, artefacts: Artefacts, _listed: Collection[str] | None) -> Section:
    """Everything of the ablations of a run."""

    def describe(key: str, content: Facts) -> dict[str, Any]:
        return {"features": [_ablation(f"{key}-{i}", facts) for i, facts in enumerate(content["ablations"], 1)]}

    return Section(CAUSES, parts_of_kind("ablate", run, artefacts, describe))


def verdict(ablation: Facts) -> Markup:
    """What the numbers of an ablation say, in a sentence or two."""
    kl, measure = ablation["kl"], ablation["measures"][ablate_charts.MEASURE]
    effect, control = kl["feature"], kl["control_feature"]
    if effect["value"] is None:
        said = Markup("How much ablating it changes predictions is not known ({}).").format(effect["reason"])
    elif control["value"] is None or control["value"] <= 0:
        why = control["reason"] or NO_CONTROL
        said = Markup("Ablating it changes predictions by {} nats; no control to compare with ({}).").format(
            estimate(effect), why
        )
    else:
        p = kl["p_feature"]
        chance = f"p {_p(p)}" + (", which chance alone can do" if p is not None and p >= SIGNIFICANT else "")
        said = Markup(
            "Ablating it changes predictions {} times as much as ablating another active feature of that size "
            "(KL {} against {} nats; {})."
        ).format(number(effect["value"] / control["value"]), estimate(effect), estimate(control), chance)
    losers = measure["suppressed"]
    if losers:
        first = losers[0]
        said += Markup(" The token that loses most probability is {} ({}; p {}).").format(
            tokens.token(first["text"]), estimate(_change(first)), _p(first["p"])
        )
    if measure["significant"] is None:
        return said
    told = " {:,} tokens change otherwise than under the control, {:,} of them lose."
    return said + told.format(measure["significant"], measure["significant_down"])


def _ablation(key: str, ablation: Facts) -> dict[str, Any]:
    left, right = ablate_charts.panels(ablation)
    measure = ablation["measures"][ablate_charts.MEASURE]
    tables = [_kl(key, ablation), _tokens(f"{key}-down", "Tokens that lose most probability", measure["suppressed"])]
    tables.append(_tokens(f"{key}-up", "Tokens that gain most", measure["promoted"]))
    tables.append(_measures(f"{key}-measures", ablation["measures"]))
    rescue = [(row["site"], row.get) for row in ablation["rescue"]]
    title = f"Adding it back, at {len(rescue) - 1} of the {ablation['later']} later layers"
    tables += [table(f"{key}-rescue", title, "At", RESCUE, [("", rescue)])] if rescue else []
    tables += [_interactions(f"{key}-pairs", ablation)] if ablation["interactions"] else []
    return {
        "title": f"feature {ablation['feature']} of {ablation['name']} at {ablation['site']}",
        "words": tokens.plain(ablation["words"]),
        "verdict": verdict(ablation),
        "setting": _setting(ablation),
        "contexts": [
            (number(context["activation"]), tokens.ending(context["texts"], context["activation"], ablation["maximum"]))
            for context in ablation["contexts"]
        ],
        "charts": [(panel.title, panel.chart()) for panel in (left, right)],
        "legend": svg.legend([*left.series, *right.series]),
        "tables": tables,
    }


def _setting(ablation: Facts) -> str:
    """What was ablated, where, and what there is to compare it with."""
    where = "at the token alone" if ablation["positions"] == "token" else "at every token of the context"
    on = f"{ablation['occurrences']:,} tokens of {ablation['documents']:,} documents"
    said = f"Its activation is set to {ablation['to']} {where}, on {on}"
    alone = ablation["without_control"]
    within = number(ablation["control_within"])
    said += f", on {alone:,} of which no other active feature is within {within} times its size" if alone else ""
    said += f" (which changes nothing on {ablation['unmoved']:,} of them)" if ablation["unmoved"] else ""
    ratio = ablation["size_ratio"]
    if ratio is None:
        return f"{said}."
    low, high = map(number, ablation["size_range"])
    return f"{said}; the control's own size was {number(ratio)} of its ({low} to {high}), and is scaled to it."


def _kl(key: str, ablation: Facts) -> Table:
    kl = ablation["kl"]
    rows = [
        ("this feature", {"kl": kl["feature"], "p": bare(None, "this is what is compared")}.get),
        (ablate_charts.CONTROL, {"kl": kl["control_feature"], "p": bare(kl["p_feature"], NO_TEST)}.get),
        (ablate_charts.DIRECTION, {"kl": kl["control_direction"], "p": bare(kl["p_direction"], NO_TEST)}.get),
    ]
    return table(f"{key}-kl", "How much predictions change", "Ablated", KL, [("", rows)])


def _tokens(key: str, caption: str, changed: Sequence[Facts]) -> Table:
    """A row a token."""
    rows = [(tokens.token(token["text"]), token_row(token).get) for token in changed]
    return table(key, caption, "Token", TOKENS, [("", rows)], folded=True)


def token_row(token: Facts) -> dict[str, Any]:
    """A cell for each of :data:`TOKENS`; all but the change are bare, since that has the interval."""
    reasons = {"direct": NO_DIRECT, "control": NO_CONTROL, "p": NO_TEST}
    return {name: bare(token[name], reason) for name, reason in reasons.items()} | {"change": _change(token)}


def _change(token: Facts) -> dict[str, Any]:
    """By how much a token's probability changes, as an estimate."""
    return bare(token["change"]) | {"low": token["low"], "high": token["high"], "over": "documents"}


def _measures(key: str, measures: Facts) -> Table:
    """How many tokens each way of measuring tells from the control, and which loses most by it."""
    rows = []
    for name, measure in measures.items():
        first = next(iter(measure["suppressed"]), None)
        label = Markup("{}").format(MEASURES.get(name, name))
        label += Markup("; most: {}").format(tokens.token(first["text"])) if first else ""
        counts = {which: bare(measure[which], NO_TEST) for which in ("significant", "significant_down")}
        rows.append((label, (counts | {"change": bare(first and first["change"], "no token loses")}).get))
    return table(key, "By way of measuring", "Measure", COUNTS, [("", rows)], folded=True)


def _interactions(key: str, ablation: Facts) -> Table:
    """Pairs with the features that are most active together with it."""
    rows = [
        (f"with feature {row['feature']}", {**row, "p": bare(row["p"], "no test: too few documents")}.get)
        for row in ablation["interactions"]
    ]
    caption = f"Pairs of features: change of the log-probability of {tokens.plain(ablation['metric_token'])}, nats"
    return table(key, caption, "Pair", INTERACTIONS, [("", rows)], folded=True)


def _p(value: float | None) -> str:
    return f"{MISSING} ({NO_TEST})" if value is None else f"= {number(value)}"
