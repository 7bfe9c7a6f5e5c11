"""The charts of a patching experiment: KL over patched features and over the size of the edit, and its searches."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monolex.artifact import SUBJECT
from monolex.kinds import BASELINES, KINDS, colour
from monolex.pages.eval_charts import CONTROL_LABELS, CONTROL_VARIANTS, title
from monolex.pages.html import estimate
from monolex.pages.picture import Panel, Picture
from monolex.pages.svg import NONE, Axis, Point, Series, axis, span

Facts = Mapping[str, Any]
SHOWN = 10
"""Dictionaries in a chart: more cannot be told apart."""
FAMILIES = ("pca", "ica", "neurons", "random")
"""Baselines in a chart, one of each."""
LARGEST = 512
"""Features at which charts end, as the paper's do."""
ROOM = 1.6
"""KL in sight, over that of no patch; what lies beyond is an arrow."""
APART = 0.12
"""Distance of two points with bars, of the largest value across."""
KL, FEATURES, EDIT = "KL to the donor, nats", "features patched", "mean size of the edit, ‖x′ − x‖"
SEARCHES = {
    "ranking": ("blue", "circle", "by integrated gradients"),
    "effects": ("sky", "square", "by exact single patches"),
    "random": ("ink", "diamond", "in random order"),
    "sweep": ("purple", "hexagon", "threshold sweep of the paper"),
    "greedy": ("vermilion", "triangle", "greedy"),
    "swaps": ("green", "cross", "ranking, improved by swaps"),
}
"""Colour, marker and name of every search."""
CHEAP = {"ranking", "random"}
"""Searches that every dictionary may have; a chart of searches needs another."""
MARKERS = ("circle", "square", "triangle", "hexagon", "cross")


def shown(here: Sequence[Facts]) -> list[Facts]:
    """The curves of a site that a chart has room for.

    Of the model's own dictionaries one of every recipe (further seeds are left out), evenly thinned out; the baselines
    that :data:`FAMILIES` names; and one dictionary of one control model.
    """
    own = [one for one in here if one["model"] == SUBJECT]
    baselines = [found for family in FAMILIES if (found := _family(own, family))]
    controls = [one for one in here if one["model"] != SUBJECT]
    control = sorted(controls, key=lambda one: (one["kind"] not in KINDS, one["model"] not in CONTROL_LABELS))[:1]
    recipes: dict[tuple[Any, ...], Facts] = {}
    for one in own:
        if one["kind"] in KINDS:
            recipes.setdefault((one["kind"], one["alpha"], one["d_sae"], _recipe(one["name"])), one)
    room, trained = SHOWN - len(baselines) - len(control), list(recipes.values())
    if len(trained) > room:
        trained = [trained[round(i * (len(trained) - 1) / (room - 1))] for i in range(room)]
    return [*trained, *baselines, *control]


def sites(patch: Facts) -> dict[str, list[Facts]]:
    """The curves of every site, in the order of the artefact."""
    found: dict[str, list[Facts]] = {}
    for one in patch["curves"]:
        found.setdefault(one["site"], []).append(one)
    return found


def panels(site: str, here: Sequence[Facts], width: int = 530, height: int = 380) -> tuple[Panel, Panel]:
    """KL over the number of patched features, and over the mean size of the edit (paper, Fig. 3)."""
    chosen = [one for one in shown(here) if "ranking" in one["curves"]]
    by_size = [_series(one, chosen, "size") for one in chosen]
    by_edit = [_series(one, chosen, "edit") for one in chosen]
    y = _kl_axis(here, [*by_size, *by_edit])
    sizes, edits = ([p.x for one in some for p in one.points] for some in (by_size, by_edit))
    whole = [_whole(here[0])] if here[0]["floors"]["whole"]["kl"]["value"] is not None else []
    x = (
        axis(FEATURES, [], low=0, high=max([1, *sizes])),
        axis(EDIT, [*edits, *(p.x for s in whole for p in s.points)], low=0),
    )
    left = Panel(f"{site}: KL over features", (*_unpatched(here[0], x[0]), *by_size), x[0], y, width, height)
    right = Panel(f"{site}: KL over the edit", (*_unpatched(here[0], x[1]), *by_edit, *whole), x[1], y, width, height)
    return left, right


