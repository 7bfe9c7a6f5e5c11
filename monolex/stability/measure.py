"""What sets the features that come back apart from those that do not, of one dictionary.

That stable features carry most of what a model predicts by, and unstable ones little, is a claim of arXiv 2606.12138.
Here both groups are ablated feature by feature where they are active (less than rank one, the reconstruction error
kept), taken out of the reconstruction as wholes, and compared in how well they are explained. A group that is active
more often, or more strongly, has larger effects for that alone: density and size of both stand beside the effects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from monolex import stats
from monolex.activations.reader import Reader
from monolex.causal.ablate.controls import batches
from monolex.causal.config import AblateConfig
from monolex.causal.occurrences import Occurrences, occurrences
from monolex.causal.prompts.behaviour import kl
from monolex.dictionaries.base import Dictionary
from monolex.evals.similarity import random_like
from monolex.features.evidence import Summary
from monolex.features.seeds import nearest_in
from monolex.model.language_model import LanguageModel
from monolex.stability.config import StabilityConfig
from monolex.stats import Bootstrap, Estimate, not_applicable

GROUPS = ("stable", "unstable")
LEAST_ACTIVE = 10
"""Rows in which a feature must be active to be taken into a group: of rarer ones ablation says little."""
FEATURES, DOCUMENTS = "features", "documents"


@dataclass(frozen=True, eq=False)
class Grouped:
    """The features of a dictionary by how often they come back."""

    members: Mapping[str, NDArray[np.int64]]
    """All features of each of :data:`GROUPS`."""
    sample: Mapping[str, NDArray[np.int64]]
    """Those of them that are ablated."""


class Ablated(NamedTuple):
    """What ablating one feature does."""

    kl: float
    """Mean over its occurrences of KL(base ‖ ablated), nats."""
    size: float
    """Mean over them of the length of what is taken away."""


def active(summaries: Sequence[Summary]) -> list[Summary]:
    """The features that are active often enough; a dead one kept its random start, which no other seed has."""
    return [s for s in summaries if s.n_active >= LEAST_ACTIVE]


def grouped(summaries: Sequence[Summary], config: StabilityConfig) -> Grouped:
    """The features that are active often enough, in groups, and a sample of each."""
    known = [(s.id, s.reappears) for s in active(summaries) if s.reappears is not None]
    chosen = {
        "stable": [feature for feature, share in known if share >= config.stable],
        "unstable": [feature for feature, share in known if share <= config.unstable],
    }
    members = {name: np.array(ids, np.int64) for name, ids in chosen.items()}
    rng = np.random.default_rng(config.stability_seed)
    sample = {name: np.sort(rng.permutation(ids)[: config.sample]) for name, ids in members.items()}
    return Grouped(members, sample)


@torch.no_grad()
def ablated(
    lm: LanguageModel, dictionary: Dictionary, feature: int, places: Occurrences, config: StabilityConfig
) -> Ablated:
    """Ablate a feature at its occurrences, to zero at the token alone."""
    ablation = AblateConfig(batch_tokens=config.batch_tokens)
    target = torch.zeros(places.tokens.shape).to(dictionary.W_dec)
    values, sizes = [], []
    for batch in batches(lm, dictionary, feature, places, target, ablation):
        log_p = batch.logits(batch.way.expand(1, len(batch.rows), -1)).log_softmax(-1)
        values.append(kl(log_p[0], log_p[1]).double().cpu())
        sizes.append(batch.lengths[:, -1].abs().double().cpu())
    return Ablated(float(torch.cat(values).mean()), float(torch.cat(sizes).mean()))


def ablations(
    lm: LanguageModel,
    dictionary: Dictionary,
    activations: Path,
    groups: Grouped,
    config: StabilityConfig,
    split: Literal["train", "held_out"],
    advance: Callable[[int], Any],
) -> dict[str, list[Ablated]]:
    """Of every group the ablations of its sample; one pass over the activations finds all their occurrences.

    ``split`` is that of the evidence, by which the groups were chosen. The evidence may have read rows that the site's
    rule leaves out: a feature that is active in no others is left out, so that fewer features stand behind the mean.
    """
    wanted = np.concatenate([groups.sample[name] for name in GROUPS]).tolist()
    places = occurrences(
        activations, dictionary, wanted, count=config.occurrences, split=split, seed=config.stability_seed
    )
    done: dict[str, list[Ablated]] = {name: [] for name in GROUPS}
    for name in GROUPS:
        for feature in groups.sample[name].tolist():
            if len(places[feature].end):
                done[name].append(ablated(lm, dictionary, feature, places[feature], config))
            advance(1)
    return done


@torch.no_grad()
def reconstruction(
    dictionary: Dictionary, activations: Path, groups: Grouped, config: StabilityConfig
) -> dict[str, Estimate]:
    """Share of the variance of held-out activations that is no longer explained without a group, over documents."""
    reader = Reader(activations, dictionary.config.site, "held_out")
    rows = min(config.rows, len(reader))
    where = dictionary.W_dec.device
    x = reader.read(0, rows).to(where)
    mean, lost, variance = x.float().mean(0), {name: [] for name in GROUPS}, []
    members = {name: torch.from_numpy(ids).to(where) for name, ids in groups.members.items()}
    for part in x.float().split(4096):
        codes = dictionary.encode(part)
        error = part - dictionary.decode(codes)
        variance.append((part - mean).square().sum(1))
        for name, ids in members.items():
            without = error + codes[:, ids] @ dictionary.W_dec[ids]
            lost[name].append(without.square().sum(1) - error.square().sum(1))
    docs = reader.docs(0, rows).numpy()
    total = _by_document(torch.cat(variance), docs)
    bootstrap = Bootstrap(config.resamples, config.level, config.stability_seed)
    return {name: bootstrap.ratio(_by_document(torch.cat(lost[name]), docs), total, DOCUMENTS) for name in GROUPS}


def chance(dictionary: Dictionary, seed: int) -> float:
    """Share of features that have a like one among as many random directions: what coming back by chance would be."""
    other = random_like(dictionary, seed)
    other = Dictionary(other.config, {**other.weights, "W_enc": other.W_dec.clone()})
    return float(nearest_in(dictionary, other).alike.double().mean())


def compared(values: Mapping[str, Sequence[float] | NDArray], config: StabilityConfig) -> dict[str, Any]:
    """Mean of each group over features, and the difference of the two, each with its interval."""
    bootstrap = Bootstrap(config.resamples, config.level, config.stability_seed)
    groups = {name: np.asarray(values[name], np.float64) for name in GROUPS}
    means = {
        name: bootstrap.mean(group, FEATURES) if len(group) else not_applicable("no such features")
        for name, group in groups.items()
    }
    apart = stats.difference(groups["stable"], groups["unstable"], FEATURES, **bootstrap._asdict())
    return {**{name: mean._asdict() for name, mean in means.items()}, "difference": apart._asdict()}


def distribution(summaries: Sequence[Summary]) -> list[int]:
    """How many features came back in 0, 1, 2, … of the other seeds."""
    seeds = max((s.seeds for s in summaries), default=0)
    times = [round(s.reappears * s.seeds) for s in summaries if s.reappears is not None]
    return np.bincount(np.array(times, np.int64), minlength=seeds + 1).tolist()


def _by_document(values: Float[Tensor, "rows"], docs: NDArray) -> NDArray[np.float64]:
    _, number = np.unique(docs, return_inverse=True)
    return np.bincount(number, weights=values.double().cpu().numpy()).astype(np.float64)
