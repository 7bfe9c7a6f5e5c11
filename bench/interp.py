"""What the exact simulator gains by running the worked examples once.

    python bench/interp.py [--batches 10] [--fragments 10] [--device cpu]

Simulates fragments of 64 tokens, ten an explanation as in OpenAI's protocol, with a GPT-NeoX of 6 layers and width 512,
4,096 positions, the demo's tokenizer and random weights: with the shared beginning as keys and values, and with the
whole prompt in every row; alternately, in batches of the same size. Times are meant to be compared; the predictions
mean nothing. Neither would those of the bundled model or others of its size: they are far too small to judge
explanations (and the prompt is longer than the bundled model's context). Models of a few billion parameters are the
least that can.
"""

import argparse
import pydoc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from monolex import runtime
from monolex.config import ModelConfig
from monolex.interp.records import Explanation, Failure, Job
from monolex.interp.simulate.exact import Exact, expected, label_logits
from monolex.interp.simulate.prompt_ids import PromptIds, Speller
from monolex.model.language_model import LanguageModel
from monolex.model.load import load_tokenizer, wrap

T = TypeVar("T")
TOKENS = 64


def model(device: str) -> LanguageModel:
    """The same every time."""
    tokenizer = load_tokenizer(ModelConfig())
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=4096,
    )
    hf = GPTNeoXForCausalLM(config).eval()
    return wrap(hf.to(runtime.device(device)), tokenizer, "random GPT-NeoX")  # pyright: ignore[reportArgumentType]


def jobs(lm: LanguageModel, fragments: int) -> list[Job]:
    """Fragments of a module of the standard library."""
    assert lm.tokenizer is not None, "the demo's"
    ids = lm.tokenizer(Path(pydoc.__file__).read_text(encoding="utf-8"), verbose=False)["input_ids"]
    texts = [str(lm.tokenizer.decode([token])) for token in ids[: TOKENS * fragments]]
    said = Explanation("bench", "names of functions that are about to be called")
    return [Job(said, tuple(texts[at : at + TOKENS])) for at in range(0, len(texts), TOKENS)]


def whole(lm: LanguageModel, speller: Speller, wanted: list[Job]) -> list[np.ndarray]:
    """The same predictions from whole prompts, in one batch."""
    rows = []
    for job in wanted:
        before, lines = speller.start().ids + speller.said(job.explanation.text), speller.lines(job.texts)
        rows.append(PromptIds(before + lines.ids, [len(before) + label for label in lines.labels]))
    return [expected(logits) for logits in label_logits(lm, rows, speller.numbers)]


def timed(lm: LanguageModel, run: Callable[[], T]) -> tuple[float, T]:
    """Seconds and result; on a CPU seconds of the processor, which other programs disturb less."""
    clock = time.process_time if lm.device.type == "cpu" else time.perf_counter
    began = clock()
    result = run()
    return clock() - began, result


def main() -> None:
    """Parse the command line, run both in turns, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=10, help="how often each is run")
    parser.add_argument("--fragments", type=int, default=10, help="fragments of an explanation, and of a batch")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    lm = model(chosen.device)
    assert lm.tokenizer is not None, "the demo's"
    speller = Speller(lm.tokenizer, lm.name)
    wanted = jobs(lm, chosen.batches * chosen.fragments)
    lengths = [len(speller.start().ids), len(speller.said(wanted[0].explanation.text))]
    lines = np.mean([len(speller.lines(job.texts).ids) for job in wanted])
    print(f"prompts of {lengths[0]} shared tokens, {lengths[1]} of an explanation and {lines:.0f} of a fragment")
    once, exact = timed(lm, lambda: Exact(lm, batch_tokens=10**9))
    exact.simulate(wanted[:1])  # the first run of anything is slower
    whole(lm, speller, wanted[:1])
    fast, slow, apart = [], [], 0.0
    for at in range(0, len(wanted), chosen.fragments):
        batch = wanted[at : at + chosen.fragments]
        seconds, ours = timed(lm, lambda batch=batch: exact.simulate(batch))
        fast.append(seconds)
        seconds, naive = timed(lm, lambda batch=batch: whole(lm, speller, batch))
        slow.append(seconds)
        for a, b in zip(ours, naive, strict=True):
            assert not isinstance(a, Failure), a
            apart = max(apart, float(np.abs(a - b).max()))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    print(f"shared part {once:.2f} s once; a batch of {chosen.fragments} {statistics.median(fast):.2f} s")
    print(f"whole prompts {statistics.median(slow):.2f} s a batch")
    print(f"{statistics.median(ratios):.2f} times as fast (batches from {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"{sum(slow) / (once + sum(fast)):.2f} times over all {len(wanted)} fragments, the shared part included")
    print(f"predictions differ by at most {apart:.1e}")


if __name__ == "__main__":
    main()
