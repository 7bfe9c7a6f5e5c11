"""From a dictionary and fragments to the examples of its features: one or two passes over the fragments' activations.

The first pass keeps every feature's largest activation in every fragment, from which the fragments are chosen; the
second reads the chosen ones' activations and the features' moments, encoding no more features than were chosen where a
kind allows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from monolex.activations.reader import Reader
from monolex.dictionaries.base import Dictionary
from monolex.interp.config import ExplainConfig
from monolex.interp.examples.choose import CHOOSERS, GROUPS, RARE, Choice, Seen, halves
from monolex.interp.examples.fragments import Windows
from monolex.interp.records import Examples, Failure, Fragment

CODES = 2**22
"""Codes held at once."""
PEAKS = 2**27
"""Maxima held at once: features beyond it are looked at in further passes."""
KEPT = 2**26
"""Codes kept from the first pass for the second, at most."""


class Moments(NamedTuple):
    """Of a feature's activations over all tokens of all fragments (paper, C.4)."""

    mean: Float64[NDArray, "features"]
    """First moment."""
    variance: Float64[NDArray, "features"]
    """Mean square less squared mean."""
    skew: Float64[NDArray, "features"]
    """Third moment about zero over variance^1.5; NaN where the variance is 0."""
    kurtosis: Float64[NDArray, "features"]
    """Fourth moment about zero over variance²; NaN where the variance is 0."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Examples of some features of a dictionary, as arrays."""

    asked: int
    """Features that were looked at: those with examples and those that were skipped."""
    skipped: Mapping[str, int]
    """Features without examples, by reason."""
    features: Int64[NDArray, "features"]
    """Numbers of the features with examples."""
    owner: Int64[NDArray, "examples"]
    """Place in ``features`` of every example; ascends."""
    group: Int64[NDArray, "examples"]
    """Place in :data:`~monolex.interp.examples.choose.GROUPS`."""
    fragment: Int64[NDArray, "examples"]
    """Number of the fragment."""
    activations: Float32[NDArray, "examples tokens"]
    """The feature's activation on each of its tokens."""
    moments: Moments
    """Of every feature with examples."""
    rare: int = 0
    """Features with examples whose random fragments are partly among the strongest, for want of others (``paper``)."""

    def of(self, windows: Windows, texts: Mapping[int, str]) -> list[Examples]:
        """The examples of every feature, spelled out."""
        bounds = np.searchsorted(self.owner, np.arange(len(self.features) + 1))
        spelled: dict[int, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        for n in np.unique(self.fragment).tolist():
            ids = tuple(windows.tokens[n].tolist())
            spelled[n] = ids, tuple(texts[token] for token in ids)
        return [
            self._examples(int(feature), range(bounds[i], bounds[i + 1]), windows, spelled)
            for i, feature in enumerate(self.features)
        ]

    def _examples(
        self,
        feature: int,
        some: Sequence[int],
        windows: Windows,
        spelled: Mapping[int, tuple[tuple[int, ...], tuple[str, ...]]],
    ) -> Examples:
        found: dict[str, list[Fragment]] = {name: [] for name in GROUPS}
        for i in some:
            n = int(self.fragment[i])
            one = Fragment(int(windows.doc[n]), int(windows.start[n]), *spelled[n], self.activations[i])
            found[GROUPS[self.group[i]]].append(one)
        groups = {name: tuple(some) for name, some in found.items()}
        return Examples(feature, **groups, maximum=max(one.maximum for one in groups["explain"]))


def draw(reader: Reader, dictionary: Dictionary, windows: Windows, config: ExplainConfig, key: str) -> Drawn:
    """Choose features of ``dictionary`` and their examples as ``config`` says; ``key`` seeds the draws.

    A signed dictionary (PCA, ICA) is read on its positive side, as in the paper.
    """
    rng = np.random.default_rng([config.explain_seed, *key.encode()])
    first = config.pick == "first" or (config.pick == "auto" and config.mode == "paper")
    width = min(config.features, dictionary.d_sae) if first else dictionary.d_sae
    order = np.arange(width) if first else rng.permutation(dictionary.d_sae)
    chosen: dict[int, Choice] = {}
    skipped: dict[str, int] = {}
    asked = rare = 0
    half = halves(windows.doc, config.explain_seed)
    passes = _Passes(reader, dictionary, windows)
    step = max(1, PEAKS // len(windows.start))
    for begin in range(0, len(order), step):
        block = order[begin : begin + step]
        maximum, varies = _peaks(passes, windows, block)
        for place, feature in enumerate(block.tolist()):
            if asked == config.features:
                break
            seen = Seen(maximum[:, place], varies[:, place], half)
            if not first and not (seen.maximum > 0).any():
                continue  # not alive: not in the sample
            asked += 1
            own = np.random.default_rng([config.explain_seed, feature, *key.encode()])
            choice = CHOOSERS[config.mode](seen, config.silent, own)
            if isinstance(choice, Failure):
                skipped[choice.reason] = skipped.get(choice.reason, 0) + 1
            else:
                chosen[feature] = choice
                rare += config.mode == "paper" and int(seen.varies.sum()) < RARE
        if asked == config.features:
            break
    made = _read(passes, windows, dict(sorted(chosen.items())), asked, skipped)
    return replace(made, rare=rare)


class _Passes:
    """Passes over all fragments; the codes of the first are kept if all features were asked for and they are few."""

    def __init__(self, reader: Reader, dictionary: Dictionary, windows: Windows) -> None:
        self._reader, self._dictionary, self._windows = reader, dictionary, windows
        self._step = max(1, CODES // (windows.length * dictionary.d_sae))
        self._keep = len(windows.start) * windows.length * dictionary.d_sae <= KEPT
        self._kept: dict[int, Tensor] = {}
        self._place: NDArray[np.int64] | None = None

    def codes(
        self, features: Int64[NDArray, "features"]
    ) -> Iterator[tuple[slice, Float[Tensor, "fragments tokens features"]]]:
        """The codes of some features, some fragments at a time."""
        place = self._place
        whole = len(features) == self._dictionary.d_sae and self._keep and place is None
        wanted = torch.from_numpy(features if place is None else place[features]).to(self._dictionary.W_enc.device)
        for begin in range(0, len(self._windows.start), self._step):
            part = slice(begin, begin + self._step)
            if begin in self._kept:
                yield part, self._kept[begin][..., wanted]
                continue
            rows = self._windows.rows(part)
            x = self._reader.gather(rows.flatten()).to(self._dictionary.W_enc.device)
            codes = self._dictionary.encode_some(x, wanted).view(*rows.shape, -1)
            if whole:
                self._kept[begin] = codes
            yield part, codes
        if whole:
            self._place = np.argsort(features)


def _peaks(
    passes: _Passes, windows: Windows, features: Int64[NDArray, "features"]
) -> tuple[Float32[NDArray, "fragments features"], Bool[NDArray, "fragments features"]]:
    """Largest activation and whether there is any variation, by fragment and feature."""
    maximum = np.empty((len(windows.start), len(features)), np.float32)
    varies = np.empty(maximum.shape, bool)
    for part, codes in passes.codes(features):
        high, low = codes.amax(1), codes.amin(1)
        maximum[part], varies[part] = high.cpu().numpy(), (high > low).cpu().numpy()
    return maximum, varies


def _read(
    passes: _Passes,
    windows: Windows,
    chosen: Mapping[int, Choice],
    asked: int,
    skipped: Mapping[str, int],
) -> Drawn:
    """The activations of the chosen fragments, and the moments of their features."""
    features = np.array(list(chosen), np.int64)
    parts = [(f, g, some) for f, choice in enumerate(chosen.values()) for g, some in enumerate(choice)]
    owner = np.concatenate([np.full(len(some), f) for f, _, some in parts] or [np.zeros(0, np.int64)])
    group = np.concatenate([np.full(len(some), g) for _, g, some in parts] or [np.zeros(0, np.int64)])
    fragment = np.concatenate([some for _, _, some in parts] or [np.zeros(0, np.int64)])
    activations = np.zeros((len(owner), windows.length), np.float32)
    powers = np.zeros((4, len(features)))
    for part, codes in passes.codes(features) if len(features) else ():
        here = np.flatnonzero((fragment >= part.start) & (fragment < part.stop))
        where = torch.from_numpy(fragment[here] - part.start), torch.from_numpy(owner[here])
        activations[here] = codes[where[0].to(codes.device), :, where[1].to(codes.device)].cpu().numpy()
        known = codes.cpu() if codes.device.type == "mps" else codes  # which has no float64
        power = known.double()
        for i in range(4):
            powers[i] += power.sum((0, 1)).cpu().numpy()
            power = power * known if i < 3 else power
    moments = _moments(powers / max(1, len(windows.start) * windows.length))
    return Drawn(asked, skipped, features, owner, group, fragment, activations, moments)


def _moments(of: Float64[NDArray, "4 features"]) -> Moments:
    mean, square, cube, fourth = of
    variance = np.maximum(square - mean**2, 0)
    spread = np.where(variance > 0, variance, np.nan)
    return Moments(mean, variance, cube / spread**1.5, fourth / spread**2)
