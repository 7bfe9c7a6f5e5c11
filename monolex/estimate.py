"""What a run will cost before it is started: disk, memory and rough minutes of every stage.

Minutes are floating-point operations divided by the speed of a matrix product measured here and now, times a factor
for everything that is not one, and what Python takes by itself; they are right within a factor of two or so.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.config import (
    BaselineConfig,
    CorpusConfig,
    EvalConfig,
    FeaturesConfig,
    HarvestConfig,
    ModelConfig,
    TrainConfig,
)
from monolex.features.listing import name_fits
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.interp.examples import KEPT, PEAKS
from monolex.interp.inputs import TOPK
from monolex.model import source
from monolex.pipeline import RunConfig, Stage
from monolex.runtime import device, size
from monolex.sites import Structure, expand, resolve, select
from monolex.training.members import Member, members
from monolex.training.optim import recipe

FEATURE_BYTES = 10_000
"""Measured on the demo: what the evidence of a feature takes on disk."""
PROMPT_TOKENS = 20
"""Tokens of an IOI prompt, padding included."""
EXPLAINED_BYTES, SCORED_BYTES = 25_000, 6_000
"""Measured on the demo: what the explanations of a feature, and an explanation's scores, take on disk."""
PATTERN_TOKENS = {"paper": 60, "modern": 180}
"""Tokens that the model reads to find the pattern of a feature, by mode; measured, as what follows, on two cores, and
divided by all features that are asked for, of which many are silent and skipped."""
LEARN = {"paper": 0.005, "modern": 0.008}
"""Seconds of Python that an explanation takes without a language model."""
SIMULATE = 0.008
"""Seconds that scoring an explanation by rules takes."""
OVERHEAD = 2.5
"""Measured on the demo: wall time over the time of the matrix products alone."""


@dataclass(frozen=True)
class Cost:
    """What one stage takes."""

    disk: int
    """Bytes it has on disk at most; the state of a sweep goes when the sweep is done."""
    memory: int
    """Bytes it holds at its peak, beside the interpreter and libraries (about 0.6 GB) and the mapped pages of stored
    activations, which the system takes back when it needs them."""
    flops: float
    """Floating-point operations."""
    seconds: float = 0.0
    """What is no arithmetic."""


class Given(NamedTuple):
    """A dictionary that is trained or fitted."""

    site: str
    """Where."""
    name: str
    """Its name; of a baseline of top-k kind with a number in place of its k."""
    features: int
    """How many it has."""
    home: Path
    """The run's folder, or the control model's in it."""
    trained: bool
    """Whether it is of a sweep."""
    checkpoints: int = 0
    """Dictionaries that are kept along its training."""


@dataclass(frozen=True)
class Shape:
    """What the estimate needs to know of the model; taken from its configuration, no weights are read."""

    parameters: int
    """All parameters."""
    block: int
    """Parameters that every token passes through before the unembedding."""
    vocab: int
    """Number of logits."""
    widths: dict[str, int]
    """``d_in`` of every site of every layer."""
    layers: int
    """Number of blocks."""


def describe(run: RunConfig, stages: Sequence[Stage]) -> str:
    """The plan as a table: stage, state, disk, memory, minutes."""
    shape, speed = model_shape(run.model), gemm_speed(device(run.model.device))
    lines = [f"{'stage':<20} {'state':<8} {'disk':>9} {'memory':>9} {'minutes':>8}"]
    disk, minutes, redone = 0, 0.0, set[Path]()
    for stage, cost in zip(stages, costs(run, stages, shape), strict=True):
        done = stage.answered and not redone.intersection(stage.needs)
        if not done:
            redone.add(stage.folder)
        spent = (cost.flops / speed * OVERHEAD + cost.seconds) / 60
        state = "there" if done else "to do"
        lines.append(f"{stage.name:<20} {state:<8} {size(cost.disk):>9} {size(cost.memory):>9} {spent:>8.1f}")
        disk, minutes = disk + cost.disk, minutes + (0.0 if done else spent)
    lines.append(f"{'in all':<20} {'':<8} {size(disk):>9} {'':>9} {minutes:>8.1f}")
    return "\n".join(lines)


