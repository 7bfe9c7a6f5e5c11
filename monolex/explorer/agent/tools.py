"""The tools of an agent: eleven questions about the open runs, each answered by a view, with hashes beside its numbers.

A tool's docstring is what the agent reads. Nothing here writes: the runs are opened so that they cannot be written to.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

from monolex.answers import as_json
from monolex.explorer.agent import experiments as experiments_of
from monolex.explorer.agent import features as features_of
from monolex.explorer.agent import questions as q
from monolex.explorer.agent.known import known
from monolex.explorer.agent.live import ablate_in_prompt, find_in_prompt
from monolex.explorer.agent.measured import measured
from monolex.explorer.agent.sources import Said, dictionary_facts, source, weights_source
from monolex.explorer.explorer import Explorer
from monolex.explorer.run import ExploredRun
from monolex.explorer.views import compare as compare_view
from monolex.explorer.views import feature as feature_view
from monolex.explorer.views import listing, overview
from monolex.explorer.views import matches as matches_view
from monolex.explorer.views import search as search_view
from monolex.features.query import FindConfig


class AgentTool(NamedTuple):
    """A question that an agent can ask."""

    question: type
    """Its arguments: a dataclass."""
    answer: Callable[[Explorer, Any], Said]
    """Answers it; the docstring is its description."""


def runs(explorer: Explorer, _asks: q.NoQuestion) -> Said:
    """The open runs: model, text, what was found (sentences with intervals and controls), and every experiment.

    Begin here. Names of runs and paths of experiments are arguments of the other tools.
    """
    return {"runs": [_overview(explorer, run) for run in explorer.runs.values()]}


def _overview(explorer: Explorer, run: ExploredRun) -> Said:
    data = as_json(overview.overview(explorer, run.slug).data)
    findings = [{"text": each["text"], "source": source(run, each["path"] or "eval")} for each in data["findings"]]
    return {
        **{name: data[name] for name in ("run", "model", "lead", "warnings", "damaged")},
        "findings": findings,
        "worth_seeing": data["features"],
        "experiments": experiments_of.listed(explorer, run.slug),
        "dictionaries": len(run.dictionaries),
        "with_evidence": sum(dictionary.gathered for dictionary in run.dictionaries.values()),
        "source": source(run, "activations"),
    }


def dictionaries(explorer: Explorer, asks: q.DictionariesQuestion) -> Said:
    """Dictionaries of a run: hash, kind, size, FVU (share of variance missed), L0 and fidelity with intervals.

    Beside each stand the baselines that are as sparse (L0 within 10 %), and what control models' dictionaries of the
    same name do. A dictionary's hash is an argument of the other tools.
    """
    run = explorer.run(asks.run)
    listing.scope(explorer, listing.ListQuery(run=asks.run, site=asks.site))
    chosen = [
        dictionary
        for dictionary in run.dictionaries.values()
        if asks.site in ("", dictionary.site) and asks.trained in (None, dictionary.trained)
    ]
    first = (asks.page - 1) * asks.limit
    shown = [measured(explorer, run, dictionary) for dictionary in chosen[first : first + asks.limit]]
    return {"total": len(chosen), "page": asks.page, "dictionaries": shown}


def features(explorer: Explorer, asks: q.FeaturesQuestion) -> Said:
    """A page of the features that some filters keep, sorted: density, explanation score beside chance, how often each
    comes back under other seeds, and its ablation beside controls, where that was measured."""
    query = listing.ListQuery(**{name: value for name, value in asdict(asks).items() if name != "limit"})
    runs = listing.scope(explorer, query)
    total = sum(listing.count(run, query) for run in runs)
    first = (asks.page - 1) * asks.limit
    rows = [row for run in runs for row in listing.features(run, query, first + asks.limit)]
    # one run's are in order, also those of equal numbers
    rows = sorted(rows, key=lambda row: listing.order(row, query)) if len(runs) > 1 else rows
    rows = rows[first : first + asks.limit]
    return {"total": total, "page": asks.page, **_listed(explorer, rows)}


def search(explorer: Explorer, asks: q.SearchQuestion) -> Said:
    """Features that have to do with a word, the best first, each with its reasons: tokens, explanations, labels.

    At most 60 are looked at: total is null where there may be more.
    Words alone are no evidence of what a feature is or does: look at its numbers, or ask what_is_known.
    """
    hits = search_view.search(explorer, {"q": asks.text, "run": asks.run}).data["hits"]
    answer = _listed(explorer, [hit.feature for hit in hits[: asks.limit]])
    reasons = [{**row, "reasons": list(hit.reasons)} for row, hit in zip(answer["features"], hits, strict=False)]
    # a search names so many and no more; how many there are beyond was not counted
    whole = len(hits) < search_view.HITS
    return {"total": len(hits) if whole else None, "at_least": len(hits), **answer, "features": reasons}


def _listed(explorer: Explorer, rows: list[listing.ListedFeature]) -> Said:
    """Features with their numbers, and the dictionaries that they are of."""
    places = [(explorer.run(row.run), row) for row in rows]
    shown = [
        {"run": run.slug, **each}
        for run, row in places
        for each in features_of.rows(run, [(row.dictionary, row.number)])
    ]
    named = {(row.run, row.dictionary): dictionary_facts(run, run.dictionary(row.dictionary)) for run, row in places}
    return {"features": shown, "dictionaries": list(named.values())}


def feature(explorer: Explorer, asks: q.FeatureQuestion) -> Said:
    """Everything that is known of one feature: numbers, tokens, contexts with «its strongest token», explanations with
    score and chance, ablation with controls, and the experiments that name it."""
    data = feature_view.feature(explorer, asks.dictionary, asks.number).data
    run, dictionary = explorer.place(asks.dictionary)
    (row,) = features_of.rows(run, [(dictionary.key, asks.number)])
    chance, measured_in = features_of.chance_of_coming_back(run, dictionary)
    explained = [
        {**each, "source": source(run, each["source"]), "n": 1, "over": features_of.ONE_FEATURE}
        for each in data["explanations"]
    ]
    return {
        **row,
        "of": dictionary_facts(run, dictionary),
        "evidence": features_of.evidence(data["evidence"], asks.contexts, asks.tokens) | {"source": row["source"]},
        "explanations": explained,
        "chance_of_coming_back": {"value": chance, "source": measured_in},
        "experiments": [each | source(run, each["experiment"]) for each in data["memberships"]],
    }


def matches(explorer: Explorer, asks: q.MatchesQuestion) -> Said:
    """Features of other dictionaries, layers, seeds and runs with the most similar direction.

    Cosines are computed from the weights and have no interval; chance is about how large the largest cosine to as many
    random directions is.
    """
    data = matches_view.matches(explorer, asks.dictionary, asks.number).data
    rows = sorted(data["matches"], key=lambda row: -row["largest"])
    shown = [
        {**as_json(row), "dictionary": dictionary_facts(explorer.run(row["run"]), row["dictionary"])}
        for row in rows[: asks.limit]
    ]
    place = explorer.place(asks.dictionary)
    head = {"of": dictionary_facts(*place), "number": asks.number, "source": weights_source(*place)}
    return head | {"total": len(rows), "least_cosine_named": data["least"], "matches": shown}


def compare(explorer: Explorer, asks: q.CompareQuestion) -> Said:
    """Two dictionaries: how many features both have and which only one has, and the mean largest cosine (MMCS) with its
    interval, beside that to random directions."""
    places = [explorer.place(key) for key in (asks.first, asks.second)]
    data = as_json(compare_view.compare(explorer, {"a": asks.first, "b": asks.second}).data)
    facts = [dictionary_facts(*place) | {"source": weights_source(*place)} for place in places]
    names = ("mmcs", "mmcs_back", "mmcs_random", "alike", "counts")
    lists = {name: data[name][: asks.limit] for name in ("both", "only_first", "only_second")}
    return {"first": facts[0], "second": facts[1], **{name: data[name] for name in names}, **lists}


def experiments(explorer: Explorer, asks: q.ExperimentsQuestion) -> Said:
    """The experiments of a run (patching, ablations, trees, scores, seeds), or with a path the result of one: estimates
    with intervals, controls and verdicts; lists are cut to the limit, and how long each was is said."""
    if not asks.path:
        return {"run": asks.run, "experiments": experiments_of.listed(explorer, asks.run)}
    result = experiments_of.one_experiment(explorer, asks.run, asks.path, asks.limit)
    return {"run": asks.run, "path": asks.path, **result}


def find_by_prompt(explorer: Explorer, asks: q.PromptQuestion) -> Said:
    """The features most active on a prompt, which is run through the run's model: on its last token, or on any.

    of_max is the activation over the largest that was seen; a dense feature is active on everything, so also on this.
    One prompt has no interval, and nothing stands beside it as a control.
    """
    names = ("prompt", "token", "dictionaries", "limit")
    config = FindConfig(**{name: getattr(asks, name) for name in names})
    return {"run": asks.run, **find_in_prompt(explorer, explorer.run(asks.run), config)}


def ablate_live(explorer: Explorer, asks: q.AblationQuestion) -> Said:
    """What the model predicts next with and without a feature in a prompt of yours, beside a control feature.

    One prompt has no interval: take it as a look; what_is_known says what was measured over documents.
    """
    return ablate_in_prompt(explorer, *explorer.place(asks.dictionary), asks)


def what_is_known(explorer: Explorer, asks: q.ClaimQuestion) -> Said:
    """Whether what was measured confirms a claim: confirmed, contradicted, undecided or not measured, with the rule,
    the estimate, its interval, control and artefact hash. Only artefacts decide, never words."""
    answer = as_json(known(explorer, asks))
    return {**answer, "of": dictionary_facts(*explorer.place(asks.dictionary))}


TOOLS = {
    "runs": AgentTool(q.NoQuestion, runs),
    "dictionaries": AgentTool(q.DictionariesQuestion, dictionaries),
    "features": AgentTool(q.FeaturesQuestion, features),
    "search": AgentTool(q.SearchQuestion, search),
    "feature": AgentTool(q.FeatureQuestion, feature),
    "matches": AgentTool(q.MatchesQuestion, matches),
    "compare": AgentTool(q.CompareQuestion, compare),
    "experiments": AgentTool(q.ExperimentsQuestion, experiments),
    "find_by_prompt": AgentTool(q.PromptQuestion, find_by_prompt),
    "ablate_live": AgentTool(q.AblationQuestion, ablate_live),
    "what_is_known": AgentTool(q.ClaimQuestion, what_is_known),
}
"""By name."""
