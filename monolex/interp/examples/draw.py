"""From a dictionary and fragments to the examples of its features: one or two passes over the fragments' activations.

The first pass keeps every feature's largest activation in every fragment, from which the fragments are chosen; the
second reads the chosen ones' activations and the features' moments, encoding no more features than were chosen where a
kind allows it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from monolex.activations.reader import Reader
from monolex.dictionaries.base import Dictionary
from monolex.interp.config import ExplainConfig
from monolex.interp.examples.choose import CHOOSERS, GROUPS, RARE, Choice, FeaturePeaks, halves
from monolex.interp.examples.drawn import DrawnExamples, moments_of
from monolex.interp.examples.fragments import CorpusFragments
from monolex.interp.records import Failure

CODES = 2**22
"""Codes held at once."""
PEAKS = 2**27
"""Maxima held at once: features beyond it are looked at in further passes."""
KEPT = 2**26
"""Codes kept from the first pass for the second, at most."""


def draw(
    reader: Reader, dictionary: Dictionary, fragments: CorpusFragments, config: ExplainConfig, key: str
) -> DrawnExamples:
    """Choose features of ``dictionary`` and their examples as ``config`` says; ``key`` seeds the draws.

    A signed dictionary (PCA, ICA) is read on its positive side, as in the paper.
    """
    seed = [config.explain_seed, *key.encode()]
    first = config.pick == "first" or (config.pick == "auto" and config.mode == "paper")
    width = min(config.features, dictionary.d_sae) if first else dictionary.d_sae
    order = np.arange(width) if first else np.random.default_rng(seed).permutation(dictionary.d_sae)
    passes = _Passes(reader, dictionary, fragments)
    # Two passes, because which fragments serve a feature is known only when all were seen, and the codes of all are too
    # many to keep: the first keeps a maximum for every feature and fragment, the second reads what was chosen.
    choices: dict[int, Choice] = {}
    skipped: Counter[str] = Counter()
    looked_at = rare = 0
    for feature, peaks in _peaks(passes, order, halves(fragments.doc, config.explain_seed)):
        if not first and not (peaks.maximum > 0).any():
            continue  # not alive: not in the sample
        looked_at += 1
        rng = np.random.default_rng([config.explain_seed, feature, *key.encode()])
        choice = CHOOSERS[config.mode](peaks, config.silent, rng)
        if isinstance(choice, Failure):
            skipped[choice.reason] += 1
        else:
            choices[feature] = choice
            rare += config.mode == "paper" and int(peaks.varies.sum()) < RARE
        if looked_at == config.features:
            break
    return _read(passes, dict(sorted(choices.items())), looked_at, dict(skipped), rare)


class _Passes:
    """Passes over all fragments; the codes of the first are kept if it reads all features and they are few."""

    def __init__(self, reader: Reader, dictionary: Dictionary, fragments: CorpusFragments) -> None:
        self.fragments = fragments
        self._reader, self._dictionary = reader, dictionary
        self._step = max(1, CODES // (fragments.length * dictionary.d_sae))
        self._keep = len(fragments.start) * fragments.length * dictionary.d_sae <= KEPT
        self._kept: dict[int, Tensor] = {}
        self._column: NDArray[np.int64] | None = None  # of every feature in what is kept

    def codes(
        self, features: Int64[NDArray, "features"]
    ) -> Iterator[tuple[slice, Float[Tensor, "fragments tokens features"]]]:
        """The codes of these features, as many fragments at a time as :data:`CODES` allows."""
        column = self._column
        keeping = len(features) == self._dictionary.d_sae and self._keep and column is None
        wanted = torch.from_numpy(features if column is None else column[features]).to(self._dictionary.W_enc.device)
        for begin in range(0, len(self.fragments.start), self._step):
            part = slice(begin, begin + self._step)
            if begin in self._kept:
                yield part, self._kept[begin][..., wanted]
                continue
            rows = self.fragments.rows(part)
            x = self._reader.gather(rows.flatten()).to(self._dictionary.W_enc.device)
            codes = self._dictionary.encode_some(x, wanted).view(*rows.shape, -1)
            if keeping:
                self._kept[begin] = codes
            yield part, codes
        if keeping:
            self._column = np.argsort(features)


def _peaks(
    passes: _Passes, order: Int64[NDArray, "features"], explained: Bool[NDArray, "fragments"]
) -> Iterator[tuple[int, FeaturePeaks]]:
    """One feature after the other with its peaks; a pass is of as many features as :data:`PEAKS` allows."""
    count = len(passes.fragments.start)
    step = max(1, PEAKS // count)
    for begin in range(0, len(order), step):
        features = order[begin : begin + step]
        maximum: Float32[NDArray, "fragments features"] = np.empty((count, len(features)), np.float32)
        varies: Bool[NDArray, "fragments features"] = np.empty(maximum.shape, bool)
        for part, codes in passes.codes(features):
            high, low = codes.amax(1), codes.amin(1)
            maximum[part], varies[part] = high.cpu().numpy(), (high > low).cpu().numpy()
        for column, feature in enumerate(features.tolist()):
            yield feature, FeaturePeaks(maximum[:, column], varies[:, column], explained)


def _read(
    passes: _Passes, choices: Mapping[int, Choice], looked_at: int, skipped: Mapping[str, int], rare: int
) -> DrawnExamples:
    """The activations of the chosen fragments, and the moments of their features."""
    fragments, features = passes.fragments, np.array(list(choices), np.int64)
    sizes = np.array([[len(numbers) for numbers in choice] for choice in choices.values()], np.int64)
    owner, group = (places.ravel().repeat(sizes.ravel()) for places in np.indices((len(features), len(GROUPS))))
    fragment = np.concatenate([np.zeros(0, np.int64), *(numbers for choice in choices.values() for numbers in choice)])
    activations = np.zeros((len(owner), fragments.length), np.float32)
    power_sums = np.zeros((4, len(features)))
    for part, codes in passes.codes(features) if len(features) else ():
        examples = np.flatnonzero((fragment >= part.start) & (fragment < part.stop))
        row, column = fragment[examples] - part.start, owner[examples]
        chosen = codes[torch.from_numpy(row).to(codes.device), :, torch.from_numpy(column).to(codes.device)]
        activations[examples] = chosen.cpu().numpy()
        exact = codes.cpu() if codes.device.type == "mps" else codes  # which has no float64
        power = exact.double()
        for exponent in range(4):
            power_sums[exponent] += power.sum((0, 1)).cpu().numpy()
            power = power * exact if exponent < 3 else power
    moments = moments_of(power_sums / max(1, len(fragments.start) * fragments.length))
    return DrawnExamples(looked_at, skipped, features, owner, group, fragment, activations, moments, rare)
