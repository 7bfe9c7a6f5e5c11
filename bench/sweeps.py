"""Eight members on one stream: ours beside SAELens' trainer of several, and beside eight members of ours alone.

    python bench/sweeps.py [--shape 576,4608,2048] [--rounds 5] [--steps 2]

TopK and BatchTopK, k 16 and 32, two seeds; rows from memory, so that what is compared are the steps: both read every
row once. (Live, ours has one forward pass for all; see docs/results.md.) Alternately in one process.
"""

import argparse
import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from train import Step, batches, compare, saelens_training

from monolex.train_config import TrainConfig
from monolex.training.members import members
from monolex.training.sweep import Trainer

KS, SEEDS = (16, 32), (0, 1)
KINDS = {"topk": "TopK", "batchtopk": "BatchTopK"}


def ours(data: list[Tensor], n: int, *, alone: bool) -> Step:
    size, d = data[0].shape
    config = TrainConfig(
        kinds=tuple(KINDS), ks=KS, seeds=SEEDS, ratios=(n / d,), batch_size=size, lrs=(1e-4,), dead_after=10**9
    )
    every = members(config, {"site": d})
    trainers = [Trainer([member], config, 1000) for member in every] if alone else [Trainer(every, config, 1000)]

    def step(number: int) -> None:
        for trainer in trainers:
            trainer.step({"site": data[number % 4]})

    return step


def saelens(data: list[Tensor], n: int, *, autocast: bool) -> Step:
    sae_lens = import_module("sae_lens")
    multi = import_module("sae_lens.training.multi_sae_trainer")
    size, d = data[0].shape
    saes: dict[str, Any] = {}
    for kind, name in KINDS.items():
        for k in KS:
            for seed in SEEDS:
                torch.manual_seed(seed)
                config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=d, d_sae=n, k=k)
                saes[f"{kind}-{k}-{seed}"] = getattr(sae_lens, f"{name}TrainingSAE")(config)
    trainer = multi.MultiSAETrainer(
        cfg=saelens_training(size, autocast=autocast),
        saes=saes, hook_names=dict.fromkeys(saes, "site"), data_provider=iter(()),
    )  # fmt: skip

    def step(number: int) -> None:
        for each in trainer.trainers.values():  # what its fit() does with a batch
            each.step(data[number % 4])
            each.n_training_steps += 1

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="576,4608,2048", help="d_in,d_sae,batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    d, n, size = map(int, options.shape.split(","))
    data = batches(d, n, size)
    ways = {
        "monolex": lambda: ours(data, n, alone=False),
        "monolex, eight trainers": lambda: ours(data, n, alone=True),
        "SAELens MultiSAETrainer, autocast": lambda: saelens(data, n, autocast=True),
        "SAELens MultiSAETrainer, defaults": lambda: saelens(data, n, autocast=False),
    }
    compare(f"8 members, d_in {d}, d_sae {n}, batch {size}", ways.items(), options.rounds, options.steps)


if __name__ == "__main__":
    main()
