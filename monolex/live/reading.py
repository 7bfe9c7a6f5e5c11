"""Which features fire on the tokens of a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from monolex.config import require
from monolex.live.interventions import Intervention
from monolex.live.loaded import LoadedDictionary
from monolex.live.prompt import LivePrompt
from monolex.live.session import LiveModel, TokenCost

_BLOCK = 64
"""Tokens encoded at once."""


class ActiveFeature(NamedTuple):
    """A feature that fires on a token."""

    feature: int
    """Its number."""
    value: float
    """Its code."""
    share: float
    """That over the sum of the codes of all features that fire there and count."""


class TokenFeatures(NamedTuple):
    """What a dictionary reads on a token."""

    counts: bool
    """Whether the row counts at the site; nothing is read on separators and rows of an extreme norm."""
    active: int
    """How many features fire, of those that count."""
    top: tuple[ActiveFeature, ...]
    """The strongest of them; equal ones by number."""


@dataclass(frozen=True)
class Wanted:
    """Which features are read.

    Raises:
        UserError: less than no feature a token.
    """

    dictionaries: tuple[str, ...]
    """``SITE/NAME`` of each."""
    top: int = 10
    """Features a token and dictionary, at most."""
    kept: Mapping[str, Bool[NDArray, "_"]] = field(default_factory=dict)
    """By dictionary which of its features count, for example by their density; all where it has none here."""

    def __post_init__(self) -> None:
        require(self.top >= 0, f"top = {self.top}: give a number of features from 0 on")


class PromptFeatures(NamedTuple):
    """Which features fire on a prompt."""

    prompt: LivePrompt
    """The tokens."""
    features: dict[str, tuple[TokenFeatures, ...]]
    """By dictionary, of every token."""
    cost: TokenCost
    """Tokens that were computed, and that were not."""
    notes: tuple[str, ...]
    """What a reader must know, a sentence each."""


def read(
    live: LiveModel, prompt: LivePrompt, wanted: Wanted, interventions: Sequence[Intervention] = ()
) -> PromptFeatures:
    """The features that fire on every token; under interventions those of the activations behind them.

    Codes of signed kinds (PCA, ICA) are read on their positive side, as in the stores. An ablated feature may still be
    read, weaker, at its own site, where an encoder does not read along the direction that its decoder writes.

    Raises:
        UserError: no such dictionary, ``kept`` of another width, or as :meth:`LiveModel.run`.
    """
    with live.lock:
        require_fitting(live, wanted)
        run = live.run(prompt, interventions)
        features = {}
        for title in wanted.dictionaries:
            dictionary = live.dictionary(title)
            x = run.trace.x[dictionary.site]
            features[title] = tuple(token_features(dictionary, x, prompt.ids, wanted))
    return PromptFeatures(prompt, features, run.cost, (*prompt.notes, *run.notes))


def require_fitting(live: LiveModel, wanted: Wanted) -> None:
    """Refuse what the dictionaries of ``live`` cannot answer.

    Raises:
        UserError: no such dictionary, or ``kept`` of another width than its own.
    """
    for title in wanted.dictionaries:
        width, kept = live.dictionary(title).weights.d_sae, wanted.kept.get(title)
        require(
            kept is None or (kept.shape == (width,) and kept.dtype == bool),
            f"kept of {title}: give a boolean for each of its {width} features",
        )


def token_features(
    dictionary: LoadedDictionary, x: Float[Tensor, "tokens width"], ids: Sequence[int], wanted: Wanted
) -> list[TokenFeatures]:
    """The features that fire on rows ``x``, activations at tokens ``ids``."""
    kept = wanted.kept.get(dictionary.title)
    read = []
    for start in range(0, len(x), _BLOCK):
        rows = x[start : start + _BLOCK]
        counts = dictionary.rule.counts(torch.tensor(ids[start : start + _BLOCK]), rows).tolist()
        codes = dictionary.weights.encode(rows).cpu().numpy()
        # of all rows at once, which is faster than row by row
        firing = np.flatnonzero(codes.ravel() > 0)
        ends = np.searchsorted(firing, np.arange(len(rows) + 1) * codes.shape[1])
        for number, counting in enumerate(counts):
            features = firing[ends[number] : ends[number + 1]] - number * codes.shape[1]
            strongest = _strongest(codes[number], features, kept, wanted.top)
            read.append(strongest if counting else TokenFeatures(False, 0, ()))
    return read


def _strongest(codes: NDArray, features: NDArray, kept: NDArray | None, top: int) -> TokenFeatures:
    if kept is not None:
        features = features[kept[features]]
    count, values = len(features), codes[features]
    total = float(values.sum(dtype=np.float64))
    if count > top > 0:  # all that are not below the last of the top, since that may have equals
        near = values >= np.partition(values, -top)[-top]
        features, values = features[near], values[near]
    order = (-values).argsort(kind="stable")[:top]
    strongest = zip(features[order].tolist(), values[order].tolist(), strict=True)
    return TokenFeatures(True, count, tuple(ActiveFeature(f, value, value / total) for f, value in strongest))
