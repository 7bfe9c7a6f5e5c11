"""A harvest, baselines and a stream from the model, for several ranks and, to compare, in one process."""

import json
from pathlib import Path

import torch
from helpers.tiny_harvests import corpus_of, make_lm, store

from monolex.activations import harvest
from monolex.config import BaselineConfig, CorpusConfig
from monolex.dictionaries.baselines import fit_folder
from monolex.text.corpus import build
from monolex.train_config import TrainConfig
from monolex.training.data import model_source


def corpus_at(text: Path) -> CorpusConfig:
    """The text of a folder, written by who comes first, and by nobody while others read it."""
    path = text / "corpus.jsonl"
    return CorpusConfig(corpus=str(path), context_length=16, held_out=0.2) if path.exists() else corpus_of(text)


def harvest_and_fit(home: Path, text: Path) -> None:
    """A harvest of many small shards, and baselines of what it stored."""
    lm, corpus = make_lm(), corpus_at(text)
    harvest._shard_batches = lambda *_: 1
    store(home / "activations", lm, corpus)
    fit_folder(home / "baselines", home / "activations", BaselineConfig(kinds=("pca", "random"), ratio=1.0))


def stream_batches(path: Path, text: Path) -> None:
    """The first batches of a stream from the model, as JSON."""
    lm, corpus = make_lm(), corpus_at(text)
    chosen = TrainConfig(kinds=("topk",), ks=(2,), sites=("resid_post.1",), batch_size=32, buffer_rows=128)
    assert lm.tokenizer is not None
    batches = model_source(lm, build(corpus, lm.tokenizer).train, chosen, batch_rows=2).stream.batches()
    rows = torch.cat([next(batches)["resid_post.1"] for _ in range(6)])
    path.write_text(json.dumps(rows.tolist()), encoding="utf-8")
