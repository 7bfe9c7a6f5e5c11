"""Training on several ranks of this machine: equality, overhead, kills, and a dictionary too wide for one of them.

    python bench/ranks.py equal            every kind on 2 and 4 ranks beside one process: the largest differences
    python bench/ranks.py overhead         two ranks with a thread each beside one process with two
    python bench/ranks.py kills --kills 20 a rank killed at a random moment, resumed, and compared byte by byte
    python bench/ranks.py wide             262,144 features at d_in 512 over four ranks: time, memory, traffic

Every job is started by torchrun, on planted data. ``--small`` tries the script itself.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from monolex import runtime
from monolex.artifact import read_json, verify
from monolex.dictionaries.base import load
from monolex.kinds import KINDS
from monolex.ranks import here
from monolex.train_config import TrainConfig
from monolex.training.data import TrainingData
from monolex.training.sparse.step import LOSSES
from monolex.training.sweep import Trainer
from monolex.training.trainer import train_from

SITE = "resid_post.0"
EQUAL: dict[str, Any] = {
    "kinds": [name for name, kind in KINDS.items() if kind.loss in LOSSES],
    "ks": [8], "alphas": [3e-3], "ratios": [4.0], "batch_size": 512, "steps": 200,
    "lrs": [1e-3], "dead_after": 20_000, "log_every": 50, "save_every": 50, "preset": "modern", "precision": "fp32",
    "train_device": "cpu",
}  # fmt: skip
WIDE: dict[str, Any] = {
    "kinds": ["topk"], "ks": [64], "ratios": [512.0], "batch_size": 512, "steps": 8, "preset": "modern",
    "preprocess": "none", "log_every": 4, "save_every": 6, "train_device": "cpu", "dead_after": 1_000_000,
}  # fmt: skip
MESHES = ((2, 1, 1), (2, 2, 1), (2, 1, 2), (4, 2, 2), (4, 1, 4), (4, 4, 1))
"""Ranks, data ranks, feature ranks."""


class Planted:
    """Sparse sums of random directions; batch i is a pure function of i."""

    steps_per_epoch = 10**9

    def __init__(self, d_in: int, batch: int, pause: float = 0.0) -> None:
        rows = torch.randn(4 * d_in, d_in, generator=torch.Generator().manual_seed(0))
        self.rows, self.batch, self.pause = torch.nn.functional.normalize(rows), batch, pause

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Tensor]]:
        step = start_step
        while True:
            time.sleep(self.pause)
            yield {SITE: self.at(step)}
            step += 1

    def at(self, step: int) -> Tensor:
        g = torch.Generator().manual_seed(step)
        active = torch.rand(self.batch, len(self.rows), generator=g) < 8 / len(self.rows)
        return (active * (torch.rand(active.shape, generator=g) + 0.5)) @ self.rows


def settings(fields: dict[str, Any]) -> TrainConfig:
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return TrainConfig(**given)


def worker(folder: Path, d_in: int, fields: dict[str, Any]) -> None:
    """What a rank does: trains, then says what it took."""
    pause, threads = fields.pop("pause", 0.0), fields.pop("threads", 1)
    torch.set_num_threads(threads)
    config = settings(fields)
    traffic, step, times = [0.0], Trainer.step, []
    for name, share in (("all_reduce", 2.0), ("all_gather", 1.0)):
        _counted(name, share, traffic)

    def timed(self: Trainer, batch: Any) -> None:
        began, sent = time.perf_counter(), traffic[0]
        step(self, batch)
        times.append((time.perf_counter() - began, traffic[0] - sent))

    Trainer.step = timed  # pyright: ignore[reportAttributeAccessIssue]
    train_from(folder, TrainingData(Planted(d_in, config.batch_size, pause), {SITE: d_in}, "planted", "m", "f"), config)
    seconds, sent = zip(*times[1:] or [(0.0, 0.0)], strict=True)
    rollup = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    shared = sum(1024 * int(rollup[name].split()[0]) * sign for name, sign in (("Rss", 1), ("Pss", -1)))
    took = {
        "shared": shared,
        "ms": 1000 * sorted(seconds)[len(seconds) // 2],
        "bytes": sent[-1],
        "peak": runtime.peak_memory(),
    }
    (folder.parent / f"{folder.name}-{here.rank()}.json").write_text(json.dumps(took))


def _counted(name: str, share: float, traffic: list[float]) -> None:
    """Count what a rank sends in a ring: of a sum twice, of what is gathered once all but its own share."""
    original: Callable[..., Any] = getattr(dist, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        group = kwargs.get("group")
        ranks = dist.get_world_size(group)
        tensor = args[0] if name == "all_reduce" else args[1]
        size = tensor.numel() * tensor.element_size()
        traffic[0] += share * size * (ranks - 1) / (ranks if name == "all_reduce" else 1)
        return original(*args, **kwargs)

    setattr(dist, name, counting)


def command(ranks: int, folder: Path, d_in: int, fields: dict[str, Any]) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [
        *(launch if ranks > 1 else [sys.executable]),
        __file__,
        "worker",
        str(folder),
        str(d_in),
        json.dumps(fields),
    ]


def job(ranks: int, folder: Path, d_in: int, fields: dict[str, Any]) -> list[dict[str, float]]:
    """Run to the end; what every rank says it took."""
    done = subprocess.run(command(ranks, folder, d_in, fields), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return [read_json(folder.parent / f"{folder.name}-{rank}.json") for rank in range(ranks)]


def equal(home: Path, small: bool) -> None:
    fields = EQUAL | ({"steps": 20, "batch_size": 64} if small else {})
    d_in = 16 if small else 64
    job(1, home / "alone", d_in, fields)
    rows = {row["path"]: row for row in read_json(home / "alone" / "members.json")}
    heads = [f"{ranks}: {data} x {features}" for ranks, data, features in MESHES]
    worst: dict[str, list[str]] = {row["kind"]: [] for row in rows.values()}
    for ranks, data, features in MESHES:
        folder = home / f"{ranks}-{data}-{features}"
        job(ranks, folder, d_in, fields | {"data_ranks": data, "feature_ranks": features})
        for row in read_json(folder / "members.json"):
            ours, theirs = (load(place / row["path"]).weights for place in (folder, home / "alone"))
            error = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
            worst[row["kind"]].append(f"{error:.0e}, {abs(row['fvu'] / rows[row['path']]['fvu'] - 1):.0e}")
    print(f"{fields['steps']} steps at {d_in} x {4 * d_in}: largest difference of a weight, relative one of FVU")
    print("| kind | " + " | ".join(heads) + " |")
    for kind, cells in worst.items():
        print(f"| {kind} | " + " | ".join(cells) + " |")


def overhead(home: Path, small: bool) -> None:
    d_in, ratio = (64, 4.0) if small else (512, 8.0)
    base = EQUAL | {
        "ratios": [ratio], "ks": [32], "batch_size": 256 if small else 4096, "steps": 12, "precision": "auto",
        "dead_after": 10**9, "seeds": [0, 1],
    }  # fmt: skip
    print("| kind | one process, 2 threads | 2 members | data_ranks 2 | feature_ranks 2 |")
    for kind in ("topk", "batchtopk", "tied"):
        each = base | {"kinds": [kind]}
        (alone,) = job(1, home / f"{kind}-1", d_in, each | {"threads": 2})
        cells = [f"{alone['ms']:.0f} ms"]
        for data, features in ((1, 1), (2, 1), (1, 2)):
            shape = {"data_ranks": data, "feature_ranks": features}
            took = max(rank["ms"] for rank in job(2, home / f"{kind}-{data}{features}", d_in, each | shape))
            cells.append(f"{took:.0f} ms, {took / alone['ms']:.2f}")
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


def kills(home: Path, small: bool, count: int) -> None:
    fields: dict[str, Any] = EQUAL | {
        "kinds": ["tied", "batchtopk", "jumprelu"],
        "batch_size": 64,
        "steps": 60,
        "save_every": 7,
    }
    fields |= {"data_ranks": 2, "feature_ranks": 1, "pause": 0.02, "threads": 1}
    fields |= {"log_every": 1, "save_every": 7}
    steps: int = fields["steps"]
    job(2, home / "whole", 16, fields)
    chance, same, resumed, codes = random.Random(0), 0, 0, []
    whole = {name: entry.sha256 for name, entry in verify(home / "whole").files.items()}
    for number in range(2 if small else count):
        folder = home / f"kill-{number}"
        process = subprocess.Popen(
            command(2, folder, 16, fields), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        log, wanted = folder / "metrics.jsonl", 3 * chance.randrange(1, steps - 5)
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= wanted):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.05))
        ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
        victims = [int(pid) for pid in ranks.stdout.split()]
        if victims:
            os.kill(chance.choice(victims), signal.SIGKILL)
        codes.append(process.wait(timeout=300))
        resumed += (folder / "state" / "state.json").exists()
        job(2, folder, 16, fields)
        same += {name: entry.sha256 for name, entry in verify(folder).files.items()} == whole
        print(f"kill {number + 1} at step {wanted // 3}: torchrun gave {codes[-1]}; {same} the same", flush=True)
        shutil.rmtree(folder)
    print(f"{same} runs with the same bytes; {sum(map(bool, codes))} were stopped, {resumed} went on from a state")
    if same < (2 if small else count):
        raise SystemExit(1)


def wide(home: Path, small: bool) -> None:
    fields: dict[str, Any] = WIDE | {"feature_ranks": 4} | ({"ratios": [16.0]} if small else {})
    d_in = 64 if small else 512
    took = job(4, home / "wide", d_in, fields)
    batch, k = fields["batch_size"], fields["ks"][0]
    # sums twice three quarters (of the reconstruction, the bias, two numbers of metrics), candidates three times
    computed = 4 * (2 * 3 / 4 * ((batch + 1) * d_in + 2) + 3 * batch * k)
    features = int(d_in * fields["ratios"][0])
    print(f"{features:,} features at d_in {d_in}, batch {batch}, k {k}, four ranks with a thread each:")
    memory = sum(rank["peak"] - rank["shared"] for rank in took) / 1e9
    print(f"{max(rank['ms'] for rank in took):.0f} ms a step; {memory:.2f} GB in all at the peaks, shared pages once")
    print(f"a rank sends {took[0]['bytes'] / 1e6:.2f} MB a step, {computed / 1e6:.2f} MB by arithmetic")
    saved = load(home / "wide" / read_json(home / "wide" / "members.json")[0]["path"])
    print(f"read back whole: {saved}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["equal", "overhead", "kills", "wide", "worker"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.what == "worker":
        folder, d_in, fields = given.rest
        worker(Path(folder), int(d_in), json.loads(fields))
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        if given.what == "kills":
            kills(home, given.small, given.kills)
        else:
            {"equal": equal, "overhead": overhead, "wide": wide}[given.what](home, given.small)


if __name__ == "__main__":
    main()
