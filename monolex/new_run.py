"""`monolex init`: a run.toml that fits a model, a text and a number of minutes, with a comment on every line.

The template is ``new_run.toml``. Its sizes are a step of a ladder, the richest whose estimate, of the very file that is
written, stays within the minutes, the free memory and the free disk, and that leaves its dictionaries enough text.
"""

import json
import math
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from string import Template
from typing import NamedTuple

from transformers import AutoConfig, PreTrainedTokenizerBase

from monolex.artifact import write_bytes
from monolex.causal.prompts.tasks import ioi
from monolex.config import CorpusConfig, ModelConfig, require
from monolex.cost import Shape
from monolex.errors import UserError
from monolex.estimate import gemm_speed, model_shape, total
from monolex.model.files import source
from monolex.model.load import load
from monolex.plan import plan
from monolex.run_toml import run_config
from monolex.runtime import device, free_memory, size
from monolex.text.corpus import build
from monolex.text.documents import documents
from monolex.text.report import Report
from monolex.training.members import short

TEMPLATE = Path(__file__).with_name("new_run.toml")
CONTEXT = 256
"""Tokens of a row, where the model can read so many."""
DOCUMENTS = 200
"""Documents that a corpus should have, for intervals over them; long ones are cut for that."""
TOKENS = tuple(int(digits * 10**power) for power in (4, 5, 6, 7) for digits in (1, 1.5, 2, 3, 4, 5, 7))
"""Sizes of a corpus that are tried."""
ROWS_A_FEATURE = 300
"""Activations that a dictionary should see for each of its features; the demo's see some 250 to 1,000."""
DEMO_WIDTH = 192
"""Width of the model on which the sparsities below were found to suit."""
ALPHAS = (0.006, 0.015, 0.003)
"""L1 coefficients there, the one to have first; the threshold of a feature relative to a row goes with their product
with the square root of the width."""
KS = (24, 8, 72)
"""Likewise active features; how many a row has goes with the width, up to what the field uses on large models."""
LARGEST_KS = (96, 32, 256)
BATCH_BYTES = 3e8
"""What the forward passes of the harvest and of the evaluation may hold."""


class Rung(NamedTuple):
    """One step of the ladder."""

    ratio: float
    """Features of a dictionary for each dimension."""
    sparsities: int
    """Of each of the two kinds."""
    ica: bool
    """Whether ICA is fitted."""
    controls: tuple[str, ...]
    """Control models."""
    contexts: int
    """Rows for the fidelity of every dictionary."""
    explained: int
    """Features of a dictionary that are explained."""
    pairs: int
    """Pairs of prompts for patching."""


LADDER = (
    Rung(8.0, 3, True, ("random", "shuffled"), 32, 100, 40),
    Rung(4.0, 2, True, ("random", "shuffled"), 16, 50, 30),
    Rung(2.0, 2, True, ("random", "shuffled"), 8, 30, 20),
    Rung(2.0, 2, False, ("random",), 4, 20, 10),
    Rung(2.0, 1, False, ("random",), 2, 10, 8),
    Rung(1.0, 1, False, ("random",), 2, 10, 8),
)
"""Richest first."""


