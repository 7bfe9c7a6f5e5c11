"""What in an evaluation cannot be read like any other number, as sentences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT, open_artifact
from monolex.dictionaries.doubts import ABOVE_MEAN, doubts
from monolex.dictionaries.listing import RunDictionary
from monolex.stats import Estimate

APART, LEAST_APART = 1.5, 0.05
"""Held-out FVU over training FVU, and their difference, from which on they are far apart."""

NAMED = 5
"""Baselines that are named where many have an FVU above 1, as random directions do."""


def marked(fvu: Estimate) -> Estimate:
    """A fraction of variance unexplained that says so where it is above 1."""
    if fvu.value is None or fvu.value <= 1:
        return fvu
    return fvu._replace(reason="; ".join(filter(None, (fvu.reason, ABOVE_MEAN))))


def sentences(listed: Iterable[RunDictionary], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is doubtful of every dictionary, in order; of baselines that are worse than the mean one sentence for all.

    Args:
        rows: of the evaluation.
    """
    measured = {(r["model"], r["site"], r["name"], r["metric"]): r["value"] for r in rows if not r["other"]}
    dictionaries, said, worse = list(listed), [], []
    training = training_fvus(dictionaries)
    for dictionary in dictionaries:
        names = (dictionary.model, dictionary.site, dictionary.name)
        value = {metric: measured.get((*names, metric)) for metric in ("fvu", "l0", "dead")}
        head = dictionary.title if dictionary.model == SUBJECT else dictionary.key
        if not dictionary.trained and (value["fvu"] or 0) > 1:
            worse.append(f"{head} {value['fvu']:.4g}")
            value["fvu"] = None
        said += [f"{head}: {doubt}" for doubt in _doubts(dictionary, value, training.get(dictionary.folder))]
    if worse:
        further = f" and {len(worse) - NAMED} more" if len(worse) > NAMED else ""
        said.append(f"baselines with an FVU {ABOVE_MEAN}: {', '.join(worse[:NAMED])}{further}")
    return said


def training_fvus(listed: Iterable[RunDictionary]) -> dict[Path, float | None]:
    """FVU over the last steps of training by folder, of the trained ones; None where nothing was logged."""
    sweeps = dict.fromkeys(dictionary.source for dictionary in listed if dictionary.trained)
    return {
        sweep / member["path"]: member.get("fvu") for sweep in sweeps for member in open_artifact(sweep).data["members"]
    }


def _doubts(dictionary: RunDictionary, value: Mapping[str, float | None], training: float | None) -> Iterator[str]:
    fvu, dead = value["fvu"], value["dead"] if dictionary.trained else None
    yield from doubts(fvu=fvu, l0=value["l0"], dead=dead, k=dictionary.config.k)
    if fvu is not None and training is not None and fvu > APART * training and fvu - training > LEAST_APART:
        yield f"FVU is {fvu:.3g} on held-out rows and {training:.3g} on training rows"
    if dictionary.config.recipe.get("converged") is False:
        yield f"its fit stopped unconverged after {dictionary.config.recipe['iterations']} iterations"