def costs(run: RunConfig, stages: Sequence[Stage], shape: Shape) -> Iterator[Cost]:
    """The cost of every stage, in order."""
    rows = int(run.corpus.max_tokens * (1 - run.corpus.held_out))
    dictionaries: list[tuple[str, int]] = []
    named: dict[Path, list[Given]] = {}
    sweeps: dict[Path, TrainConfig] = {}
    explained: dict[str, tuple[ExplainConfig, int]] = {}
    for stage in stages:
        config = stage.config
        if isinstance(config, tuple):
            yield _harvest(*config, shape=shape)
        elif isinstance(config, TrainConfig):
            sweep = _members(config, run.harvest, shape)
            named[stage.folder] = [_trained(member, stage.folder, config) for member in sweep]
            dictionaries += [(member.site, member.d_sae) for member in sweep]
            sweeps[stage.folder] = config
            yield _train(config, sweep, rows, 4 if run.harvest.dtype == "fp32" else 2)
        elif isinstance(config, BaselineConfig):
            matched = [sweeps[path] for path in stage.needs if path in sweeps]
            named[stage.folder] = list(_fitted(config, stage.folder.parents[1], matched, run.harvest, shape))
            fitted = [(one.site, one.features) for one in named[stage.folder]]
            dictionaries += fitted
            yield _baselines(config, fitted, rows, shape)
        elif isinstance(config, FeaturesConfig):
            given = [one for path in stage.needs for one in named.get(path, [])]
            yield _features(config, given, rows, shape)
        elif isinstance(config, PatchConfig | AblateConfig | TreeConfig):
            given = [one for path in stage.needs for one in named.get(path, [])]
            yield _causal(config, given, run.corpus, shape)
        elif isinstance(config, ExplainConfig):
            given = [one for path in stage.needs for one in named.get(path, [])]
            explained[stage.folder.name] = config, _explained(config, given)
            yield _explain(config, given, run.corpus, shape)
        elif isinstance(config, ScoreConfig):
            yield _score(config, *explained[config.explanations])
        else:
            yield _eval(config, dictionaries, run.corpus, shape)


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


def _sites(names: Sequence[str], harvest: HarvestConfig, shape: Shape) -> list[str]:
    harvested = tuple(map(str, expand(harvest.sites, shape.layers)))
    return list(select(names, harvested, "the harvest"))


def _harvest(model: ModelConfig, corpus: CorpusConfig, harvest: HarvestConfig, *, shape: Shape) -> Cost:
    item, weights = (4 if harvest.dtype == "fp32" else 2), (4 if model.model_dtype == "fp32" else 2)
    width = sum(shape.widths[site] for site in _sites((), harvest, shape))
    batch = harvest.batch_rows * corpus.context_length * (4 * width + 16 * max(shape.widths.values()))
    memory = shape.parameters * weights + 3 * harvest.shard_mb * 10**6 + batch + corpus.max_tokens * 12
    return Cost(corpus.max_tokens * (width * item + 14), memory, 2.0 * shape.block * corpus.max_tokens)


def _members(config: TrainConfig, harvest: HarvestConfig, shape: Shape) -> tuple[Member, ...]:
    return members(config, {site: shape.widths[site] for site in _sites(config.sites, harvest, shape)})


def _trained(member: Member, folder: Path, config: TrainConfig) -> Given:
    return Given(member.site, member.name, member.d_sae, folder.parents[1], True, config.keep_checkpoints)