@dataclass(frozen=True)
class Subject:
    """What the file needs to know of the model."""

    name: str
    """As the user gave it."""
    shape: Shape
    """Its sizes."""
    positions: int
    """Tokens that it can read at once."""
    dtype: str
    """Precision in which it fits into memory."""
    unspelled: str = ""
    """Why its tokenizer cannot spell name-swapping prompts; empty if it can."""

    @property
    def context(self) -> int:
        """Tokens of a row."""
        return min(CONTEXT, self.positions)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks after which a quarter, half and three quarters of the depth are behind; fewer in a shallow model."""
        return tuple(dict.fromkeys(max(int(self.shape.layers * q + 0.5) - 1, 0) for q in (0.25, 0.5, 0.75)))

    @property
    def middle(self) -> str:
        """The residual stream at half of the depth."""
        return f"resid_post.{max(int(self.shape.layers * 0.5 + 0.5) - 1, 0)}"

    @property
    def sites(self) -> list[str]:
        """The residual stream at these depths, and what the MLP at half of it adds."""
        return [f"resid_post.{layer}" for layer in self.layers] + [self.middle.replace("resid_post", "mlp_out")]

    @property
    def width(self) -> int:
        """``d_in`` of these sites."""
        return self.shape.widths[self.middle]


@dataclass(frozen=True)
class Text:
    """What the file needs to know of the corpus."""

    name: str
    """As the user gave it."""
    text_field: str
    """Field of a line of JSON."""
    tokens: int
    """How many were counted, of all its documents or as far as the minutes reach."""
    document_tokens: int
    """At most so many of a document were."""
    mean: float = math.inf
    """Tokens of a document on average."""


class Sizes(NamedTuple):
    """What is chosen to fit."""

    rung: Rung
    """Step of the ladder."""
    tokens: int
    """How much text is read."""
    epochs: int
    """Passes over its activations."""

    @property
    def rows(self) -> int:
        """Activations that a dictionary is trained on."""
        return int(self.tokens * 0.9) * self.epochs

    @property
    def worth(self) -> float:
        """Activations, where another pass over the same ones is worth less than new ones."""
        return self.rows / math.sqrt(self.epochs)


class Spent(NamedTuple):
    """What a run is estimated to take, or may take."""

    minutes: float
    """On this machine, now."""
    disk: int
    """Bytes."""
    memory: int
    """Bytes at the peak."""


def new_run(path: Path, model: str, corpus: str, minutes: float = 30.0, text_field: str = "text") -> list[str]:
    """Write a run.toml for ``model`` over ``corpus`` that takes about ``minutes``; what was chosen and why, in lines.

    Raises:
        UserError: the file is there already, a model or a corpus that cannot be read, a corpus of one document, or too
            few minutes, disk or memory for the smallest run.
    """
    require(not path.exists(), f"{path} exists; give another --out, or delete it first")
    require(minutes > 0, f"minutes = {minutes:g}: give a positive number")
    speed, free = gemm_speed(device()), free_memory(device())
    subject = _subject(model, free)
    most = Spent(minutes, int(0.8 * shutil.disk_usage(path.absolute().parent).free), int(0.7 * free))
    endless = Text(corpus, text_field, TOKENS[-1], 2 * subject.context)
    affordable = _most_tokens(subject, endless, LADDER[-1], most, speed)
    subject, text = _read(subject, endless, affordable)
    sizes = _choose(subject, text, most, speed)
    written = _written(subject, text, sizes, path, minutes)
    write_bytes(path, written.encode())
    return [*_reasons(subject, sizes, minutes), _summary(_spent(written, subject.shape, speed))]


def _subject(model: str, free: int) -> Subject:
    """Sizes from the model's configuration alone."""
    config = ModelConfig(model=model)
    try:
        shape = model_shape(config)
        positions = AutoConfig.from_pretrained(source(config)).get_text_config().max_position_embeddings
    except (LookupError, OSError, ValueError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model = {model!r} cannot be read: {reason}") from error
    return Subject(model, shape, positions, "fp32" if 4 * shape.parameters < 0.4 * free else "bf16")


def _read(subject: Subject, text: Text, affordable: int) -> tuple[Subject, Text]:
    """Load the model, which proves that its sites are what they say, and count the tokens of the text that it reads."""
    lm = load(ModelConfig(model=subject.name, model_dtype="fp32" if subject.dtype == "fp32" else "bf16"))
    tokenizer = lm.tokenizer
    assert tokenizer is not None, "a loaded model has a tokenizer"
    config = CorpusConfig(text.name, text_field=text.text_field, context_length=subject.context)
    require(
        len(list(islice(documents(config, tokenizer, Report()), 2))) != 1,
        f"corpus = {text.name!r} is a single document, and some must be kept apart to measure on: cut it into several "
        "files, or into lines of a .jsonl file",
    )
    cut = max(2 * subject.context, affordable // DOCUMENTS)
    config = replace(config, max_tokens=affordable, document_tokens=cut)
    report = build(config, tokenizer).report
    if report.tokens < affordable:  # few documents: take more of each
        cut = max(cut, 2 * affordable // report.documents)
        report = build(replace(config, document_tokens=cut), tokenizer).report
    unspelled = _unspelled(tokenizer, subject.positions)
    mean = report.tokens / report.documents
    return replace(subject, unspelled=unspelled), replace(text, tokens=report.tokens, document_tokens=cut, mean=mean)


def _unspelled(tokenizer: PreTrainedTokenizerBase, positions: int) -> str:
    """Why name-swapping prompts cannot be put to the model; empty if they can."""
    try:
        longest = int(ioi(tokenizer, pairs=32).lengths.max())
    except UserError as error:
        return str(error)
    return "" if longest <= positions else f"a prompt has {longest} tokens and the model {positions} positions"


def _most_tokens(subject: Subject, text: Text, rung: Rung, most: Spent, speed: float) -> int:
    """The largest corpus that fits at a rung.

    Raises:
        UserError: not even the smallest does.
    """

    def spent(tokens: int) -> Spent:
        return _spent(_written(subject, text, Sizes(rung, tokens, 1)), subject.shape, speed)

    for tokens in reversed(TOKENS):
        if _fits(spent(tokens), most):
            return tokens
    least = spent(TOKENS[0])
    raise UserError(
        f"minutes = {most.minutes:g}: the smallest run of {subject.name} takes {math.ceil(least.minutes)} "
        f"minutes or so, {size(least.disk)} of disk and {size(least.memory)} of memory here, and {size(most.disk)} and "
        f"{size(most.memory)} are to spare; give more --minutes, or a smaller model"
    )


def _choose(subject: Subject, text: Text, most: Spent, speed: float) -> Sizes:
    """The first step of the ladder that fits and has enough text; the last one with whatever there is."""
    for sizes in _candidates(text):
        enough = sizes.worth >= ROWS_A_FEATURE * sizes.rung.ratio * subject.width or sizes.rung == LADDER[-1]
        if enough and _fits(_spent(_written(subject, text, sizes), subject.shape, speed), most):
            return sizes
    raise AssertionError("the smallest corpus fitted when it was asked for")


def _candidates(text: Text) -> Iterator[Sizes]:
    """By rung, the most text first."""
    lengths = (text.tokens, *(tokens for tokens in TOKENS if tokens < text.tokens))
    for rung in LADDER:
        sizes = [Sizes(rung, tokens, epochs) for tokens in lengths for epochs in (1, 2, 4)]
        yield from sorted(sizes, key=lambda candidate: -candidate.worth)


def _fits(spent: Spent, most: Spent) -> bool:
    return all(a <= b for a, b in zip(spent, most, strict=True))


def _spent(written: str, shape: Shape, speed: float) -> Spent:
    run = run_config(tomllib.loads(written), TEMPLATE)
    return Spent(*total(run, plan(run, Path("run")), shape, speed))


def _written(subject: Subject, text: Text, sizes: Sizes, path: Path = Path("run.toml"), minutes: float = 0) -> str:
    """The file."""
    rung, width, positions = sizes.rung, subject.width, subject.context
    alphas = [_rounded(alpha * math.sqrt(DEMO_WIDTH / width)) for alpha in ALPHAS[: rung.sparsities]]
    ks = [_active(k, most, width) for k, most in zip(KS, LARGEST_KS, strict=True)][: rung.sparsities]
    batch = _batch(sizes.rows)
    steps = max(sizes.rows // batch, 1)
    widest = max(subject.shape.widths.values())
    practised = "practised" if subject.name == "demo" else ""
    values = {
        "out": path,
        "minutes": f"{minutes:g}",
        "model": json.dumps(subject.name, ensure_ascii=False),
        "dtype": subject.dtype,
        "corpus": json.dumps(text.name, ensure_ascii=False),
        "text_field": json.dumps(text.text_field, ensure_ascii=False),
        "tokens": f"{sizes.tokens:_}",
        "document_tokens": f"{'# ' * (not _cuts(text))}document_tokens = {_cut(text, sizes.tokens, positions):_}",
        "context": positions,
        "positions": f"{subject.positions:,}",
        "sites": json.dumps(subject.sites),
        "middle": subject.middle,
        "batch_rows": _power(BATCH_BYTES / (positions * (16 * width + 16 * widest)), 1, 16),
        "ratio": rung.ratio,
        "r": short(rung.ratio),
        "alphas": alphas,
        "ks": ks,
        "k": ks[0],
        "lr": _rounded(learning_rate(rung.ratio * width, steps)),
        "batch": batch,
        "steps": f"{steps:,}",
        "epochs": f"{sizes.epochs}.0",
        "baselines": json.dumps(["neurons", "random-topk", "pca", "pca-topk", *["ica-topk"] * rung.ica]),
        "controls": json.dumps(rung.controls),
        "rows": f"{min(50_000, max(sizes.tokens // 10, 1)):_}",
        "contexts": rung.contexts,
        "batch_contexts": _power(BATCH_BYTES / (12 * positions * subject.shape.vocab), 1, 16),
        "memory_mb": 512,
        "explained": rung.explained,
        "fragments": f"{max(min(2_000, sizes.tokens // 100), 1):_}",
        "patch_note": f"# Left out: {subject.unspelled}.\n" if subject.unspelled else "",
        "p": "# " if subject.unspelled else "",
        "words": practised or "standard",
        "names": practised or "common",
        "pairs": rung.pairs,
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def learning_rate(d_sae: float, steps: int) -> float:
    """The rate of the preset `modern` (Gao et al. 2024), up to four times as large where a run is shorter than 10,000
    steps; the rates that were found for the demo and for docs/results.md lie on it."""
    return 2e-4 / math.sqrt(d_sae / 2**14) * min(max(math.sqrt(10_000 / steps), 1), 4)


def _batch(rows: int) -> int:
    """Larger where there are more activations, and more steps too."""
    return _power(math.sqrt(rows) / 1.5 * math.sqrt(2), 32, 4096)


def _power(number: float, least: int, most: int) -> int:
    """The largest power of two that is not above ``number``, within bounds."""
    return min(max(2 ** int(math.log2(max(number, 1))), least), most)


def _active(k: int, most: int, width: int) -> int:
    return min(max(4 * round(k * width / DEMO_WIDTH / 4), 1 + k // 6), most)


def _rounded(number: float) -> float:
    return float(f"{number:.2g}")


def _cuts(text: Text) -> bool:
    """Whether documents are long enough to be cut."""
    return text.mean > text.document_tokens / 8


def _cut(text: Text, tokens: int, context: int) -> int:
    """Tokens of a document, so that fewer tokens come of as many documents."""
    return max(2 * context, text.document_tokens * tokens // text.tokens)


def _reasons(subject: Subject, sizes: Sizes, minutes: float) -> list[str]:
    """What was chosen and why, a line each."""
    rung, shape = sizes.rung, subject.shape
    features = round(rung.ratio * subject.width)
    why = f"what {minutes:g} minutes allow here" if sizes.tokens in TOKENS else "all that there are"
    times = f", {sizes.epochs} times over" if sizes.epochs > 1 else ""
    thin = ": few, more minutes or text would help" if sizes.worth < ROWS_A_FEATURE * features else ""
    each = "sparsity" if rung.sparsities == 1 else "sparsities"
    return [
        f"model: {shape.layers} blocks of width {subject.width}, {shape.parameters:,} parameters, in {subject.dtype}",
        f"sites: {', '.join(subject.sites)}: a quarter, half and three quarters of the depth, and one MLP",
        f"text: {sizes.tokens:,} tokens in rows of {subject.context}{times}: {why}",
        f"dictionaries: {features:,} features (R = {rung.ratio:g}), tied and batchtopk at {rung.sparsities} {each} "
        f"each; {sizes.rows // features:,} activations a feature{thin}",
        f"beside them: neurons, random directions, PCA{', ICA' * rung.ica}; controls: {', '.join(rung.controls)}",
        f"patching: left out ({subject.unspelled})" if subject.unspelled else f"patching: IOI at {subject.middle}",
    ]


def _summary(spent: Spent) -> str:
    return (
        f"in all: about {max(spent.minutes, 1):.0f} minutes here, {size(spent.disk)} of disk, {size(spent.memory)} of "
        "memory beside the libraries' 0.6 GB"
    )
