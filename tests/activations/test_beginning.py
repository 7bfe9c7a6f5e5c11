"""The separator is the token behind which a model loses least, and what is encoded later stands behind the same."""

from pathlib import Path

import pytest
import torch
from helpers.model_folder import tiny_folder
from helpers.tiny import tiny_hf
from helpers.tiny_harvests import corpus_of, store
from helpers.tiny_texts import make_tokenizer

from monolex.activations import beginning
from monolex.activations.beginning import LEAST_GAIN, choose, losses
from monolex.activations.harvest import harvest
from monolex.activations.reader import Reader
from monolex.activations.stored import stored_model
from monolex.config import HarvestConfig, ModelConfig
from monolex.features.prompt_activations import tokenise
from monolex.model.hooks import logits
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap
from monolex.text.separator import separator


def confused_by(token: int, seed: int = 0) -> LanguageModel:
    """A model that predicts anything else behind ``token``, whose embedding drowns all others there."""
    lm = wrap(tiny_hf("gpt_neox", vocab_size=330), make_tokenizer(eos=True), "tiny")
    with torch.no_grad():
        lm.unembedding[:] *= 30
        lm.embedding[token] = 50 * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))
    return lm


@pytest.mark.parametrize("confusing", [0, 1])
def test_the_lowest_loss_decides(confusing: int, tmp_path: Path) -> None:
    lm = confused_by(confusing)
    by_option = losses(lm, [0, 1], ["the cat sat", "on a mat"])
    best = by_option.index(min(by_option))
    texts = [lm.tokenizer(text, add_special_tokens=False).input_ids for text in ("the cat sat", "on a mat")]  # pyright: ignore
    for option, loss in enumerate(by_option):
        total = 0.0
        for ids in texts:
            prompt = torch.tensor([[option, *ids]])
            log_p = logits(lm, prompt, mask=torch.ones_like(prompt)).float().log_softmax(-1)[0]
            total -= sum(float(log_p[at, token]) for at, token in enumerate(ids))
        assert loss == pytest.approx(total / sum(map(len, texts)), rel=1e-5)
    manifest = store(tmp_path / "out", lm, corpus_of(tmp_path))
    chosen = manifest.data["corpus"]["separator"]
    assert set(chosen["losses"]) == {"<s>", "</s>"} and chosen["losses"]["<s>"] != chosen["losses"]["</s>"]
    best = min(chosen["losses"], key=chosen["losses"].__getitem__)
    assert chosen["text"] == best and chosen["token"] == ["<s>", "</s>"].index(best)
    assert separator(lm.tokenizer) == chosen["token"] == tokenise(lm, ["the cat"]).separator  # pyright: ignore
    reader = Reader(tmp_path / "out", "resid_post.0")
    assert chosen["token"] not in reader.tokens(0, reader.n_rows)


def test_both_can_win(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, 8)
    winners = {choose(confused_by(0, seed), corpus, ModelConfig()).text for seed in range(8)}
    assert winners == {"<s>", "</s>"}


def test_one_candidate_is_not_measured(tmp_path: Path) -> None:
    lm = wrap(tiny_hf("gpt_neox", vocab_size=330), make_tokenizer(), "tiny")
    only = choose(lm, corpus_of(tmp_path), ModelConfig())
    assert only.token == 0 and only.losses == {} and "no other" in only.reason
    ordered = choose(lm, corpus_of(tmp_path, separator="<|im_start|>"), ModelConfig())
    assert ordered == (2, "<|im_start|>", "as ordered", {})
    assert choose(lm, corpus_of(tmp_path, separator="none"), ModelConfig()).token is None


@pytest.mark.parametrize(("times", "winner"), [(0.9, "<s>"), (1.1, "</s>")])
def test_a_gain_by_chance_leaves_the_tokenizers_own(
    times: float, winner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "losses", lambda *_: [3.0, 3.0 - times * LEAST_GAIN])
    assert choose(confused_by(0), corpus_of(tmp_path, 8), ModelConfig()).text == winner


def test_a_control_reads_behind_the_separator_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, loaded = corpus_of(tmp_path, 8), []
    models = {choose(lm, corpus, ModelConfig()).text: lm for lm in (confused_by(0, seed) for seed in range(8))}
    for control, trained in (("<s>", "</s>"), ("</s>", "<s>")):
        monkeypatch.setattr(beginning, "load", lambda config, lm=models[trained]: loaded.append(config) or lm)
        assert choose(models[control], corpus, ModelConfig(control="shuffled")).text == trained
        assert separator(models[control].tokenizer) == ["<s>", "</s>"].index(trained)  # pyright: ignore
    assert [config.control for config in loaded] == ["none", "none"]


def test_a_model_is_loaded_with_the_separator_of_its_harvest(tmp_path: Path) -> None:
    model = ModelConfig(model=str(tiny_folder(tmp_path / "model")), device="cpu")
    corpus = corpus_of(tmp_path, separator="<|im_start|>")
    harvest(tmp_path / "out", model, corpus, HarvestConfig(sites=("resid_post.0",)))
    lm = stored_model(tmp_path / "out", "cpu")
    assert separator(lm.tokenizer) == tokenise(lm, ["the cat"]).separator == 2  # pyright: ignore


def test_a_finished_harvest_keeps_its_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device, or a later version, may measure otherwise: what was read stays what was read."""
    lm, corpus = confused_by(0), corpus_of(tmp_path)
    first = store(tmp_path / "out", lm, corpus)
    monkeypatch.setattr(beginning, "losses", lambda *_: [0.0, 9.0] if separator(lm.tokenizer) else [9.0, 0.0])
    assert store(tmp_path / "out", lm, corpus) == first
    other = store(tmp_path / "out", lm, corpus_of(tmp_path, corpus_seed=1))
    assert other.data["corpus"]["separator"]["token"] != first.data["corpus"]["separator"]["token"]
    assert other.parents["separator"] != first.parents["separator"]
