"""What a run found, in sentences for the page's first screen: each is read off the artefacts, with its control."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolex.artifact import SUBJECT, Manifest, read_json
from monolex.causal.patch.claims import FEWER
from monolex.kinds import BASELINES, FAMILIES
from monolex.pages.eval_charts import EvaluatedDictionary
from monolex.pages.html import estimate, number
from monolex.report import stability_section
from monolex.report.rivals import controls, learned, rivals
from monolex.report.section import CAUSES, INTERPRETATION, notice

Facts = Mapping[str, Any]
GLANCE = "glance"
"""Anchor of the report's part on all sites at once."""
HALF = 0.5
"""Share of the KL at which patches are compared."""


class Finding(NamedTuple):
    """A sentence on what a run found."""

    text: str
    """With its numbers, intervals and controls."""
    anchor: str
    """Of the part of the report that its tables stand in."""
    path: str = ""
    """Of the artefact in the run that it is read off; empty for the evaluation."""


def findings(run: Path, everything: Sequence[EvaluatedDictionary], manifests: Mapping[str, Manifest]) -> list[Finding]:
    """The sentences that the artefacts of a run give, the most general first; none where nothing compares."""
    said = [Finding(text, GLANCE) for text in reconstruction(everything)]
    for path, manifest in manifests.items():
        content = run / path / f"{manifest.kind}.json"
        if manifest.kind == "score":
            said += [Finding(text, INTERPRETATION.key, path) for text in explained(read_json(content))]
        elif notice(run, manifest, manifests):  # it is of what lies in the run no longer
            continue
        elif manifest.kind == "patch":
            name = path.partition("/")[2]
            said += [Finding(text, CAUSES.key, path) for text in patched(name, read_json(content))]
        elif manifest.kind == "stability":
            of_first = read_json(content)["dictionaries"][:1]
            said += [
                Finding(stability_section.said(facts), stability_section.STABILITY.key, path) for facts in of_first
            ]
    return said


def reconstruction(everything: Sequence[EvaluatedDictionary]) -> list[str]:
    """At every site the trained dictionary that most baselines are as sparse as, beside them."""
    pairs = [pair for site in dict.fromkeys(e.site for e in everything) if (pair := _compared(everything, site))]
    if not pairs:
        return []
    best = [trained for trained, _ in pairs]
    families = dict.fromkeys(family for _, others in pairs for family in others)
    beside = {family: [others[family] for _, others in pairs if family in others] for family in families}
    wins = sum(_below(trained, others.values()) for trained, others in pairs)
    features, missed = (_range(e.value(metric) for e in best) for metric in ("l0", "fvu"))
    told = f"With {features} active features a token, trained dictionaries miss {missed} of the variance at"
    told += f" {len(pairs)} site{'s' * (len(pairs) > 1)}; with as many "
    told += ", ".join(
        f"{FAMILIES[family].spelled} miss {_range(e.value('fvu') for e in group)}" for family, group in beside.items()
    )
    told += f". Better than all of them, intervals apart, at {wins} of {len(pairs)}."
    told += " (At each site the trained dictionary that most baselines are as sparse as, of several the one that misses"
    told += " least; of each kind of baseline likewise the one that misses least.)"
    further = []
    kept = [value for e in best if (value := e.value("loss_recovered_zero")) is not None]
    if kept:
        further.append(
            f"On their reconstructions the model keeps {_range(kept)} of what the site gives its predictions."
        )
    control = _controls(everything, best)
    return [told, " ".join([*further, *([control] if control else [])])] if further or control else [told]


