"""Train the language model of the demo: `python -m monolex.demo.recipe --help`.

A small GPT-NeoX over any folders of text, the Python standard library and name-swapping sentences, on the CPU or an
accelerator. Each batch is a pure function of the seed and the step, so that a state needs no generator in it and a
run that was stopped goes on as if it had not been; the state is one safetensors file, replaced whole.

What is measured at the end is the model as users get it: read back from its folder, in bf16 weights.
"""

import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
import tyro
from jaxtyping import Int
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from monolex import artifact, runtime
from monolex.config import ModelConfig, identity, require, unhashed
from monolex.demo import recipe_data
from monolex.demo.behaviour import IOIRow, document_loss, ioi_table
from monolex.errors import UserError
from monolex.model.load import load
from monolex.stats import Estimate

log = logging.getLogger("monolex")

REPORT_EVERY = 20
LARGEST = 12_000_000
HELD_OUT_CHARACTERS = 1_000_000
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.95)
MAX_NORM = 1.0


@dataclass(frozen=True)
class RecipeConfig:
    """A small GPT-NeoX language model, from text to a folder that `monolex` and transformers read."""

    out: str = field(metadata={"hashed": False})
    """Folder of the model; `work/` in it holds the tokens and the state, and may be deleted when all is done."""
    text: tuple[str, ...] = ()
    """Text files, .jsonl files or folders of them; the standard library and name-swapping paragraphs always go in."""
    text_field: str = "text"
    """Field of a JSONL line that holds the text."""
    paragraphs: int = 9_000
    """Name-swapping paragraphs of six sentences."""
    layers: int = 6
    """Blocks."""
    width: int = 192
    """Width of the residual stream; the MLP is four times as wide."""
    heads: int = 6
    """Attention heads."""
    vocab: int = 4096
    """Tokens of the byte-level BPE vocabulary."""
    context: int = 256
    """Tokens in a training window; the model gets twice as many positions."""
    batch: int = 16
    """Windows in a step."""
    tokens: float = 42e6
    """Tokens to train on, e.g. 2e9; more than the text has means several passes."""
    minutes: float | None = None
    """Train for so many minutes instead of so many tokens (then a resumed run is not bit-identical)."""
    lr: float = 2e-3
    """Peak learning rate; it rises over `warmup` steps and falls linearly to 0."""
    warmup: int = 200
    """Steps over which the learning rate rises."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of matrix products (autocast); the weights are kept in fp32 while training."""
    seed: int = 0
    """Seed of the initialisation, of the batches and of the paragraphs."""
    device: str = unhashed("auto")
    """`auto` (an accelerator if there is one), `cpu`, `cuda`, `mps`."""
    save_every: int = unhashed(500)
    """Steps between states; the same command goes on from the last one."""
    eval_only: bool = unhashed(False)
    """Only report held-out loss and name-swapping of the model that lies in `out`."""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "batch", "warmup", "save_every"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        fits = self.width % (8 * self.heads) == 0
        require(fits, f"width = {self.width}: give a multiple of 8 x heads, which is {8 * self.heads}")
        require(257 <= self.vocab <= 2**16, f"vocab = {self.vocab}: give 257 (bytes and the separator) to 65536")
        require(self.context >= 2, f"context = {self.context}: a window needs at least 2 tokens")
        require(self.paragraphs >= 0, f"paragraphs = {self.paragraphs}: cannot be negative")
        require(self.tokens > 0, f"tokens = {self.tokens}: give a positive number")
        require(self.minutes is None or self.minutes > 0, f"minutes = {self.minutes}: give a positive number")
        require(self.lr > 0, f"lr = {self.lr}: give a positive number")

    def mix(self) -> recipe_data.Mix:
        """The text that goes in."""
        return recipe_data.Mix(self.text, self.text_field, self.paragraphs, self.seed)

    def share(self, step: int, seconds: float) -> float:
        """How much of the budget is used after ``step`` steps and ``seconds`` seconds; done at 1."""
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        return step * self.batch * self.context / self.token_budget()

    def token_budget(self) -> int:
        """The tokens of the budget, rounded up to whole steps."""
        a_step = self.batch * self.context
        return a_step * math.ceil(self.tokens / a_step)


