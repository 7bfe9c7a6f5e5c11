"""What a run will cost before it is started: disk, memory and rough minutes of every step of its plan.

Minutes are floating-point operations divided by the speed of a matrix product measured here and now, times a factor
for everything that is not one, and what Python takes by itself; they are right within a factor of two or so.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from monolex.config import ModelConfig
from monolex.cost import Cost, Planned, PlannedDictionary, Shape
from monolex.model.files import source
from monolex.model.sites import Structure, resolve
from monolex.plan import Step
from monolex.run_toml import RunConfig
from monolex.runtime import device, size

OVERHEAD = 2.5
"""Measured on the demo: wall time over the time of the matrix products alone."""


def describe(run: RunConfig, steps: Sequence[Step]) -> str:
    """The plan as a table: step, state, disk, memory, minutes."""
    shape, speed = model_shape(run.model), gemm_speed(device(run.model.device))
    lines = [f"{'stage':<20} {'state':<8} {'disk':>9} {'memory':>9} {'minutes':>8}"]
    disk, minutes, redone = 0, 0.0, set[Path]()
    for step, cost in zip(steps, costs(run, steps, shape), strict=True):
        done = step.answered and not redone.intersection(step.needs)
        if not done:
            redone.add(step.folder)
        spent = _minutes(cost, speed)
        state = "there" if done else "to do"
        lines.append(f"{step.name:<20} {state:<8} {size(cost.disk):>9} {size(cost.memory):>9} {spent:>8.1f}")
        disk, minutes = disk + cost.disk, minutes + (0.0 if done else spent)
    lines.append(f"{'in all':<20} {'':<8} {size(disk):>9} {'':>9} {minutes:>8.1f}")
    return "\n".join(lines)


def total(run: RunConfig, steps: Sequence[Step], shape: Shape, speed: float) -> tuple[float, int, int]:
    """Minutes of all steps at ``speed`` (:func:`gemm_speed`), bytes of disk of all, and of memory of the largest."""
    every = list(costs(run, steps, shape))
    return sum(_minutes(c, speed) for c in every), sum(c.disk for c in every), max(c.memory for c in every)


def _minutes(cost: Cost, speed: float) -> float:
    return (cost.flops / speed * OVERHEAD + cost.seconds) / 60


def costs(run: RunConfig, steps: Sequence[Step], shape: Shape) -> Iterator[Cost]:
    """The cost of every step, in order."""
    dictionaries: dict[Path, list[PlannedDictionary]] = {}
    earlier: dict[Path, Planned] = {}
    harvest = run.harvest
    for step in steps:
        facts = (step.folder, step.config, step.inputs, step.needs)
        planned = earlier[step.folder] = Planned(*facts, run.corpus, harvest, shape, dictionaries, dict(earlier))
        cost = step.stage.load("cost")
        yield cost(planned) if cost else Cost(0, 0, 0.0)


def model_shape(config: ModelConfig) -> Shape:
    """Sizes of a model from its configuration alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source(config), revision=config.revision))
    text = model.config.get_text_config()
    structure: Structure = resolve(model, text.num_hidden_layers, text.hidden_size)
    places = {f"{kind}.{n}": place.width for n, layer in enumerate(structure.places) for kind, place in layer.items()}
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        block=sum(p.numel() for p in structure.blocks.parameters()),
        vocab=text.vocab_size,
        widths=places,
        layers=text.num_hidden_layers,
    )


def gemm_speed(where: torch.device) -> float:
    """Floating-point operations a second of a float32 matrix product here."""
    a = torch.randn(1024, 512, device=where)
    b = torch.randn(512, 1024, device=where)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * 1024 * 512 * 1024 / best
