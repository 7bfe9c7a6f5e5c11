"""A training step of every tool on the same synthetic activations, alternately in one process.

    python bench/train.py [--shape 512,4096,4096,32] [--rounds 8] [--steps 3]

d_in, d_sae, batch, k. Peers are timed where they can be imported (SAELens 6.54.12, dictionary_learning 0.1.0,
sparsify 1.3.3), in their defaults and, where they have it, under bf16 autocast; ``monolex, no numba`` is this
package on torch alone. ReLU kinds are timed at ``k`` active features a row, where their biases are put. A round
gives every tool ``steps`` steps after one that does not count; printed are the median over rounds, the range, and
the ratio to monolex of the same round.
"""

import argparse
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monolex.train_config import TrainConfig
from monolex.training import sweep
from monolex.training.members import members
from monolex.training.records import StepBatch
from monolex.training.sparse.available import Parts
from monolex.training.sparse.operators import Operators
from monolex.training.steps import encode
from monolex.training.sweep import Trainer

ACTIVE = 24
"""Planted features of a row."""
Step = Callable[[int], object]
GROUPS = (0.0625, 0.125, 0.25, 0.5, 1.0)
"""Matryoshka: fractions of the features that reconstruct alone."""


def batches(d: int, n: int, size: int) -> list[Tensor]:
    """Four batches of sparse sums of 2n random directions."""
    torch.manual_seed(0)
    directions = normalize(torch.randn(2 * n, d), dim=1)
    index = torch.randint(0, 2 * n, (4, size, ACTIVE))
    return [torch.einsum("bkd,bk->bd", directions[i], torch.rand(size, ACTIVE)) for i in index]


def ours(kind: str, data: list[Tensor], n: int, k: int, *, parts: Parts | None = None, precision: str = "auto") -> Step:
    size, d = data[0].shape
    config = TrainConfig(
        kinds=(kind,), ks=(k,), ratios=(n / d,), batch_size=size, lrs=(1e-4,), dead_after=10**9, prefixes=GROUPS,
        precision=precision,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    (member,) = members(config, {"site": d})
    usual, sweep.parts_for = sweep.parts_for, (lambda _device: parts) if parts else sweep.parts_for
    trainer = Trainer([member], config, 1000)
    sweep.parts_for = usual
    if member.k is None:
        _sparsen(trainer, data, k)
    return lambda number: trainer.step({"site": data[number % 4]})


def _sparsen(trainer: Trainer, data: list[Tensor], k: int) -> None:
    """Put the encoder's biases where k features of a row are active."""
    (params,), (member,) = trainer.params, trainer.members
    trainer.step({"site": data[0]})
    with torch.no_grad():
        pre = encode(params, StepBatch(data[1], data[1]), member).pre
        params["b_enc"] -= pre.flatten().kthvalue(pre.numel() - k * len(pre)).values


SAELENS = {
    "topk": ("TopK", lambda _n, k: {"k": k}),
    "batchtopk": ("BatchTopK", lambda _n, k: {"k": k}),
    "matryoshka": ("MatryoshkaBatchTopK", lambda n, k: {"k": k, "matryoshka_widths": [round(f * n) for f in GROUPS]}),
    "jumprelu": ("JumpReLU", lambda _n, _k: {}),
    "gated": ("Gated", lambda _n, _k: {}),
    "untied": ("Standard", lambda _n, _k: {}),
}
DICTIONARY_LEARNING = {
    "topk": ("top_k", "TopKTrainer", lambda k: {"k": k}),
    "batchtopk": ("batch_top_k", "BatchTopKTrainer", lambda k: {"k": k}),
    "matryoshka": (
        "matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer",
        lambda k: {"k": k, "group_fractions": [b - a for a, b in zip((0.0, *GROUPS), GROUPS, strict=False)]},
    ),
    "jumprelu": ("jumprelu", "JumpReluTrainer", lambda k: {"target_l0": float(k)}),
    "gated": ("gdm", "GatedSAETrainer", lambda _k: {}),
    "untied": ("standard", "StandardTrainer", lambda _k: {}),
    "p-anneal": ("p_anneal", "PAnnealTrainer", lambda _k: {}),
}  # fmt: skip
"""Module or class, class, and settings of every kind that a peer has. Nobody else has tied weights."""


def saelens_training(size: int, *, autocast: bool) -> Any:
    """The configuration of its trainers for batches of ``size``: nothing logged, saved or resampled."""
    configs = import_module("sae_lens.config")
    return configs.SAETrainerConfig(
        total_training_samples=1000 * size, train_batch_size_samples=size, device="cpu", autocast=autocast, lr=3e-4,
        lr_end=3e-5, lr_scheduler_name="constant", lr_warm_up_steps=0, lr_decay_steps=0, n_restart_cycles=1,
        adam_beta1=0.9, adam_beta2=0.999, dead_feature_window=1000, feature_sampling_window=2000, n_checkpoints=0,
        checkpoint_path=None, save_final_checkpoint=False, logger=configs.LoggingConfig(log_to_wandb=False),
    )  # fmt: skip


def saelens(kind: str, data: list[Tensor], n: int, k: int, *, autocast: bool, compiled: bool = False) -> Step:
    sae_lens = import_module("sae_lens")
    if kind not in SAELENS:
        raise ImportError(f"no {kind} in SAELens")
    training = import_module("sae_lens.training.sae_trainer")
    size, d = data[0].shape
    name, settings = SAELENS[kind]
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=d, d_sae=n, **settings(n, k))
    trainer = training.SAETrainer(
        cfg=saelens_training(size, autocast=autocast),
        sae=getattr(sae_lens, f"{name}TrainingSAE")(config), data_provider=iter(()), evaluator=None,
        save_checkpoint_fn=None,
    )  # fmt: skip
    if compiled:  # as its runner does it for `compile_sae`; needs a C++ compiler
        trainer.sae.training_forward_pass = torch.compile(trainer.sae.training_forward_pass)

    def step(number: int) -> None:
        trainer.step(data[number % 4])
        trainer.n_training_steps += 1

    return step


