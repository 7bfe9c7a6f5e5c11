"""Which rows count: the rule by which a harvest left rows out, for whoever has a model's activations before him.

A dictionary has seen neither separators nor rows of an extreme norm. So neither is reconstructed, edited or said to
have active features anywhere: what a replaced forward, a patch or a prompt does at such a token is nothing.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.activations.norms import row_norms
from monolex.artifact import open_artifact


class RowFilter(NamedTuple):
    """What is left out of a model's activations, as a harvest is asked for it."""

    drop_bos: bool = True
    """Whether separators are left out."""
    max_norm: float = 10.0
    """Multiple of a site's median norm beyond which a row is left out; 0 leaves none out."""


class RowRule(NamedTuple):
    """The rule of one site."""

    separator: int | None = None
    """Token that is left out; None leaves none out."""
    limit: float | None = None
    """Largest norm of a row that counts, in the model's units; None: all count."""

    def counts(self, tokens: Int[Tensor, "*rows"], x: Float[Tensor, "*rows d_in"]) -> Bool[Tensor, "*rows"]:
        """Which of the rows ``x``, activations at ``tokens``, count; where ``x`` lies."""
        counting = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        if self.separator is not None:
            counting &= tokens.to(x.device) != self.separator
        if self.limit is not None:
            counting &= row_norms(x.flatten(0, -2)).view(counting.shape) <= self.limit
        return counting


EVERY_ROW = RowRule()
"""All rows count."""
USUAL = RowFilter()
"""What a harvest leaves out by default."""


def row_rule(activations: Path, site: str) -> RowRule:
    """By which rule rows of a stored site count."""
    manifest = open_artifact(activations, "activations")
    separator = manifest.data["corpus"]["separator"]["token"] if manifest.config["drop_bos"] else None
    return RowRule(separator, manifest.data["sites"][site]["norm_limit"])
