"""What was measured of dictionaries: variance missed, sparsity, fidelity, beside baselines and control models."""

from collections.abc import Iterable
from typing import Any

from monolex.artifact import SUBJECT
from monolex.explorer.agent.sources import Said, dictionary_facts, place_of, source
from monolex.explorer.explorer import Explorer
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views.overview import evaluated
from monolex.pages.eval_charts import EvaluatedDictionary
from monolex.report.rivals import controls, rivals

METRICS = ("fvu", "l0", "alive_paper", "dead", "ce", "kl", "loss_recovered_zero", "loss_recovered_mean")
BESIDE = ("fvu", "l0")
"""What is said of those that stand beside a dictionary."""


def measured(explorer: Explorer, run: ExploredRun, dictionary: IndexedDictionary) -> Said:
    """A dictionary with its numbers, those of the baselines that are as sparse, and those of control models.

    Raises:
        UserError: the evaluation is damaged.
    """
    everything = evaluated(run)
    entry = entry_of(everything, dictionary)
    facts = dictionary_facts(run, dictionary)
    if entry is None:
        return facts | {"measured": None, "reason": "it was not evaluated: monolex eval"}
    return facts | {
        "measured": numbers(entry, METRICS),
        "baselines_as_sparse": [
            _beside(explorer, run, other) for other in rivals(everything, entry) if entry.kind != other.kind
        ],
        "control_models": [{"model": other.model, **numbers(other, BESIDE)} for other in controls(everything, entry)],
        "source": source(run, "eval"),
    }


def entry_of(everything: Iterable[EvaluatedDictionary], dictionary: IndexedDictionary) -> EvaluatedDictionary | None:
    """What was measured of a dictionary of a run's model."""
    place = (SUBJECT, dictionary.site, dictionary.name)
    return next((e for e in everything if e.single and (e.model, e.site, e.name) == place), None)


def numbers(entry: EvaluatedDictionary, metrics: Iterable[str]) -> dict[str, Said]:
    """Metrics with their intervals, those that there are."""
    return {metric: estimate(entry.rows[metric]) for metric in metrics if metric in entry.rows}


def estimate(row: Any) -> Said:
    """The number, interval and units of a row of a table."""
    return {name: row.get(name) for name in ("value", "low", "high", "n", "over", "reason")}


def _beside(explorer: Explorer, run: ExploredRun, other: EvaluatedDictionary) -> Said:
    place = place_of(explorer, run, other.site, other.name)
    head = {"dictionary": place and place.dictionary.key, "title": f"{other.site}/{other.name}"}
    return head | numbers(other, BESIDE)
