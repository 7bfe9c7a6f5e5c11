"""What was taken from an activation given back: at the site itself, and at later layers of the residual stream.

What adding it back at a layer does not undo was mediated by the layers before that one. Each layer costs the rest of
the model once more for every occurrence, so that of a deep model only a few layers are looked at by default.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from monolex.causal.ablate.controls import AblationBatch
from monolex.causal.ablate.measures import DOCUMENTS, over_documents
from monolex.config import require
from monolex.model.sites import Site, select
from monolex.stats import Bootstrap, Estimate

RESIDUAL = ("resid_pre", "resid_mid", "resid_post")
LATER = 5
"""Later layers at which what was taken is given back unless it is said where; the last is one of them."""


class Rescue(NamedTuple):
    """Share of the squared change of the log-probabilities undone by adding the feature back at a later site."""

    site: str
    """Where it is added back."""
    own: Estimate
    """``c_i f_i`` itself: 1 at the site of the ablation; later, what the layers between did not mediate."""
    control: Estimate
    """The random direction of the same length."""


class Undone(NamedTuple):
    """What adding back does for some occurrences."""

    lost: Float[Tensor, "rows"]
    """Squared length of the change of the log-probabilities that the ablation makes."""
    by_site: dict[str, Float[Tensor, "versions rows"]]
    """By site, how much shorter that is with the feature added back, and with the random direction."""


def later_sites(site: str, n_layers: int) -> tuple[str, ...]:
    """Where a feature of ``site`` can be added back later; nowhere outside the residual stream."""
    at = Site.parse(site)
    first = at.layer + (at.kind == "resid_post")
    return tuple(str(Site("resid_post", layer)) for layer in range(first, n_layers) if at.kind in RESIDUAL)


def rescue_sites(site: str, n_layers: int, names: Sequence[str]) -> tuple[str, ...]:
    """Of the later sites of ``site`` those that ``names`` mean; for none :data:`LATER`, evenly spread up to the last.

    Raises:
        UserError: a name that is not of a later layer of the residual stream.
    """
    later = later_sites(site, n_layers)
    if names:
        require(
            bool(later), f"rescue = {list(names)}: no residual stream after {site} holds its features; leave it out"
        )
        return select(names, later, f"rescue: the residual stream after {site}")
    places = {round(len(later) * (number + 1) / LATER) - 1 for number in range(LATER)}
    return tuple(later[place] for place in sorted(places) if place >= 0)


def add_back(
    batch: AblationBatch,
    ways: Float[Tensor, "2 rows d_in"],
    ablated: Float[Tensor, "rows logits"],
    sites: Sequence[str],
    lost: Callable[[Float[Tensor, "rows logits"]], Float[Tensor, "rows"]],
) -> Undone:
    """Add back what was taken, at the site and at later ``sites``; ``ways`` are its own and a random one.

    ``ablated`` are the logits without it, and ``lost`` is the squared change of the log-probabilities at some logits.
    """
    suffix, back = batch.suffix, -batch.edits(ways)
    before = lost(ablated)
    x = suffix.x - back[0].to(suffix.x.dtype)
    streams = suffix.forward(x[None], tuple(map(Site.parse, sites))) if sites else {}
    places = [suffix, *(suffix.later(Site.parse(site), streams[site]) for site in sites)]
    by_site = {}
    for place in places:
        left = place.end_logits((x if place is suffix else place.x) + back.to(x.dtype))
        by_site[str(place.site)] = torch.stack([before - lost(restored) for restored in left])
    return Undone(before, by_site)


def measured(undone: Sequence[Undone], number: NDArray[np.int64], bootstrap: Bootstrap) -> list[Rescue]:
    """Shares undone by site; ``number`` is every occurrence's document, in the order of ``undone``."""
    _, lost = over_documents(torch.cat([part.lost for part in undone]), number, bootstrap)

    def share(values: Float[Tensor, "occurrences"]) -> Estimate:
        return bootstrap.ratio(over_documents(values, number, bootstrap)[1], lost, DOCUMENTS)

    by_site = {site: torch.cat([part.by_site[site] for part in undone], 1) for site in undone[0].by_site}
    return [Rescue(site, *map(share, values)) for site, values in by_site.items()]
