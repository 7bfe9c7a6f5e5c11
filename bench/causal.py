"""What the exact search over features costs: beside the naive one on the demo model, and at the shape of Pythia-410M.

    python bench/causal.py RUN          the paper's sweep on a dictionary of a demo run, and the naive one, same sets
    python bench/causal.py --large      a ranking's whole curve and 200 exact candidates, 410M parameters at random

The naive search is the released code's: every feature of the dictionary is a candidate, and each trial encodes anew,
runs all layers of the model and unembeds all positions.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from monolex.causal.edits import swap
from monolex.causal.patch import curves, searches
from monolex.causal.patch.patch import prepare_patch
from monolex.causal.patch.sweep import Sweep
from monolex.causal.prompts.pairs import Pair, PromptPairs, stack
from monolex.causal.prompts.tasks import ioi
from monolex.causal.prompts.wordings import NAMES_PRACTISED, WORDINGS_PRACTISED
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.dictionaries.listing import choose, run_dictionaries
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.load import load, wrap
from monolex.runtime import peak_memory, size

PAIRS = 50
CANDIDATES = 200
NAIVE = 5


def naive_sweep(
    lm: LanguageModel,
    pairs: PromptPairs,
    site: str,
    dictionary: Dictionary,
    threshold: float,
    trials: int | None = None,
) -> set[int]:
    """One pass over all features, or the first few, in the order of a seeded permutation."""
    donor = hooks.capture(lm, pairs.donor, [site]).activations[site]
    rows = torch.arange(len(pairs))
    target = hooks.logits(lm, pairs.donor)[rows, pairs.end].log_softmax(-1)

    def loss(features: list[int]) -> float:
        edit = swap(dictionary, donor, features, positions=pairs.real)
        patched = hooks.logits(lm, pairs.base, {site: edit})[rows, pairs.end].log_softmax(-1)
        return float((patched.exp() * (patched - target)).sum(-1).mean())

    kept = list(range(dictionary.d_sae))
    now = loss(kept)
    for feature in torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:trials].tolist():
        without = [other for other in kept if other != feature]
        value = loss(without)
        if value - now < threshold:
            kept, now = without, value
    return set(kept)


def demo(run: Path, name: str, threshold: float) -> None:
    """Both searches on a dictionary of the demo; the naive one's extra features are those that cannot matter."""
    lm = load("demo")
    (chosen,) = choose(run_dictionaries(run), (name,))
    dictionary = chosen.weights()
    assert lm.tokenizer is not None, "the bundled model has one"
    pairs = ioi(lm.tokenizer, pairs=PAIRS, wordings=WORDINGS_PRACTISED, names=NAMES_PRACTISED)
    started = time.perf_counter()
    naive = naive_sweep(lm, pairs, chosen.site, dictionary, threshold)
    slow = time.perf_counter() - started
    started = time.perf_counter()
    patch = prepare_patch(lm, pairs, chosen.site, dictionary)
    # the same order: that of the naive search without the features that cannot matter
    order = torch.randperm(dictionary.d_sae, generator=torch.Generator().manual_seed(0))
    place = {feature: number for number, feature in enumerate(patch.candidates.tolist())}
    sweep = Sweep.start(patch)
    sweep.visit([place[feature] for feature in order.tolist() if feature in place], threshold)
    fast = time.perf_counter() - started
    kept = set(patch.candidates[sweep.chosen].tolist())
    tokens = f"{len(pairs)} pairs of {pairs.base.shape[1]} tokens"
    print(f"{chosen.title}, {tokens}: {len(patch.candidates)} candidates of {dictionary.d_sae} features")
    print(f"naive {slow:.1f} s, ours {fast:.1f} s, {slow / fast:.1f} times as fast, {len(kept)} kept")
    print(f"same set: {kept == naive}")


def large() -> None:
    """Pythia-410M's shape, layer 11, R = 4."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        max_position_embeddings=2048,
    )
    lm = wrap(GPTNeoXForCausalLM(config).eval(), name="410M at random")
    site, width = "resid_post.11", 1024
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(50304, (PAIRS, 16), generator=generator)
    donor = base.clone()
    donor[:, 2] = torch.randint(50304, (PAIRS,), generator=generator)
    rows = zip(base.tolist(), donor.tolist(), strict=True)
    pairs = stack("random", "", [Pair(("", ""), tokens, (0,), (1,), (2,), {}) for tokens in rows])
    x = hooks.capture(lm, base, [site]).activations[site]
    directions = torch.nn.functional.normalize(torch.randn(4 * width, width, generator=generator)) / x.std()
    bias = -torch.quantile((x.flatten(0, 1)[:64] @ directions.T).flatten()[:1_000_000], 0.98).expand(4 * width).clone()
    zero = torch.zeros(width)
    weights = {"W_enc": directions, "b_enc": bias, "centre": zero, "W_dec": directions * x.std() ** 2, "b_dec": zero}
    dictionary = Dictionary(DictionaryConfig("untied", "relu", width, width, 4 * width, site=site), weights)
    started = time.perf_counter()
    patch = prepare_patch(lm, pairs, site, dictionary)
    print(f"prepared in {time.perf_counter() - started:.1f} s: {len(patch.candidates)} candidates of {4 * width}")
    started = time.perf_counter()
    order = searches.ranking(searches.attribution(patch))
    print(f"attribution (5 forward and backward passes) {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    curve = curves.measure(patch, searches.prefixes(order, searches.log_sizes(len(order), 24)))
    print(f"curve of {len(curve.sizes)} sizes with complements {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    sweep = Sweep.start(patch)
    sweep.visit(range(min(CANDIDATES, len(patch.candidates))), 1e-3)
    spent = time.perf_counter() - started
    whole = spent / CANDIDATES * len(patch.candidates)
    touched = sum(map(len, patch.touched)) / len(patch.touched) / PAIRS
    print(f"{CANDIDATES} exact candidates {spent:.0f} s; a first pass over all would take {whole / 60:.0f} minutes")
    print(f"a candidate changes {touched:.0%} of the pairs")
    started = time.perf_counter()
    naive_sweep(lm, pairs, site, dictionary, 1e-3, trials=NAIVE)
    naive = (time.perf_counter() - started) / (NAIVE + 1)
    ratio = naive * 4 * width / whole
    whole_naive = naive * 4 * width / 60
    print(f"naive {naive:.1f} s a candidate, {whole_naive:.0f} minutes for all features: {ratio:.0f} times ours")
    print(f"peak memory {size(peak_memory())}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a demo run")
    parser.add_argument("--dictionary", default="resid_post.3/batchtopk-k24-r2-s0")
    parser.add_argument("--threshold", type=float, default=1e-3)
    parser.add_argument("--large", action="store_true", help="the shape of Pythia-410M")
    chosen = parser.parse_args()
    if chosen.large:
        large()
    else:
        demo(chosen.run, chosen.dictionary, chosen.threshold)


if __name__ == "__main__":
    main()
