"""Features that are alive (Fig. 16), how often features are active, and encoder biases (App. G)."""

import math
from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT
from monolex.interp.config import FigureConfig
from monolex.kinds import colour
from monolex.pages import metric_charts, token_charts
from monolex.pages.eval_charts import EvaluatedDictionary, title
from monolex.pages.html import estimate, number
from monolex.pages.picture import Picture
from monolex.report.page import fire_counts
from monolex.report.paper.evaluated import MADE_OF, evaluated, layer, over_layers, over_sizes, place, recipes
from monolex.report.paper.figure import Facts, Missing, ReadOff
from monolex.verdicts import Verdict, agreed, beyond, opposite

SHARE = "share of features alive (active > 10 times)"
MOSTLY = 0.5
"""Share of a dictionary's features above which it is mostly alive."""
PAPER_ROWS = 2_000_000
"""The fewest rows in which the paper counts; fewer only make features look dead."""
NARROW = 4.0
"""Features over dimensions up to which the paper's claim on the residual stream is."""
WIDE = 2.0
"""The paper's MLP dictionaries are at least so many times overcomplete."""
CONTROL_LOOKS = {"random": ("slate", "dashed"), "shuffled": ("brown", "dotted")}
"""Colour and variant of control models beside a dictionary of the subject."""
VARIANTS: tuple[str, ...] = ("", "dashed", "dotted")
"""Looks of several dictionaries of one kind: more cannot be told apart."""
NEVER_ABOVE = 0.9
"""Share of biases below zero at which nearly all are."""


def alive_numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """The share of features alive of every trained recipe, over layers and, where there are several, over sizes.

    Raises:
        Missing: no evaluation, or no trained dictionary in it.
    """
    everything = evaluated(run)
    shown = [e for e in recipes(everything) if "alive_paper" in e.rows]
    if not shown:
        raise Missing("no trained dictionary was evaluated")
    with_controls = [e for e in recipes(everything, controls=True) if "alive_paper" in e.rows]
    facts = [
        {name: e.head[name] for name in ("site", "name", "kind", "alpha", "k", "ratio", "d_sae")}
        | {name: e.rows["alive_paper"][name] for name in ("value", "low", "high")}
        for e in shown
    ]
    panels = over_layers(with_controls, "alive_paper", SHARE) + over_sizes(shown, "alive_paper", SHARE)
    rows = max((int(e.value("rows") or 0) for e in shown), default=0)
    return {
        "title": "Features that are alive",
        "made_of": MADE_OF,
        "rows": rows,
        "dictionaries": facts,
        "panels": panels,
    }


def alive_pictures(content: Facts) -> list[Picture]:
    """Panels over layers and sizes."""
    return [metric_charts.picture("fig16", content["title"], content["panels"])]


def alive_reading(content: Facts) -> ReadOff:
    """Whether residual dictionaries stay mostly alive, and MLP dictionaries do not."""
    said, verdicts = [], []
    by_place = {name: [d for d in content["dictionaries"] if d["site"].startswith(name)] for name in ("resid", "mlp")}
    residual, mlp = by_place["resid"], by_place["mlp"]
    few = content["rows"] < PAPER_ROWS
    narrow = [d for d in residual if d["alpha"] and (d["ratio"] or 0) <= NARROW]
    if residual:
        said.append(f"Residual stream: {_range(residual)}.")
    if narrow:
        verdicts.append(_mostly(narrow, alive=True, few=few))
        said.append(f"Of these with α > 0 and R ≤ {NARROW:g}: {_range(narrow)}.")
    wide = [d for d in mlp if d["alpha"] is not None and (d["ratio"] or 0) >= WIDE]
    if mlp:
        said.append(f"MLP: {_range(mlp)}.")
    if wide:
        verdicts.append(_mostly(wide, alive=False, few=few))
    elif mlp:
        widest = max((d["ratio"] or 0 for d in mlp if d["alpha"] is not None), default=0)
        told = f"its widest with an α is of R = {widest:g}, the paper's of {WIDE:g}" if widest else "none has an α"
        said.append(f"Of overcomplete MLP dictionaries this run cannot say: {told}.")
    else:
        said.append("Of MLP dictionaries this run cannot say: it has none.")
    rows = content["rows"]
    told = "Here: counted in held-out rows"
    told += (
        f", {rows:,} of them, so that a feature of a density below {number(10 / rows)} counts as dead" if rows else ""
    )
    if few:
        said.append(f"Fewer than {PAPER_ROWS:,} rows only make features look dead, so that these do not say which are.")
    return ReadOff(agreed(v for v in verdicts if v != "cannot say"), tuple(said), f"{told}.")


