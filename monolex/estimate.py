"""What a run will cost before it is started: disk, memory and minutes of every step of its plan.

Minutes are those of real pieces of work, done here for a moment each: a batch through the model in its precision, a
step of every kind and width of dictionary, some activations encoded, a little Python (:mod:`monolex.speed`). What
cannot be tried in a second was measured once and goes with the speed of Python here. A busy machine is measured busy.

Memory is the peak of a process that does the step alone: what it holds, mapped pages of stored activations (which the
system takes back where it needs them), and the interpreter and its libraries (:data:`LIBRARIES`). A whole run has the
peak of its largest step, or of as many of the largest as are done at a time.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from monolex.config import ModelConfig
from monolex.cost import Cost, Planned, PlannedDictionary, Shape
from monolex.model.load import configuration, load
from monolex.model.sites import Structure, resolve
from monolex.plan import Step, waits
from monolex.run_toml import RunConfig
from monolex.runtime import device, free_memory, log, size, threads
from monolex.schedule import span
from monolex.speed import Speed
from monolex.workers import MOST_JOBS, cores

LIBRARIES = 480 * 10**6
"""Bytes of a process that has imported what every stage needs and done nothing (Linux, torch for CPUs)."""
ITEM = {"fp32": 4, "bf16": 2, "fp16": 2, "auto": 4}
"""Bytes of a parameter; of a precision that nobody settled yet, at most."""
SMALL_MODEL = 10**7
"""Parameters of a model up to which several steps are done at a time."""
FREE_MEMORY = 0.8
"""Share of the free memory that steps may take beside each other."""


class StepEstimate(NamedTuple):
    """What a step of a plan takes."""

    name: str
    """As the plan has it."""
    done: bool
    """Whether its answer is there already."""
    disk: int
    """Bytes."""
    memory: int
    """Bytes at the peak, libraries among them."""
    minutes: float
    """On this machine, as busy as it is now."""
    traffic: int = 0
    """Bytes that a rank sends to others."""


class RunEstimate(NamedTuple):
    """What a plan takes; ``str`` is a table."""

    steps: tuple[StepEstimate, ...]
    """All of it, what is done too."""
    jobs: int
    """Steps that are done at a time."""
    disk: int
    """Bytes of all steps."""
    memory: int
    """Bytes of as many of the largest steps as are done at a time."""
    minutes: float
    """Of what is not done, in one process."""
    ranks: int = 1
    """Processes of torchrun; memory and traffic are those of the one with most to do."""

    def __str__(self) -> str:
        return self._of_ranks() if self.ranks > 1 else self._of_one_process()

    def _of_ranks(self) -> str:
        rows = [(step.name, "there" if step.done else "to do", step.memory, step.traffic) for step in self.steps]
        most = max((step.memory for step in self.steps), default=0)
        lines = [f"{'stage':<24} {'state':<8} {'memory':>9} {'traffic':>9}"]
        for name, state, memory, traffic in (*rows, ("in all", "", most, sum(step.traffic for step in self.steps))):
            lines.append(f"{name:<24} {state:<8} {size(memory):>9} {size(traffic):>9}")
        said = f"of a rank, of {self.ranks}: memory at its peak, {size(LIBRARIES)} of Python and its libraries in it;"
        return "\n".join([*lines, said, f"traffic, what it sends to others; disk of all: {size(self.disk)}"])

    def _of_one_process(self) -> str:
        rows = [
            (step.name, "there" if step.done else "to do", step.disk, step.memory, step.minutes) for step in self.steps
        ]
        in_all = "in all" if self.jobs == 1 else f"in all, {self.jobs} jobs"
        lines = [f"{'stage':<24} {'state':<8} {'disk':>9} {'memory':>9} {'minutes':>8}"]
        for name, state, disk, memory, minutes in (*rows, (in_all, "", self.disk, self.memory, self.minutes)):
            lines.append(f"{name:<24} {state:<8} {size(disk):>9} {size(memory):>9} {minutes:>8.1f}")
        said = f"memory: the peak of each step, {size(LIBRARIES)} of Python and its libraries in it; minutes: as busy"
        return "\n".join([*lines, said, "as this machine is now"])

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**self._asdict(), "steps": [step._asdict() for step in self.steps]}


def estimate(
    run: RunConfig, steps: Sequence[Step], jobs: int = 1, speed: Speed | None = None, ranks: int = 1
) -> RunEstimate:
    """What every step of a plan takes, and all of them with ``jobs`` at a time, or shared by ``ranks`` of torchrun.

    Raises:
        UserError: as :func:`measure`.
    """
    shape = model_shape(run.model)
    redone, every, estimated = set[Path](), [], []
    with threads(max(1, torch.get_num_threads() // jobs)):
        speed = speed or measure(run.model, shape, run.corpus.context_length)
        for step, cost in zip(steps, costs(run, steps, shape, speed, ranks), strict=True):
            done = step.answered and not redone.intersection(step.needs)
            if not done:
                redone.add(step.folder)
            minutes = seconds(step, cost, shape, speed) / 60
            every.append(cost)
            estimated.append(StepEstimate(step.name, done, cost.disk, cost.memory, minutes, cost.traffic))
    left = [0.0 if step.done else step.minutes for step in estimated]
    memory = _most_memory(every, jobs)
    return RunEstimate(
        tuple(estimated), jobs, sum(cost.disk for cost in every), memory, span(waits(steps), left, jobs), ranks
    )


def total(run: RunConfig, steps: Sequence[Step], shape: Shape, speed: Speed) -> tuple[float, int, int]:
    """Minutes of all steps at ``speed``, bytes of disk of all, and of memory, with as many at a time as are done."""
    every = list(costs(run, steps, shape, speed))
    spent = [seconds(step, cost, shape, speed) for step, cost in zip(steps, every, strict=True)]
    jobs = _jobs(run, steps, every, shape)
    return span(waits(steps), spent, jobs) / 60, sum(cost.disk for cost in every), _most_memory(every, jobs)


def jobs_for(run: RunConfig, steps: Sequence[Step]) -> int:
    """How many steps are done at a time unless one says: one, and of a small model on a CPU one a core, up to four.

    Matrices of small models leave most of a second thread idle, as does the Python around them. Each step has to fit
    into its share of the free memory.
    """
    shape = model_shape(run.model)
    return _jobs(run, steps, list(costs(run, steps, shape)), shape)


def _jobs(run: RunConfig, steps: Sequence[Step], every: Sequence[Cost], shape: Shape) -> int:
    trained_on = {step.config.train_device for step in steps if hasattr(step.config, "train_device")}
    on_cpu = all(device(name).type == "cpu" for name in {run.model.device, *trained_on})
    if not on_cpu or shape.parameters > SMALL_MODEL:
        return 1
    left = FREE_MEMORY * free_memory(torch.device("cpu")) - LIBRARIES  # what the first process has
    return max(1, min(cores(), MOST_JOBS, int(left) // max(cost.memory for cost in every)))


def _most_memory(every: Sequence[Cost], jobs: int) -> int:
    """Bytes of the largest steps, as many as are done at a time, and of the process that gives them out."""
    return sum(sorted((cost.memory for cost in every), reverse=True)[:jobs]) + (LIBRARIES if jobs > 1 else 0)


def measure(config: ModelConfig, shape: Shape, context: int) -> Speed:
    """The speed of this machine on a model, which is loaded; of one that does not fit, the speed of another machine.

    Raises:
        UserError: as :func:`monolex.model.load.load`.
    """
    needed, free = ITEM[config.model_dtype] * shape.parameters, free_memory(device(config.device))
    if config.device_map is None and needed > FREE_MEMORY * free:
        log.warning("%s takes %s and %s are free: minutes are a guess", config.model, size(needed), size(free))
        return Speed()
    began = time.perf_counter()
    lm = load(config)
    assert len(lm.fingerprint) > 0  # every stage that loads the model takes its hash
    return Speed(lm, context, loading=time.perf_counter() - began)


def seconds(step: Step, cost: Cost, shape: Shape, speed: Speed) -> float:
    """Seconds of a step here, loading its models among them."""
    models = {"activations": 0, "explanations": 0, "models": 1 + len(step.inputs.get("controls", ()))}
    loading = speed.loading * models.get(step.stage.made_of, 1)
    return cost.flops / (2 * shape.block) * speed.token(shape.block) + cost.seconds + loading


def costs(
    run: RunConfig, steps: Sequence[Step], shape: Shape, speed: Speed | None = None, ranks: int = 1
) -> Iterator[Cost]:
    """The cost of every step, in order, with :data:`LIBRARIES` in its memory; without ``speed`` as elsewhere."""
    dictionaries: dict[Path, list[PlannedDictionary]] = {}
    earlier: dict[Path, Planned] = {}
    speed, item = speed or Speed(measured=False), ITEM[run.model.model_dtype]
    for step in steps:
        facts = (step.folder, step.config, step.inputs, step.needs)
        known = (run.corpus, run.harvest, shape, dictionaries, dict(earlier), speed, item, ranks)
        planned = earlier[step.folder] = Planned(*facts, *known)
        function = step.stage.load("cost")
        cost = function(planned) if function else Cost(0, 0, 0.0)
        yield replace(cost, memory=cost.memory + LIBRARIES)


def model_shape(config: ModelConfig) -> Shape:
    """Sizes of a model from its configuration alone."""
    stored = configuration(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(stored)
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
