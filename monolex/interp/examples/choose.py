"""Which fragments a feature is explained from and scored on, from its largest activation in every fragment.

``paper``: the 20 strongest fragments and 20 random ones with any variation; every fourth of the strongest is explained,
another fourth and a third of the random ones are scored (paper, A; the exact places are in ``protocol``). Features with
fewer than 20 fragments of any variation are skipped, which favours frequent features: the count is kept.

``modern``: documents are halved first, and the two halves serve explaining and scoring. Both see the strongest
fragments and some of every strength.

In both, silent fragments are those in which no token is above zero: that is checked, token by token.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray

from monolex.interp.protocol import SPLIT_SIZE, TOP_RANKS, random_splits, top_splits
from monolex.interp.records import Failure

GROUPS = ("explain", "explain_silent", "top", "random", "silent")
QUANTILES = 5
PLACES = 14
"""Random fragments up to the last that is scored."""
RARE = TOP_RANKS + PLACES
"""Features with fewer varying fragments have none but strong ones to be random."""
FRAGMENTS = Int64[NDArray, "fragments"]


class FeaturePeaks(NamedTuple):
    """What choosing needs to know of one feature: how high it goes in every fragment."""

    maximum: Float32[NDArray, "fragments"]
    """Its largest activation in each."""
    varies: Bool[NDArray, "fragments"]
    """Whether its activations differ within each."""
    explained: Bool[NDArray, "fragments"]
    """Whether its document is one to explain from (``modern``)."""


class Choice(NamedTuple):
    """Numbers of fragments by what they are for; fields as in :class:`~monolex.interp.records.Examples`."""

    explain: Int64[NDArray, "chosen"]
    explain_silent: Int64[NDArray, "chosen"]
    top: Int64[NDArray, "chosen"]
    random: Int64[NDArray, "chosen"]
    silent: Int64[NDArray, "chosen"]


Chooser = Callable[[FeaturePeaks, int, np.random.Generator], Choice | Failure]


def paper_choice(peaks: FeaturePeaks, silent: int, rng: np.random.Generator) -> Choice | Failure:
    """The paper's choice; ``silent`` fragments for each purpose.

    A random fragment is never one that is explained or scored as a top one. Where fewer than 34 fragments vary, some
    are among the ten strongest that are neither (:data:`RARE`).
    """
    varying = np.flatnonzero(peaks.varies)
    if len(varying) < TOP_RANKS:
        return Failure(f"fewer than {TOP_RANKS} fragments with any variation")
    ranked = strongest(peaks, varying)
    if peaks.maximum[ranked[0]] <= 0:
        return Failure("never above zero")
    top = top_splits(ranked[:TOP_RANKS].tolist())
    weaker = rng.permutation(ranked[TOP_RANKS:])
    # the ten strongest that the paper keeps for calibration and testing serve nothing else here
    unused = rng.permutation(np.array([*top.calibration, *top.test]))
    pool = np.concatenate([weaker, unused])[:TOP_RANKS].tolist()
    scored = random_splits(pool).valid if len(pool) >= PLACES else pool[:SPLIT_SIZE]
    quiet = rng.permutation(np.flatnonzero(peaks.maximum <= 0))
    half = min(silent, (len(quiet) + 1) // 2)
    parts = (top.train, quiet[half : half + silent], top.valid, scored, quiet[:half])
    return Choice(*(np.array(part, np.int64) for part in parts))


def modern_choice(peaks: FeaturePeaks, silent: int, rng: np.random.Generator) -> Choice | Failure:
    """Half of the documents to explain from, the other half to score on: the 5 strongest and 10 of every strength."""
    active, quiet = [], []
    for half, purpose in ((peaks.explained, "explain from"), (~peaks.explained, "score on")):
        ranked = strongest(peaks, np.flatnonzero(half & peaks.varies & (peaks.maximum > 0)))
        if len(ranked) < 2 * SPLIT_SIZE:
            return Failure(f"fewer than {2 * SPLIT_SIZE} active fragments in the documents to {purpose}")
        active.append((ranked[:SPLIT_SIZE], _of_every_strength(ranked[SPLIT_SIZE:], 2, rng)))
        quiet.append(rng.permutation(np.flatnonzero(half & (peaks.maximum <= 0)))[:silent])
    explain, (top, random) = np.concatenate(active[0]), active[1]
    return Choice(explain, quiet[0], top, random, quiet[1])


CHOOSERS: dict[str, Chooser] = {"paper": paper_choice, "modern": modern_choice}


def halves(doc: Int64[NDArray, "fragments"], seed: int) -> Bool[NDArray, "fragments"]:
    """Whether a fragment's document is one to explain from: half of them are, the same for all features."""
    documents = np.random.default_rng(seed).permutation(np.unique(doc))
    return np.isin(doc, documents[: len(documents) // 2])


def strongest(peaks: FeaturePeaks, numbers: FRAGMENTS) -> FRAGMENTS:
    """Fragments with these numbers by falling maximum; of equal ones the earlier first."""
    return numbers[np.argsort(-peaks.maximum[numbers], kind="stable")]


def _of_every_strength(ranked: FRAGMENTS, count: int, rng: np.random.Generator) -> Int64[NDArray, "chosen"]:
    """``count`` random ones of every quantile, the strongest quantile first."""
    parts = [rng.permutation(part)[:count] for part in np.array_split(ranked, QUANTILES)]
    return np.concatenate(parts)
