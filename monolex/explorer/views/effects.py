"""What ablating a feature changes, in total and directly, beside what its direction says of the logits by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from monolex.explorer.run import ExploredRun
from monolex.features.evidence import Evidence
from monolex.pages import tokens
from monolex.pages.ablate_charts import MEASURE
from monolex.pages.tables import Column, Table, bare, table
from monolex.report.ablate_section import TOKENS, token_row, verdict

SHOWN = 8
"""Tokens that lose and that gain most, each."""
WEIGHT = Column(
    "weight", "Direct logit", "per unit of activation, as on the card; taking the feature away changes it the other way"
)
ELSEWHERE = "not among the tokens whose logit it raises or lowers most"


def ablations(
    run: ExploredRun, memberships: Sequence[Mapping[str, Any]], evidence: Evidence, direct_reason: str
) -> list[dict[str, Any]]:
    """What the run's ablations of a feature measured: KL beside controls, and the tokens that change most."""
    weights = {each.token: each.weight for each in (*evidence.promoted, *evidence.suppressed)}
    reason = ELSEWHERE if weights else direct_reason or "not computed for this dictionary"
    measured = []
    for member in memberships:
        if member["part"] != "ablated":
            continue
        ablation = _ablation(run, member)
        sides = {side: ablation["measures"][MEASURE][side][:SHOWN] for side in ("suppressed", "promoted")}
        rows = [
            {**token, "side": side, "weight": weights.get(token["token"])}
            for side, changed in sides.items()
            for token in changed
        ]
        head = {"experiment": member["experiment"], "place": member["place"], "measure": MEASURE}
        facts = {name: ablation[name] for name in ("kl", "occurrences", "documents", "positions", "to")}
        measured.append({**head, **facts, "weight_reason": reason, "tokens": rows})
    return measured


def sentence(run: ExploredRun, measured: Mapping[str, Any]) -> Markup:
    """What the numbers say, as the report does."""
    return verdict(_ablation(run, measured))


def effect_table(key: str, measured: Mapping[str, Any]) -> Table:
    """Total and direct change of each token, the control's, p, and the direct logit."""
    groups = {"suppressed": "lose most", "promoted": "gain most"}

    def rows(side: str) -> list[Any]:
        return [
            (tokens.token(token["text"]), (token_row(token) | {"weight": bare(token["weight"], reason)}).get)
            for token in measured["tokens"]
            if token["side"] == side
        ]

    reason = measured["weight_reason"]
    listed = [(heading, rows(side)) for side, heading in groups.items()]
    return table(key, "Tokens whose probability changes most", "Token", (*TOKENS, WEIGHT), listed)


def _ablation(run: ExploredRun, member: Mapping[str, Any]) -> Mapping[str, Any]:
    return run.content(f"{member['experiment']}/ablate.json")["ablations"][member["place"] - 1]