def density_numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """How often the features of trained recipes are active, at the middle layer of every kind of site.

    Raises:
        Missing: no evaluation, or no counts in it.
    """
    everything = recipes(evaluated(run), controls=True)
    counts = fire_counts(run / "eval" / "densities.safetensors")
    known = [e for e in everything if e.key in counts and e.value("rows")]
    if not known:
        raise Missing("no evaluation counted how often features are active")
    rows = max(int(e.value("rows") or 0) for e in known)
    lowest, panels = -math.ceil(math.log10(max(rows, 10))), []
    for where in dict.fromkeys(place(e) for e in known):
        layers = sorted({layer(e) for e in known if place(e) == where})
        at = [e for e in known if place(e) == where and layer(e) == layers[(len(layers) - 1) // 2]]
        for heading, shown in _by_panel(at).items():
            binned = [
                {"label": _called(e), "colour": shade, "variant": variant}
                | token_charts.binned(counts[e.key], int(e.value("rows") or 1), lowest)
                for e, shade, variant in shown
            ]
            panels.append({"title": heading, "lowest": lowest, "dictionaries": binned})
    return {"title": "How often features are active", "made_of": MADE_OF, "rows": rows, "panels": panels}


def density_pictures(content: Facts) -> list[Picture]:
    """A panel a kind of site."""
    panels = tuple(
        token_charts.densities(p["title"], p["dictionaries"], content["rows"], p["lowest"]) for p in content["panels"]
    )
    return [Picture("densities", content["title"], panels, min(2, len(panels)))]


def density_reading(content: Facts) -> ReadOff:
    """The share of never active features, by dictionary."""
    said = []
    for panel in content["panels"]:
        shares = [f"{d['label']} {d['silent']:,} of {d['features']:,}" for d in panel["dictionaries"]]
        said.append(f"{panel['title']}, features never active: {', '.join(shares)}.")
    return ReadOff(
        "no claim", tuple(said), f"Here: {content['rows']:,} held-out rows, the middle layer of every kind of site."
    )


def bias_numbers(run: Path, _config: FigureConfig) -> dict[str, Any]:
    """The share of encoder biases below zero of every trained recipe.

    Raises:
        Missing: no evaluation, or no bias in it.
    """
    shown = [e for e in recipes(evaluated(run), controls=True) if _known(e, "negative_bias")]
    if not shown:
        raise Missing("no evaluated dictionary has encoder biases other than zero")
    panels = over_layers(shown, "negative_bias", "share of encoder biases below zero")
    return {"title": "Encoder biases below zero", "made_of": MADE_OF, "panels": panels}


def bias_pictures(content: Facts) -> list[Picture]:
    """A panel a kind of site."""
    return [metric_charts.picture("biases", content["title"], content["panels"])]


def bias_reading(content: Facts) -> ReadOff:
    """Whether nearly all encoder biases are below zero; an α of 0 is a control."""
    subject = [s for panel in content["panels"] for s in panel["series"] if s["model"] == SUBJECT]
    points = [point for series in subject for point in series["points"]]
    counted = [point for point in points if point["alpha"] != 0]
    said = []
    if counted:
        fewest, most = (end(counted, key=lambda p: p["value"]) for end in (min, max))
        told = f"Of the biases of {len(counted)} trained dictionaries {estimate(fewest)}"
        told += f" ({fewest['site']}/{fewest['name']}) to {estimate(most)} are below zero; nearly all is"
        said.append(f"{told} {NEVER_ABOVE:g} or more with the whole interval.")
    if controls := [point for point in points if point["alpha"] == 0]:
        low, high = (estimate(end(controls, key=lambda p: p["value"])) for end in (min, max))
        said.append(f"Dictionaries of α = 0, which nothing asks to be sparse, are not counted: {low} to {high}.")
    return ReadOff(agreed(beyond(p, NEVER_ABOVE) for p in counted), tuple(said))


def _by_panel(at: list[EvaluatedDictionary]) -> dict[str, list[tuple[EvaluatedDictionary, str, str]]]:
    """What a panel holds, with colour and variant: recipes of the subject, few of a kind; one beside its controls."""
    by_kind: dict[str, list[EvaluatedDictionary]] = {}
    for e in at:
        if e.model == SUBJECT:
            by_kind.setdefault(e.kind, []).append(e)
    shown = [
        (e, colour(e.kind), variant) for alike in by_kind.values() for e, variant in zip(alike, VARIANTS, strict=False)
    ]
    controls = {name: [e for e in at if e.model != SUBJECT and e.name == name] for name in (e.name for e, *_ in shown)}
    pairs = [
        [each, *((e, *CONTROL_LOOKS.get(e.model, ("rose", "dashed"))) for e in controls[each[0].name])]
        for each in shown
    ]
    beside = next((pair for pair in pairs if len(pair) > 1), [])
    panels = {at[0].site: shown, f"{at[0].site}: beside control models": beside}
    return {title: each for title, each in panels.items() if each}


def _known(entry: EvaluatedDictionary, metric: str) -> bool:
    return entry.value(metric) is not None


def _called(entry: EvaluatedDictionary) -> str:
    return title({"model": entry.model, "name": entry.name})


def _mostly(dictionaries: list[dict[str, Any]], *, alive: bool, few: bool) -> Verdict:
    """Whether all dictionaries have more than half of their features alive, or less; of ``few`` rows, only if more."""
    verdict = agreed(beyond(d, MOSTLY) for d in dictionaries)
    if few and verdict != "confirmed":
        return "cannot say"
    return verdict if alive else opposite(verdict)


def _range(dictionaries: list[dict[str, Any]]) -> str:
    known = [d for d in dictionaries if d["value"] is not None]
    fewest, most = (end(known, key=lambda d: d["value"]) for end in (min, max))
    sizes = sorted({d["ratio"] for d in known if d["ratio"]})
    said = f"{estimate(fewest)} ({fewest['site']}/{fewest['name']}) to {estimate(most)} ({most['site']}/{most['name']})"
    return f"{said} of the features are alive, of {len(known)} dictionaries of R = {', '.join(f'{r:g}' for r in sizes)}"
