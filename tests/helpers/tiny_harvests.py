"""A tiny model with a tokenizer, a small corpus of many documents, and harvests of them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny_hf
from helpers.tiny_texts import make_tokenizer, sentence, write_jsonl
from torch import Tensor

from monolex.activations.harvest import harvest
from monolex.artifact import Manifest
from monolex.config import CorpusConfig, HarvestConfig, ModelConfig
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap

SITES = ("resid_post.0", "mlp_act.1", "resid_post.2")


def make_lm(architecture: str = "gpt_neox") -> LanguageModel:
    """Three layers of width 32 that read the test tokenizer's ids."""
    return wrap(tiny_hf(architecture, vocab_size=330), make_tokenizer(), "tiny")


def corpus_of(folder: Path, documents: int = 60, **changes: object) -> CorpusConfig:
    """Short documents in rows of 16 tokens, a fifth of the documents held out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_jsonl(folder / "corpus.jsonl", [sentence(i) for i in range(documents)])
    return dataclasses.replace(CorpusConfig(corpus=str(path), context_length=16, held_out=0.2), **changes)  # pyright: ignore[reportArgumentType]


def store(folder: Path, lm: LanguageModel, corpus: CorpusConfig, **changes: object) -> Manifest:
    """Harvest into ``folder``, by default three sites in fp32 with batches of four rows."""
    config = HarvestConfig(**{"sites": SITES, "dtype": "fp32", "batch_rows": 4, **changes})  # pyright: ignore[reportArgumentType]
    return harvest(folder, ModelConfig(model="tiny"), corpus, config, lm=lm)


def small_shards(monkeypatch: pytest.MonkeyPatch, batches: int = 2) -> None:
    """Shards of a few forward passes: the smallest size that the configuration allows holds a whole tiny corpus."""
    monkeypatch.setattr("monolex.activations.harvest._shard_batches", lambda *_: batches)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the manifest (which tells the seconds it took)."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def numbered(n_rows: int, d_in: int = 2) -> Tensor:
    """Rows that tell their own number."""
    return torch.arange(n_rows, dtype=torch.float32)[:, None].expand(n_rows, d_in).contiguous()
