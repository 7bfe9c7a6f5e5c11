"""Which features carry a task: KL over patched features and the edit, at one layer (Fig. 3) and others (Fig. 17)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT
from monolex.causal.patch.claims import FEWER, FLOOR, NO_FLOOR, SMALLER
from monolex.interp.config import FigureConfig
from monolex.pages import patch_charts
from monolex.pages.html import MISSING, interval, number
from monolex.pages.picture import Picture
from monolex.pages.sheets import Grid
from monolex.report.paper.figure import VERDICTS, Facts, Missing, ReadOff, artefacts, counted
from monolex.verdicts import Verdict, agreed

TASK = "ioi"
"""The paper's."""
EQUAL = "at equal KL"
HALF = 0.5
"""Share of the KL with nothing patched at which verdicts are read off."""
MAIN, OTHERS = "fig3", "fig17"
TITLES = {
    MAIN: "Which features carry a task: KL over features and over the edit",
    OTHERS: "Which features carry a task, at the other layers",
}


def numbers(which: str, run: Path, _config: FigureConfig) -> dict[str, Any]:
    """The patch of a task, cut to the middle one of its sites (Fig. 3) or to the others (Fig. 17).

    That is name-swapping (IOI) where it was patched, else the first task that was.

    Raises:
        Missing: nothing was patched, or one site alone.
    """
    patches = artefacts(run, "patch")
    if not patches:
        raise Missing("no features were patched")
    path = min(patches, key=lambda path: (patches[path]["task"] != TASK, path))
    patch = patches[path]
    sites = list(patch_charts.sites(patch))
    if not sites:
        raise Missing("no dictionary was patched")
    main = sites[(len(sites) - 1) // 2]
    chosen = [main] if which == MAIN else [site for site in sites if site != main]
    if not chosen:
        raise Missing(f"features were patched at {main} alone, which Fig. 3 shows")
    kept = {name: patch[name] for name in ("task", "corruption", "pairs", "chosen_on", "behaviour")}
    curves = [curve for curve in patch["curves"] if curve["site"] in chosen]
    claims = [claim for claim in patch["claims"] if claim["dictionary"].partition("/")[0] in chosen]
    head = {"figure": which, "title": TITLES[which], "made_of": [path], "sites": chosen}
    return {**head, **kept, "curves": curves, "claims": claims}


def pictures(content: Facts) -> list[Picture]:
    """The panels of every site under one legend."""
    by_site = patch_charts.sites(content)
    panels = tuple(panel for site, dictionaries in by_site.items() for panel in patch_charts.panels(site, dictionaries))
    widest = max(len(patch_charts.panels(site, dictionaries)) for site, dictionaries in by_site.items())
    return [Picture(content["figure"], f"{content['title']} ({content['task']})", panels, widest)]


def reading(content: Facts) -> ReadOff:
    """Whether dictionaries need fewer features and smaller edits than the baseline, at half of the KL."""
    behaviour = content["behaviour"]
    if not behaviour["able"]:
        return ReadOff("cannot say", (f"This run cannot say: {behaviour['verdict']}.",), _setting(content))
    controls = {f"{c['site']}/{c['name']}" for c in content["curves"] if c["model"] == SUBJECT and c["alpha"] == 0}
    compared = [c for c in content["claims"] if c["level"] is not None and c["statement"] in (FEWER, SMALLER)]
    at_half = [c for c in compared if c["level"] == HALF and c["dictionary"] not in controls]
    said = [f"{_sentence(behaviour['verdict'])}."]
    for statement in (FEWER, SMALLER):
        verdicts = [c["verdict"] for c in at_half if c["statement"] == statement]
        said += [f"{_sentence(statement.replace(EQUAL, 'at half of the KL'))}: {_tally(verdicts)}."] if verdicts else []
    for statement in (NO_FLOOR, FLOOR):
        floors = [c for c in content["claims"] if c["statement"] == statement]
        said += [f"{_sentence(statement)}: {_tally([c['verdict'] for c in floors])}."] if floors else []
    if controls:
        said.append("Dictionaries of α = 0, of which the paper says that they do not show it, are in the table alone.")
    return ReadOff(
        agreed(c["verdict"] for c in at_half), tuple(said), _setting(content), _grids(compared, content["claims"])
    )


def _sentence(statement: str) -> str:
    return statement[:1].upper() + statement[1:]


def _tally(verdicts: Sequence[Verdict]) -> str:
    counts = {name: verdicts.count(name) for name in ("confirmed", "contradicted", "undecided")}
    return f"{', '.join(f'{n} {name}' for name, n in counts.items() if n)} of {counted(len(verdicts), 'comparison')}"


def _setting(content: Facts) -> str:
    said = f"Here: task {content['task']}, {content['pairs']:,} pairs of prompts, at {' and '.join(content['sites'])}"
    apart = content["chosen_on"] < content["pairs"]
    said += f"; sets chosen on {content['chosen_on']:,} of them and measured on the others" if apart else ""
    return f"{said}. Features are ranked by integrated gradients; the paper drops them one by one (`--searches sweep`)."


def _grids(compared: Sequence[Facts], claims: Sequence[Facts]) -> tuple[Grid, ...]:
    """Ratios at equal KL and what all features leave, a row a dictionary."""
    levels = sorted({c["level"] for c in compared}, reverse=True)
    floors = {c["dictionary"]: c for c in claims if c["level"] is None}
    known: dict[str, dict[tuple[str, float], Facts]] = {}
    for claim in compared:
        known.setdefault(claim["dictionary"], {})[claim["statement"], claim["level"]] = claim
    heads = ["Dictionary"]
    heads += [f"{what},\nat {100 * level:.0f} % of the KL" for what in ("Features", "Edit") for level in levels]
    rows = []
    for name, cells in known.items():
        shown = [_cell(cells.get((statement, level))) for statement in (FEWER, SMALLER) for level in levels]
        rows.append((name, *shown, _cell(floors.get(name))))
    if not rows:
        return ()
    against = " and ".join(dict.fromkeys(c["against"] for c in compared))
    note = "Intervals resample pairs of prompts. Share of the KL with nothing patched to which both get down."
    caption = f"How many times the features, and the edit, of {against} at equal KL; and the KL that all features leave"
    return (Grid(caption, (*heads, "KL left,\nshare"), tuple(rows), (note,)),)


def _cell(claim: Mapping[str, Any] | None) -> str:
    if claim is None:
        return "not measured"
    estimate, sign = claim["estimate"], VERDICTS[claim["verdict"]][0]
    if estimate["value"] is None:
        return f"{sign} {MISSING}"
    span = interval(estimate["low"], estimate["high"])
    return f"{sign} {number(estimate['value'])}" + (f"\n{span}" if span else "")