def explained(scores: Facts) -> list[str]:
    """The best explained trained dictionary, beside the baselines at its site."""
    cells = [(facts, cell) for facts in scores["dictionaries"] if (cell := _best_cell(facts)) is not None]
    trained = [
        (f, c) for f, c in cells if f["trained"] and f["model"] == SUBJECT and f["step"] is None and learned(f["kind"])
    ]
    if not trained:
        return []
    facts, cell = max(trained, key=lambda pair: pair[1]["value"])
    beside = [
        f"{f['name']} {number(c['value'])}"
        for f, c in cells
        if f["site"] == facts["site"] and f["model"] == SUBJECT and not f["trained"]
    ]
    told = (
        f"Explanations predict where a feature is active on text they never saw with a mean correlation of "
        f"{_range(c['value'] for _, c in trained)} ({len(trained)} trained dictionaries), the best {estimate(cell)} "
        f"({cell['n']} features of {facts['name']} at {facts['site']})"
    )
    told += f"; at the same site {', '.join(beside)}." if beside else "."
    of_controls = [(f, c) for f, c in cells if f["model"] != SUBJECT and f["trained"] and f["step"] is None]
    place = facts["site"], facts["name"]
    named = [(f, c) for f, c in of_controls if (f["site"], f["name"]) == place]
    for control, of_control in named:
        told += (
            f" The dictionary of that name of a model with {control['model']} weights scores {estimate(of_control)}."
        )
    if of_controls and not named:
        told += f" Dictionaries of control models score {_range(each['value'] for _, each in of_controls)}."
    return [told]


def patched(name: str, patch: Facts) -> list[str]:
    """Whether some features carry a task, beside the baseline."""
    if not patch["behaviour"]["able"]:
        return [f"{name}: {patch['behaviour']['verdict']}, so patching says nothing of it."]
    claims = [c for c in patch["claims"] if c["statement"] == FEWER and c["level"] == HALF]
    known = [c for c in claims if c["estimate"]["value"] is not None]
    if not known:
        return []
    best = min(known, key=lambda claim: claim["estimate"]["value"])
    apart = "on other prompts than they were chosen on " if patch["chosen_on"] < patch["pairs"] else ""
    verdicts = [claim["verdict"] for claim in claims]
    return [
        f"{name}: to halve the KL to the donor {apart}takes {best['dictionary']} {estimate(best['estimate'])} times the"
        f" features that {best['against'].rpartition('/')[2]} takes ({best['verdict']}; of {len(claims)} dictionaries"
        f" {verdicts.count('confirmed')} need fewer for certain, {verdicts.count('contradicted')} more)."
    ]


def _compared(
    everything: Sequence[EvaluatedDictionary], site: str
) -> tuple[EvaluatedDictionary, dict[str, EvaluatedDictionary]] | None:
    measured = [e for e in everything if e.site == site and e.model == SUBJECT and e.value("fvu") is not None]
    known = []
    for trained in (e for e in measured if _learned(e) and not e.target and _sparse(e)):
        others: dict[str, EvaluatedDictionary] = {}
        for other in rivals(measured, trained):
            family = BASELINES[other.kind].name
            if family not in others or (other.value("fvu") or 0) < (others[family].value("fvu") or 0):
                others[family] = other
        if others:
            known.append((trained, others))
    return max(known, key=lambda pair: (len(pair[1]), -(pair[0].value("fvu") or 0)), default=None)


def _learned(entry: EvaluatedDictionary) -> bool:
    """Whether it was trained, and not with a part that stayed random, as controls are."""
    return entry.trained and learned(entry.kind)


def _sparse(entry: EvaluatedDictionary) -> bool:
    """Whether it is sparse enough for its L0 to mean something: a quarter of the dimensions that there are."""
    width = entry.head["d_sae"] / (entry.head["ratio"] or 1)
    return (entry.value("l0") or width) <= width / 4


def _below(trained: EvaluatedDictionary, others: Iterable[EvaluatedDictionary]) -> bool:
    high = trained.rows["fvu"]["high"]
    lows = [other.rows["fvu"]["low"] for other in others]
    return high is not None and all(low is not None and high < low for low in lows)


def _controls(everything: Sequence[EvaluatedDictionary], best: Sequence[EvaluatedDictionary]) -> str:
    same = [e for entry in best for e in controls(everything, entry) if e.value("fvu") is not None]
    by_model = {model: [e for e in same if e.model == model] for model in dict.fromkeys(e.model for e in same)}
    told = (
        f"{_range(e.value('fvu') for e in group)} of a model with {model} weights" for model, group in by_model.items()
    )
    return f"Dictionaries of the same name miss {', and '.join(told)}." if by_model else ""


def _best_cell(facts: Facts) -> Facts | None:
    cells = [cells["top_and_random"] for cells in facts["explainers"].values()]
    known = [cell for cell in cells if cell["value"] is not None]
    return max(known, key=lambda cell: cell["value"], default=None)


def _range(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low} to {high}"
