"""A training step on a GPU: kernels in Triton, torch's operators and autograd beside the encoder's product.

    python bench/gpu.py [--device cuda] [--small]

Two shapes: one wide dictionary of a large model (d_in 4096, d_sae 65,536, batch 8192, k 64), and 16 members of a sweep
of a small one (d_in 512, d_sae 4096, batch 4096, k 32). For each, milliseconds a step (median and range of some rounds,
one way after the other), the share of this device's bf16 peak that the encoder's product alone would be of that time,
memory, and where the time of a step goes; autograd is in float32. ``--small`` tries the script itself on any device.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from monolex.runtime import size
from monolex.train_config import TrainConfig
from monolex.training import sweep
from monolex.training.members import members
from monolex.training.sparse.available import parts_for
from monolex.training.sparse.operators import Operators
from monolex.training.sweep import Trainer

SHAPES = {"wide": (4096, 65_536, 8192, 64, 1), "sweep": (512, 4096, 4096, 32, 16)}
"""d_in, d_sae, batch, k, members."""
SMALL = {"wide": (64, 512, 128, 8, 1), "sweep": (32, 128, 64, 4, 3)}
KINDS = ("topk", "batchtopk", "jumprelu", "tied")
AUTOGRAD_BYTES = 2 * 10**10
"""Of codes in float32 beyond which the way through autograd, which holds several such matrices, is left out."""
Step = Callable[[int], object]


def ours(kind: str, data: list[Tensor], shape: tuple[int, ...], device: torch.device, way: str) -> Step:
    d, n, size_, k, count = shape
    config = TrainConfig(
        kinds=(kind,), ks=(k,), alphas=(0.01,), ratios=(n / d,), seeds=tuple(range(count)), batch_size=size_,
        lrs=(1e-4,), dead_after=10**9, train_device=str(device), preset="modern", preprocess="none",
    )  # fmt: skip
    usual = sweep.parts_for, sweep.LOSSES
    sweep.parts_for = {"operators": lambda _device: Operators}.get(way, sweep.parts_for)
    sweep.LOSSES = frozenset() if way == "autograd" else sweep.LOSSES
    trainer = Trainer(members(config, {"site": d}), config, 1000, device=device)
    sweep.parts_for, sweep.LOSSES = usual
    return lambda number: trainer.step({"site": data[number % len(data)]})


def waited(device: torch.device) -> float:
    """The time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(step: Step, steps: int, device: torch.device) -> float:
    began = waited(device)
    for number in range(steps):
        step(number)
    return (waited(device) - began) / steps


def peak(device: torch.device, side: int) -> float:
    """Operations a second of a square product in bf16."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(lambda _number: a @ b, 5, device) for _ in range(6)]
    return 2 * side**3 / min(times[1:])


def table(name: str, shape: tuple[int, ...], device: torch.device, options: argparse.Namespace) -> None:
    d, n, size_, k, count = shape
    torch.manual_seed(0)
    data = [torch.randn(size_, d, device=device) for _ in range(2)]
    flops = 2.0 * d * n * size_ * count
    print(f"\n## {name}: d_in {d}, d_sae {n}, batch {size_}, k {k}, members {count}")
    print("| kind | way | ms a step | range | the product's share of the peak | memory |\n|---|---|---|---|---|---|")
    for kind in options.kinds:
        ways = [parts_for(device).__name__, *({"operators", "autograd"} - {parts_for(device).__name__.lower()})]
        if 4 * n * size_ * 4 > AUTOGRAD_BYTES and "autograd" in ways:
            ways.remove("autograd")
        for way in ways:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step = ours(kind, data, shape, device, way)
            seconds(step, 3, device)
            times = [1000 * seconds(step, options.steps, device) for _ in range(options.rounds)]
            held = size(torch.cuda.max_memory_allocated()) if device.type == "cuda" else "n/a"
            share = flops / (statistics.median(times) / 1000) / options.peak
            spread = f"{min(times):.1f}–{max(times):.1f}"
            print(f"| {kind} | {way} | {statistics.median(times):.1f} | {spread} | {share:.0%} | {held} |", flush=True)
            if options.split and way == ways[0]:
                with profile(
                    activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (device.type == "cuda")]
                ) as p:
                    seconds(step, 2, device)
                by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
                print(p.key_averages().table(sort_by=by, row_limit=14, max_name_column_width=60))
            del step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--split", action="store_true", help="where the time of a step goes")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    options.peak = peak(device, 256 if options.small else 8192)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: {options.peak / 1e12:.1f} TFLOP/s of a bf16 product")
    for shape_name, shape in (SMALL if options.small else SHAPES).items():
        table(shape_name, shape, device, options)


if __name__ == "__main__":
    main()
