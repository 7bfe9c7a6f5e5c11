"""The charts of a patching experiment: KL over patched features and over the size of the edit, and its searches."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monolex.artifact import SUBJECT
from monolex.kinds import BASELINES, FAMILIES, KINDS, colour
from monolex.pages.axis import Axis, axis
from monolex.pages.eval_charts import CONTROL_LABELS, CONTROL_VARIANTS, title
from monolex.pages.html import estimate
from monolex.pages.picture import Panel, Picture
from monolex.pages.svg import NONE, Point, Series, span

Facts = Mapping[str, Any]
SHOWN = 10
"""Dictionaries in a chart: more cannot be told apart."""
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


def shown(dictionaries: Sequence[Facts]) -> list[Facts]:
    """The curves of a site that a chart has room for.

    Of the model's own dictionaries one of every recipe (further seeds are left out), evenly thinned out; one of every
    family of baselines and of every kind that this version does not know; and one dictionary of one control model.
    """
    subject = [each for each in dictionaries if each["model"] == SUBJECT]
    others = _of_every_family([each for each in subject if each["kind"] not in KINDS])
    controls = [each for each in dictionaries if each["model"] != SUBJECT]
    control = sorted(controls, key=lambda each: (each["kind"] not in KINDS, each["model"] not in CONTROL_LABELS))[:1]
    recipes: dict[tuple[Any, ...], Facts] = {}
    for each in subject:
        if each["kind"] in KINDS:
            recipes.setdefault((each["kind"], each["alpha"], each["d_sae"], _recipe(each["name"])), each)
    room, trained = max(2, SHOWN - len(others) - len(control)), list(recipes.values())
    if len(trained) > room:
        trained = [trained[round(i * (len(trained) - 1) / (room - 1))] for i in range(room)]
    return [*trained, *others, *control]


def sites(patch: Facts) -> dict[str, list[Facts]]:
    """The curves of every site, in the order of the artefact."""
    by_site: dict[str, list[Facts]] = {}
    for dictionary in patch["curves"]:
        by_site.setdefault(dictionary["site"], []).append(dictionary)
    return by_site


def panels(site: str, dictionaries: Sequence[Facts], width: int = 530, height: int = 380) -> tuple[Panel, ...]:
    """KL over the number of patched features, and over the mean size of the edit (paper, Fig. 3).

    A third panel, where there is one, is the first on the prompts on which the sets were chosen.
    """
    first, chosen = dictionaries[0], [each for each in shown(dictionaries) if "ranking" in each["curves"]]
    by_size = [_series(each, chosen, "size") for each in chosen]
    by_edit = [_series(each, chosen, "edit") for each in chosen]
    fitted = [each for each in chosen if "ranking" in each["in_sample"]]
    in_sample = [_series({**each, "curves": each["in_sample"]}, chosen, "size") for each in fitted]
    y = _kl_axis(dictionaries, [*by_size, *by_edit, *in_sample])
    sizes, edits = ([p.x for curve in curves for p in curve.points] for curves in (by_size, by_edit))
    whole = [_whole(first)] if first["floors"]["whole"]["kl"]["value"] is not None else []
    size = axis(FEATURES, [], low=0, high=max([1, *sizes]))
    edit = axis(EDIT, [*edits, *(p.x for s in whole for p in s.points)], low=0)
    left = Panel(f"{site}: KL over features", (*_unpatched(first, size), *by_size), size, y, width, height)
    right = Panel(f"{site}: KL over the edit", (*_unpatched(first, edit), *by_edit, *whole), edit, y, width, height)
    if not in_sample:
        return left, right
    heading = f"{site}: the same on the prompts that the sets were chosen on"
    return left, right, Panel(heading, tuple(in_sample), size, y, width, height)


def search_panels(dictionaries: Sequence[Facts], width: int = 400, height: int = 280) -> list[Panel]:
    """Every search of the dictionaries of which more was asked than what is cheap."""
    drawn = []
    for dictionary in dictionaries:
        if set(dictionary["curves"]) <= CHEAP:
            continue
        series = []
        for search, (shade, marker, label) in SEARCHES.items():
            measured = [point for point in dictionary["curves"].get(search, ()) if point["size"] > 0]
            points = (_point(dictionary, point, "size") for point in measured)
            kept = tuple(sorted(point for point in points if point is not None))
            series += [Series(label, kept, shade, marker)] if kept else []
        x = axis(FEATURES, [point.x for curve in series for point in curve.points], log=True)
        everything = (*_unpatched(dictionary, x), *series)
        drawn.append(Panel(title(dictionary), everything, x, _kl_axis([dictionary], series), width, height))
    return drawn


def pictures(patch: Facts) -> list[Picture]:
    """What is drawn of an artefact, a file each."""
    drawn = []
    for site, dictionaries in sites(patch).items():
        caption = "features patched from the donor's prompt, and how far that is from the donor's effect"
        drawn.append(Picture(site, f"{patch['task']}: {caption}", panels(site, dictionaries)))
        if searches := search_panels(dictionaries):
            caption = f"{patch['task']} at {site}: searches for the features that matter most"
            drawn.append(Picture(f"{site}-searches", caption, tuple(searches), columns=min(3, len(searches))))
    return drawn


def _of_every_family(untrained: Iterable[Facts]) -> list[Facts]:
    """Of every family the baseline called like it, else its first; a kind unknown here is a family of its own."""
    # first those with most forms that reconstruct everything: what a dictionary is held against
    order = sorted(FAMILIES.values(), key=lambda family: -len(family.complete))
    members: dict[str, list[Facts]] = {family.name: [] for family in order}
    for dictionary in untrained:
        family = BASELINES.get(dictionary["kind"])
        members.setdefault(family.name if family else dictionary["kind"], []).append(dictionary)
    return [min(alike, key=lambda each: each["kind"] != name) for name, alike in members.items() if alike]


def _recipe(name: str) -> str:
    """A name without its sweep and its seed."""
    return re.sub(r"-s\d+$", "", name.rpartition("/")[2])


def _series(dictionary: Facts, among: Sequence[Facts], across: str) -> Series:
    """The ranking's curve; dictionaries of one kind share a colour and differ in the marker."""
    alike = [other for other in among if (other["kind"], other["model"]) == (dictionary["kind"], dictionary["model"])]
    family = BASELINES.get(dictionary["kind"])
    marker = family.marker if family else "triangle"
    if dictionary["kind"] in KINDS:
        marker = MARKERS[next(i for i, o in enumerate(alike) if o["name"] == dictionary["name"]) % len(MARKERS)]
    variant = "" if dictionary["model"] == SUBJECT else CONTROL_VARIANTS.get(dictionary["model"], "dashed")
    points = [_point(dictionary, point, across) for point in dictionary["curves"]["ranking"]]
    kept = [point for point in points if point is not None and (across != "size" or point.x <= LARGEST)]
    return Series(title(dictionary), tuple(_sparse(kept)), colour(dictionary["kind"]), marker, variant=variant)


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


