"""A small run of the bundled model with evidence, explanations and scores, over text that is hard to write and read."""

from pathlib import Path

from helpers.tiny_texts import write_jsonl

from monolex.activations.harvest import harvest
from monolex.config import CorpusConfig, FeaturesConfig, HarvestConfig, ModelConfig
from monolex.features.stage import features
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.interp.explain.stage import explain
from monolex.interp.score.stage import score
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

SITE, NAME, OTHER = "resid_post.1", "topk-k4-r0.5-s0", "topk-k4-r0.5-s1"
WORDS = (
    "def add(self, x):",
    "return x + 1",
    "</script><b>&amp;",
    "שלום",
    "日本語 🎉",
    'a "quoted" \\x',
    "import os\n",
    "\t\u200b",
)


def explained_run(folder: Path) -> Path:
    """One site of the bundled model, a recipe under two seeds, evidence of both, explanations with scores."""
    texts = [" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(1, 16)) for i in range(200)]
    corpus = CorpusConfig(corpus=str(write_jsonl(folder / "corpus.jsonl", texts)), context_length=48, held_out=0.2)
    run = folder / "run"
    harvest(run / "activations", ModelConfig(device="cpu"), corpus, HarvestConfig(sites=(SITE,), dtype="fp32"))
    sweep = TrainConfig(
        kinds=("topk",), ks=(4,), ratios=(0.5,), seeds=(0, 1), steps=20, batch_size=64, train_device="cpu"
    )
    train(run / "train" / "main", run / "activations", sweep)
    gathered = FeaturesConfig(
        fragment_tokens=16, top=6, per_quantile=2, random=4, inactive=2, near_zero=2, features_device="cpu"
    )
    features(run / "features", run / "activations", [run / "train" / "main"], gathered)
    asked = ExplainConfig(features=6, fragment_tokens=8, silent=2, explainers=("token", "ngram"), explain_device="cpu")
    explain(run / "explain" / "paper", run, asked)
    score(run / "score" / "rules", run / "explain" / "paper", ScoreConfig(resamples=20), run)
    return run
