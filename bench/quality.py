"""What every tool has learned after the same rows: held-out FVU and dead features, at each of some learning rates.

    python bench/quality.py ACTIVATIONS SITE [--rows 1000000] [--ratio 4] [--k 32] [--kind topk] [--seeds 3] [--rates …]
    python bench/quality.py planted 256x1024 …

ACTIVATIONS is a harvest; `planted` are sums of k of so many random directions in so many dimensions, of which each tool
learns as many as there are: MMCS is the mean over them of the largest cosine with a decoder's row, F1 the mean of that
of the codes of that row for the direction's presence.

All tools see the same batches in the same order and the same schedule (the rate rises over 5 % of the steps and falls
to 0 over the last 20 %), each in the units it is documented for; peers are trained in float32, their auxiliary losses
at their defaults. A feature is dead that is active on none of the held-out rows; FVU is of the held-out rows, with k
active features a row for `topk` and the tool's own inference for `batchtopk`.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from train import dictionary_learning_package

from monolex.activations.norms import usual
from monolex.activations.reader import Reader
from monolex.toy.planted import PlantedSettings, independent
from monolex.train_config import TrainConfig
from monolex.training.members import members
from monolex.training.optim import schedule
from monolex.training.sweep import Trainer

RATES = (1e-4, 3e-4, 1e-3)
HELD_OUT = 20_000


class Run(NamedTuple):
    """One training to be measured."""

    data: Callable[[int], Tensor]
    """Batch of a step, in units in which the mean squared entry is 1."""
    steps: int
    d_in: int
    d_sae: int
    k: int
    kind: str
    lr: float
    seed: int

    def factor(self, step: int) -> float:
        return schedule(step, self.steps, 0.05, 0.2)


Codes = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Reconstruction and codes of some rows."""


class Learned(NamedTuple):
    """What a tool has learned."""

    codes: Codes
    rows: Tensor
    """The decoder's, a feature each."""


class Truth(NamedTuple):
    """What planted rows are made of."""

    directions: Tensor
    present: Tensor
    """Whether a direction is part of a held-out row."""


def ours(run: Run, precision: str) -> Learned:
    config = TrainConfig(
        kinds=(run.kind,), ks=(run.k,), ratios=(run.d_sae / run.d_in,), lrs=(run.lr,), seeds=(run.seed,),
        preset="modern", batch_size=len(run.data(0)), steps=run.steps, preprocess="none",
        precision=precision,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    trainer = Trainer(members(config, {"site": run.d_in}), config, run.steps)
    for step in range(run.steps):
        trainer.step({"site": run.data(step)})
    (dictionary,) = trainer.dictionaries()

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        active = dictionary.encode(x)
        return dictionary.decode(active), active

    return Learned(codes, dictionary.W_dec)


def saelens(run: Run) -> Learned:
    sae_lens, training = import_module("sae_lens"), import_module("sae_lens.training.sae_trainer")
    configs = import_module("sae_lens.config")
    name = {"topk": "TopK", "batchtopk": "BatchTopK"}[run.kind]
    torch.manual_seed(run.seed)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(
        getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=run.d_in, d_sae=run.d_sae, k=run.k)
    )
    size = len(run.data(0))
    trainer = training.SAETrainer(
        cfg=configs.SAETrainerConfig(
            total_training_samples=run.steps * size, train_batch_size_samples=size, device="cpu", autocast=False,
            lr=run.lr, lr_end=run.lr, lr_scheduler_name="constant", lr_warm_up_steps=0, lr_decay_steps=0,
            n_restart_cycles=1, adam_beta1=0.9, adam_beta2=0.999, dead_feature_window=1000,
            feature_sampling_window=2000, n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
            logger=configs.LoggingConfig(log_to_wandb=False),
        ),
        sae=sae, data_provider=iter(()), evaluator=None, save_checkpoint_fn=None,
    )  # fmt: skip
    for step in range(run.steps):
        for group in trainer.optimizer.param_groups:
            group["lr"] = run.lr * run.factor(step)
        trainer.step(run.data(step))
        trainer.n_training_steps += 1

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        if run.kind == "topk":
            active = sae.encode(x)
        else:
            _, pre = sae.encode_with_hidden_pre(x)
            norms = sae.W_dec.norm(dim=1)
            active = pre.relu() * (pre * norms > sae.topk_threshold)
        return sae.decode(active), active

    return Learned(codes, sae.W_dec.detach())


def dictionary_learning(run: Run) -> Learned:
    dictionary_learning_package()
    file, name = {"topk": ("top_k", "TopKTrainer"), "batchtopk": ("batch_top_k", "BatchTopKTrainer")}[run.kind]
    trainer = getattr(import_module(f"dictionary_learning.trainers.{file}"), name)(
        steps=run.steps, activation_dim=run.d_in, dict_size=run.d_sae, layer=0, lm_name="", device="cpu", k=run.k,
        lr=run.lr, seed=run.seed, warmup_steps=round(0.05 * run.steps), decay_start=round(0.8 * run.steps),
        threshold_start_step=round(0.1 * run.steps),
    )  # fmt: skip
    unit = run.d_in**-0.5  # it is documented for rows whose mean squared norm is 1
    for step in range(run.steps):
        trainer.update(step, run.data(step) * unit)

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        active = trainer.ae.encode(x * unit, use_threshold=run.kind == "batchtopk")
        return trainer.ae.decode(active) / unit, active

    return Learned(codes, trainer.ae.decoder.weight.detach().T)


