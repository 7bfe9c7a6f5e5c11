"""The demo's recipe: the data, exact resume, what a finished folder holds, the command line."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from monolex.causal.prompts import wordings
from monolex.config import ModelConfig
from monolex.demo import behaviour, recipe, recipe_data
from monolex.demo.recipe import RecipeConfig
from monolex.errors import UserError
from monolex.model.load import load
from monolex.text.report import Report

TEXT = "The old clock above the door had not moved for years. Nobody in the village minded it at all. "


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard library of two practised modules, a held-out module and a held-out package's file."""
    root = tmp_path_factory.mktemp("stdlib")
    (root / "abc.py").write_text("def meet():\n    return 'abc'\n" * 20)
    (root / "statistics.py").write_text("def mean(values):\n    return sum(values) / len(values)\n" * 20)
    (root / "sched").mkdir()
    (root / "sched" / "inner.py").write_text("PRIORITY = 'sched only'\n" * 20)
    (root / "json").mkdir()
    (root / "json" / "statistics.py").write_text("NESTED = 'a practised package'\n" * 20)
    return root


@pytest.fixture
def small(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecipeConfig:
    """A recipe over a few kilobytes; the real standard library is swapped for a small one."""
    monkeypatch.setattr("monolex.text.sources.sysconfig.get_paths", lambda: {"stdlib": str(library)})
    monkeypatch.setattr("pydoc_data.topics.topics", {"assert": "Assert statements are a way to insert checks.\n" * 5})
    monkeypatch.setattr(behaviour, "PER_WORDING", 3)
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(f"Story {number}. " + TEXT * 5)
    return RecipeConfig(
        out=str(tmp_path / "out"),
        text=(str(tmp_path / "text"),),
        paragraphs=30,
        layers=1,
        width=16,
        heads=2,
        vocab=300,
        context=16,
        batch=2,
        tokens=6 * 2 * 16,
        warmup=2,
        dtype="fp32",
        device="cpu",
        save_every=2,
    )


def replaced(config: RecipeConfig, **changes: object) -> RecipeConfig:
    return RecipeConfig(**{**vars(config), **changes})


def state(config: RecipeConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(config.out) / "work" / "state.safetensors")


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the batch of step number ``steps`` is asked for."""
    real = recipe.batch_at

    def batch_at(tokens: np.ndarray, config: RecipeConfig, step: int) -> torch.Tensor:
        if step == steps:
            raise KeyboardInterrupt
        return real(tokens, config, step)

    monkeypatch.setattr(recipe, "batch_at", batch_at)


# The data


def test_paragraphs_hold_practised_wordings_and_names_only():
    found = list(recipe_data.paragraphs(50, seed=1))
    assert found == list(recipe_data.paragraphs(50, seed=1)) != list(recipe_data.paragraphs(50, seed=2))
    words = set(" ".join(found).replace(".", " ").replace(",", " ").split())
    assert not words & set(wordings.NAMES_HELD_OUT)
    assert words >= set(wordings.NAMES_PRACTISED)
    assert all(paragraph.count(" to ") >= 6 for paragraph in found)


def test_held_out_modules_are_never_trained_on(small: RecipeConfig):
    training = "".join(recipe_data.training_documents(small.mix(), Report()))
    held = recipe_data.held_out_documents(small.mix(), 10**9)
    assert "'abc'" in training and "Assert statements" in training and "a practised package" in training
    assert "mean(values)" not in training and "sched only" not in training
    assert sorted(text[:8] for text in held["modules"]) == ["PRIORITY", "def mean"]


def test_held_out_and_training_documents_are_a_partition(small: RecipeConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recipe_data, "HELD_OUT", 0.3)
    training = list(recipe_data.training_documents(small.mix(), Report()))
    held = [text for texts in recipe_data.held_out_documents(small.mix(), 10**9).values() for text in texts]
    everything = [text for stream in recipe_data.streams(small.mix(), Report()).values() for text in stream]
    assert len(held) > 3 and sorted(training + held) == sorted(everything)
    assert not set(training) & set(held)


def test_held_out_documents_stop_at_the_limit_of_each_source(small: RecipeConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recipe_data, "HELD_OUT", 1.0)
    found = recipe_data.held_out_documents(small.mix(), 1)
    assert set(found) == {"names", "python", "modules", "text"}
    assert all(len(texts) == 1 for texts in found.values())


def test_without_text_only_the_library_and_the_paragraphs_are_read(small: RecipeConfig):
    assert set(recipe_data.streams(replaced(small, text=()).mix(), Report())) == {"names", "python", "modules"}


def test_token_file_is_every_training_document_behind_a_separator(small: RecipeConfig, tmp_path: Path):
    (tmp_path / "text" / "odd.jsonl").write_text(json.dumps({"text": "quotes <|endoftext|> 日本 🎉"}) + "\n")
    tokenizer = recipe_data.train_tokenizer(small.mix(), 300, 32)
    recipe_data.write_tokens(small.mix(), tokenizer, tmp_path / "tokens.bin")
    ids = np.fromfile(tmp_path / "tokens.bin", dtype=np.uint16).astype(int)
    starts = [*np.flatnonzero(ids == 0).tolist(), len(ids)]
    texts = [tokenizer.decode(ids[a + 1 : b]) for a, b in zip(starts, starts[1:], strict=False)]
    assert starts[0] == 0 and texts == list(recipe_data.training_documents(small.mix(), Report()))
    assert "quotes <|endoftext|> 日本 🎉" in texts


def test_names_become_single_tokens_where_the_vocabulary_has_room(small: RecipeConfig):
    wide = recipe_data.train_tokenizer(small.mix(), 1200, 32)
    everyone = wordings.NAMES_PRACTISED + wordings.NAMES_HELD_OUT
    assert set(behaviour.single_token(wide, everyone)) == set(everyone)
    assert wide.convert_tokens_to_ids("<|endoftext|>") == wide.bos_token_id == wide.eos_token_id == 0
    narrow = recipe_data.train_tokenizer(small.mix(), 300, 32)
    assert len(narrow) == 300 and len(behaviour.single_token(narrow, everyone)) < 40


# Training


def test_a_resumed_run_is_bit_identical(small: RecipeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe.train(small)
    broken = replaced(small, out=str(tmp_path / "broken"))
    for steps in (1, 3, 5):  # before the first state, between two states, and again later
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            with pytest.raises(KeyboardInterrupt):
                recipe.train(broken)
    recipe.train(broken)
    whole, parts = state(small), state(broken)
    assert whole.keys() == parts.keys() and any(tensor.abs().sum() > 0 for tensor in whole.values())
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    weights = [(Path(config.out) / "model.safetensors").read_bytes() for config in (small, broken)]
    assert weights[0] == weights[1]


def test_a_finished_folder_is_a_bf16_model_with_its_figures(small: RecipeConfig):
    figures = recipe.train(small)
    out = Path(small.out)
    assert figures == json.loads((out / "figures.json").read_text())
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert figures["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert figures["tokens"] == 6 * 2 * 16 and figures["seconds"] > 0
    assert set(figures["held_out_loss"]) == {"names", "python", "modules", "text"}
    assert 4 < figures["held_out_loss"]["modules"]["value"] < 7
    assert [(row["wordings"], row["names"]) for row in figures["ioi"]] == [
        ("practised", "practised"),
        ("practised", "held-out"),
        ("held-out", "practised"),
        ("held-out", "held-out"),
    ]
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["bos_token_id"] == generation["eos_token_id"] == 0
    assert AutoTokenizer.from_pretrained(out).bos_token == "<|endoftext|>"
    assert load(ModelConfig(str(out), device="cpu")).n_layers == 1


def test_a_finished_run_is_left_alone_and_a_changed_one_refused(small: RecipeConfig):
    first = recipe.train(small)
    written = (Path(small.out) / "model.safetensors").stat().st_mtime_ns
    assert recipe.train(replaced(small, save_every=3)) == first
    assert (Path(small.out) / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"lr = 0\.001: .* was begun with 0\.002"):
        recipe.train(replaced(small, lr=1e-3))


def test_training_lowers_the_loss(small: RecipeConfig, tmp_path: Path):
    longer = replaced(small, tokens=60 * 2 * 16, lr=1e-2, save_every=1000)
    recipe.train(longer)
    rows = [json.loads(line) for line in (Path(longer.out) / "work" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["loss"] < 5.0 < np.log(300)


def test_a_loss_that_is_not_finite_stops_without_overwriting_the_state(small: RecipeConfig):
    blown = replaced(small, lr=1e30, warmup=1, save_every=1)
    with pytest.raises(UserError, match=r"lr = 1e\+30: the loss is nan at step \d"):
        recipe.train(blown)
    assert not (Path(blown.out) / "figures.json").exists()


def test_schedule_rises_then_falls_to_nothing(small: RecipeConfig):
    config = replaced(small, lr=1.0, warmup=4)
    rates = [recipe.learning_rate(config, step, config.share(step, 0.0)) for step in range(7)]
    assert rates == pytest.approx([1 / 4, 2 / 4 * 5 / 6, 3 / 4 * 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])


def test_a_budget_in_minutes_goes_by_the_clock(small: RecipeConfig):
    config = replaced(small, minutes=2.0)
    assert config.share(10**6, 30.0) == 0.25 and config.share(0, 120.0) == 1.0


def test_batches_are_a_function_of_seed_and_step(small: RecipeConfig):
    tokens = np.arange(1000, dtype=np.uint16)
    first = recipe.batch_at(tokens, small, 3)
    assert torch.equal(first, recipe.batch_at(tokens, small, 3))
    assert not torch.equal(first, recipe.batch_at(tokens, small, 4))
    assert not torch.equal(first, recipe.batch_at(tokens, replaced(small, seed=1), 3))
    assert torch.equal(first[:, 1:], first[:, :-1] + 1)
    assert torch.equal(recipe.batch_at(tokens[:16], small, 0)[0], torch.arange(16))


def test_initialisation_leaves_the_global_generator_alone(small: RecipeConfig):
    before = torch.get_rng_state()
    first, second = recipe.initialised(small, 300), recipe.initialised(small, 300)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, recipe.initialised(replaced(small, seed=1), 300).lm_head.weight)


def test_names_of_several_tokens_are_left_out_and_named(small: RecipeConfig):
    tokenizer = recipe_data.train_tokenizer(small.mix(), 257, 64)
    row = behaviour.ioi_table(recipe.initialised(small, 257), tokenizer)[0]
    assert row.left_out == wordings.NAMES_PRACTISED
    assert row.accuracy.value is None and "one token" in row.accuracy.reason


# The command line and mistakes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 20}, "width = 20: give a multiple of 8 x heads, which is 16"),
        ({"vocab": 256}, "vocab = 256"),
        ({"context": 1}, "context = 1"),
        ({"tokens": 0}, "tokens = 0"),
        ({"minutes": 0.0}, "minutes = 0"),
        ({"lr": 0.0}, "lr = 0"),
        ({"layers": 0}, "layers = 0"),
        ({"paragraphs": -1}, "paragraphs = -1"),
    ],
)
def test_mistakes_name_the_field(small: RecipeConfig, changes: dict[str, float], sentence: str):
    with pytest.raises(UserError, match=sentence):
        replaced(small, **changes)


def test_missing_text_and_too_little_text(small: RecipeConfig, tmp_path: Path):
    with pytest.raises(UserError, match="no such file or folder"):
        recipe.train(replaced(small, text=(str(tmp_path / "none"),)))
    with pytest.raises(UserError, match="context = 100000: the text has only"):
        recipe.train(replaced(small, out=str(tmp_path / "other"), context=100_000))


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for name in RecipeConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


def test_command_line_reports_one_line_for_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe.main(["--out", str(tmp_path), "--vocab", "3"]) == 2
    assert capsys.readouterr().err == "recipe: vocab = 3: give 257 (bytes and the separator) to 65536\n"


def test_eval_only_reports_the_figures_of_the_folder_and_writes_nothing(
    small: RecipeConfig, caplog: pytest.LogCaptureFixture
):
    figures = recipe.train(small)
    before = {path: path.stat().st_mtime_ns for path in Path(small.out).rglob("*")}
    caplog.clear()
    with caplog.at_level(logging.INFO, "monolex"):
        found = recipe.measure(small, Path(small.out))
    assert found["ioi"] == figures["ioi"] and found["held_out_loss"] == figures["held_out_loss"]
    assert {path: path.stat().st_mtime_ns for path in Path(small.out).rglob("*")} == before
    assert "held-out loss, modules" in caplog.text and "practised wordings, held-out names" in caplog.text


def test_weights_too_large_for_the_package_are_warned_about(
    small: RecipeConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recipe, "LARGEST", 1000)
    recipe.train(small)
    assert "more than the 1 kB" in caplog.text


def test_the_bundled_model_is_the_architecture_the_recipe_makes():
    bundled = json.loads((Path(recipe.__file__).parent / "model" / "config.json").read_text())
    made = recipe.initialised(RecipeConfig(out=""), 4096)
    assert isinstance(made, GPTNeoXForCausalLM)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rope_parameters"):
        assert made.config.to_dict()[key] == bundled[key], key
    assert bundled["max_position_embeddings"] == made.config.max_position_embeddings