def dictionary_learning_package() -> None:
    """Make its trainers importable: the package itself imports what training needs not."""
    for name in ("umap", "umap.umap_"):
        sys.modules.setdefault(name, types.ModuleType(name))
    if "dictionary_learning" not in sys.modules:
        package = types.ModuleType("dictionary_learning")
        folders = (Path(folder) / "dictionary_learning" for folder in sys.path)
        if not (folder := next((folder for folder in folders if folder.is_dir()), None)):
            raise ImportError("no dictionary_learning")
        package.__path__ = [str(folder)]
        sys.modules["dictionary_learning"] = package


def dictionary_learning(kind: str, data: list[Tensor], n: int, k: int) -> Step:
    dictionary_learning_package()
    if kind not in DICTIONARY_LEARNING:
        raise ImportError(f"no {kind} in dictionary_learning")
    file, name, settings = DICTIONARY_LEARNING[kind]
    trainer = getattr(import_module(f"dictionary_learning.trainers.{file}"), name)(
        steps=100_000, activation_dim=data[0].shape[1], dict_size=n, layer=0, lm_name="", device="cpu", **settings(k)
    )
    return lambda number: trainer.update(number, data[number % 4])


def sparsify(kind: str, data: list[Tensor], n: int, k: int, *, autocast: bool) -> Step:
    configs, coders = import_module("sparsify.config"), import_module("sparsify.sparse_coder")
    if kind != "topk":
        raise ImportError(f"no {kind} in sparsify")
    config = configs.SparseCoderConfig(num_latents=n, k=k)
    coder = coders.SparseCoder(data[0].shape[1], config, device="cpu", dtype=torch.float32)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-3)

    def step(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            coder(data[number % 4]).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return step


def product(data: list[Tensor], n: int, dtype: torch.dtype) -> Step:
    """The encoder's product alone."""
    x, weights = [batch.to(dtype) for batch in data], torch.randn(n, data[0].shape[1]).to(dtype)
    return lambda number: x[number % 4] @ weights.T


def tools(kind: str, data: list[Tensor], n: int, k: int) -> Iterator[tuple[str, Callable[[], Step]]]:
    yield "monolex", lambda: ours(kind, data, n, k)
    yield "monolex, fp32", lambda: ours(kind, data, n, k, precision="fp32")
    yield "monolex, no numba", lambda: ours(kind, data, n, k, parts=Operators)
    yield "SAELens, defaults", lambda: saelens(kind, data, n, k, autocast=False)
    yield "SAELens, autocast", lambda: saelens(kind, data, n, k, autocast=True)
    yield "SAELens, autocast, compiled", lambda: saelens(kind, data, n, k, autocast=True, compiled=True)
    yield "dictionary_learning, defaults", lambda: dictionary_learning(kind, data, n, k)
    yield "sparsify, defaults", lambda: sparsify(kind, data, n, k, autocast=False)
    yield "sparsify, bf16", lambda: sparsify(kind, data, n, k, autocast=True)
    yield "encoder's product, fp32", lambda: product(data, n, torch.float32)
    yield "encoder's product, bf16", lambda: product(data, n, torch.bfloat16)


def compare(title: str, ways: Iterable[tuple[str, Callable[[], Step]]], rounds: int, steps: int) -> None:
    """Time steps of all ways in turn, and print them as a table beside the first."""
    made: dict[str, Step] = {}
    for name, make in ways:
        try:
            made[name] = make()
        except ImportError as error:
            print(f"{name}: not timed ({error})")
    spent: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds):
        for name, step in made.items():
            step(number)
            began = time.perf_counter()
            for inner in range(steps):
                step(number + inner)
            spent[name].append((time.perf_counter() - began) / steps)
    print(f"\n| {title} | ms a step | range | times monolex |\n|---|---|---|---|")
    for name, seconds in spent.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, spent["monolex"], strict=True))
        low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
        print(f"| {name} | {middle:.0f} | {low:.0f}–{high:.0f} | {ratio:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="512,4096,4096,32", help="d_in,d_sae,batch,k")
    parser.add_argument("--kinds", nargs="+", default=["topk", "batchtopk"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    d, n, size, k = map(int, options.shape.split(","))
    data = batches(d, n, size)
    print(f"d_in {d}, d_sae {n}, batch {size}, k {k}; {torch.get_num_threads()} threads, torch {torch.__version__}")
    for kind in options.kinds:
        compare(kind, tools(kind, data, n, k), options.rounds, options.steps)


if __name__ == "__main__":
    main()
