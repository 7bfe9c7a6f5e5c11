"""What a feature responds to, and what the model predicts less without it (Fig. 4)."""

from contextlib import closing
from pathlib import Path
from typing import Any

from monolex.features.store import FeatureStore
from monolex.interp.config import FigureConfig
from monolex.pages import ablate_charts, token_charts
from monolex.pages.ablate_charts import MEASURE
from monolex.pages.card import percent
from monolex.pages.html import MISSING, estimate, number
from monolex.pages.picture import Picture
from monolex.pages.tokens import plain
from monolex.report.paper.figure import MOST, Facts, Missing, ReadOff, artefacts, file_name, stores
from monolex.verdicts import Verdict, agreed, changes_more, corrected

UNGATHERED = "its evidence was not gathered"


def numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """The features that were ablated, in the order of their artefacts, with the tokens that each is active on.

    Raises:
        Missing: none was.
    """
    contents = artefacts(run, "ablate")
    listed = [
        (path, {**ablation, "q": q})
        for path, content in contents.items()
        for ablation, q in zip(content["ablations"], corrected(content["ablations"]), strict=True)
    ]
    if not listed:
        raise Missing("no feature was ablated")
    stores_of, shown = stores(run), []
    for _, ablation in listed[:MOST]:
        entry = stores_of.get((ablation["site"], ablation["name"]))
        tokens = _tokens(run / entry["path"], ablation["feature"]) if entry else None
        shown.append({"ablation": ablation, "tokens": tokens, "reason": "" if tokens else UNGATHERED})
    made_of = [*dict.fromkeys(path for path, _ in listed[:MOST]), *["features"] * any(each["tokens"] for each in shown)]
    title = "What a feature responds to, and what the model predicts less without it"
    return {"title": title, "made_of": made_of, "of": len(listed), "features": shown}


def pictures(content: Facts) -> list[Picture]:
    """A picture a feature: its activations by token, and what ablating it changes."""
    drawn = []
    for i, each in enumerate(content["features"], 1):
        ablation = each["ablation"]
        panels = ablate_charts.panels(ablation, 480, 380)
        if each["tokens"]:
            panels = (token_charts.panel("Activations by size, coloured by token", each["tokens"], width=480), *panels)
        title = f"Feature {ablation['feature']} of {ablation['site']}/{ablation['name']} {plain(ablation['words'])}"
        drawn.append(Picture(file_name("fig4", i), title.rstrip(), panels, len(panels)))
    return drawn


def reading(content: Facts) -> ReadOff:
    """Whether ablating does more than ablating a matched feature, and to which token most."""
    said: list[str] = []
    verdicts: list[Verdict] = []
    for each in content["features"]:
        ablation = each["ablation"]
        kl, losers = ablation["kl"], ablation["measures"][MEASURE]["suppressed"]
        verdicts.append("cannot say" if ablation["q"] is None else changes_more(kl, ablation["q"]))
        told = f"Feature {ablation['feature']} of {ablation['site']}/{ablation['name']}: "
        if each["tokens"] and each["tokens"]["tokens"]:
            first = each["tokens"]["tokens"][0]
            told += f"{percent(first['share'])} of its activation is on {plain(first['text'])}, one of"
            told += f" {each['tokens']['distinct_tokens']:,} different tokens. "
        told += f"Without it predictions change by {estimate(kl['feature'])} nats, without a matched active feature by"
        told += f" {estimate(kl['control_feature'])} (p {_p(ablation['q'])}, corrected for the features of its"
        told += " experiment), without a random direction of its size by"
        told += f" {estimate(kl['control_direction'])}."
        if losers:
            told += f" Most probability is lost by {plain(losers[0]['text'])}: {number(losers[0]['change'])}"
            told += (
                f" [{number(losers[0]['low'])}, {number(losers[0]['high'])}]" if losers[0]["low"] is not None else ""
            )
            told += f" (p {_p(losers[0]['p'])}, corrected for the vocabulary)."
        said.append(told)
    if content["of"] > len(content["features"]):
        said.append(f"The first {len(content['features'])} of {content['of']} ablated features are shown.")
    told = "Here: the features that this run was asked to ablate, in the order of their artefacts."
    return ReadOff(agreed(verdicts), tuple(said), told)


def _tokens(path: Path, feature: int) -> dict[str, Any] | None:
    """None where the evidence is of a smaller dictionary, made anew since."""
    with closing(FeatureStore(path)) as store:
        return token_charts.counted(store.feature(feature)) if feature < len(store) else None


def _p(value: float | None) -> str:
    return MISSING if value is None else number(value)