def search_panels(here: Sequence[Facts], width: int = 400, height: int = 280) -> list[Panel]:
    """Every search of the dictionaries of which more was asked than what is cheap."""
    found = []
    for one in here:
        if set(one["curves"]) <= CHEAP:
            continue
        series = []
        for search, (shade, marker, label) in SEARCHES.items():
            points = [_point(one, point, "size") for point in one["curves"].get(search, ()) if point["size"] > 0]
            kept = tuple(sorted(point for point in points if point is not None))
            series += [Series(label, kept, shade, marker)] if kept else []
        x = axis(FEATURES, [point.x for some in series for point in some.points], log=True)
        everything = (*_unpatched(one, x), *series)
        found.append(Panel(title(one), everything, x, _kl_axis([one], series), width, height))
    return found


def pictures(patch: Facts) -> list[Picture]:
    """What is drawn of an artefact, a file each."""
    found = []
    for site, here in sites(patch).items():
        what = f"{patch['task']}: features patched from the donor's prompt, and how far that is from the donor's effect"
        found.append(Picture(site, what, panels(site, here)))
        if searches := search_panels(here):
            what = f"{patch['task']} at {site}: searches for the features that matter most"
            found.append(Picture(f"{site}-searches", what, tuple(searches), columns=min(3, len(searches))))
    return found


def _family(own: Sequence[Facts], family: str) -> Facts | None:
    """The baseline called like its family if there is one, else the family's first."""
    here = [one for one in own if one["kind"] in BASELINES and BASELINES[one["kind"]].name == family]
    return next((one for one in here if one["kind"] == family), here[0] if here else None)


def _recipe(name: str) -> str:
    """A name without its sweep and its seed."""
    return re.sub(r"-s\d+$", "", name.rpartition("/")[2])


def _series(one: Facts, among: Sequence[Facts], across: str) -> Series:
    """The ranking's curve; dictionaries of one kind share a colour and differ in the marker."""
    alike = [other for other in among if (other["kind"], other["model"]) == (one["kind"], one["model"])]
    trained = one["kind"] in KINDS
    marker = MARKERS[next(i for i, other in enumerate(alike) if other is one) % len(MARKERS)] if trained else "diamond"
    variant = "" if one["model"] == SUBJECT else CONTROL_VARIANTS.get(one["model"], "dashed")
    found = [_point(one, point, across) for point in one["curves"]["ranking"]]
    kept = [point for point in found if point is not None and (across != "size" or point.x <= LARGEST)]
    return Series(title(one), tuple(_sparse(kept)), colour(one["kind"]), marker, variant=variant)


def _sparse(points: Sequence[Point]) -> list[Point]:
    """Points without the bars of those that lie close to one with bars: intervals of neighbours are near the same."""
    apart = APART * max((point.x for point in points), default=0)
    kept, last = [], -math.inf
    for point in points:
        if point.x - last >= apart:
            kept.append(point)
            last = point.x
        else:
            kept.append(point._replace(x_interval=None, y_interval=None))
    return kept


def _point(one: Facts, point: Facts, across: str) -> Point | None:
    kl, edit = point["kl"], point["edit"]
    if kl["value"] is None or edit["value"] is None:
        return None
    said = f"{title(one)}\n{point['size']:,} features\nKL {estimate(kl)} nats\nedit {estimate(edit)}"
    x, bar = (point["size"], None) if across == "size" else (edit["value"], span(edit))
    return Point(x, kl["value"], said, bar, span(kl))


def _kl_axis(here: Sequence[Facts], series: Iterable[Series]) -> Axis:
    none = here[0]["floors"]["none"]["kl"]["value"]
    values = [p.y for one in series for p in one.points] + ([] if none is None else [none])
    ends = [end for one in series for p in one.points for end in p.y_interval or ()]
    high = max([*values, *ends], default=1.0)
    return axis(KL, [], low=0, high=min(high, ROOM * none) * 1.02 if none else high or 1.0)


def _unpatched(one: Facts, x: Axis) -> list[Series]:
    """The KL of no patch, from end to end."""
    kl = one["floors"]["none"]["kl"]["value"]
    if kl is None:
        return []
    return [Series("nothing patched", (Point(x.low, kl), Point(x.high, kl)), "ink", NONE, variant="dotted")]


def _whole(one: Facts) -> Series:
    """The donor's whole activation in place of the base's."""
    kl, edit = one["floors"]["whole"]["kl"], one["floors"]["whole"]["edit"]
    said = f"the donor's whole activation\nKL {estimate(kl)} nats\nedit {estimate(edit)}"
    return Series("whole activation", (Point(edit["value"], kl["value"], said),), "ink", "cross", joined=False)
