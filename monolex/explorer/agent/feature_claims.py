"""Claims about one feature, decided by what was measured of it: never by words."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from monolex.explorer.agent.features import ONE_FEATURE, chance_of_coming_back
from monolex.explorer.agent.sources import Said, number, source
from monolex.explorer.agent.verdicts import KnownClaim, VerdictBasis, agreed
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views.feature import explanations
from monolex.stats import Estimate
from monolex.text.characters import quoted
from monolex.verdicts import SIGNIFICANT, Verdict, beyond, changes_more, corrected

UNMEASURED = "chance was not measured: monolex stability"
Facts = Mapping[str, Any]


class PlacedFeature(NamedTuple):
    """A feature that a claim is about."""

    run: ExploredRun
    """Its run."""
    dictionary: IndexedDictionary
    """Its dictionary."""
    number: int
    """Which feature."""

    def __str__(self) -> str:
        return f"feature {self.number} of {self.dictionary.title}"


def causes_token(feature: PlacedFeature, token: str) -> KnownClaim:
    """Whether a token becomes less probable without the feature, beyond what a like feature does."""
    basis = tuple(
        each for path, ablation, _ in _ablations(feature) for each in _token_basis(feature.run, path, ablation, token)
    )
    rule = (
        "confirmed if its ablation makes the token less probable, the whole interval below 0, by more than a matched "
        f"control feature does, p < {SIGNIFICANT} (paired t-test over documents, Benjamini-Hochberg over the "
        "vocabulary); contradicted if likewise more probable; several ablations must agree"
    )
    claim = f"{feature} causes the token {quoted(token)}"
    note = "" if basis else _not_ablated(feature)
    return KnownClaim(claim, agreed(basis), rule, basis, note)


def _token_basis(run: ExploredRun, path: str, ablation: Facts, token: str) -> list[VerdictBasis]:
    read_off, changes = source(run, path), ablation["measures"]["probability"]
    # of a small vocabulary a token stands on both sides; two tokens may have one text
    sides = [*changes["suppressed"], *changes["promoted"]]
    listed = {row["token"]: row for row in sides if row["text"] == token}
    if not listed:
        last = max((row["change"] for row in changes["suppressed"]), default=None)
        why = f"it is none of the {len(changes['suppressed'])} tokens that lose most, nor of those that gain most"
        estimate = number(None, None, None, ablation["documents"], "documents", reason=why)
        return [VerdictBasis("undecided", why, estimate, {"change of the last token that is kept": last}, read_off)]
    return [
        VerdictBasis(*_token_verdict(row), _change(row, ablation), _controls(row), read_off) for row in listed.values()
    ]


def _token_verdict(row: Facts) -> tuple[Verdict, str]:
    if row["p"] is None or row["low"] is None or row["control"] is None:
        return "undecided", "there was no test: too few documents, or no control feature"
    if row["p"] >= SIGNIFICANT:
        return "undecided", f"a matched control feature may do the same: p = {row['p']:.3g}"
    if row["high"] < 0 and row["change"] < row["control"]:
        return "confirmed", f"it loses probability without the feature, more than without a control: p = {row['p']:.3g}"
    if row["low"] > 0 and row["change"] > row["control"]:
        return "contradicted", f"it gains probability without the feature: p = {row['p']:.3g}"
    return "undecided", "the interval of the change holds 0, or a control changes it more"


def _change(row: Facts, ablation: Facts) -> Said:
    return number(row["change"], row["low"], row["high"], ablation["documents"], "documents", p=row["p"])


def _controls(row: Facts) -> Said:
    return {"matched control feature": row["control"], "directly, without later layers": row["direct"]}


def changes_predictions(feature: PlacedFeature) -> KnownClaim:
    """Whether predictions change more without the feature than without a like one."""
    basis = tuple(_divergence(feature.run, path, ablation, q) for path, ablation, q in _ablations(feature))
    rule = (
        "confirmed if the KL of its ablation is above that of a matched control feature with "
        f"q < {SIGNIFICANT} (paired t-test over documents, Benjamini-Hochberg over the features of the experiment); "
        "contradicted if likewise below; several ablations must agree"
    )
    claim = f"taking {feature} away changes predictions more than taking a like feature away"
    return KnownClaim(claim, agreed(basis), rule, basis, "" if basis else _not_ablated(feature))


def _divergence(run: ExploredRun, path: str, ablation: Facts, q: float | None) -> VerdictBasis:
    kl = ablation["kl"]
    why = "there was no test" if q is None else f"q = {q:.3g}"
    beside = {"matched control feature": kl["control_feature"], "random direction": kl["control_direction"], "q": q}
    return VerdictBasis(changes_more(kl, q), why, kl["feature"], beside, source(run, path))


def _ablations(feature: PlacedFeature) -> Iterator[tuple[str, Facts, float | None]]:
    """Every ablation of the feature: its artefact, itself, and its corrected p among those of that artefact."""
    place = (feature.dictionary.site, feature.dictionary.name, feature.number)
    for path in feature.run.experiments("ablate", feature.dictionary.key):
        listed = feature.run.content(f"{path}/ablate.json")["ablations"]
        for ablation, q in zip(listed, corrected(listed), strict=True):
            if (ablation["site"], ablation["name"], ablation["feature"]) == place:
                yield path, ablation, q


def _not_ablated(feature: PlacedFeature) -> str:
    named = f"{feature.dictionary.title}:{feature.number}"
    return f"it was not ablated: monolex ablate {feature.run.folder} --features {named}"


def comes_back(feature: PlacedFeature, share: float) -> KnownClaim:
    """Whether dictionaries of other seeds have a like feature, in more than a share of them."""
    columns = "seeds, reappears, reappears_low, reappears_high"
    query = f"SELECT {columns} FROM feature WHERE dictionary = ? AND number = ?"
    known = feature.run.index.rows(query, (feature.dictionary.id, feature.number))
    claim = f"{feature} comes back under other seeds with a probability above {share:g}"
    rule = (
        f"confirmed if the whole interval over seeds is above {share:g} and above what random directions do, "
        f"contradicted if it is below {share:g}; undecided above it where random directions were not measured"
    )
    if not known or not known[0][0]:
        note = "there is no dictionary of the same recipe and another seed, or nothing was gathered of this one"
        return KnownClaim(claim, "not measured", rule, (), note)
    seeds, value, low, high = known[0]
    chance, measured_in = chance_of_coming_back(feature.run, feature.dictionary)
    verdict = beyond(Estimate(value, low, high, seeds, "seeds"), share)
    if verdict == "confirmed" and (chance is None or low <= chance):
        verdict = "undecided"
    beside = {"random directions": chance, "source": measured_in}
    estimate = number(value, low, high, seeds, "other seeds")
    why = f"{round(value * seeds)} of {seeds} other seeds have a like feature"
    basis = (VerdictBasis(verdict, why, estimate, beside, source(feature.run, "features")),)
    return KnownClaim(claim, verdict, rule, basis, "" if chance is not None else UNMEASURED)


def explained_beyond_chance(feature: PlacedFeature, explainer: str) -> KnownClaim:
    """Whether its explanations predict where it is active better than those of other features do."""
    listed = explanations(feature.run, feature.dictionary, feature.number)
    chosen = [row for row in listed if not explainer or row["explainer"] == explainer]
    scored = [row for row in chosen if row["simulator"] is not None]
    basis = tuple(_scored(feature.run, row) for row in scored)
    rule = (
        "confirmed if the whole interval of the score lies above what explanations of other features score on it, "
        "contradicted if below; several explanations must agree. Each feature is judged alone: of many that are "
        "explained by chance some come out confirmed"
    )
    note = "" if basis else "none of its explanations was scored: monolex explain, then monolex score"
    by = f" by {explainer}" if explainer else ""
    claim = f"explanations of {feature}{by} predict it better than chance"
    return KnownClaim(claim, agreed(basis), rule, basis, note)


def _scored(run: ExploredRun, row: Facts) -> VerdictBasis:
    verdict = "undecided" if row["chance"] is None else beyond(row, row["chance"])
    why = f"{row['explainer']}, judged by {row['simulator']}: {quoted(row['text'] or '')}"
    score = number(row["score"], row["low"], row["high"], 1, ONE_FEATURE)
    beside = {"explanations of other features": row["chance"]}
    return VerdictBasis(verdict, why, score | {"reason": row["reason"]}, beside, source(run, row["source"]))
