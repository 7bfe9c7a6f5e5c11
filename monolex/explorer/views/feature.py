"""The page of one feature: its card, what others say of it, where it stands in experiments, and what is like it."""

from typing import Any

from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun, IndexedDictionary, NotThere
from monolex.explorer.views import effects
from monolex.features.evidence import Evidence
from monolex.pages.card import card


def feature(explorer: Explorer, key: str, number: int) -> Page:
    """Everything that is known of one feature.

    Raises:
        NotThere: no such dictionary or feature.
        UserError: nothing was gathered of it.
    """
    run, dictionary = explorer.place(key)
    if not 0 <= number < dictionary.d_sae:
        raise NotThere(f"feature {number}: {dictionary.title} has features 0 to {dictionary.d_sae - 1}")
    store = run.store(dictionary.key)
    evidence, scored = store.feature(number), run.scored(dictionary.key).get(number, ())
    data = {
        "run": run.slug,
        "dictionary": dictionary,
        "number": number,
        "evidence": evidence,
        "explanations": explanations(run, dictionary, number),
        "scored": [{"row": each.row, "fragments": each.overlays} for each in scored],
        "label": run.label(dictionary.key, number),
        "memberships": (members := memberships(run, dictionary, number)),
        "direct_reason": (reason := store.meta.get("direct_reason", "")),
        "ablations": effects.ablations(run, members, evidence, reason),
    }

    def draw(links: Links) -> dict[str, Any]:
        def link(other: int) -> str:
            return links.feature(dictionary.key, other)

        last = dictionary.d_sae - 1
        return {
            "card": card(evidence, store.meta, text=store.text, link=link, scored=scored),
            "before": link(number - 1) if number else None,
            "after": link(number + 1) if number < last else None,
            "unscored": [each for each in data["explanations"] if each["simulator"] is None],
            "keeps_labels": run.keeps_labels,
            "effects": [
                (
                    each,
                    effects.sentence(run, each),
                    effects.effect_table(f"effects-{i}", each),
                    links.causes(run.slug, each["experiment"], each["place"]),
                )
                for i, each in enumerate(data["ablations"], 1)
            ],
            "places": [
                (each, links.causes(run.slug, each["experiment"], each["place"])) for each in data["memberships"]
            ],
        }

    return Page("feature.html", f"Feature {number} of {dictionary.title}", data, draw)


def explanations(run: ExploredRun, dictionary: IndexedDictionary, number: int) -> list[dict[str, Any]]:
    """Its explanations with score, interval and chance, the best first; each says which artefact it is of."""
    names = "explainer, text, simulator, score, low, high, chance, reason, source"
    order = "score IS NULL, score DESC"
    query = f"SELECT {names} FROM explanation WHERE dictionary = ? AND number = ? ORDER BY {order}"
    rows = run.index.rows(query, (dictionary.id, number))
    return [dict(zip(names.split(", "), row, strict=True)) for row in rows]


def memberships(run: ExploredRun, dictionary: IndexedDictionary, number: int) -> list[dict[str, Any]]:
    """Experiments that it has a place in."""
    query = (
        "SELECT experiment, part, place FROM membership WHERE dictionary = ? AND number = ? ORDER BY experiment, place"
    )
    rows = run.index.rows(query, (dictionary.id, number))
    return [dict(zip(("experiment", "part", "place"), row, strict=True)) for row in rows]


def brief(run: ExploredRun, evidence: Evidence, dictionary: IndexedDictionary, links: Links) -> Any:
    """A small card with a link to its page."""
    store = run.store(dictionary.key)
    scored = run.scored(dictionary.key).get(evidence.summary.id, ())
    return card(
        evidence,
        store.meta,
        text=store.text,
        link=lambda other: links.feature(dictionary.key, other),
        compact=True,
        scored=scored,
    )