def _train(config: TrainConfig, sweep: Sequence[Member], rows: int, item: int) -> Cost:
    """``item``: bytes of a stored number."""
    weights = sum(2 * m.d_in * m.d_sae for m in sweep)
    trained = sum((1 if m.kind == "tied" else 2) * m.d_in * m.d_sae for m in sweep)
    steps = config.steps or max(1, int(config.epochs * rows / config.batch_size))
    widths = sum({m.site: m.d_in for m in sweep}.values())
    # The current window and the next, with the order of their rows; or all rows at once.
    windows = (1 if rows <= config.buffer_rows else 2) * min(config.buffer_rows, rows) * (widths * item + 16)
    # Parameters, gradients, two moments; then, without gradients, three copies of the other three on their way to disk.
    step = 16 * trained + max((_work(config, m) for m in sweep), default=0)
    saves = min((steps - 1) // config.save_every, 2)
    memory = max(step, 48 * trained if saves else 0) + windows + 12 * config.batch_size * widths
    # A state is written beside the one before it.
    disk = 4 * weights * (1 + config.keep_checkpoints) + 12 * trained * saves
    # Five products a step: encode, decode, and the gradients of both weights and of the codes.
    return Cost(disk, memory, 5.0 * weights * config.batch_size * steps)


def _work(config: TrainConfig, member: Member) -> int:
    """Bytes of a member's graph: matrices of the batch's codes and of the decoder, float32 (measured)."""
    codes = 6 + (member.kind == "batchtopk") + 2 * (recipe(config, member.kind).auxk > 0)
    return 4 * member.d_sae * (codes * config.batch_size + 4 * member.d_in)


def _fitted(
    config: BaselineConfig, home: Path, matched: Sequence[TrainConfig], harvest: HarvestConfig, shape: Shape
) -> Iterator[Given]:
    """Every baseline."""
    for site in _sites(config.sites, harvest, shape):
        like = sum(member.site == site for sweep in matched for member in _members(sweep, harvest, shape))
        ks = len(config.ks or ()) + like or 1
        for kind in config.kinds:
            features = round((config.ratio if kind.startswith("random") else 2) * shape.widths[site])
            names = [f"{kind}-k{number}" for number in range(ks)] if kind.endswith(TOPK) else [kind]
            yield from (Given(site, name, features, home, trained=False) for name in names)


def _baselines(config: BaselineConfig, fitted: list[tuple[str, int]], rows: int, shape: Shape) -> Cost:
    widths = [shape.widths[site] for site in dict.fromkeys(site for site, _ in fitted)]
    disk = sum(8 * shape.widths[site] * features for site, features in fitted)
    ica = config.ica_rows if any(kind.startswith("ica") for kind in config.kinds) else 0
    flops = sum(2.0 * min(config.fit_rows, rows) * w * w + 200 * 4.0 * min(ica, rows) * w * w for w in widths)
    memory = max(24 * max(ica, 8192) * w + 40 * w * w for w in widths)
    return Cost(disk, memory, flops)


def _eval(config: EvalConfig, dictionaries: list[tuple[str, int]], corpus: CorpusConfig, shape: Shape) -> Cost:
    encode = sum(4.0 * config.rows * shape.widths[site] * features for site, features in dictionaries)
    tokens = config.contexts * corpus.context_length
    forward = 2.0 * (shape.block / 2 + shape.vocab * max(shape.widths.values()) / 4) * tokens * len(dictionaries)
    largest = max((features for _, features in dictionaries), default=0)
    memory = (
        4 * shape.parameters + 12 * 8192 * largest + 12 * config.batch_contexts * corpus.context_length * shape.vocab
    )
    return Cost(len(dictionaries) * 20_000, memory, encode + forward)


def _features(config: FeaturesConfig, given: Sequence[Given], rows: int, shape: Shape) -> Cost:
    rows = min(rows, config.feature_rows or rows)
    sites = select(config.sites, tuple(dict.fromkeys(one.site for one in given)), "the run")
    patterns = config.dictionaries or ("*",)
    chosen = [one for one in given if one.site in sites and any(fnmatchcase(one.name, pattern) for pattern in patterns)]
    encode = sum(4.0 * rows * shape.widths[one.site] * one.features for one in chosen)
    weights = max((8 * shape.widths[one.site] * one.features for one in chosen), default=0)
    disk = FEATURE_BYTES * sum(one.features for one in chosen)
    return Cost(disk, 4 * shape.parameters + config.memory_mb * 10**6 + 20 * rows + weights, 2 * encode)


def _causal(
    config: PatchConfig | AblateConfig | TreeConfig,
    given: Sequence[Given],
    corpus: CorpusConfig,
    shape: Shape,
) -> Cost:
    """Experiments run parts of the model many times; dictionaries are small beside that."""
    forward = 2.0 * shape.block
    memory = 4 * shape.parameters + 40 * config.batch_tokens * max(shape.widths.values())
    if isinstance(config, AblateConfig):
        # the feature, two controls, a rescue by layer twice, and eight pairs
        runs = (3 + 2 * shape.layers + 16) * config.occurrences * len(config.features)
        return Cost(10**5 * len(config.features), memory, forward * runs * corpus.context_length / 2)
    if isinstance(config, TreeConfig):
        nodes = len(config.features) * sum(config.children**level for level in range(config.depth))
        runs = nodes * config.contexts * config.confirm
        return Cost(10**5 * len(config.features), memory, forward / shape.layers * runs * corpus.context_length / 2)
    return _patch(config, given, shape, memory)


def _explained(config: ExplainConfig, given: Sequence[Given]) -> int:
    """Features, at most."""
    return sum(min(config.features, one.features) for one in _wanted(config, given))


def _wanted(config: ExplainConfig, given: Sequence[Given]) -> list[Given]:
    """What is explained; of the top-k baselines as many of a kind and site as there are trained dictionaries there."""
    sites = select(config.sites, tuple(dict.fromkeys(one.site for one in given)), "the run")
    patterns = config.dictionaries or ("*",)
    fitting = [one for one in given if one.site in sites and _fits(one, patterns)]
    if not config.controls:
        fitting = [one for one in fitting if one.home.parent.name != "controls"]
    trained = Counter((one.home, one.site) for one in fitting if one.trained)
    seen: Counter[tuple[Path, str, str]] = Counter()
    found: list[Given] = []
    for one in fitting:
        kind, topk, _ = one.name.rpartition(f"{TOPK}-k")
        if topk and config.matched and (most := trained[one.home, one.site]):
            seen[one.home, one.site, kind] += 1
            if seen[one.home, one.site, kind] > most:
                continue
        found += [one] * (1 + one.checkpoints * config.checkpoints)
    return found


def _explain(config: ExplainConfig, given: Sequence[Given], corpus: CorpusConfig, shape: Shape) -> Cost:
    """Encoding all fragments, learning in Python, and for patterns short texts through the model."""
    chosen, features = _wanted(config, given), _explained(config, given)
    fragments = min(config.fragments, corpus.max_tokens // config.fragment_tokens)
    if config.mode == "paper" and corpus.document_tokens:  # one of a document
        fragments = min(fragments, -(-corpus.max_tokens // corpus.document_tokens))
    tokens = fragments * config.fragment_tokens
    encode = sum(2.0 * tokens * shape.widths[one.site] * one.features for one in chosen)
    patterns = 2.0 * shape.block * PATTERN_TOKENS[config.mode] * features * ("pattern" in config.explainers)
    widest = max((one.features for one in chosen), default=0)
    # at once: the codes of one pass, and of every fragment and feature the maximum and whether it varies
    looked = min(config.features, widest) if config.pick == "first" or config.mode == "paper" else widest
    memory = 4 * shape.parameters + 4 * min(tokens * widest, KEPT) + 5 * min(fragments * looked, PEAKS)
    return Cost(
        EXPLAINED_BYTES * features, memory, encode + patterns, LEARN[config.mode] * features * len(config.explainers)
    )


def _score(config: ScoreConfig, explained: ExplainConfig, features: int) -> Cost:
    """Of rules; what a language model takes depends on where it runs."""
    explanations = features * len(explained.explainers)
    draws = 8 * config.resamples * features
    return Cost(SCORED_BYTES * explanations, draws + 10**5 * explained.features, 0.0, SIMULATE * explanations)


def _fits(one: Given, patterns: Sequence[str]) -> bool:
    return name_fits(one.site, one.name, patterns)


def _patch(config: PatchConfig, given: Sequence[Given], shape: Shape, memory: int) -> Cost:
    residual = tuple(dict.fromkeys(one.site for one in given if one.site.startswith("resid_post.")))
    sites = select(config.sites or ("resid_post.*",), residual, "the run") if residual else ()
    patterns = config.dictionaries or ("*",)
    chosen = [one for one in given if one.site in sites and _fits(one, patterns)]
    exact = config.exact or ("*",)
    trials = 0.0
    for one in chosen:
        features = one.features
        share = 1 - (int(one.site.rpartition(".")[2]) + 1) / shape.layers
        slow = _fits(one, exact)
        # attribution runs forth and back five times; a sweep visits what is left, greedy all but what is chosen
        runs = 15 + sum(
            2 * config.points
            + {"effects": features, "greedy": config.limit * features, "swaps": 500, "sweep": 0}.get(search, 0)
            + (search == "sweep") * config.thresholds * features / 2
            for search in config.searches
            if slow or search in ("ranking", "random")
        )
        trials += share * runs
    largest = max((one.features for one in chosen), default=0)
    tokens = config.pairs * PROMPT_TOKENS
    return Cost(50_000 * len(chosen), memory + 12 * tokens * largest, 2.0 * shape.block * tokens * trials)
