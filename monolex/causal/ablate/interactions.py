"""Whether two features act each for itself: ablated together, alone, and what is left over.

``I(i, j) = Δ_ij − Δ_i − Δ_j`` of a number that is read off the logits. Where either of two features suffices (an OR
gate) every single ablation changes nothing while the pair does: what ranks features one by one must miss them.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from monolex import stats
from monolex.causal.ablate.controls import AblationBatch, active_codes
from monolex.causal.ablate.measures import over_documents, p_value
from monolex.causal.config import AblateConfig
from monolex.causal.suffix import Suffix
from monolex.dictionaries.base import Dictionary
from monolex.stats import Bootstrap, Estimate

Metric = Callable[[Float[Tensor, "versions rows vocab"]], Float[Tensor, "versions rows"]]
"""A number for every row of the logits of the next token."""


class Interaction(NamedTuple):
    """The ablated feature and a partner, over the occurrences on which both are active."""

    feature: int
    """The partner."""
    alone: Estimate
    """Change of the metric when the partner alone is ablated."""
    both: Estimate
    """When both are."""
    interaction: Estimate
    """``both`` less the two single changes: 0 if each acts for itself."""
    p: float | None
    """Of the t-test over documents that it is 0, Benjamini–Hochberg corrected over the partners; None for fewer than
    three documents, or where it is the same in all."""


@torch.no_grad()
def interactions(
    suffix: Suffix,
    deltas: Float[Tensor, "features prompts tokens d_in"],
    metric: Metric,
    *,
    of: int | None = None,
    batch_tokens: int = 8192,
) -> Float[Tensor, "features features prompts"]:
    """``I(i, j)`` of what is added at the site, with the single changes ``Δ_i`` on the diagonal.

    With ``of`` only its own pairs are run, and those of two others are NaN.
    """
    count = len(deltas)
    pairs = [pair for pair in combinations(range(count), 2) if of is None or of in pair]
    sets = [(), *((single,) for single in range(count)), *pairs]
    fold = max(1, batch_tokens // suffix.states)
    values = []
    for start in range(0, len(sets), fold):
        edits = torch.stack([deltas[list(members)].sum(0) for members in sets[start : start + fold]])
        values.append(metric(suffix.end_logits(suffix.x + edits.to(suffix.x.dtype))))
    changed = torch.cat(values)
    changed = changed[1:] - changed[0]
    table = changed.new_full((count, count, changed.shape[1]), torch.nan)
    for i in range(count):
        table[i, i] = changed[i]
    for (i, j), both in zip(pairs, changed[count:], strict=True):
        table[i, j] = table[j, i] = both - changed[i] - changed[j]
    return table


@torch.no_grad()
def with_partners(
    batch: AblationBatch,
    dictionary: Dictionary,
    partners: Sequence[int],
    metric: Metric,
    config: AblateConfig,
) -> Float[Tensor, "values partners rows"]:
    """Of each partner its single change, that of both, and their interaction; NaN where either is silent.

    The feature becomes what the ablation makes of it, partners become 0.
    """
    edit = batch.edits(batch.way.expand(1, len(batch.rows), -1))
    chosen = torch.tensor(partners, device=batch.codes.device)
    codes = active_codes(dictionary, batch.suffix, chosen, config.positions, batch.rule)
    others = -codes.permute(2, 0, 1)[..., None] * dictionary.W_dec[chosen][:, None, None]
    table = interactions(batch.suffix, torch.cat([edit, others]), metric, of=0, batch_tokens=config.batch_tokens)
    alone, between = table.diagonal().T[1:], table[0, 1:]
    silent = ~((batch.lengths != 0).any(1) & (codes > 0).any(1).T)
    return torch.stack([alone, between + alone + table[0, 0], between]).masked_fill(silent, torch.nan)


def tested(
    partners: Sequence[int],
    values: Float[Tensor, "values partners occurrences"],
    number: NDArray[np.int64],
    bootstrap: Bootstrap,
) -> list[Interaction]:
    """Estimates and corrected tests of what :func:`with_partners` gives; ``number`` is every occurrence's document."""
    estimates = [[over_documents(row, number, bootstrap) for row in rows] for rows in values.unbind(1)]
    plain = [p_value(means) for _, _, (_, means) in estimates]
    corrected = stats.benjamini_hochberg(np.array([np.nan if p is None else p for p in plain]))
    return [
        Interaction(partner, alone, both, interaction, None if p is None else float(q))
        for partner, ((alone, _), (both, _), (interaction, _)), p, q in zip(
            partners, estimates, plain, corrected, strict=True
        )
    ]
