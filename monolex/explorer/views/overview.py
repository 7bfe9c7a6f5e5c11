"""The front page: what a run is, features worth seeing, the frontier, and what held and what did not."""

from collections.abc import Mapping
from typing import Any

from monolex.artifact import MANIFEST, Manifest, open_artifact, placed, read_json
from monolex.errors import UserError
from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views.feature import brief
from monolex.pages.eval_charts import EvaluatedDictionary, Looks, entries
from monolex.report import eval_section, run_facts
from monolex.report.findings import findings
from monolex.report.page import PAGE, finished

WORTH_SEEING = 12
KINDS = ("single-token", "preceding-token", "mixed")


def runs(explorer: Explorer) -> Page:
    """The runs that are open."""
    listed = [
        {"slug": run.slug, "folder": str(run.folder), "dictionaries": len(run.dictionaries), "alive": _alive(run)}
        for run in explorer.runs.values()
    ]
    return Page("runs.html", "Runs", {"runs": listed})


def overview(explorer: Explorer, slug: str) -> Page:
    """The front page of a run."""
    run = explorer.run(slug)
    everything = evaluated(run)
    shown = worth_seeing(run)
    told = run.remembered("front page", lambda: _told(run, everything))
    data = {
        "run": slug,
        **told,
        "damaged": run.damaged,
        "features": [{"dictionary": d.key, "title": d.title, "number": number} for d, number in shown],
        "dictionaries": [d for d in run.dictionaries.values() if d.gathered],
        "report": (run.folder / PAGE).is_file(),
    }

    def draw(links: Links) -> dict[str, Any]:
        cards = [brief(run, run.store(d.key).feature(number), d, links) for d, number in shown]
        drawn = eval_section.overview(everything, Looks(everything)) if everything else None
        return {"cards": cards, "overview": drawn}

    return Page("overview.html", told["model"], data, draw)


def _told(run: ExploredRun, everything: list[EvaluatedDictionary]) -> dict[str, Any]:
    """What a run is and what was found in it, read off its artefacts."""
    manifests = {p: m for p, m in finished(run.folder, damaged=False) if p not in run.damaged}
    subject = run_facts.subject(manifests.get("activations"), everything)
    sentences = findings(run.folder, everything, manifests)
    return {**subject, "findings": sentences, "warnings": _warnings(manifests)}


def evaluated(run: ExploredRun) -> list[EvaluatedDictionary]:
    """What was measured of dictionaries that lie in the run now; nothing where it was not evaluated."""
    return run.remembered("evaluated", lambda: _evaluated(run))


def _evaluated(run: ExploredRun) -> list[EvaluatedDictionary]:
    if not (run.folder / "eval" / MANIFEST).exists() or "eval" in run.damaged:
        return []
    contents = set(run.manifest("eval").parents.values())
    everything = entries(read_json(run.folder / "eval" / "metrics.json"))
    return [entry for entry in everything if not entry.single or _source(run, entry) in contents]


def _source(run: ExploredRun, entry: EvaluatedDictionary) -> str:
    """Content of the sweep or the baselines in which a measured dictionary lies now; empty if none does."""
    folder = placed(run.folder / "eval", entry.head["path"]).parents[1]
    try:
        return open_artifact(folder).content
    except UserError:
        return ""


def worth_seeing(run: ExploredRun) -> list[tuple[IndexedDictionary, int]]:
    """Twelve features of trained dictionaries by a rule of thumb: as many of every kind, other tokens and layers."""
    by_id = {d.id: d for d in run.dictionaries.values() if d.gathered}
    trained = {number for number, d in by_id.items() if d.trained} or set(by_id)
    chosen: list[tuple[IndexedDictionary, int]] = []
    tokens: set[str] = set()
    for turn in range(WORTH_SEEING // len(KINDS)):
        for kind in KINDS:
            for dictionary, number, token in _candidates(run, kind, trained, turn):
                if token.strip().lower() not in tokens:
                    tokens.add(token.strip().lower())
                    chosen.append((by_id[dictionary], number))
                    break
    return chosen


def _candidates(run: ExploredRun, kind: str, trained: set[int], turn: int) -> list[tuple[int, int, str]]:
    """Features of a kind by interest, those of another layer in every turn first."""
    marks = ", ".join("?" * len(trained))
    order = sorted(trained)
    first = order[turn * len(order) // (WORTH_SEEING // len(KINDS))] if order else 0
    query = (
        f"SELECT dictionary, number, coalesce(top_token, '') FROM feature WHERE kind = ? AND dictionary IN ({marks}) "
        "ORDER BY dictionary = ? DESC, interest * coalesce(0.5 + score / 2, 0.6) DESC LIMIT 40"
    )
    return run.index.rows(query, (kind, *order, first))


def _alive(run: ExploredRun) -> int:
    return sum(d.alive or 0 for d in run.dictionaries.values())


def _warnings(manifests: Mapping[str, Manifest]) -> list[str]:
    return list(dict.fromkeys(text for manifest in manifests.values() for text in manifest.data.get("warnings", ())))
