"""Features as an agent reads them: numbers with interval, level of chance or control, and artefact; a few contexts."""

from collections.abc import Mapping, Sequence
from typing import Any

from monolex.errors import UserError
from monolex.explorer.agent.sources import Said, count, number, source
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.features.evidence import Context, Evidence
from monolex.text.characters import joined, pieces

COLUMNS = (
    "kind, top_token, share, n_active, density, max, kurtosis, skew, interest, seeds, reappears, reappears_low, "
    "reappears_high, explainer, explanation, simulator, score, score_low, score_high, chance"
)
SCORED_BY = (
    "SELECT source FROM explanation AS e WHERE e.dictionary = feature.dictionary AND e.number = feature.number AND "
    "e.explainer = feature.explainer AND e.text = feature.explanation AND e.simulator IS feature.simulator AND "
    "e.score IS feature.score"
)
ABLATED_BY = (
    "SELECT max(experiment) FROM membership AS m WHERE m.dictionary = feature.dictionary AND m.number = feature.number "
    "AND part = 'ablated'"
)
ONE_FEATURE = "this feature, resampling its documents"
NO_INTERVAL = "counted over all rows, or computed from the weights: no interval, and no control"
"""Of evidence."""
GROUPS = ("top", "negative", "quantile", "random")
"""Groups of contexts that are shown: the strongest say what it is at most, random ones what it is mostly; negative ones
the other end of a signed direction."""
AROUND = 14
"""Tokens on either side of the strongest one that are shown of a context."""


def rows(run: ExploredRun, places: Sequence[tuple[str, int]]) -> list[Said]:
    """What is known of features, by hash and number, in numbers; in the order in which they are given.

    Raises:
        UserError: an artefact is damaged.
    """
    return [row for key, feature in places if (row := _row(run, run.dictionary(key), feature)) is not None]


def _row(run: ExploredRun, dictionary: IndexedDictionary, feature: int) -> Said | None:
    query = f"SELECT {COLUMNS}, ({SCORED_BY}), ({ABLATED_BY}) FROM feature WHERE dictionary = ? AND number = ?"
    known = run.index.rows(query, (dictionary.id, feature))
    if not known:
        return None
    named = dict(zip([*COLUMNS.split(", "), "scored_by", "ablated_by"], known[0], strict=True))
    gathered = source(run, "features")
    activations = dictionary.rows
    return {
        "dictionary": dictionary.key,
        "number": feature,
        "title": dictionary.title,
        "kind": named["kind"],
        "top_token": named["top_token"],
        "share_of_top_token": count(named["share"], named["n_active"], "activations in which it is active"),
        "density": count(named["density"], activations, "activations", n_active=named["n_active"]),
        **{name: count(named[name], activations, "activations") for name in ("max", "kurtosis", "skew")},
        "source": gathered,
        "comes_back": _comes_back(named),
        "explanation": _explanation(run, named),
        "ablated": _ablated(run, dictionary, feature, named["ablated_by"]),
        "label": (label := run.label(dictionary.key, feature)) and label._asdict(),
    }


def _comes_back(named: Mapping[str, Any]) -> Said | None:
    """The share of other seeds with a like feature; None without other seeds."""
    values = (named["reappears"], named["reappears_low"], named["reappears_high"])
    return number(*values, named["seeds"], "other seeds") if named["seeds"] else None


def _explanation(run: ExploredRun, named: Mapping[str, Any]) -> Said | None:
    """Its best scored explanation with the score and what explanations of other features score on it."""
    if named["explanation"] is None:
        return None
    head = {"text": named["explanation"], "explainer": named["explainer"], "simulator": named["simulator"]}
    values = (named["score"], named["score_low"], named["score_high"])
    score = number(*values, 1, ONE_FEATURE, chance=named["chance"])
    scored_in = named["scored_by"] and source(run, named["scored_by"])
    return head | {"score": score if named["score"] is not None else None, "source": scored_in}


def _ablated(run: ExploredRun, dictionary: IndexedDictionary, feature: int, path: str | None) -> Said | None:
    """KL of predictions in nats when it is taken away, and when a like feature or a random direction is."""
    if path is None:
        return None
    for ablation in run.content(f"{path}/ablate.json")["ablations"]:
        if (ablation["site"], ablation["name"], ablation["feature"]) == (dictionary.site, dictionary.name, feature):
            return {"kl": ablation["kl"], "source": source(run, path)}
    return None


def evidence(facts: Evidence, contexts: int, tokens: int) -> Said:
    """The evidence of a feature: what it is active on and after, what it promotes directly, and where it was active."""
    around = {"similar": ("cosine", facts.neighbours), "active_together": ("jaccard", facts.coactive)}
    return {
        "reason": NO_INTERVAL,
        "on": [_share(token.text, token.share, token.n_active) for token in facts.tokens[:tokens]],
        "after": [_share(token.text, token.share, token.n_active) for token in facts.before[:tokens]],
        "promotes_directly": [{"token": token.text, "logit": token.weight} for token in facts.promoted[:tokens]],
        "suppresses_directly": [{"token": token.text, "logit": token.weight} for token in facts.suppressed[:tokens]],
        **{
            name: [{"number": other.feature, measure: other.value} for other in listed[:tokens]]
            for name, (measure, listed) in around.items()
        },
        "contexts": [_context(context) for group in GROUPS for context in _chosen(facts, group, contexts)],
    }


def _chosen(facts: Evidence, group: str, contexts: int) -> list[Context]:
    """The first contexts of a group; of quantiles the first of each."""
    listed = facts.examples.get(group, ())
    if group != "quantile":
        return list(listed[:contexts])
    return list({context.part: context for context in reversed(listed)}.values())[::-1] if contexts else []


def _share(text: str, share: float, n_active: int) -> Said:
    return {"token": text, "share": share, "n_active": n_active}


def _context(context: Context) -> Said:
    """A context with its strongest token in «»; of a silent one the end."""
    peak = (min if context.group == "negative" else max)(context.activations)
    at = context.activations.index(peak) if peak != 0 else len(context.texts) - 1
    start, stop = max(0, at - AROUND), at + AROUND + 1
    shown = context.texts[start:stop]
    parts = [
        f"«{piece.text}»" if peak != 0 and piece.start <= at - start < piece.stop else piece.text
        for piece in pieces(shown)
    ]
    return {
        "group": context.group if context.group != "quantile" else f"quantile {context.part}",
        "document": context.doc,
        "text": "".join(parts) if peak != 0 else joined(shown),
        "peak": peak,
    }


def chance_of_coming_back(run: ExploredRun, dictionary: IndexedDictionary) -> tuple[float | None, Said | None]:
    """How often features of random directions would come back, and where that was measured."""
    for path in run.experiments("stability", dictionary.key):
        try:
            listed = run.content(f"{path}/stability.json")["dictionaries"]
        except UserError:
            continue
        for facts in listed:
            if (facts["site"], facts["name"]) == (dictionary.site, dictionary.name):
                return facts["chance"], source(run, path)
    return None, None