def sparsify(run: Run) -> Learned:
    configs, coders = import_module("sparsify.config"), import_module("sparsify.sparse_coder")
    if run.kind != "topk":
        raise ImportError(f"no {run.kind} in sparsify")
    torch.manual_seed(run.seed)
    config = configs.SparseCoderConfig(num_latents=run.d_sae, k=run.k)
    coder = coders.SparseCoder(run.d_in, config, device="cpu", dtype=torch.float32)
    coder.b_dec.data.copy_(usual(run.data(0)).centre)  # as its trainer does, with the first batch
    adam = torch.optim.Adam(coder.parameters(), lr=run.lr)
    for step in range(run.steps):
        for group in adam.param_groups:
            group["lr"] = run.lr * run.factor(step)
        coder(run.data(step)).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        output = coder.encode(x)
        active = torch.zeros(len(x), run.d_sae).scatter_(1, output.top_indices, output.top_acts)
        return coder.decode(output.top_acts, output.top_indices), active

    return Learned(codes, coder.W_dec.detach())


TOOLS: dict[str, Callable[[Run], Learned]] = {
    "monolex": lambda run: ours(run, "auto"),
    "monolex, fp32": lambda run: ours(run, "fp32"),
    "SAELens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}


@torch.no_grad()
def measured(learned: Learned, x: Tensor) -> tuple[float, float, float]:
    """FVU, dead share and L0 on held-out rows."""
    error, fired, active = 0.0, torch.zeros(1), 0
    for part in x.split(2048):
        guess, values = learned.codes(part)
        error += float((part - guess).double().square().sum())
        fired = fired + (values != 0).sum(0)
        active += int((values != 0).sum())
    return error / float((x - x.mean(0)).double().square().sum()), float((fired == 0).float().mean()), active / len(x)


@torch.no_grad()
def found(learned: Learned, x: Tensor, truth: Truth) -> tuple[float, float]:
    """MMCS and F1 of planted directions."""
    cosines = truth.directions @ normalize(learned.rows, dim=1).T
    nearest = cosines.argmax(1)
    active = torch.cat([learned.codes(part)[1][:, nearest] > 0 for part in x.split(2048)])
    both, said, true = (part.sum(0).double() for part in (active & truth.present, active, truth.present))
    return float(cosines.amax(1).mean()), float((2 * both / (said + true).clamp_min(1)).mean())


def planted(options: argparse.Namespace) -> tuple[Callable[[int], Tensor], Tensor, int, Truth]:
    """Batches, held-out rows, the number of directions, and what the held-out rows are made of."""
    d, n = map(int, options.site.split("x"))
    world = independent(PlantedSettings(d, n, options.k, decay=1.0))
    held_out = world.batch(1, 0, HELD_OUT)
    scale = 1 / held_out.x.square().mean().sqrt()
    truth = Truth(world.directions, held_out.codes.dense() > 0)
    return lambda step: world.batch(0, step, options.batch).x * scale, held_out.x * scale, n, truth


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Run, Tensor, Truth | None]]:
    if options.activations == "planted":
        data, test, d_sae, truth = planted(options)
    else:
        data, test, d_sae = harvested(options)
        truth = None
    for rate in options.rates:
        for seed in range(options.seeds):
            for name in options.tools or TOOLS:
                steps = options.rows // options.batch
                yield name, Run(data, steps, test.shape[1], d_sae, options.k, options.kind, rate, seed), test, truth


def harvested(options: argparse.Namespace) -> tuple[Callable[[int], Tensor], Tensor, int]:
    """Batches, held-out rows and the number of features."""
    train, held = (Reader(options.activations, options.site, split) for split in ("train", "held_out"))
    scale = train.d_in**0.5 / train.median_norm
    x = train.read(0, train.n_rows).float().mul_(scale)
    test = held.read(0, min(HELD_OUT, held.n_rows)).float().mul_(scale)
    order = [
        torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for epoch in range(-(-options.rows // len(x)))
    ]
    index = torch.cat(order)
    size = options.batch

    def data(step: int) -> Tensor:
        return x[index[step * size : (step + 1) * size]]

    return data, test, round(options.ratio * train.d_in)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activations")
    parser.add_argument("site")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--ratio", type=float, default=4.0)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--kind", default="topk", choices=("topk", "batchtopk"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--tools", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    for name, run, test, truth in runs(options):
        began = time.perf_counter()
        try:
            learned = TOOLS[name](run)
            numbers = measured(learned, test)
        except ImportError as error:
            print(f"{name}: not measured ({error})", flush=True)
            continue
        table.setdefault((name, run.lr), []).append(numbers)
        spent = time.perf_counter() - began
        said = "FVU {:.4f}, dead {:.3f}, L0 {:.1f}".format(*numbers)
        if truth is not None:
            said += ", MMCS {:.4f}, F1 {:.4f}".format(*found(learned, test, truth))
        print(f"{name} lr {run.lr:g} seed {run.seed}: {said} ({spent:.0f} s)", flush=True)
    print(
        f"\n| {options.kind}, {options.rows:,} rows | lr | FVU (range over seeds) | dead | L0 |\n|---|---|---|---|---|"
    )
    for (name, rate), numbers in sorted(table.items()):
        fvus, dead, l0 = (list(column) for column in zip(*numbers, strict=True))
        spread = f"{statistics.mean(fvus):.4f} ({min(fvus):.4f}–{max(fvus):.4f})"
        print(f"| {name} | {rate:g} | {spread} | {100 * statistics.mean(dead):.2f} % | {statistics.mean(l0):.1f} |")


if __name__ == "__main__":
    main()
