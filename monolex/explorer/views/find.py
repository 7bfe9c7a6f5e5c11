"""Features by what they do on texts: those active on a prompt, and those that tell two sets of texts apart.

Each is one ranked list across dictionaries: a prompt by the share of a feature's largest activation, since activations
of two dictionaries have no common unit; a contrast by how far its AUROC on the choosing half is from one half.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monolex.config import require
from monolex.errors import nearest
from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun
from monolex.features.answer import DENSE, ContrastHit, FoundFeatures, Hit, PromptHit
from monolex.features.contrast import FEWEST
from monolex.features.find import find
from monolex.features.query import FindConfig
from monolex.verdicts import SIGNIFICANT

SHOWN = 60
"""Features of an answer, over all dictionaries."""
EACH = 10
"""Features of each dictionary that a contrast ranks with the others."""
PARAMETERS = ("run", "prompt", "at", "a", "b")


def find_page(explorer: Explorer, parameters: Mapping[str, str]) -> Page:
    """What a prompt (``prompt``, on its last token or ``at=any``) or a contrast (``a``, ``b``: a text a line) finds.

    Raises:
        NotThere: no such run.
        UserError: parameters that are none, texts that are too few, or a model that is gone.
    """
    unknown = [name for name in parameters if name not in PARAMETERS]
    require(not unknown, f"{unknown[:1]} is nothing to find by; {nearest((unknown or ['prompt'])[0], PARAMETERS)}")
    said = {name: parameters.get(name, "") for name in PARAMETERS}
    require(said["at"] in ("", "last", "any"), f"at = {said['at']!r}: give last or any")
    run = explorer.run(said["run"]) if said["run"] else next(iter(explorer.runs.values()))
    answer = FoundFeatures(())
    if said["prompt"]:
        answer = _by_prompt(explorer, run, said["prompt"], said["at"] or "last")
    elif said["a"] or said["b"]:
        answer = _by_contrast(explorer, run, _lines(said["a"]), _lines(said["b"]))
    keys = {(d.site, d.name): d.key for d in run.dictionaries.values() if d.gathered}
    rows = [{"key": keys.get((hit.site, hit.dictionary)), **_plain(hit)} for hit in _ranked(answer)[:SHOWN]]
    data = {
        "run": run.slug,
        "query": said,
        "hits": rows,
        "notes": answer.notes,
        "beside": [each._asdict() for each in answer.beside],
        "fewest": FEWEST,
    }

    def draw(_links: Links) -> dict[str, Any]:
        return {"kind": "prompt" if said["prompt"] else "contrast" if answer.rows else "", "titles": explorer.titles}

    return Page("find.html", "Find", data, draw)


def _by_prompt(explorer: Explorer, run: ExploredRun, prompt: str, at: str) -> FoundFeatures:
    # all that are active: a dictionary's strongest by activation need not be its strongest by share of the maximum
    rare = (f"density<={DENSE}",) if any(d.gathered for d in run.dictionaries.values()) else ()
    config = FindConfig(prompt=prompt, token="any" if at == "any" else "last", limit=sys.maxsize, where=rare)
    answer = _asked(explorer, run, config)
    left_out = f"features of a density above {DENSE:.0%} are left out: they are active on anything"
    return replace(answer, notes=(*answer.notes, left_out)) if rare else answer


def _by_contrast(explorer: Explorer, run: ExploredRun, a: list[str], b: list[str]) -> FoundFeatures:
    """Texts go through files, which is what the search reads."""
    with tempfile.TemporaryDirectory(prefix="monolex-") as folder:
        paths = Path(folder, "a.jsonl"), Path(folder, "b.jsonl")
        for path, texts in zip(paths, (a, b), strict=True):
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        chosen = tuple(d.title for d in run.dictionaries.values() if d.gathered)
        answer = _asked(explorer, run, FindConfig(contrast=paths, limit=EACH, dictionaries=chosen))
    notes = tuple(
        note.replace(str(paths[0]), "these texts").replace(str(paths[1]), "those texts") for note in answer.notes
    )
    told = tuple(hit for hit in answer.rows if isinstance(hit, ContrastHit) and hit.auroc.value is not None)
    smallest = min((hit.q for hit in told), default=1.0)
    if smallest >= SIGNIFICANT:
        notes += (f"none tells them apart for certain, the smallest q is {smallest:.2g}: more texts would decide",)
    return replace(answer, rows=told, notes=notes)


def _asked(explorer: Explorer, run: ExploredRun, config: FindConfig) -> FoundFeatures:
    live = explorer.live.of(run)
    with live.lock:
        return find(run.folder, config, lm=lambda: live.lm)


def _ranked(answer: FoundFeatures) -> list[Hit]:
    return sorted(answer.rows, key=_weight, reverse=True)


def _weight(hit: Hit) -> float:
    if isinstance(hit, PromptHit):
        return hit.of_max or 0.0
    assert isinstance(hit, ContrastHit), "nothing else is asked for"
    return abs(hit.chosen_auroc - 0.5)


def _plain(hit: Hit) -> dict[str, Any]:
    known = hit.known._asdict()
    return {**{name: value for name, value in hit._asdict().items() if name != "known"}, **known}


def _lines(text: str) -> list[str]:
    return [line for line in text.replace("\r", "").split("\n") if line.strip()]
