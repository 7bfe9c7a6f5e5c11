"""How alike directions are: within a dictionary, between two, between seeds, and to a model's (un)embedding rows.

Cosines are signed, since a feature and its opposite are two features; only where a dictionary's codes are signed (PCA,
ICA), so that the sign of its rows is arbitrary, are they taken without sign. Every feature counts, dead ones too: a
dead feature kept its random start, so it lowers the overlap between seeds, as it should. Products are done in blocks,
so that 32 k features need megabytes.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex import runtime, stats
from monolex.config import EvalConfig
from monolex.dictionaries.base import Dictionary
from monolex.evals.intervals import exact, over_features, over_pairs
from monolex.stats import Estimate, not_applicable

THRESHOLDS = (0.7, 0.9)
MATCH_LIMIT = 8192
BLOCK = 2**24


class Matching(NamedTuple):
    """The one-to-one matching of the features of two dictionaries with the largest total cosine."""

    features: Int[Tensor, "pairs"]
    """Features of the first dictionary, ascending."""
    partners: Int[Tensor, "pairs"]
    """Their partners in the second."""
    cosines: Float[Tensor, "pairs"]
    """Their cosines."""


def unit_rows(matrix: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
    """Rows scaled to unit length in float32 or better; a zero row stays zero."""
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    return matrix / matrix.norm(dim=1, keepdim=True).clamp_min(1e-8)


def nearest(
    a: Float[Tensor, "rows_a d"], b: Float[Tensor, "rows_b d"], *, unsigned: bool = False, others: bool = False
) -> Float[Tensor, "rows_a"]:
    """The largest cosine of each row of ``a`` to a row of ``b``, in blocks.

    ``unsigned`` compares axes instead of directions; ``others`` leaves out the row of ``b`` with the same index.
    """
    a, b = unit_rows(a), unit_rows(b)
    step = max(1, BLOCK // max(1, len(b)))
    best = [a.new_zeros(0)]
    for start in range(0, len(a), step):
        cosines = a[start : start + step] @ b.T
        cosines = cosines.abs() if unsigned else cosines
        if others:
            cosines.diagonal(start).fill_(-torch.inf)
        best.append(cosines.amax(1))
    return torch.cat(best)


def decoder_cosines(dictionary: Dictionary) -> Float[Tensor, "d_sae"]:
    """The largest cosine of each feature's direction to another feature's of the same dictionary (two or more)."""
    return nearest(dictionary.W_dec, dictionary.W_dec, unsigned=dictionary.signed, others=True).cpu()


def decoder_metrics(dictionary: Dictionary, config: EvalConfig) -> dict[str, Estimate]:
    """``decoder_cosine`` (mean over features of the largest cosine to another feature) and ``decoder_cosine_max``."""
    if dictionary.d_sae < 2:
        alone = not_applicable("the dictionary has one feature only")
        return {"decoder_cosine": alone, "decoder_cosine_max": alone}
    cosines = decoder_cosines(dictionary)
    return {
        "decoder_cosine": over_features(cosines, config),
        "decoder_cosine_max": exact(float(cosines.max()), dictionary.d_sae, "features", "a maximum"),
    }


def mmcs(a: Dictionary, b: Dictionary, config: EvalConfig) -> Estimate:
    """Mean over the features of ``a`` of the largest cosine to a feature of ``b``; not symmetric."""
    return over_features(nearest(a.W_dec, b.W_dec, unsigned=a.signed or b.signed).cpu(), config)


def matching(a: Dictionary, b: Dictionary) -> Matching:
    """Hungarian matching of the features of ``a`` to those of ``b`` (all of the smaller one are matched)."""
    cosines = unit_rows(a.W_dec) @ unit_rows(b.W_dec).T
    cosines = (cosines.abs() if a.signed or b.signed else cosines).cpu()
    rows, columns = (torch.from_numpy(part) for part in stats.match(cosines.numpy()))
    return Matching(rows, columns, cosines[rows, columns])


def pair_metrics(a: Dictionary, b: Dictionary, config: EvalConfig) -> dict[str, Estimate]:
    """MMCS both ways and the Hungarian matching of two dictionaries of one site, over features.

    ``matched_cosine`` and the fractions ``matched_above_0.7``/``0.9`` are over the matched pairs.
    """
    result = {"mmcs": mmcs(a, b, config), "mmcs_back": mmcs(b, a, config)}
    above = [f"matched_above_{threshold}" for threshold in THRESHOLDS]
    if max(a.d_sae, b.d_sae) > MATCH_LIMIT:
        reason = not_applicable(f"Hungarian matching is done up to {MATCH_LIMIT} features")
        return result | dict.fromkeys(["matched_cosine", *above], reason)
    cosines = matching(a, b).cosines
    shares = {name: over_features(cosines > value, config) for name, value in zip(above, THRESHOLDS, strict=True)}
    return result | {"matched_cosine": over_features(cosines, config)} | shares


def random_like(dictionary: Dictionary, seed: int) -> Dictionary:
    """As many random directions of the same width in its place: the floor of every similarity."""
    shape = dictionary.W_dec.shape
    rows = torch.randn(shape, generator=runtime.generator("random-like", seed, *shape)).to(dictionary.W_dec)
    return Dictionary(dictionary.config, {**dictionary.weights, "W_dec": unit_rows(rows)})


def seed_overlap(dictionaries: Sequence[Dictionary]) -> dict[str, Estimate]:
    """Fraction of features whose Hungarian partner under another seed has a cosine above .7 and .9.

    Mean over the pairs of seeds; the reason names the range over them.
    """
    names = [f"seed_overlap_{threshold}" for threshold in THRESHOLDS]
    if len(dictionaries) < 2:
        return dict.fromkeys(names, not_applicable("one seed only"))
    if max(d.d_sae for d in dictionaries) > MATCH_LIMIT:
        return dict.fromkeys(names, not_applicable(f"Hungarian matching is done up to {MATCH_LIMIT} features"))
    cosines = [matching(a, b).cosines for a, b in itertools.combinations(dictionaries, 2)]
    return {
        name: over_pairs([float((c > threshold).float().mean()) for c in cosines], "pairs of seeds")
        for name, threshold in zip(names, THRESHOLDS, strict=True)
    }


def cosine_to_rows(dictionary: Dictionary, matrix: Float[Tensor, "rows d"], config: EvalConfig) -> Estimate:
    """Mean over features of the largest cosine to a row of ``matrix`` (a model's embedding or unembedding).

    How much of a dictionary merely names tokens; no value where the widths differ.
    """
    if matrix.shape[1] != dictionary.config.d_out:
        return not_applicable(f"directions of width {dictionary.config.d_out} beside rows of width {matrix.shape[1]}")
    matrix = matrix.to(dictionary.W_dec.device)
    return over_features(nearest(dictionary.W_dec, matrix, unsigned=dictionary.signed).cpu(), config)
