"""What the report shows of features: a gallery page for every store, and per site the most interesting cards."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from monolex import __version__
from monolex.artifact import SUBJECT, Manifest, digest, placed, write_bytes
from monolex.dictionaries import base
from monolex.features.evidence import Evidence
from monolex.features.store import FeatureStore
from monolex.interp.records import Scored
from monolex.kinds import KINDS
from monolex.pages.card import card, percent
from monolex.pages.html import number
from monolex.pages.interest import RankedFeature, ranked, varied
from monolex.pages.tokens import token
from monolex.report.gallery import CARDS, chosen, gallery
from monolex.runtime import progress
from monolex.workers import each

GALLERY = "gallery"
WORTH_SEEING = 9
"""Cards of the first screen."""
SHOWN = 6
"""Cards of a dictionary in the report."""
AXES = "neurons"
"""Kind of the dictionary whose features are the axes of the activations."""
WORTH_A_PROCESS = 3
"""Pages that take as long as a process takes to start."""


class Shown(NamedTuple):
    """One dictionary's features in the report."""

    name: str
    """Of the dictionary."""
    page: str
    """Address of its gallery."""
    said: str
    """How many features, how many of them alive."""
    cards: list[Markup]
    """The most interesting ones, small."""
    trained: bool
    """Whether it is of a sweep, not a baseline."""


class Contrast(NamedTuple):
    """A feature beside the axis of the activations that it reads most (paper, D.1)."""

    said: Markup
    """What is compared, and what came of it."""
    feature: Markup
    """The feature's card."""
    axis: Markup
    """The axis's."""


By = Mapping[tuple[str, str, str], Mapping[int, Sequence[Scored]]]
"""Scored explanations by dictionary (model, site, name) and feature."""


