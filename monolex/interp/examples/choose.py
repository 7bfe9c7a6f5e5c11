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

from monolex.interp.protocol import EACH, WANTED, random_splits, top_splits
from monolex.interp.records import Failure

GROUPS = ("explain", "explain_silent", "top", "random", "silent")
QUANTILES = 5
PLACES = 14
"""Random fragments up to the last that is scored."""
RARE = WANTED + PLACES
"""Features with fewer varying fragments have none but strong ones to be random."""
FRAGMENTS = Int64[NDArray, "fragments"]


class Seen(NamedTuple):
    """What is known of one feature on all fragments."""

    maximum: Float32[NDArray, "fragments"]
    """Its largest activation in each."""
    varies: Bool[NDArray, "fragments"]
    """Whether its activations differ within each."""
    explained: Bool[NDArray, "fragments"]
    """Whether its document is one to explain from (``modern``)."""


class Choice(NamedTuple):
    """Numbers of fragments by what they are for; fields as in :class:`~monolex.interp.records.Examples`."""

    explain: Int64[NDArray, "some"]
    explain_silent: Int64[NDArray, "some"]
    top: Int64[NDArray, "some"]
    random: Int64[NDArray, "some"]
    silent: Int64[NDArray, "some"]


Chooser = Callable[[Seen, int, np.random.Generator], Choice | Failure]


def paper(seen: Seen, silent: int, rng: np.random.Generator) -> Choice | Failure:
    """The paper's choice; ``silent`` fragments for each purpose.

    A random fragment is never one that is explained or scored as a top one. Where fewer than 34 fragments vary, some
    are among the ten strongest that are neither (:data:`RARE`).
    """
    varying = np.flatnonzero(seen.varies)
    if len(varying) < WANTED:
        return Failure(f"fewer than {WANTED} fragments with any variation")
    ranked = strongest(seen, varying)
    if seen.maximum[ranked[0]] <= 0:
        return Failure("never above zero")
    top = top_splits(ranked[:WANTED].tolist())
    others = rng.permutation(ranked[WANTED:])
    fallback = rng.permutation(np.array([*top.calibration, *top.test]))
    pool = np.concatenate([others, fallback])[:WANTED].tolist()
    scored = random_splits(pool).valid if len(pool) >= PLACES else pool[:EACH]
    quiet = rng.permutation(np.flatnonzero(seen.maximum <= 0))
    half = min(silent, (len(quiet) + 1) // 2)
    parts = (top.train, quiet[half : half + silent], top.valid, scored, quiet[:half])
    return Choice(*(np.array(part, np.int64) for part in parts))


def modern(seen: Seen, silent: int, rng: np.random.Generator) -> Choice | Failure:
    """Half of the documents to explain from, the other half to score on: the 5 strongest and 10 of every strength."""
    chosen, quiet = [], []
    for half, what in ((seen.explained, "explain from"), (~seen.explained, "score on")):
        mine = np.flatnonzero(half)
        ranked = strongest(seen, mine[seen.varies[mine] & (seen.maximum[mine] > 0)])
        if len(ranked) < 2 * EACH:
            return Failure(f"fewer than {2 * EACH} active fragments in the documents to {what}")
        chosen.append((ranked[:EACH], _spread(ranked[EACH:], 2, rng)))
        quiet.append(rng.permutation(mine[seen.maximum[mine] <= 0])[:silent])
    explain = np.concatenate(chosen[0])
    top, some = chosen[1]
    return Choice(explain, quiet[0], top, some, quiet[1])


CHOOSERS: dict[str, Chooser] = {"paper": paper, "modern": modern}


def halves(doc: Int64[NDArray, "fragments"], seed: int) -> Bool[NDArray, "fragments"]:
    """Whether a fragment's document is one to explain from: half of them are, the same for all features."""
    documents = np.random.default_rng(seed).permutation(np.unique(doc))
    return np.isin(doc, documents[: len(documents) // 2])


def strongest(seen: Seen, some: FRAGMENTS) -> FRAGMENTS:
    """Some fragments by falling maximum; of equal ones the earlier first."""
    return some[np.argsort(-seen.maximum[some], kind="stable")]


def _spread(ranked: FRAGMENTS, each: int, rng: np.random.Generator) -> Int64[NDArray, "chosen"]:
    """``each`` random ones of every quantile, the strongest quantile first."""
    parts = [rng.permutation(part)[:each] for part in np.array_split(ranked, QUANTILES)]
    return np.concatenate(parts)
