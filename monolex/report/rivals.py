"""Who stands beside a trained dictionary: which baselines are its rivals, and which dictionaries its controls.

Of the evaluation as of scores, for the report, the paper's figures, the explorer and its agents alike.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from monolex.artifact import SUBJECT
from monolex.kinds import BASELINES, KINDS, TOPK
from monolex.pages.eval_charts import EvaluatedDictionary

EQUAL = 1.1
"""Two dictionaries are equally sparse if their L0 are within this factor."""
ScoreFacts = Mapping[str, Any]
"""What the scores of a dictionary's explanations say of it."""


def learned(kind: str) -> bool:
    """Whether dictionaries of a trained kind are learned, and not with a part that stays random, as controls are."""
    row = KINDS.get(kind)
    return not (row and row.frozen)


def complete(entry: EvaluatedDictionary) -> bool:
    """Whether a baseline reconstructs everything, so that its variance missed says nothing."""
    family = BASELINES[entry.kind]
    return entry.kind.removeprefix(family.name) in family.complete


def equally_sparse(a: EvaluatedDictionary, b: EvaluatedDictionary) -> bool:
    """Whether the L0 of both are within a factor :data:`EQUAL`."""
    mine, other = a.value("l0"), b.value("l0")
    return bool(mine and other) and 1 / EQUAL <= (mine or 0) / (other or 1) <= EQUAL


def rivals(everything: Iterable[EvaluatedDictionary], entry: EvaluatedDictionary) -> list[EvaluatedDictionary]:
    """Baselines of the same site, reading and writing the same, that are as sparse as a dictionary."""
    alike = [e for e in everything if (e.model, e.site, e.target) == (entry.model, entry.site, entry.target)]
    known = [e for e in alike if e.baseline and e.name != entry.name and e.value("fvu") is not None]
    return [e for e in known if not complete(e) and equally_sparse(entry, e)]


def controls(everything: Iterable[EvaluatedDictionary], entry: EvaluatedDictionary) -> list[EvaluatedDictionary]:
    """Dictionaries of the same site and name that were made of control models."""
    named = [e for e in everything if e.model != SUBJECT and (e.site, e.name) == (entry.site, entry.name)]
    return [e for e in named if e.single]


def scored_beside(trained: ScoreFacts, other: ScoreFacts, scored: Iterable[ScoreFacts]) -> bool:
    """Whether scores belong beside each other: not an α of 0, which is a control, nor what stayed random in training.

    Of top-k baselines the one whose k is nearest to the dictionary's L0, and of a control model the same dictionary.
    """
    if trained["alpha"] == 0 or not learned(trained["kind"]) or trained["step"] is not None:
        return False
    if other["model"] != SUBJECT:
        return other["name"] == trained["name"]
    if not other["kind"].endswith(TOPK):
        return True
    alike = [f for f in scored if (f["model"], f["site"], f["kind"]) == (SUBJECT, other["site"], other["kind"])]
    return other["name"] == min(alike, key=lambda f: abs((f["k"] or 0) - trained["l0"]))["name"]
