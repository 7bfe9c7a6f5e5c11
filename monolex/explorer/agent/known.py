"""What is known of a claim: confirmed, contradicted, undecided or not measured, by artefacts alone.

A claim is one of a few statements that artefacts decide, with typed places for what it is about; there is no free text
in it, and no explanation or label is read for it.
"""

from dataclasses import fields

from monolex.causal.patch.claims import LEVELS
from monolex.config import require
from monolex.explorer.agent import dictionary_claims, feature_claims
from monolex.explorer.agent.feature_claims import PlacedFeature
from monolex.explorer.agent.questions import ClaimQuestion
from monolex.explorer.agent.verdicts import KnownClaim
from monolex.explorer.explorer import Explorer
from monolex.explorer.run import NotThere

OF_FEATURES = ("causes_token", "changes_predictions", "comes_back", "explained_beyond_chance")


USES = {
    "causes_token": ("feature", "token"),
    "changes_predictions": ("feature",),
    "comes_back": ("feature", "share"),
    "explained_beyond_chance": ("feature", "explainer"),
    "reconstructs_better": ("against",),
    "explained_better": ("against",),
    "patches_with_fewer": ("level", "experiment"),
}
"""What each kind takes beside the dictionary."""


def known(explorer: Explorer, asks: ClaimQuestion) -> KnownClaim:
    """What the artefacts of the dictionary's run say of a claim.

    Raises:
        NotThere: no such dictionary or feature.
        UserError: something that the claim needs is missing, or it says something that this kind does not take.
    """
    require(asks.claim in USES, f"claim = {asks.claim!r}: give one of {', '.join(USES)}")
    optional = [field for field in fields(ClaimQuestion) if field.name not in ("claim", "dictionary")]
    names = [field.name for field in optional if getattr(asks, field.name) != field.default]
    idle = [name for name in names if name not in USES[asks.claim]]
    require(not idle, f"{''.join(idle[:1])} is nothing that {asks.claim} takes; leave it out")
    run, dictionary = explorer.place(asks.dictionary)
    if asks.claim in OF_FEATURES:
        require(asks.feature is not None, f"feature is missing: {asks.claim} is about a feature, give its number")
        number = asks.feature or 0
        if not 0 <= number < dictionary.d_sae:
            raise NotThere(f"feature {number}: {dictionary.title} has features 0 to {dictionary.d_sae - 1}")
        return _of_feature(PlacedFeature(run, dictionary, number), asks)
    if asks.claim == "patches_with_fewer":
        require(asks.level in LEVELS, f"level = {asks.level:g}: patches compare at {', '.join(map(str, LEVELS))}")
        return dictionary_claims.patches_with_fewer(run, dictionary, asks.level, asks.experiment)
    against = None
    if asks.against:
        against = run.dictionary(asks.against)
        require(against.key != dictionary.key, f"against = {asks.against!r} is the dictionary itself: give another")
    claim = {
        "reconstructs_better": dictionary_claims.reconstructs_better,
        "explained_better": dictionary_claims.explained_better,
    }[asks.claim]
    return claim(run, dictionary, against)


def _of_feature(feature: PlacedFeature, asks: ClaimQuestion) -> KnownClaim:
    if asks.claim == "causes_token":
        require(bool(asks.token), "token is missing: causes_token is about a token, give it as pages show it")
        return feature_claims.causes_token(feature, asks.token or "")
    if asks.claim == "comes_back":
        require(0 <= asks.share < 1, f"share = {asks.share:g}: give a probability from 0 to below 1")
        return feature_claims.comes_back(feature, asks.share)
    if asks.claim == "changes_predictions":
        return feature_claims.changes_predictions(feature)
    return feature_claims.explained_beyond_chance(feature, asks.explainer)
