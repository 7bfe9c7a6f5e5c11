"""What a training step costs an activation, against width, k, batch and members: a table, and a picture of it.

    python bench/curves.py [--out docs/cost.svg] [--rounds 3] [--kind topk]

TopK at d_in 512, around d_sae 4096, k 32, batch 4096 and one member: one of the four is changed at a time. Peers are
timed where they can be imported, in the fastest mode they document; none trains members together, so theirs cost as
many steps. Printed are microseconds an activation and member: medians over rounds of two steps.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from train import Step, batches, dictionary_learning, ours, product, saelens, sparsify

from monolex.pages.axis import axis
from monolex.pages.picture import Panel, Picture, svg_file
from monolex.pages.svg import Point, Series
from monolex.train_config import TrainConfig
from monolex.training.members import members
from monolex.training.sparse.operators import Operators
from monolex.training.sweep import Trainer

D_IN, USUAL = 512, {"d_sae": 4096, "k": 32, "batch": 4096, "members": 1}
VALUES = {
    "d_sae": (1024, 2048, 4096, 8192, 16_384),
    "k": (8, 32, 128),
    "batch": (256, 1024, 4096, 8192),
    "members": (1, 4, 8),
}
TOOLS: dict[str, tuple[str, Callable[[str, list[Tensor], int, int], Step]]] = {
    "monolex": ("vermilion", ours),
    "monolex, no numba": ("orange", lambda kind, data, n, k: ours(kind, data, n, k, parts=Operators)),
    "sparsify, bf16": ("green", lambda kind, data, n, k: sparsify(kind, data, n, k, autocast=True)),
    "SAELens, autocast": ("blue", lambda kind, data, n, k: saelens(kind, data, n, k, autocast=True)),
    "dictionary_learning": ("purple", dictionary_learning),
    "encoder's product, bf16": ("ink", lambda _kind, data, n, _k: product(data, n, torch.bfloat16)),
}


def together(kind: str, data: list[Tensor], n: int, k: int, count: int) -> Step:
    """A step of so many members of a sweep that differ in their seed."""
    size, d = data[0].shape
    config = TrainConfig(
        kinds=(kind,), ks=(k,), ratios=(n / d,), seeds=tuple(range(count)), batch_size=size, lrs=(1e-4,),
        dead_after=10**9,
    )  # fmt: skip
    trainer = Trainer(members(config, {"site": d}), config, 1000)
    return lambda number: trainer.step({"site": data[number % 4]})


def microseconds(step: Step, activations: int, rounds: int) -> float:
    step(0)
    spent = []
    for number in range(rounds):
        began = time.perf_counter()
        step(number)
        step(number + 1)
        spent.append((time.perf_counter() - began) / 2)
    return 1e6 * statistics.median(spent) / activations


def measured(kind: str, rounds: int) -> Iterator[tuple[str, int, str, float]]:
    for field, values in VALUES.items():
        for value in values:
            at = USUAL | {field: value}
            data = batches(D_IN, at["d_sae"], at["batch"])
            for name, (_, make) in TOOLS.items():
                if field == "members" and name != "monolex":
                    continue
                try:
                    step = make(kind, data, at["d_sae"], at["k"])
                except ImportError:
                    continue
                if field == "members":
                    step = together(kind, data, at["d_sae"], at["k"], value)
                yield field, value, name, microseconds(step, at["batch"] * at["members"], rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="topk")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    numbers: dict[str, dict[str, dict[int, float]]] = {field: {} for field in VALUES}
    for field, value, name, spent in measured(options.kind, options.rounds):
        numbers[field].setdefault(name, {})[value] = spent
    for field, by_tool in numbers.items():
        print(f"\n| µs an activation, by {field} | " + " | ".join(map(str, VALUES[field])) + " |")
        print("|---" * (len(VALUES[field]) + 1) + "|")
        for name, spent in by_tool.items():
            print(f"| {name} | " + " | ".join(f"{spent[value]:.1f}" for value in VALUES[field]) + " |")
    if options.out:
        panels = [
            Panel(
                f"by {field}",
                tuple(
                    Series(name, tuple(Point(value, spent) for value, spent in by_value.items()), TOOLS[name][0])
                    for name, by_value in by_tool.items()
                ),
                axis(f"{field} (others: {', '.join(f'{n} {v}' for n, v in USUAL.items() if n != field)})",
                     VALUES[field], log=True),
                axis("µs an activation and member", [1, *(s for b in by_tool.values() for s in b.values())], log=True),
                width=420, height=300,
            )
            for field, by_tool in numbers.items()
        ]  # fmt: skip
        picture = Picture("cost", f"A training step of {options.kind} on two CPU cores, d_in {D_IN}", tuple(panels))
        options.out.write_bytes(svg_file(picture))


if __name__ == "__main__":
    main()
