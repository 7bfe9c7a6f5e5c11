"""Whether trained dictionaries score above baselines, and above control models (Figs. 2, 9, 10 and 18)."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from monolex.artifact import SUBJECT
from monolex.kinds import BASELINES, TOPK
from monolex.pages.eval_charts import control_label
from monolex.pages.sheets import Grid
from monolex.report.paper.figure import VERDICTS, Facts, ReadOff, counted
from monolex.report.paper.scored import setting
from monolex.verdicts import Verdict, agreed, beside_controls, beyond

EARLY = 3
"""The first of so many parts of the layers that have scores are the early ones; of fewer layers it is the first."""
CLAIMED = ("neurons", "random", "pca", "ica")
"""Families of baselines that the paper's claims on all of them name."""
NOT_CHANCE = "Every interval stands for itself: of many comparisons some leave out 0 by chance."


def beside_baselines(content: Facts, *, kinds: Callable[[str], bool], named: str, early: bool = True) -> ReadOff:
    """Whether all trained dictionaries score above all baselines of these kinds, ``named`` so, in the early layers.

    With ``early`` false in all layers. Confirmed only if they score above the same dictionaries of control models, too.
    """
    asked_of = [c for c in content["comparisons"] if c["against_model"] == SUBJECT and kinds(c["against_kind"])]
    if not asked_of:
        reason = f"no trained dictionary and {named} of its site have scores that were compared"
        return ReadOff("cannot say", (f"This run cannot say: {reason}.",), setting(content))
    layers = sorted({c["layer"] for c in asked_of})
    of = layers[: max(1, len(layers) // EARLY)] if early else layers
    judged, later = [c for c in asked_of if c["layer"] in of], [c for c in asked_of if c["layer"] not in of]
    judged_at = {(c["site"], c["name"]) for c in judged}
    controls = [c for c in content["comparisons"] if c["against_model"] != SUBJECT]
    controls = [c for c in controls if (c["site"], c["name"]) in judged_at]
    verdict = beside_controls(agreed(map(beyond, judged)), map(beyond, controls))
    where = f"{'layer' if len(of) == 1 else 'layers'} {' and '.join(map(str, of))}"
    which = f", the first third of the {counted(len(layers), 'layer')} with scores" if early and later else ""
    said = _of_controls(controls)
    said.append(
        f"Of {counted(len(judged), 'comparison')} of a trained dictionary with {named} of its site at {where}{which}:"
        f" {_tally(judged)}."
    )
    if later:
        said.append(f"Of {counted(len(later), 'comparison')} at later layers, no part of the verdict: {_tally(later)}.")
    for model, compared in _grouped(controls, lambda c: c["against_model"]).items():
        said.append(f"Of {len(compared)} with the same dictionary of the {control_label(model)} {_tally(compared)}.")
    grids = tuple(_grid(f"{head}, {where}", each) for head, each in _grouped(judged, lambda c: c["group"]).items())
    return ReadOff(verdict, (*said, NOT_CHANCE), setting(content), grids)


def _of_controls(controls: Sequence[Facts]) -> list[str]:
    """What the comparisons with control models do to the verdict."""
    if not controls:
        return ["No dictionary of a control model was scored beside these."]
    not_below = sum(beyond(c) != "confirmed" for c in controls)
    if not not_below:
        return []
    told = f"The same dictionary of a control model is not shown to be below in {not_below} of"
    told += f" {counted(len(controls), 'comparison')}, so that nothing is confirmed: what scores above baselines need"
    return [f"{told} not be what the model learned."]


def _grid(head: str, compared: Sequence[Facts]) -> Grid:
    """How often every trained method is above and below every kind of baseline."""
    kinds = list(dict.fromkeys(c["against_kind"] for c in compared))
    rows = []
    for method, of_method in _grouped(compared, lambda c: c["method"]).items():
        pairs = ([c for c in of_method if c["against_kind"] == kind] for kind in kinds)
        rows.append((method, *map(_cell, pairs)))
    note = "A site counts as above or below where the whole interval of the paired difference is."
    return Grid(head, ("Dictionary", *(f"than {kind}" for kind in kinds)), tuple(rows), (note,))


def _cell(pairs: Sequence[Facts]) -> str:
    if not pairs:
        return "not compared"
    verdicts: list[Verdict] = [beyond(c) for c in pairs]
    above, below = verdicts.count("confirmed"), verdicts.count("contradicted")
    told = f"{VERDICTS[agreed(verdicts)][0]} above at {above} of {counted(len(pairs), 'site')}"
    return told + f", below at {below}" * bool(below)


def _tally(compared: Sequence[Facts]) -> str:
    verdicts = [beyond(c) for c in compared]
    above, below = verdicts.count("confirmed"), verdicts.count("contradicted")
    return f"{above} are above with the whole interval, {below} below"


def _grouped(listed: Iterable[Facts], key: Callable[[Facts], str]) -> dict[str, list[Facts]]:
    groups: dict[str, list[Facts]] = {}
    for each in listed:
        groups.setdefault(key(each), []).append(each)
    return groups


def _claimed(kind: str) -> bool:
    return kind in BASELINES and BASELINES[kind].name in CLAIMED and not kind.endswith(TOPK)


above_all = partial(beside_baselines, kinds=_claimed, named="the neurons, random directions, PCA or ICA")
"""Whether dictionaries are ahead of the baselines that the paper names."""
above_neurons = partial(beside_baselines, kinds=lambda kind: kind == "neurons", named="the neurons", early=False)
"""The paper's claim on MLPs is about neurons alone, and of no layers before others."""
above_topk = partial(
    beside_baselines, kinds=lambda kind: kind in BASELINES and kind.endswith(TOPK), named="a top-k baseline"
)
"""Whether baselines that are as sparse still score below."""
