"""Writing with a wide dictionary beside writing alone, alternately in one process, and what a second turn computes.

    python bench/live.py                    the bundled model
    python bench/live.py --shape smollm2    the shape of SmolLM2-135M, at random
    python bench/live.py --run RUN          the model of a run

The dictionary is random: what it costs depends on its width and on how many features fire, which a threshold sets, not
on what it has learned. "Bare" is the shortest greedy loop there is: a forward of one token behind the key-value cache,
and an argmax; transformers' own `generate` stands beside it. All read the same prompt first. Seconds are those of the
process on its processors, which other processes disturb less than the clock's; `--clock` takes the clock's.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monolex.activations.stored import stored_model
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.dictionaries.listing import RunDictionary
from monolex.live.continuation import Continued, Sampling, stream
from monolex.live.prompt import LivePrompt
from monolex.live.prompts import from_ids
from monolex.live.reading import Wanted
from monolex.live.session import LiveModel
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.load import load, wrap

TOP = 10
FIRING = 48
"""Features that fire on a token, about."""
TURN = 16
"""Tokens of the second turn."""


def subject(shape: str, run: Path | None) -> LanguageModel:
    """The bundled model, that of a run, or one of random weights."""
    if run is not None:
        return stored_model(run / "activations")
    if shape == "demo":
        return load("demo")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return wrap(LlamaForCausalLM(config).eval(), name="SmolLM2-135M at random")


def dictionary(lm: LanguageModel, ids: list[int], width: int, kind: str, folder: Path) -> RunDictionary:
    """A random dictionary in the middle of the model, of which some features fire on a token."""
    site = f"resid_post.{lm.n_layers // 2}"
    x = (
        hooks.capture(lm, torch.tensor([ids]), [site], mask=torch.ones(1, len(ids)).bool())
        .activations[site][0, 1:]
        .float()
    )
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(width, lm.d_model, generator=generator))
    zero = torch.zeros(lm.d_model)
    pre = (x.cpu() @ directions.T).flatten()
    threshold = float(pre.kthvalue(len(pre) - FIRING * len(x)).values)
    threshold, k = (threshold, None) if kind == "batchtopk" else (None, FIRING)
    activation = "threshold" if kind == "batchtopk" else "topk"
    config = DictionaryConfig(kind, activation, lm.d_model, lm.d_model, width, k, threshold, site)
    weights = {"W_enc": directions, "b_enc": torch.zeros(width), "centre": zero, "W_dec": directions, "b_dec": zero}
    Dictionary(config, weights).save(folder)
    return RunDictionary("subject", site, kind, folder, config)


@torch.no_grad()
def bare(lm: LanguageModel, ids: tuple[int, ...], count: int) -> list[int]:
    """The shortest greedy loop."""
    tokens, cache, written = torch.tensor([ids], device=lm.device), None, []
    for _ in range(count):
        out = lm.hf(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
        written.append(int(tokens))
    return written


@torch.no_grad()
def by_transformers(lm: LanguageModel, ids: tuple[int, ...], count: int) -> list[int]:
    """Its own greedy generation, which does not stop at an end of text."""
    tokens = torch.tensor([ids], device=lm.device)
    settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    out = lm.hf.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)  # pyright: ignore
    return out[0, len(ids) :].tolist()


def live_tokens(live: LiveModel, prompt: LivePrompt, count: int) -> list[int]:
    """The same with the features of every token."""
    events = stream(live, prompt, Sampling(count), wanted=Wanted(live.titles, TOP))
    return [event.token for event in events if not isinstance(event, Continued)]


def forgetful(lm: LanguageModel, dictionaries: list[RunDictionary]) -> tuple[LiveModel, Callable[[], object]]:
    """A live model whose dictionaries are loaded, and what makes it forget every prompt."""
    live = LiveModel(lm, dictionaries, trace_bytes=0)
    for title in live.titles:
        live.dictionary(title)
    other = from_ids(live, [1])  # a prompt that begins otherwise takes the place of the last one
    return live, lambda: live.run(other)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("demo", "smollm2"), default="demo")
    parser.add_argument("--run", type=Path, help="folder of a run whose model is taken")
    parser.add_argument("--width", type=int, default=32768)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", action="store_true", help="seconds of the clock")
    asked = parser.parse_args()
    lm = subject(asked.shape, asked.run)
    ids = [0, *torch.randint(2, lm.vocab_size, (31,), generator=torch.Generator().manual_seed(0)).tolist()]
    prompt = from_ids(LiveModel(lm, []), ids)
    with tempfile.TemporaryDirectory() as folder:
        kinds = [dictionary(lm, ids, asked.width, kind, Path(folder) / kind) for kind in ("batchtopk", "topk")]
        alone, *live = [forgetful(lm, records) for records in ([], *([record] for record in kinds))]
        count = asked.tokens
        ways: dict[str, tuple[Callable[[], list[int]], Callable[[], object]]] = {
            "bare": (lambda: bare(lm, prompt.ids, count), lambda: None),
            "transformers' generate": (lambda: by_transformers(lm, prompt.ids, count), lambda: None),
            "live, no dictionary": (lambda: live_tokens(alone[0], prompt, count), alone[1]),
        }
        for record, (ready, forget) in zip(kinds, live, strict=True):
            ways[f"live, {record.name}"] = (lambda ready=ready: live_tokens(ready, prompt, count), forget)
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        seconds = time.perf_counter if asked.clock else time.process_time
        for number in range(asked.rounds + 1):
            for name, (way, forget) in ways.items():
                forget()
                started = seconds()
                written = way()
                if number:  # the first round warms up
                    speeds[name].append(len(written) / (seconds() - started))
        report(lm, speeds, asked)
        second_turn(lm, kinds, prompt, asked.tokens)


def report(lm: LanguageModel, speeds: dict[str, list[float]], asked: argparse.Namespace) -> None:
    """Tokens a second, and the ratio to the bare speed of the same round."""
    width, dtype = f"{asked.width} features of {lm.d_model}, top {TOP}", str(lm.dtype).removeprefix("torch.")
    print(f"{lm.name} ({dtype}, {lm.device.type}), {width}, {asked.tokens} tokens, {asked.rounds} rounds")
    for name, values in speeds.items():
        ratios = [value / base for value, base in zip(values, speeds["bare"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {name:24} {statistics.median(values):7.1f} tokens/s, {spread} of bare")


def second_turn(lm: LanguageModel, kinds: list[RunDictionary], prompt: LivePrompt, count: int) -> None:
    """Tokens that go through the model again where a conversation goes on."""
    live = LiveModel(lm, kinds)
    *_, first = stream(live, prompt, Sampling(count))
    assert isinstance(first, Continued), "the last event"
    new = torch.randint(2, lm.vocab_size, (TURN,), generator=torch.Generator().manual_seed(1)).tolist()
    *_, second = stream(live, from_ids(live, (*first.prompt.ids, *new)), Sampling(1))
    assert isinstance(second, Continued), "the last event"
    had, computed, reused = len(first.prompt.ids), second.cost.computed, second.cost.reused
    print(
        f"  second turn: {had} tokens were there, {TURN} new ones and 1 generated: computed {computed}, reused {reused}"
    )


if __name__ == "__main__":
    main()
