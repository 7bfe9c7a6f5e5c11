"""A small run with stores that are counted one by one from dense codes."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from helpers.model_folder import tiny_folder
from helpers.tiny_harvests import corpus_of
from helpers.tiny_texts import make_tokenizer

from monolex.activations.harvest import harvest
from monolex.activations.reader import Reader
from monolex.activations.stored import stored_model
from monolex.artifact import FileEntry, file_hash, finish
from monolex.causal.prompts.pairs import single_token
from monolex.config import BaselineConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.base import load
from monolex.dictionaries.baselines import fit_folder
from monolex.dictionaries.listing import RunDictionary, run_dictionaries
from monolex.features.evidence import BINS, TOKEN_BINS
from monolex.features.store_writer import StoreWriter
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

SITES = ("resid_post.0", "resid_post.2")
TRAINED = "topk-k4-r2-s0"


def found_run(folder: Path, *, stores: bool = True) -> Path:
    """A tiny model's run: two sites, a sweep and its repetition under another name, baselines, stores of all."""
    model = ModelConfig(model=str(tiny_folder(folder / "model")), device="cpu")
    harvest(folder / "run" / "activations", model, corpus_of(folder), HarvestConfig(sites=SITES, dtype="fp32"))
    run = folder / "run"
    sweep = TrainConfig(kinds=("topk",), ks=(4,), ratios=(2.0,), steps=20, batch_size=32, train_device="cpu")
    train(run / "train" / "first", run / "activations", sweep)
    train(run / "train" / "second", run / "activations", dataclasses.replace(sweep, ks=(4, 8), sites=SITES[:1]))
    fit_folder(run / "baselines" / "plain", run / "activations", BaselineConfig(kinds=("neurons", "pca")))
    if stores:
        gather(run)
    return run


def gather(run: Path) -> None:
    """Stores of every dictionary of a run, and their manifest."""
    home, table, files, parents = run / "features", [], {}, {}
    for number, dictionary in enumerate(run_dictionaries(run)):
        path = f"{dictionary.site}/{dictionary.name}.sqlite"
        alive, rows = write_store(home / path, run, dictionary)
        size = (home / path).stat().st_size
        files[path] = FileEntry(size, file_hash(home / path))
        known = {"site": dictionary.site, "name": dictionary.name, "kind": "any", "d_sae": dictionary.config.d_sae}
        table.append({"path": path, **known, "rows": rows, "bytes": size, "alive": alive})
        parents[f"subject.source.{number}"] = source_of(dictionary)
    finish(home, "features", {}, parents, files, {"stores": table})


def source_of(dictionary: RunDictionary) -> str:
    """Content hash of the artefact that holds a dictionary."""
    from monolex.artifact import open_artifact

    return open_artifact(dictionary.source).content


def write_store(path: Path, run: Path, dictionary: RunDictionary, keep: int = 10) -> tuple[int, int]:
    """The tables feature, token and vocabulary, by loops; returns how many features are alive, and the rows."""
    reader = Reader(run / "activations", dictionary.site)
    codes = load(dictionary.folder).encode(reader.read(0, len(reader))).clamp_min(0).double().numpy()
    tokens = reader.tokens(0, len(reader)).tolist()
    tokenizer, alive = make_tokenizer(), 0
    with StoreWriter(path) as writer:
        for feature, column in enumerate(codes.T):
            mass, count = defaultdict(float), defaultdict(int)
            for token, value in zip(tokens, column.tolist(), strict=True):
                if value > 0:
                    mass[token] += value
                    count[token] += 1
            ranked = sorted(mass, key=lambda token: (-mass[token], token))
            writer.insert("feature", [_feature(feature, column, ranked, mass)], 24)
            shares = [(feature, i, t, count[t], mass[t], bytes(8 * TOKEN_BINS)) for i, t in enumerate(ranked[:keep])]
            writer.insert("token", shares, 6)
            alive += bool(ranked)
        writer.insert("vocabulary", [(token, tokenizer.decode([token])) for token in sorted(set(tokens))], 2)
        meta = {"name": dictionary.name, "site": dictionary.site, "d_sae": dictionary.config.d_sae, "rows": len(reader)}
        writer.finish(meta)
    return alive, len(reader)


def _feature(feature: int, column: np.ndarray, ranked: list[int], mass: dict[int, float]) -> tuple:
    active, variance = column[column > 0], float(column.var())
    moments = [float((column**power).mean()) / variance ** (power / 2) if variance else None for power in (3, 4)]
    first = (feature, len(active), len(active), len(active) / len(column), float(column.max()))
    top = (len(ranked), ranked[0], mass[ranked[0]] / column.sum()) if ranked else (0, None, None)
    mean = float(active.mean()) if len(active) else None
    spread = (0.0, float(column.mean()), variance)
    return (*first, *spread, *moments, mean, *top, None, None, None, None, 0, None, None, None, None, bytes(8 * BINS))


def dense_codes(run: Path, dictionary: RunDictionary) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of all training rows, read on their positive side, and their tokens."""
    reader = Reader(run / "activations", dictionary.site)
    codes = load(dictionary.folder).encode(reader.read(0, len(reader))).clamp_min(0)
    return codes, torch.as_tensor(reader.tokens(0, len(reader)))


def write_pairs(run: Path) -> Path:
    """A file of prompt pairs beside a run, of words that are one token each in its tokenizer."""
    lm = stored_model(run / "activations", "cpu")
    assert lm.tokenizer is not None
    vocabulary = [text.strip() for text in (lm.tokenizer.decode([i]) for i in range(len(lm.tokenizer)))]
    a, b, c, d, *_ = single_token(lm.tokenizer, [word for word in vocabulary if word.isalpha() and len(word) > 1])
    pairs = [
        {"base": f" {a} {b} {c} {d}", "donor": f" {c} {b} {c} {d}", "right": f" {a}", "wrong": f" {b}"},
        {"base": f" {b} {a}", "donor": f" {c} {a}", "right": f" {b}", "wrong": f" {a}", "donor_right": f" {c}"},
        {"base": f" {d} {d} {a}", "donor": f" {d} {b} {a}", "right": [f" {a}", f" {d}"], "wrong": f" {b}"},
    ]
    path = run.parent / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path
