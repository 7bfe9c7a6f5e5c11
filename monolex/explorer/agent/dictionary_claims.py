"""Claims about a dictionary beside others, decided by the evaluation, the scores and the patches of its run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from monolex.artifact import SUBJECT
from monolex.causal.patch.claims import FEWER
from monolex.explorer.agent.measured import BESIDE, entry_of, estimate, numbers
from monolex.explorer.agent.sources import Said, source
from monolex.explorer.agent.verdicts import KnownClaim, VerdictBasis, agreed, of_all
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views.overview import evaluated
from monolex.pages.eval_charts import EvaluatedDictionary
from monolex.report.rivals import EQUAL, controls, equally_sparse, rivals
from monolex.verdicts import Verdict, below, beside_controls, beyond

Facts = Mapping[str, Any]
MISSES: dict[Verdict, str] = {
    "confirmed": "it misses less, intervals apart",
    "contradicted": "it misses more, intervals apart",
}
"""Of two shares of variance missed."""


def reconstructs_better(
    run: ExploredRun, dictionary: IndexedDictionary, against: IndexedDictionary | None
) -> KnownClaim:
    """Whether it misses less of the variance than another dictionary, or than every baseline that is as sparse."""
    everything = evaluated(run)
    entry = entry_of(everything, dictionary)
    other = against and entry_of(everything, against)
    named = against.title if against else "every baseline of its site that is as sparse"
    claim = f"{dictionary.title} reconstructs better than {named}"
    rule = (
        "confirmed if its share of variance missed (FVU, held-out text) is lower, intervals over documents apart, "
        f"contradicted if higher; only at equal L0, within a factor {EQUAL:g}; of several baselines one that misses "
        "less for certain contradicts"
    )
    if entry is None or (against is not None and other is None):
        return KnownClaim(claim, "not measured", rule, (), "it was not evaluated: monolex eval")
    beside = [other] if other else [e for e in rivals(everything, entry) if e.kind != entry.kind]
    of_controls = [{"model": e.model, **numbers(e, BESIDE)} for e in controls(everything, entry)]
    basis = tuple(_reconstruction(run, entry, each, of_controls) for each in beside)
    note = "" if basis else "no baseline of its site is as sparse: monolex baselines, with its ks"
    return KnownClaim(claim, of_all(basis), rule, basis, note)


def _reconstruction(
    run: ExploredRun, entry: EvaluatedDictionary, other: EvaluatedDictionary, of_controls: list[Said]
) -> VerdictBasis:
    fvu, rival = entry.rows.get("fvu"), other.rows.get("fvu")
    beside = {
        "against": f"{other.site}/{other.name}",
        **numbers(other, BESIDE),
        "its own l0": entry.value("l0"),
        "the same of control models": of_controls,
    }
    verdict, why = _lower(fvu, rival)
    if (entry.site, entry.target) != (other.site, other.target):
        verdict, why = "undecided", "they do not reconstruct the same activations"
    elif not equally_sparse(entry, other):
        verdict, why = "undecided", f"they are not equally sparse: L0 {entry.value('l0')} and {other.value('l0')}"
    return VerdictBasis(verdict, why, estimate(fvu or {}), beside, source(run, "eval"))


def _lower(a: Facts | None, b: Facts | None) -> tuple[Verdict, str]:
    """Whether the first number is below the second, intervals apart."""
    if a is None or b is None or None in (a["low"], a["high"], b["low"], b["high"]):
        return "undecided", "one of the two has no interval"
    verdict = below(a, b)
    return verdict, MISSES.get(verdict, "the intervals overlap")


def explained_better(run: ExploredRun, dictionary: IndexedDictionary, against: IndexedDictionary | None) -> KnownClaim:
    """Whether its explanations score higher than those of another dictionary, or of every baseline of its site."""
    basis: list[VerdictBasis] = []
    of_controls: list[Said] = []
    beyond_controls: list[Verdict] = []
    for path in run.experiments("score", dictionary.key):
        listed = [row for row in run.content(f"{path}/score.json")["differences"] if _compared(row, dictionary)]
        held_against = [row for row in listed if row["against_model"] != SUBJECT]
        of_controls += [_of_control(run, path, row) for row in held_against]
        beyond_controls.extend(beyond(row) for row in held_against if row["against"] == dictionary.name)
        chosen = [row for row in listed if row["against_model"] == SUBJECT]
        if against is not None:
            chosen = [row for row in chosen if (row["site"], row["against"]) == (against.site, against.name)]
        basis += [_difference(run, path, row) for row in chosen]
    named = against.title if against else "those of every baseline of its site"
    rule = (
        "confirmed if the difference of mean scores (correlation of simulated with real activations, features and "
        "documents resampled) has its whole interval above 0, contradicted if below; of one other dictionary all "
        "explainers and simulators must agree; of several, one that is better for certain contradicts; at most "
        "undecided where the dictionary of that name of a control model is not below with its whole interval"
    )
    note = "" if basis else "the two were not scored together: monolex explain and score, with both"
    claim = f"explanations of {dictionary.title} score higher than {named}"
    verdict = beside_controls(_of_rivals(basis), beyond_controls)
    return KnownClaim(claim, verdict, rule, tuple(basis), note, tuple(of_controls) if basis else ())


def _of_rivals(basis: Sequence[VerdictBasis]) -> Verdict:
    """Of a claim about every rival: of each what all explainers and simulators say."""
    by_rival: dict[str, list[VerdictBasis]] = defaultdict(list)
    for each in basis:
        by_rival[each.beside["against"]].append(each)
    return of_all([rows[0]._replace(verdict=agreed(rows)) for rows in by_rival.values()])


def _compared(row: Facts, dictionary: IndexedDictionary) -> bool:
    place = (row["model"], row["site"], row["name"], row["metric"])
    return place == (SUBJECT, dictionary.site, dictionary.name, "top_and_random")


def _difference(run: ExploredRun, path: str, row: Facts) -> VerdictBasis:
    beside = {"against": f"{row['site']}/{row['against']}", "no difference": 0.0}
    why = f"explained by {row['explainer']}"
    return VerdictBasis(beyond(row), why, estimate(row), beside, source(run, path))


def _of_control(run: ExploredRun, path: str, row: Facts) -> Said:
    """The difference to a dictionary of a control model."""
    against = f"{row['against_model']}/{row['site']}/{row['against']}"
    return {"against": against, "explainer": row["explainer"], **estimate(row), "source": source(run, path)}


def patches_with_fewer(run: ExploredRun, dictionary: IndexedDictionary, level: float, experiment: str) -> KnownClaim:
    """Whether patching takes fewer of its features than of the baseline to bring the KL down to a share."""
    basis = []
    for path in run.experiments("patch", dictionary.key):
        if experiment in ("", path, path.partition("/")[2]):
            patch = run.content(f"{path}/patch.json")
            basis += [_patched(run, path, patch, row) for row in patch["claims"] if _fewer(row, dictionary, level)]
    rule = (
        "the verdict of the patch: confirmed if the ratio of numbers of features has its whole interval over prompts "
        "below 1, contradicted if above; undecided where the model cannot do the task; several tasks must agree"
    )
    note = "" if basis else f"no patch compares {dictionary.title} with a baseline at {level:g} of the base's KL"
    claim = f"patching with {dictionary.title} needs fewer features than with the baseline, at {level:g} of the KL"
    return KnownClaim(claim, agreed(basis), rule, tuple(basis), note)


def _fewer(row: Facts, dictionary: IndexedDictionary, level: float) -> bool:
    return (row["statement"], row["dictionary"], row["level"]) == (FEWER, dictionary.title, level)


def _patched(run: ExploredRun, path: str, patch: Facts, row: Facts) -> VerdictBasis:
    behaviour = patch["behaviour"]
    verdict: Verdict = row["verdict"] if behaviour["able"] else "undecided"
    beside = {
        "against": row["against"],
        "accuracy of the model": estimate(behaviour["accuracy"]),
        "sets chosen on, measured on": [patch["chosen_on"], patch["measured_on"]],
    }
    why = f"ratio of numbers of features, {patch['task']}: {behaviour['verdict']}"
    return VerdictBasis(verdict, why, estimate(row["estimate"]), beside, source(run, path))