def _point(dictionary: Facts, point: Facts, across: str) -> Point | None:
    kl, edit = point["kl"], point["edit"]
    if kl["value"] is None or edit["value"] is None:
        return None
    said = f"{title(dictionary)}\n{point['size']:,} features\nKL {estimate(kl)} nats\nedit {estimate(edit)}"
    x, bar = (point["size"], None) if across == "size" else (edit["value"], span(edit))
    return Point(x, kl["value"], said, bar, span(kl))


def _kl_axis(dictionaries: Sequence[Facts], series: Iterable[Series]) -> Axis:
    none = dictionaries[0]["floors"]["none"]["kl"]["value"]
    values = [p.y for curve in series for p in curve.points] + ([] if none is None else [none])
    ends = [end for curve in series for p in curve.points for end in p.y_interval or ()]
    high = max([*values, *ends], default=1.0)
    return axis(KL, [], low=0, high=min(high, ROOM * none) * 1.02 if none else high or 1.0)


def _unpatched(dictionary: Facts, x: Axis) -> list[Series]:
    """The KL of no patch, from end to end."""
    kl = dictionary["floors"]["none"]["kl"]["value"]
    if kl is None:
        return []
    return [Series("nothing patched", (Point(x.low, kl), Point(x.high, kl)), "ink", NONE, variant="dotted")]


def _whole(dictionary: Facts) -> Series:
    """The donor's whole activation in place of the base's."""
    kl, edit = dictionary["floors"]["whole"]["kl"], dictionary["floors"]["whole"]["edit"]
    said = f"the donor's whole activation\nKL {estimate(kl)} nats\nedit {estimate(edit)}"
    return Series("whole activation", (Point(edit["value"], kl["value"], said),), "ink", "cross", joined=False)
