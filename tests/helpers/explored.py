"""A small run with everything that the explorer shows, and a server of it in a thread."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from helpers.counted_stores import write_pairs
from helpers.fake_store import HOSTILE
from helpers.model_folder import tiny_folder
from helpers.tiny_texts import sentence, write_jsonl

from monolex.activations.harvest import harvest
from monolex.causal.ablate.stage import ablate
from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.causal.patch.stage import patch
from monolex.causal.tree.stage import tree
from monolex.config import BaselineConfig, CorpusConfig, EvalConfig, FeaturesConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.baselines import fit_folder
from monolex.evals.evaluate import evaluate
from monolex.explorer.app import app
from monolex.explorer.explorer import Explorer
from monolex.explorer.server import bind
from monolex.features.stage import features
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.interp.explain.stage import explain
from monolex.interp.score.stage import score
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

SITES = ("resid_post.0", "resid_post.2")
NAME = "topk-k4-r2-s0"
ROOT = f"resid_post.2/{NAME}"


def explored_run(folder: Path) -> Path:
    """Two sites with a sweep of two seeds, baselines, evidence, explanations, scores, an ablation, a tree and a patch.

    The documents hold markup that must never reach a page as such.
    """
    model = ModelConfig(model=str(tiny_folder(folder / "model")), device="cpu")
    texts = [sentence(i) + (f" {HOSTILE}" if i % 5 == 0 else "") for i in range(120)]
    corpus = CorpusConfig(corpus=str(write_jsonl(folder / "corpus.jsonl", texts)), context_length=16, held_out=0.2)
    run = folder / "run"
    harvest(run / "activations", model, corpus, HarvestConfig(sites=SITES, dtype="fp32"))
    sweep = TrainConfig(
        kinds=("topk",), ks=(4,), ratios=(2.0,), seeds=(0, 1), steps=60, batch_size=64, train_device="cpu"
    )
    train(run / "train" / "main", run / "activations", sweep)
    fit_folder(run / "baselines" / "plain", run / "activations", BaselineConfig(kinds=("neurons", "pca")))
    sources = [run / "train" / "main", run / "baselines" / "plain"]
    evaluate(run / "eval", run / "activations", sources, {}, EvalConfig(rows=200, contexts=6, resamples=20))
    # few contexts a feature, for most pages and every export draw them all
    gathered = FeaturesConfig(
        dictionaries=("topk-*", "pca"), top=8, per_quantile=2, near_zero=2, random=4, inactive=4, features_device="cpu"
    )
    features(run / "features", run / "activations", sources, gathered)
    chosen = ExplainConfig(features=12, fragment_tokens=6, silent=4, explainers=("token",), explain_device="cpu")
    explain(run / "explain" / "rules", run, chosen)
    score(run / "score" / "rules", run / "explain" / "rules", ScoreConfig(explanations="rules", resamples=20), run)
    root = strongest(run)
    experiment = AblateConfig(features=(root,), occurrences=6, resamples=20, ablate_device="cpu")
    ablate(run / "ablate" / "root", run, experiment)
    tree(run / "tree" / "root", run, TreeConfig(features=(root,), dictionaries=(NAME,), contexts=6, tree_device="cpu"))
    searches = PatchConfig(
        task=str(write_pairs(run)),
        dictionaries=(NAME, "pca"),
        searches=("ranking", "greedy"),
        points=4,
        limit=3,
        resamples=20,
        patch_device="cpu",
    )
    patch(run / "patch" / "pairs", run, searches)
    return run


def strongest(run: Path) -> str:
    """``SITE/NAME:NUMBER`` of the feature of :data:`ROOT` that is active most often."""
    from monolex.features.store import FeatureStore

    store = FeatureStore(run / "features" / f"{ROOT}.sqlite")
    busiest = max(store.summaries(), key=lambda summary: summary.n_active)
    store.close()
    return f"{ROOT}:{busiest.id}"


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served(NamedTuple):
    """A server in a thread."""

    port: int
    explorer: Explorer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: Any = None
    ) -> Answer:
        """One request; a ``body`` is sent as JSON from the server's own origin, unless ``headers`` say otherwise."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        said = {"origin": self.address, "content-type": "application/json"} if body is not None else {}
        content = None if body is None else json.dumps(body)
        connection.request(method if body is None else "POST", path, content, {**said, **(headers or {})})
        response = connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return answer


@contextmanager
def served(*runs: Path) -> Iterator[Served]:
    """A server of some runs, at a free port, until the block is left."""
    explorer = Explorer(runs)
    listener = bind(0)
    server = uvicorn.Server(uvicorn.Config(app(explorer), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Served(listener.getsockname()[1], explorer)
    server.should_exit = True
    thread.join()
    listener.close()
