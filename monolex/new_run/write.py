"""Read the model and the text, choose sizes, and write the file.

The sizes are a step of a ladder, the richest whose estimate stays within the minutes, the free memory and the free
disk, and that leaves its dictionaries enough text.
"""

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from monolex.artifact import write_bytes
from monolex.causal.prompts.tasks import ioi
from monolex.config import CorpusConfig, ModelConfig, require
from monolex.errors import UserError
from monolex.estimate import measure, model_shape
from monolex.model.load import configuration, load, precision
from monolex.new_run.fit import ROWS_A_FEATURE, TOKENS, choose, estimated, most_tokens
from monolex.new_run.sizes import LADDER, Sizes, Spent, Subject, Text
from monolex.new_run.template import written
from monolex.runtime import device, free_memory, size
from monolex.text.corpus import build
from monolex.text.documents import documents
from monolex.text.report import Report

DOCUMENTS = 200
"""Documents that a corpus should have, for intervals over them; long ones are cut for that."""


class NewRun(NamedTuple):
    """What was chosen for a run.toml."""

    subject: Subject
    """The model."""
    sizes: Sizes
    """Text, dictionaries and what stands beside them."""
    spent: Spent
    """What it will take."""
    minutes: float
    """What it may take."""

    def lines(self) -> list[str]:
        """What was chosen and why."""
        return [*_reasons(self.subject, self.sizes, self.minutes), _summary(self.spent)]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        rung = self.sizes.rung
        return {
            "model": self.subject.name,
            "dtype": self.subject.dtype,
            "sites": self.subject.sites,
            "tokens": self.sizes.tokens,
            "epochs": self.sizes.epochs,
            "rows": self.sizes.rows,
            "features": round(rung.ratio * self.subject.width),
            "sizes": rung._asdict(),
            "estimate": self.spent._asdict(),
            "reasons": self.lines(),
        }


def new_run(path: Path, model: str, corpus: str, minutes: float = 30.0, text_field: str = "text") -> NewRun:
    """Write a run.toml for ``model`` over ``corpus`` that takes about ``minutes``; what was chosen and why.

    Raises:
        UserError: the file is there already, a model or a corpus that cannot be read, a corpus of one document, or too
            few minutes, disk or memory for the smallest run.
    """
    require(not path.exists(), f"{path} exists; give another --out, or delete it first")
    require(minutes > 0, f"minutes = {minutes:g}: give a positive number")
    free = free_memory(device())
    subject = _subject(model, free)
    speed = measure(ModelConfig(model=model, model_dtype=subject.dtype), subject.shape, subject.context)
    home = next(folder for folder in path.absolute().parents if folder.exists())
    most = Spent(minutes, int(0.8 * shutil.disk_usage(home).free), int(0.7 * free))
    endless = Text(corpus, text_field, TOKENS[-1], 2 * subject.context)
    affordable = most_tokens(subject, endless, LADDER[-1], most, speed)
    subject, text = _read(subject, endless, affordable)
    sizes = choose(subject, text, most, speed)
    toml = written(subject, text, sizes, path, minutes)
    write_bytes(path, toml.encode())
    return NewRun(subject, sizes, estimated(toml, subject, speed), minutes)


def _subject(model: str, free: int) -> Subject:
    """Sizes from the model's configuration alone, and its precision."""
    config = ModelConfig(model=model)
    try:
        shape = model_shape(config)
        positions = configuration(config).get_text_config().max_position_embeddings
    except (LookupError, OSError, ValueError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model = {model!r} cannot be read: {reason}") from error
    if 4 * shape.parameters > 0.4 * free:
        return Subject(model, shape, positions, "bf16", "in fp32 it would not fit into memory")
    chosen = precision(config)
    return Subject(model, shape, positions, chosen.dtype, chosen.reason, automatic=True)


def _read(subject: Subject, text: Text, affordable: int) -> tuple[Subject, Text]:
    """Load the model, which proves that its sites are what they say, and count the tokens of the text that it reads."""
    lm = load(ModelConfig(model=subject.name, model_dtype=subject.dtype))
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


def _reasons(subject: Subject, sizes: Sizes, minutes: float) -> list[str]:
    """What was chosen and why, a line each."""
    rung, shape = sizes.rung, subject.shape
    features = round(rung.ratio * subject.width)
    why = f"what {minutes:g} minutes allow here" if sizes.tokens in TOKENS else "all that there are"
    times = f", {sizes.epochs} times over" if sizes.epochs > 1 else ""
    thin = ": few, more minutes or text would help" if sizes.worth < ROWS_A_FEATURE * features else ""
    each = "sparsity" if rung.sparsities == 1 else "sparsities"
    return [
        f"model: {shape.layers} blocks of width {subject.width}, {shape.parameters:,} parameters, in {subject.dtype}: "
        f"{subject.why}",
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
        "memory at the peak"
    )
