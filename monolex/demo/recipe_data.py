"""What a demo model reads: name-swapping paragraphs, the Python standard library and any folders of text.

Whether a document is held out depends on its text alone, so that the held-out part can be found again later from the
same sources, with any tokenizer, and copies of one text never lie on both sides.
"""

import hashlib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from monolex import runtime
from monolex.causal.prompts.tasks import fill
from monolex.causal.prompts.wordings import NAMES_HELD_OUT, NAMES_PRACTISED, WORDINGS_PRACTISED
from monolex.config import CorpusConfig, require
from monolex.demo.behaviour import encode
from monolex.text.documents import documents
from monolex.text.report import Report

log = logging.getLogger("monolex")

SEPARATOR = "<|endoftext|>"
SENTENCES = 6
HELD_OUT_MODULES = ("colorsys", "fractions", "sched", "shelve", "statistics")
"""Modules of the Python standard library whose source is never trained on."""
HELD_OUT = 0.01
SAMPLE_CHARACTERS = 100_000_000
# A name written this often among that many characters outranks the last merges of a vocabulary of thousands.
CHARACTERS_A_NAME = 20_000
BATCH = 64


@dataclass(frozen=True)
class Mix:
    """Which text, and how much of each kind."""

    text: tuple[str, ...]
    """Files or folders of text or JSONL; may be empty."""
    text_field: str
    """Field of a JSONL line that holds the text."""
    paragraphs: int
    """Name-swapping paragraphs."""
    seed: int
    """Seed of the paragraphs and of the order of documents."""


def streams(mix: Mix, report: Report) -> dict[str, Iterator[str]]:
    """Documents by source: `names`, `python`, `modules` (those never trained on) and, if any is given, `text`.

    Raises:
        UserError: (when read) a path of ``mix.text`` is missing or holds no text.
    """
    documents_by_source = {
        "names": paragraphs(mix.paragraphs, mix.seed),
        "python": _stdlib(mix, report, held_out=False),
        "modules": _stdlib(mix, report, held_out=True),
    }
    return documents_by_source | ({"text": _files(mix, report)} if mix.text else {})


def is_held_out(source: str, text: str) -> bool:
    """Whether a document is kept apart: every one of `modules`, and a hundredth of the others by hash."""
    draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return source == "modules" or draw < HELD_OUT


def paragraphs(count: int, seed: int) -> Iterator[str]:
    """Paragraphs of six sentences of practised wordings, each about two practised names."""
    rng = random.Random(seed)
    for _ in range(count):
        filled = [fill(rng.choice(WORDINGS_PRACTISED), NAMES_PRACTISED, rng) for _ in range(SENTENCES)]
        yield " ".join(f"{prompt.text} {prompt.indirect}." for prompt in filled)


def _stdlib(mix: Mix, report: Report, *, held_out: bool) -> Iterator[str]:
    config = CorpusConfig(corpus="stdlib", corpus_seed=mix.seed)
    for document in documents(config, _bare_tokenizer(), report):
        module = document.where.split("/")[0].removesuffix(".py")
        if (module in HELD_OUT_MODULES) == held_out:
            yield document.text


def _files(mix: Mix, report: Report) -> Iterator[str]:
    for path in mix.text:
        config = CorpusConfig(corpus=path, text_field=mix.text_field, corpus_seed=mix.seed)
        yield from (document.text for document in documents(config, _bare_tokenizer(), report))


def _bare_tokenizer() -> PreTrainedTokenizerFast:
    """What the readers ask for a chat template, and none is there: chats are not read."""
    return _wrapped(Tokenizer(models.BPE()), 1)


def _wrapped(tokenizer: Tokenizer, positions: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=positions,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
    )


def training_documents(mix: Mix, report: Report) -> Iterator[str]:
    """Every document that is not held out; the large source comes last."""
    for source, stream in streams(mix, report).items():
        yield from (text for text in stream if not is_held_out(source, text))


def train_tokenizer(mix: Mix, vocab: int, positions: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ``<|endoftext|>`` = 0, trained on (at most 100 M characters of) the training documents.

    All names, practised or not, are added often enough to become one token wherever ``vocab`` has room for them. A
    held-out name that no text mentions then has an untrained embedding.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(mix), trainer)
    return _wrapped(tokenizer, positions)


def _sample(mix: Mix) -> Iterator[str]:
    characters = 0
    with runtime.progress(None, "tokenizer", "char") as bar:
        for text in training_documents(mix, Report()):
            yield text
            characters += len(text)
            bar.update(len(text))
            if characters > SAMPLE_CHARACTERS:
                break
    line = "".join(f" {name}" for name in (*NAMES_PRACTISED, *NAMES_HELD_OUT))
    yield line * (characters // CHARACTERS_A_NAME + 1)


def write_tokens(mix: Mix, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """All training documents as one file of uint16 ids, each behind the separator; whole or not there at all."""
    require(len(tokenizer) <= 2**16, f"vocab = {len(tokenizer)}: at most 65536 ids fit the token file")
    temporary, report = path.with_suffix(".part"), Report()
    texts = training_documents(mix, report)
    with runtime.progress(None, "tokens", "tok") as bar, temporary.open("wb") as file:
        while batch := list(islice(texts, BATCH)):
            for ids in encode(tokenizer, batch):
                np.array(ids, dtype=np.uint16).tofile(file)
                bar.update(len(ids))
    temporary.replace(path)
    for problem in report.problems:
        log.warning("left out: %s", problem)
    log.info("%d tokens to train on", path.stat().st_size // 2)


def held_out_documents(mix: Mix, characters: int) -> dict[str, list[str]]:
    """Held-out documents by source, each source until it has ``characters`` or ends."""
    held_out: dict[str, list[str]] = {}
    for source, stream in streams(mix, Report()).items():
        held_out[source], seen = [], 0
        for text in stream:
            if is_held_out(source, text):
                held_out[source].append(text)
                seen += len(text)
            if seen >= characters:
                break
    return held_out