@dataclass
class RecipeProgress:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent in them, over all sessions."""


def train(config: RecipeConfig) -> dict[str, Any]:
    """Train (or go on training) and write the model folder; returns what ``figures.json`` holds.

    Raises:
        UserError: ``out`` was begun with other options, there is too little text, or the loss is not finite.
    """
    folder = Path(config.out)
    _claim(config, folder)
    if (folder / "figures.json").exists():
        log.info("%s holds the finished model; --eval-only measures it again", folder)
        return artifact.read_json(folder / "figures.json")
    tokens = _tokens(config, folder)
    vocab = artifact.read_json(folder / "work" / "tokens.json")["vocab"]
    model, done = fit(config, tokens, vocab, folder / "work")
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    figures = {
        **measure(config, folder),
        "config": identity(config),
        "tokens": done.step * config.batch * config.context,
        "tokens_of_text": len(tokens),
        "seconds": round(done.seconds, 3),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
    }
    artifact.write_json(folder / "figures.json", figures)
    log.info("%s: %s of weights", folder, runtime.size(figures["bytes"]))
    if figures["bytes"] > LARGEST:
        log.warning("that is more than the %s that fit a package; lower layers or width", runtime.size(LARGEST))
    return figures


def _claim(config: RecipeConfig, folder: Path) -> None:
    """Note the options in ``folder``, or check that it was begun with the same ones."""
    path, wanted = folder / "work" / "recipe.json", identity(config)
    if not path.exists():
        artifact.write_json(path, wanted)
        return
    begun = artifact.read_json(path)
    for name, value in wanted.items():
        same = begun.get(name) == value
        require(same, f"{name} = {value!r}: {folder} was begun with {begun.get(name)!r}; choose another out")


def _tokens(config: RecipeConfig, folder: Path) -> np.ndarray:
    """The training tokens, memory-mapped; made with the tokenizer if they are not there yet."""
    path, note = folder / "work" / "tokens.bin", folder / "work" / "tokens.json"
    if not note.exists():
        tokenizer = recipe_data.train_tokenizer(config.mix(), config.vocab, 2 * config.context)
        tokenizer.save_pretrained(folder)
        recipe_data.write_tokens(config.mix(), tokenizer, path)
        artifact.write_json(note, {"vocab": len(tokenizer)})
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    require(len(tokens) > config.context, f"context = {config.context}: the text has only {len(tokens)} tokens")
    return tokens


def fit(config: RecipeConfig, tokens: np.ndarray, vocab: int, work: Path) -> tuple[GPTNeoXForCausalLM, RecipeProgress]:
    """Train from the last state in ``work``, or from the start, until the budget is used.

    Raises:
        UserError: the loss is not finite.
    """
    device = runtime.device(config.device)
    model = initialised(config, vocab).to(device)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(_groups(model), lr=config.lr, betas=BETAS, fused=True)
    done = _load_state(work / "state.safetensors", model, optimizer)
    began, a_step = time.perf_counter() - done.seconds, config.batch * config.context
    log_file = closing(runtime.Metrics(work / "metrics.jsonl", done.step))
    total = config.token_budget() if config.minutes is None else None
    with log_file as metrics, runtime.progress(total, "train", "tok") as bar:
        bar.update(done.step * a_step)
        while (share := config.share(done.step, done.seconds)) < 1:
            rate = learning_rate(config, done.step, share)
            loss = _step(model, optimizer, batch_at(tokens, config, done.step).to(device), rate, config.dtype)
            done.step += 1
            done.seconds = time.perf_counter() - began
            share = config.share(done.step, done.seconds)
            if done.step % REPORT_EVERY == 0 or done.step % config.save_every == 0 or share >= 1:
                value = _finite(loss, done.step, config)
                metrics.write({"step": done.step, "loss": value, "lr": rate, "seconds": done.seconds})
                bar.total = round(done.step * a_step / min(share, 1))  # with a budget in minutes, what it will come to
                bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            if done.step % config.save_every == 0 or share >= 1:
                _save_state(work / "state.safetensors", model, optimizer, done)
            bar.update(a_step)
    return model, done


def initialised(config: RecipeConfig, vocab: int) -> GPTNeoXForCausalLM:
    """The model before training, a function of the seed; global generators are left alone."""
    shape = GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=2 * config.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return GPTNeoXForCausalLM(shape).train()


def _groups(model: GPTNeoXForCausalLM) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]


def learning_rate(config: RecipeConfig, step: int, share: float) -> float:
    """Linear rise over ``warmup`` steps, times a linear fall over the whole budget."""
    return config.lr * min(1.0, (step + 1) / config.warmup) * (1 - share)


def batch_at(tokens: np.ndarray, config: RecipeConfig, step: int) -> Int[Tensor, "batch context"]:
    """The windows of ``step``: random places of the token file, a function of seed and step alone."""
    starts = np.random.default_rng((config.seed, step)).integers(0, len(tokens) - config.context + 1, config.batch)
    return torch.from_numpy(np.stack([tokens[start : start + config.context] for start in starts]).astype(np.int64))


def _step(
    model: GPTNeoXForCausalLM, optimizer: torch.optim.Optimizer, windows: Tensor, rate: float, dtype: str
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=dtype == "bf16"):
        loss = model(input_ids=windows, labels=windows, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    return loss.detach()


def _finite(loss: Tensor, step: int, config: RecipeConfig) -> float:
    value = float(loss)
    require(math.isfinite(value), f"lr = {config.lr}: the loss is {value} at step {step}; lower lr or raise warmup")
    return value


def _save_state(path: Path, model: GPTNeoXForCausalLM, optimizer: torch.optim.Optimizer, done: RecipeProgress) -> None:
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"{name}:value"] = parameter.detach()
        tensors |= {f"{name}:{moment}": optimizer.state[parameter][moment] for moment in ("exp_avg", "exp_avg_sq")}
    cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    artifact.write_bytes(path, safetensors.torch.save(cpu, {"progress": json.dumps(dataclasses.asdict(done))}))


def _load_state(path: Path, model: GPTNeoXForCausalLM, optimizer: torch.optim.Optimizer) -> RecipeProgress:
    """Put the state in ``path``, if there is one, into model and optimizer."""
    if not path.exists():
        return RecipeProgress()
    with safetensors.safe_open(path, "pt") as file:
        done = RecipeProgress(**json.loads(file.metadata()["progress"]))
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"{name}:value"))
            moments = {m: file.get_tensor(f"{name}:{m}").to(parameter.device) for m in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(done.step), device=parameter.device), **moments}
    log.info("going on from step %d", done.step)
    return done


def measure(config: RecipeConfig, folder: Path) -> dict[str, Any]:
    """Held-out loss by source and the name-swapping table of the model in ``folder``, logged and as plain JSON."""
    lm = load(ModelConfig(str(folder), device=config.device))
    assert lm.tokenizer is not None, f"{folder} was loaded without a tokenizer"
    losses = {
        source: document_loss(lm.hf, lm.tokenizer, texts, min(config.context, lm.max_context))
        for source, texts in recipe_data.held_out_documents(config.mix(), HELD_OUT_CHARACTERS).items()
    }
    rows = ioi_table(lm.hf, lm.tokenizer, config.seed)
    for source, loss in losses.items():
        log.info("held-out loss, %s: %s", source, _spelled(loss))
    for row in rows:
        log.info("%s", _sentence(row))
    table = [
        {
            "wordings": row.wordings,
            "names": row.names,
            "accuracy": row.accuracy._asdict(),
            "logit_difference": row.logit_difference._asdict(),
            "names_left_out": list(row.left_out),
        }
        for row in rows
    ]
    return {"held_out_loss": {source: loss._asdict() for source, loss in losses.items()}, "ioi": table}


def _sentence(row: IOIRow) -> str:
    left_out = f"; not one token: {', '.join(row.left_out)}" if row.left_out else ""
    return (
        f"name-swapping, {row.wordings} wordings, {row.names} names: accuracy {_spelled(row.accuracy)}, "
        f"logit difference {_spelled(row.logit_difference)}{left_out}"
    )


def _spelled(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"n/a ({estimate.reason})"
    between = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{between} (n={estimate.n} {estimate.over})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 0, 2 for a user's mistake, 130 after Ctrl-C."""
    runtime.setup_logging()
    try:
        config = tyro.cli(RecipeConfig, prog="python -m monolex.demo.recipe", args=arguments)
        if config.eval_only:
            measure(config, Path(config.out))
        else:
            train(config)
    except UserError as error:
        sys.stderr.write(f"recipe: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("recipe: stopped; the same command goes on from the last state\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
