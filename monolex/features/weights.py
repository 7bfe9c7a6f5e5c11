"""What the weights alone say of a feature: its neighbours, the tokens it is closest to, the logits it moves directly.

*Direct* logits follow a direction through the final norm's linear part and the unembedding and through nothing else:
``unembedding · A d`` less its mean over the vocabulary, where the norm is ``A x / s(x) + b`` and its scale ``s`` is
left at 1. ``A`` (the gain; with a LayerNorm the centring, too) is found by probing the norm with numbers, so that no
architecture needs a case of its own. Directions of neurons and heads first go through their layer's output projection.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from monolex.dictionaries.base import Dictionary
from monolex.evals.evaluate import RESIDUAL
from monolex.evals.similarity import BLOCK, unit_rows
from monolex.features.ragged import largest_of_rows
from monolex.features.store_writer import StoreWriter
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.text.vocabulary import Texts

PROJECTED: Mapping[str, str] = {"mlp_act": "mlp_out", "attn_z": "attn_out"}
"""Sites before an output projection, and what it contributes to."""

Linear = Callable[[Tensor], Tensor]


class Direct(NamedTuple):
    """How directions of a site reach the logits."""

    through: Linear | None
    """From the site to the unembedding; None where there is no such way."""
    reason: str = ""
    """Why not."""


class Closest(NamedTuple):
    """The token whose row is closest to each direction."""

    token: Int64[NDArray, "d_sae"]
    """Token id; -1 where none is asked for."""
    cosine: Float64[NDArray, "d_sae"]
    """Cosine; NaN where none is asked for."""


@torch.no_grad()
def neighbours(writer: StoreWriter, dictionary: Dictionary, keep: int) -> None:
    """Write the table ``neighbour``: the features with the largest decoder cosine."""
    directions = unit_rows(dictionary.W_dec)
    for first, part in _blocks(directions, len(directions)):
        cosines = part @ directions.T
        cosines.diagonal(first).fill_(-torch.inf)
        nearest = largest_of_rows(cosines.cpu().numpy(), min(keep, len(directions) - 1))
        values = cosines.cpu().numpy()[nearest.segment, nearest.place]
        columns = (first + nearest.segment, nearest.rank, nearest.place, values)
        writer.insert("neighbour", zip(*(column.tolist() for column in columns), strict=True), 4)


@torch.no_grad()
def direct_logits(writer: StoreWriter, dictionary: Dictionary, lm: LanguageModel, way: Direct, keep: int) -> set[int]:
    """Write the table ``direct``: the tokens that each direction promotes (side 1) and suppresses (side -1) most.

    Returns the tokens that are named.
    """
    named: set[int] = set()
    if way.through is None:
        return named
    unembedding = centred_unembedding(lm, dictionary)
    for first, part in _blocks(dictionary.W_dec, len(unembedding)):
        logits = (way.through(part) @ unembedding.T).cpu().numpy()
        sides: list[list[Any]] = []
        for side in (-1, 1):
            largest = largest_of_rows(side * logits, keep)
            weights = logits[largest.segment, largest.place]
            moved = side * weights > 0
            columns = [first + largest.segment, np.full(len(weights), side), largest.rank, largest.place, weights]
            sides.append([column[moved] for column in columns])
        columns = [np.concatenate(column) for column in zip(*sides, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        named.update(columns[3].tolist())
        writer.insert("direct", zip(*(column[order].tolist() for column in columns), strict=True), 5)
    return named


@torch.no_grad()
def closest(dictionary: Dictionary, site: Site, lm: LanguageModel, matrix: Float[Tensor, "vocab d_model"]) -> Closest:
    """The row of ``matrix`` with the largest cosine to each direction; of sites in the residual stream only."""
    if site.kind not in RESIDUAL or dictionary.config.d_out != lm.d_model:
        return Closest(np.full(dictionary.d_sae, -1), np.full(dictionary.d_sae, np.nan))
    rows = unit_rows(named_rows(lm, matrix).to(dictionary.W_dec))
    tokens, cosines = [], []
    for _, part in _blocks(unit_rows(dictionary.W_dec), len(rows)):
        similarity = (part @ rows.T).cpu().numpy()
        tokens.append(similarity.argmax(1))
        cosines.append(similarity.max(1).astype(np.float64))
    return Closest(np.concatenate(tokens), np.concatenate(cosines))


def named_rows(lm: LanguageModel, matrix: Float[Tensor, "vocab d"]) -> Float[Tensor, "named d"]:
    """The rows of an (un)embedding that stand for a token of the tokenizer; matrices are often padded."""
    return matrix.detach() if lm.tokenizer is None else matrix.detach()[: len(lm.tokenizer)]


def centred_unembedding(lm: LanguageModel, dictionary: Dictionary) -> Float[Tensor, "named d"]:
    """The unembedding's rows that stand for a token, less their mean, where the dictionary's weights lie."""
    rows = named_rows(lm, lm.unembedding).to(dictionary.W_dec)
    return rows - rows.mean(0)


@torch.no_grad()
def way_to_logits(lm: LanguageModel, site: Site, dictionary: Dictionary) -> Direct:
    """The linear map from the directions of a dictionary to what the unembedding reads."""
    width = dictionary.config.d_out
    steps: list[Linear] = []
    if site.kind in PROJECTED:
        place = lm.place(site)
        if width != place.width:
            return Direct(None, f"directions of width {width} are not of {site}, which has {place.width}")
        steps.append(_without_bias(place.module, width))
        after = lm.place(Site(PROJECTED[site.kind], site.layer)).module
        if place.module not in after.modules():
            # what the projection gives is normalised before it is added (Gemma, OLMo-2)
            post = linear_part(after, lm.d_model)
            if post is None:
                return Direct(None, f"what {site} adds passes a module that is no norm")
            steps.append(post)
    elif site.kind not in RESIDUAL:
        return Direct(None, f"{site.kind} is read from the residual stream, not written to it")
    elif width != lm.d_model:
        return Direct(None, f"directions of width {width} are not in the residual stream, which has {lm.d_model}")
    final = linear_part(lm.final_norm, lm.d_model)
    if final is None:
        return Direct(None, f"the final {type(lm.final_norm).__name__} is neither a LayerNorm nor an RMS norm")
    steps.append(final)

    def through(directions: Tensor) -> Tensor:
        for step in steps:
            directions = step(directions)
        return directions

    return Direct(through)


@torch.no_grad()
def linear_part(norm: nn.Module, width: int) -> Linear | None:
    """``x -> A x`` of a norm ``A x / s(x) + b``: gain times ``x``, which a LayerNorm centres; None of anything else."""
    norm, where = copy.deepcopy(norm).double(), next(norm.parameters()).device
    generator = torch.Generator().manual_seed(0)
    # large beside the epsilon in the scale
    probes = 100 * torch.randn(3, width, generator=generator, dtype=torch.float64).to(where)
    bias = norm(torch.zeros_like(probes[:1]))
    normed = norm(probes) - bias
    size = float(normed.abs().max())
    centred = float((norm(torch.ones_like(probes[:1])) - bias).abs().max()) < 1e-6 * size

    def centre(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if centred else x

    plain = centre(probes) / centre(probes).square().mean(-1, keepdim=True).sqrt()
    gain = normed[0] / plain[0]
    if not torch.allclose(plain * gain, normed, rtol=0, atol=1e-4 * size):
        return None
    return lambda directions: centre(directions) * gain.to(directions)


@torch.no_grad()
def _without_bias(module: nn.Module, width: int) -> Linear:
    """The linear map of an output projection, whichever way its matrix is written."""
    module = copy.deepcopy(module).float()
    zero = torch.zeros(1, width, device=next(module.parameters()).device)
    bias = module(zero)
    return lambda directions: (module(directions.to(zero)) - bias).to(directions)


def _blocks(matrix: Float[Tensor, "rows d"], columns: int) -> Iterator[tuple[int, Float[Tensor, "block d"]]]:
    step = max(1, BLOCK // max(1, columns))
    return ((start, matrix[start : start + step]) for start in range(0, len(matrix), step))


class Moved(NamedTuple):
    """The tokens whose logits a direction moves most by itself."""

    promoted: list[str]
    """Raised most, the most first."""
    suppressed: list[str]
    """Lowered most."""


@torch.no_grad()
def moved(
    lm: LanguageModel, site: Site, dictionary: Dictionary, features: Sequence[int], count: int
) -> tuple[list[Moved], str]:
    """The ``count`` tokens that each of some features promotes and suppresses most; why not, where there is no way."""
    way = way_to_logits(lm, site, dictionary)
    if way.through is None or not count or not features:
        return [Moved([], []) for _ in features], way.reason
    texts, moved_tokens = Texts(lm), []
    unembedding = centred_unembedding(lm, dictionary)
    logits = way.through(dictionary.W_dec[list(features)]) @ unembedding.T
    for row in logits:
        sides = (row.topk(min(count, len(row))).indices, (-row).topk(min(count, len(row))).indices)
        moved_tokens.append(Moved(*([texts.of([token])[0][1] for token in side.tolist()] for side in sides)))
    return moved_tokens, ""
