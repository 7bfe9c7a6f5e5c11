"""All features of one dictionary on one page that opens from a file, with filters; a page of cards, nothing more.

Cards come in order of interest, so the page reads well without its script; the script sorts and hides them, and keeps
what was chosen after the ``#`` of the address: ``page.html#sort=density&token=self``.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from monolex.features.store import FeatureStore
from monolex.interp.records import Scored
from monolex.pages import card_explanations, html
from monolex.pages.card import card
from monolex.pages.eval_charts import density_chart
from monolex.pages.interest import RankedFeature, ranked

CARDS = 300
"""Cards on a page, the most interesting features'."""
SORTS = (
    ("interest", "interest"),
    ("density", "rarest first"),
    ("-density", "most frequent first"),
    ("max", "largest maximum"),
    ("kurtosis", "kurtosis"),
    ("share", "share of one token"),
    ("reappears", "comes back most"),
    ("id", "number"),
)
KINDS = (
    ("single-token", "of one token"),
    ("preceding-token", "after one token"),
    ("mixed", "mixed"),
)


def gallery(
    store: FeatureStore, *, home: str = "", cards: int = CARDS, scored: Mapping[int, Sequence[Scored]] | None = None
) -> str:
    """The page of a store, with the ``cards`` most interesting features; ``home`` is the address of the report.

    ``scored`` are the features' explanations.
    """
    features, scored = ranked(store), scored or {}
    shown = chosen(features, cards, scored)
    ids = {feature.id for feature in shown}
    meta = store.meta
    by_score, scores = card_explanations.sort_key(scored)
    sorts = [(key, label) for key, label in SORTS if key != "reappears" or meta["other_seeds"]]
    sorts += [("score", by_score)] if by_score else []
    counts = Counter(feature.kind for feature in features)
    return html.page(
        "gallery.html",
        meta=meta,
        home=home,
        total=len(features),
        alive=len(features) - counts["dead"],
        kinds=[(key, label, counts[key]) for key, label in KINDS],
        dead=counts["dead"],
        hidden=sum(1 for feature in shown if feature.kind == "dead"),
        sorts=sorts,
        seeds=len(meta["other_seeds"]),
        explained=len(ids & set(scored)),
        of_explained=len(scored),
        densities=density_chart([feature.summary.n_active for feature in features], meta["rows"], meta["name"], "blue"),
        cards=[
            card(
                store.feature(feature.id),
                meta,
                text=store.text,
                link=lambda number: f"#feature-{number}" if number in ids else None,
                anchor=f"feature-{feature.id}",
                scored=scored.get(feature.id, ()),
                attributes=attributes(feature, tokens_of(store, feature.id), scores.get(feature.id)),
            )
            for feature in shown
        ],
    )


def chosen(features: Sequence[RankedFeature], cards: int, scored: Mapping[int, Any]) -> list[RankedFeature]:
    """The ``cards`` features of a page by interest; those with explanations come before any without."""
    first = sorted(features, key=lambda feature: feature.id not in scored)[:cards]
    return sorted(first, key=lambda feature: (-feature.interest, feature.id))


def attributes(feature: RankedFeature, tokens: Sequence[str], score: float | None = None) -> dict[str, Any]:
    """What the page sorts and filters by; lower-case tokens as JSON, because a token may hold any character."""
    s = feature.summary
    known = {
        "data-id": s.id,
        "data-interest": _digits(feature.interest),
        "data-density": _digits(s.density),
        "data-max": _digits(s.max),
        "data-kurtosis": _digits(s.kurtosis),
        "data-share": _digits(s.top_share),
        "data-reappears": _digits(s.reappears),
        "data-kind": feature.kind,
        "data-tokens": json.dumps([text.lower() for text in tokens], ensure_ascii=False),
    }
    known |= {"data-score": _digits(score)} if score is not None else {}
    return known | ({"hidden": ""} if feature.kind == "dead" else {})


def tokens_of(store: FeatureStore, feature: int) -> list[str]:
    """Texts of the tokens that a feature is most active on."""
    query = "SELECT text FROM token JOIN vocabulary USING (token) WHERE feature = ? ORDER BY rank"
    return [text for (text,) in store.rows(query, (feature,))]


def _digits(value: float | None) -> str:
    return "0" if value is None or not math.isfinite(value) else f"{value:.6g}"