def write_galleries(run: Path, manifest: Manifest, cards: int = CARDS, scored: By | None = None, jobs: int = 1) -> None:
    """Write ``RUN/gallery/SITE/NAME.html`` for every store of ``RUN/features``, of at most ``cards`` cards each.

    A page that was made of the same store and of the same explanations stays. ``jobs`` are written at a time, if there
    are enough for a process to be worth its start.
    """
    stale = []
    for entry in manifest.data["stores"]:
        explained = _of(scored, entry)
        hashes = f"{manifest.files[entry['path']].sha256} {digest(sorted(explained.items())) if explained else '-'}"
        made_of = f"<!-- {hashes} {cards} {__version__} -->\n".encode()
        if not _ends_with(run / _page(entry["path"]), made_of):
            stale.append((run, entry, cards, explained, made_of))
    with progress(len(stale), "gallery", "page") as bar:
        for _ in each(_write_gallery, stale, min(jobs, max(1, len(stale) // WORTH_A_PROCESS))):
            bar.update(1)


def _write_gallery(
    run: Path, entry: dict[str, Any], cards: int, explained: Mapping[int, Sequence[Scored]], made_of: bytes
) -> None:
    page = _page(entry["path"])
    home = "../" * page.count("/") + "report.html"
    with closing(_open(run, entry)) as store:
        write_bytes(run / page, gallery(store, home=home, cards=cards, scored=explained).encode() + made_of)


def _ends_with(path: Path, tail: bytes) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(tail), 0))
        return file.read() == tail


def section(run: Path, manifest: Manifest, cards: int = CARDS, scored: By | None = None) -> dict[str, dict[str, Any]]:
    """By site: its dictionaries' most interesting features, and one of them beside an axis of the activations.

    ``cards`` and ``scored`` are those of :func:`write_galleries`, to whose cards these link.
    """
    sites: dict[str, list[dict[str, Any]]] = {}
    for entry in manifest.data["stores"]:
        sites.setdefault(entry["site"], []).append(entry)
    return {
        site: {
            "shown": [_shown(run, entry, cards, _of(scored, entry)) for entry in entries],
            "contrast": contrast(run, entries, cards, scored),
        }
        for site, entries in sites.items()
    }


def worth_seeing(seen: Mapping[str, Mapping[str, Any]]) -> list[Markup]:
    """Cards for the first screen: of every site's first trained dictionary its first, then its second, and so on."""
    firsts = [next((shown for shown in site["shown"] if shown.trained), None) for site in seen.values()]
    rows = zip_longest(*(shown.cards for shown in firsts if shown))
    return [card for row in rows for card in row if card is not None][:WORTH_SEEING]


def contrast(
    run: Path, entries: Sequence[dict[str, Any]], cards: int = CARDS, scored: By | None = None
) -> Contrast | None:
    """The most interesting feature of a site's first trained dictionary beside the axis that it reads most.

    Stores hold the positive side of an axis, so that is the one with the largest encoder weight, not the largest
    absolute one. None where the site has no trained dictionary, no neurons or nothing alive, or the
    dictionary is gone.
    """
    trained = next((entry for entry in entries if entry["kind"] in KINDS), None)
    axes = next((entry for entry in entries if entry["kind"] == AXES), None)
    if trained is None or axes is None:
        return None
    with closing(_open(run, trained)) as store, closing(_open(run, axes)) as neurons:
        features = ranked(store)
        first = next((feature.id for feature in features if feature.interest > 0), None)
        folder = placed(store.path.parent, store.meta["dictionary"])
        if first is None or not folder.exists():
            return None
        row = base.load(folder).W_enc[first]
        axis = int(row.argmax())
        feature, other = store.feature(first), neurons.feature(axis)
        explained, explained_axes = _of(scored, trained), _of(scored, axes)
        said = Markup(
            "Feature {} of {} beside axis {} of {}, that of its encoder's largest positive weight "
            "({} in a row of length 1). The feature: {}. The axis: {}."
        ).format(
            first,
            trained["name"],
            axis,
            trained["site"],
            number(float(row[axis] / row.norm())),
            _first_token(feature),
            _first_token(other),
        )
        return Contrast(
            said,
            _small(store, feature, trained, chosen(features, cards, explained), explained),
            _small(neurons, other, axes, chosen(ranked(neurons), cards, explained_axes), explained_axes),
        )


def _first_token(evidence: Evidence) -> Markup:
    """The share of its first token, and of how many it is one."""
    if not evidence.tokens:
        return Markup("never active")
    first, count = evidence.tokens[0], evidence.summary.distinct_tokens
    return Markup("{} on {}, one of {:,} different tokens").format(percent(first.share), token(first.text), count)


def _of(scored: By | None, entry: Mapping[str, Any]) -> Mapping[int, Sequence[Scored]]:
    """The explanations of the features of one store."""
    return (scored or {}).get((SUBJECT, entry["site"], entry["name"]), {})


def _shown(run: Path, entry: dict[str, Any], cards: int, scored: Mapping[int, Sequence[Scored]]) -> Shown:
    with closing(_open(run, entry)) as store:
        features = ranked(store)
        on_page = chosen(features, cards, scored)
        small = [_small(store, store.feature(each.id), entry, on_page, scored) for each in varied(features, SHOWN)]
    said = f"{entry['alive']:,} of {entry['d_sae']:,} features alive"
    said += f", {len(scored):,} explained" if scored else ""
    return Shown(entry["name"], _page(entry["path"]), said, small, entry["kind"] in KINDS)


def _small(
    store: FeatureStore,
    evidence: Evidence,
    entry: Mapping[str, Any],
    gallery: Sequence[RankedFeature],
    scored: Mapping[int, Sequence[Scored]],
) -> Markup:
    """A compact card; its link is left out where the ``gallery`` holds other features only."""
    page, linked = _page(entry["path"]), {feature.id for feature in gallery}

    def link(feature: int) -> str | None:
        return f"{page}#feature-{feature}" if feature in linked else None

    explained = scored.get(evidence.summary.id, ())
    return card(evidence, store.meta, text=store.text, link=link, compact=True, scored=explained)


def _open(run: Path, entry: dict[str, Any]) -> FeatureStore:
    return FeatureStore(run / "features" / entry["path"])


def _page(path: str) -> str:
    """Address of the gallery of the store at ``path``, from the run's folder."""
    return f"{GALLERY}/{Path(path).with_suffix('.html').as_posix()}"
