"""What a feature's weights say by themselves: decoder neighbours, token embeddings, tokens it writes directly."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex.dictionaries.base import Dictionary
from monolex.evals.similarity import unit_rows
from monolex.model import LanguageModel
from monolex.sites import Site

RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites whose activations are in the space of the residual stream."""
PROJECTED = {"mlp_act": "mlp_out", "attn_z": "attn_out"}
"""Sites in front of a projection into it, and what it writes."""
CELLS = 2**24

ToResidual = Callable[[Float[Tensor, "features d_out"]], Float[Tensor, "features d_model"]]


class Nearest(NamedTuple):
    """The largest entries of rows that are made block by block."""

    indices: Int[Tensor, "features k"]
    """Columns."""
    values: Float[Tensor, "features k"]
    """Their values, falling."""


class Direct(NamedTuple):
    """Tokens that directions promote and suppress."""

    promoted: Nearest
    """The largest logits."""
    suppressed: Nearest
    """The smallest, rising."""


def neighbours(dictionary: Dictionary, keep: int) -> Nearest:
    """Other features by falling cosine of decoder directions."""
    rows = unit_rows(dictionary.W_dec)

    def cosines(start: int, stop: int) -> Tensor:
        found = rows[start:stop] @ rows.T
        found[torch.arange(stop - start), torch.arange(start, stop)] = -torch.inf
        return found

    return _largest(cosines, len(rows), len(rows), min(keep, len(rows) - 1))


def nearest_rows(dictionary: Dictionary, matrix: Float[Tensor, "tokens d_model"]) -> Nearest:
    """The row of an embedding or unembedding with the largest cosine to each direction."""
    rows, others = unit_rows(dictionary.W_dec), unit_rows(matrix.float().to(dictionary.W_dec.device))
    return _largest(lambda start, stop: rows[start:stop] @ others.T, len(rows), len(others), 1)


def direct(dictionary: Dictionary, lm: LanguageModel, tokens: int, keep: int) -> Direct | str:
    """The ``keep`` tokens whose logit each direction raises and lowers most, or why that makes no sense.

    The direct path alone: (for neurons and heads) the output projection, the linear part of the final norm with its
    scale left at 1, the unembedding; the mean over the vocabulary is taken away. Only the first ``tokens`` rows of the
    unembedding are tokens.
    """
    onto = to_residual(lm, Site.parse(dictionary.config.site))
    if isinstance(onto, str):
        return onto
    through, unembedding = norm_linear(lm), lm.unembedding[:tokens].float().cpu()
    written = through(onto(dictionary.W_dec.float().cpu()))

    def logits(start: int, stop: int) -> Tensor:
        found = written[start:stop] @ unembedding.T
        return found - found.mean(1, keepdim=True)

    keep = min(keep, tokens)
    promoted = _largest(logits, len(written), tokens, keep)
    lowest = _largest(lambda start, stop: -logits(start, stop), len(written), tokens, keep)
    return Direct(promoted, Nearest(lowest.indices, -lowest.values))


def to_residual(lm: LanguageModel, site: Site) -> ToResidual | str:
    """How a direction at ``site`` is added to the residual stream, or why it is not."""
    if site.kind in RESIDUAL:
        return lambda rows: rows
    if site.kind not in PROJECTED:
        return f"{site.kind} is read inside the block and is not added to the residual stream"
    place, writes = lm.place(site), lm.place(Site(PROJECTED[site.kind], site.layer))
    if all(module is not place.module for module in writes.module.modules()):
        return f"what {site.kind} gives goes through a norm before it is added, which no direction alone decides"
    project = copy.deepcopy(place.module).float().cpu()

    @torch.no_grad()
    def apply(rows: Tensor) -> Tensor:
        return project(rows) - project(torch.zeros_like(rows[:1]))

    return apply


@torch.no_grad()
def norm_linear(lm: LanguageModel) -> ToResidual:
    """The final norm without its division: its gain, and its centring if it has one.

    Both are read off what the module does, so that gains stored as ``1 + w`` (Gemma) need no case of their own.
    """
    norm = copy.deepcopy(lm.final_norm).float().cpu()
    probe = 100 * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    offset = norm(torch.zeros(1, lm.d_model))[0]
    seen, shifted = norm(probe[None])[0], norm(probe[None] + 50)[0]
    centred = torch.allclose(seen, shifted, atol=1e-3)
    inner = probe - probe.mean() if centred else probe
    gain = (seen - offset) * inner.square().mean().sqrt() / inner

    def apply(rows: Tensor) -> Tensor:
        return gain * (rows - rows.mean(1, keepdim=True) if centred else rows)

    return apply


@torch.no_grad()
def _largest(block: Callable[[int, int], Tensor], rows: int, columns: int, keep: int) -> Nearest:
    """The ``keep`` largest entries of every row, equal ones by column; at most :data:`CELLS` are made at once."""
    step = max(1, CELLS // max(columns, 1))
    found = [block(start, min(start + step, rows)).topk(keep, dim=1) for start in range(0, rows, step)]
    return Nearest(torch.cat([f.indices for f in found]).cpu(), torch.cat([f.values for f in found]).cpu())
