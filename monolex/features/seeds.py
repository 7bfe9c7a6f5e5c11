"""Which features come back: whether a dictionary of another seed has a feature like one of this dictionary's.

Two features are alike if the cosines of their encoder rows and of their decoder rows are both at least :data:`ALIKE`,
and each is the other's nearest by the lesser of the two (the measure of "Sparse Autoencoders Trained on the Same Data
Learn Different Features", arXiv 2501.16615, with mutual neighbours in place of its assignment, so that width costs
products and no matching). The share of other seeds with a like feature estimates the probability that the feature
reappears (arXiv 2606.12138). The seeds of a sweep begin with other weights and see the same rows in the same order:
what training on other text would bring back is not measured by them.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.dictionaries.listing import RunDictionary
from monolex.evals.similarity import BLOCK, unit_rows
from monolex.stats import share

ALIKE: Final = 0.7
"""Least cosine, of the encoder's rows and of the decoder's, of features that are taken for one."""
_CHANCE: Final = ("name", "seed", "scale", "steps_done", "rows_seen", "precision", "pressure")
"""Of a recipe, what differs between seeds or says what training came to."""


class Reappearance(NamedTuple):
    """Columns of the table ``feature``: how often each comes back under other seeds."""

    seeds: Int64[NDArray, "d_sae"]
    """Other seeds that were looked at."""
    reappears: Float64[NDArray, "d_sae"]
    """Share of them with a like feature; NaN where there are none."""
    reappears_low: Float64[NDArray, "d_sae"]
    """Lower end of its 95 % interval over seeds (Wilson's)."""
    reappears_high: Float64[NDArray, "d_sae"]
    """Upper end."""
    seed_cosine: Float64[NDArray, "d_sae"]
    """Mean over them of the likeness to the nearest feature: the lesser of the two cosines."""


class Nearest(NamedTuple):
    """The features of one dictionary beside those of another."""

    likeness: Float[Tensor, "features"]
    """To the nearest of the other: the lesser of the cosines of encoder and decoder rows."""
    partner: Int64[Tensor, "features"]
    """That feature."""
    mutual: Tensor
    """bool [features]: whether this one is also that one's nearest."""

    @property
    def alike(self) -> Tensor:
        """bool [features]: which have a like feature in the other dictionary."""
        return self.mutual & (self.likeness >= ALIKE)


def other_seeds(dictionary: RunDictionary, listed: Iterable[RunDictionary]) -> list[RunDictionary]:
    """Of the dictionaries ``listed`` those made by the same recipe at the same site with other seeds, one a seed.

    Those that went on from another dictionary (`init`) have no seed of their own: all of them began with its weights.
    """
    if not dictionary.trained or dictionary.config.recipe.get("init"):
        return []
    recipe, seeds = recipe_of(dictionary.config), {dictionary.config.recipe.get("seed")}
    others = []
    for other in listed:
        seed, alike = other.config.recipe.get("seed"), other.model == dictionary.model and other.trained
        if alike and seed not in seeds and recipe_of(other.config) == recipe:
            seeds.add(seed)
            others.append(other)
    return others


def recipe_of(config: DictionaryConfig) -> dict[str, object]:
    """What two dictionaries share that differ in nothing but their seed, and what that made of the training."""
    chosen = {key: value for key, value in config.recipe.items() if key not in _CHANCE}
    shape = {name: getattr(config, name) for name in ("d_in", "d_out", "d_sae", "k", "kind", "site", "target")}
    return {**chosen, **shape, "model": config.model_fingerprint}


@torch.no_grad()
def nearest_in(dictionary: Dictionary, other: Dictionary) -> Nearest:
    """Every feature beside the nearest of a dictionary of the same site."""
    mine = unit_rows(dictionary.W_enc), unit_rows(dictionary.W_dec)
    theirs = unit_rows(other.W_enc).to(mine[0].device), unit_rows(other.W_dec).to(mine[0].device)
    step = max(1, BLOCK // max(1, other.d_sae))
    likeness, partner = [], []
    best, back = mine[0].new_full((other.d_sae,), -2.0), torch.zeros(other.d_sae, dtype=torch.int64)
    for first in range(0, dictionary.d_sae, step):
        encoders, decoders = (rows[first : first + step] @ others.T for rows, others in zip(mine, theirs, strict=True))
        both = torch.minimum(encoders, decoders)
        row, column = both.max(1), both.max(0)
        likeness.append(row.values)
        partner.append(row.indices)
        better = column.values > best
        best = torch.where(better, column.values, best)
        back = torch.where(better.cpu(), first + column.indices.cpu(), back)
    partners = torch.cat(partner).cpu()
    mutual = back[partners] == torch.arange(dictionary.d_sae)
    return Nearest(torch.cat(likeness).cpu(), partners, mutual)


def reappearance(dictionary: Dictionary, others: Sequence[RunDictionary]) -> Reappearance:
    """How often every feature of ``dictionary`` comes back in ``others``, which are loaded one after the other."""
    d_sae, count = dictionary.d_sae, len(others)
    back, likeness = np.zeros(d_sae, np.int64), np.zeros(d_sae)
    for other in others:
        nearest = nearest_in(dictionary, other.weights())
        back += nearest.alike.numpy()
        likeness += nearest.likeness.double().numpy()
    shares = [share(times, count, "seeds") for times in range(count + 1)]
    table = np.array([[np.nan if end is None else end for end in (s.value, s.low, s.high)] for s in shares])
    value, low, high = table[back].T
    mean = likeness / count if count else np.full(d_sae, np.nan)
    return Reappearance(np.full(d_sae, count), value, low, high, mean)
