"""A small run to explain, with everything that explanations are compared over; and a model for the test server."""

import dataclasses
from pathlib import Path

import torch
from helpers.model_folder import tiny_folder
from helpers.tiny import tiny_hf
from helpers.tiny_harvests import corpus_of
from transformers import AutoTokenizer

from monolex import demo
from monolex.activations.harvest import harvest
from monolex.config import BaselineConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.baselines import fit_folder
from monolex.interp.config import ExplainConfig
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

SITES = ("resid_post.0", "resid_post.2")
TIED = "tied-a0.01-r2-s0"
EXPLAIN = ExplainConfig(
    features=12,
    fragment_tokens=6,
    silent=4,
    explainers=("token", "ngram", "pattern"),
    explain_device="cpu",
)
HARVEST = HarvestConfig(sites=SITES, dtype="fp32")
POSITIONS = 4096
"""Of the server's model: simulators' prompts have more than a thousand tokens."""


def small_run(folder: Path) -> Path:
    """Two sites; a sweep with a checkpoint, baselines with several k, and a control model with a sweep of that name."""
    model = ModelConfig(model=str(tiny_folder(folder / "model")), device="cpu")
    corpus = corpus_of(folder, documents=150, context_length=32)
    sweep = TrainConfig(kinds=("tied",), alphas=(0.01,), ratios=(2.0,), steps=30, batch_size=32, train_device="cpu",
                        keep_checkpoints=1)  # fmt: skip
    for home, control in ((folder / "run", "none"), (folder / "run" / "controls" / "random", "random")):
        harvest(home / "activations", dataclasses.replace(model, control=control), corpus, HARVEST)
        train(home / "train" / "main", home / "activations", sweep)
    run = folder / "run"
    fitted = BaselineConfig(kinds=("neurons", "pca", "pca-topk"), ks=(2, 5, 16))
    fit_folder(run / "baselines" / "plain", run / "activations", fitted)
    return run


def server_model(folder: Path, *, brief: bool = False) -> Path:
    """A random model with a long context and the demo's tokenizer, that finds some numbers probable everywhere.

    A ``brief`` one ends its texts at every tenth token of the vocabulary, so that it answers something.
    """
    tokenizer = AutoTokenizer.from_pretrained(Path(demo.__file__).parent / "model")
    tokenizer.model_max_length = POSITIONS
    hf = tiny_hf("gpt_neox", vocab_size=len(tokenizer), max_position_embeddings=POSITIONS)
    head = hf.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight[[tokenizer.encode(number)[0] for number in "037"]] *= 3
    if brief:
        assert hf.generation_config is not None
        hf.generation_config.eos_token_id = list(range(0, len(tokenizer), 10))
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
