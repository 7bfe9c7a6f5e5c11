"""A training step on several GPUs of one machine: features shared, rows shared, members shared.

    python bench/scaling.py --ranks 4 [--device cuda] [--small]

One wide dictionary (d_in 4096, d_sae 65,536, batch 8192, k 64) and a sweep of 16 members (d_in 512, d_sae 4096, batch
4096, k 32), on random rows; milliseconds a step, the median of the slowest rank. Started by `bench/scale.sh`.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch

from monolex import runtime
from monolex.ranks import here, world
from monolex.ranks.mesh import mesh
from monolex.train_config import TrainConfig
from monolex.training.members import members
from monolex.training.sweep import Trainer

SHAPES = {"wide": (4096, 65_536, 8192, 64, 1), "sweep": (512, 4096, 4096, 32, 16)}
"""d_in, d_sae, batch, k, members."""
SMALL = {"wide": (64, 512, 128, 8, 1), "sweep": (32, 128, 64, 4, 4)}
STEPS = 12


def step_ms(shape: tuple[int, ...], data: int, features: int, device: str) -> float:
    """The median of the slowest rank."""
    d, n, size, k, count = shape
    config = TrainConfig(
        kinds=("batchtopk",), ks=(k,), ratios=(n / d,), seeds=tuple(range(count)), batch_size=size, lrs=(1e-4,),
        dead_after=10**9, train_device=device, preset="modern", preprocess="none", data_ranks=data,
        feature_ranks=features,
    )  # fmt: skip
    chosen = runtime.device("auto" if device == "cuda" else device)
    trainer = Trainer(members(config, {"site": d}), config, 1000, device=chosen, mesh=mesh(data, features))
    rows = torch.randn(size, d, generator=torch.Generator().manual_seed(0)).to(chosen)
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        trainer.step({"site": rows})
        if chosen.type == "cuda":
            torch.cuda.synchronize(chosen)
        times.append(1000 * (time.perf_counter() - began))
    return max(world.world().told(statistics.median(times[3:])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.ranks > 1 and here.size() == 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(given.ranks)]
        raise SystemExit(subprocess.run([sys.executable, *launch, *sys.argv], check=False).returncode)
    n, shapes = here.size(), SMALL if given.small else SHAPES
    ways = {"members": (1, 1), "data_ranks": (n, 1), "feature_ranks": (1, n)} if n > 1 else {"one rank": (1, 1)}
    for name, shape in shapes.items():
        for way, (data, features) in ways.items():
            if way == "members" and shape[-1] < n:
                continue
            took = step_ms(shape, data, features, given.device)
            if here.rank() == 0:
                print(f"| {name} | {n} | {way} | {took:.1f} ms |", flush=True)


if __name__ == "__main__":
    main()
