"""Many prompts of different lengths continued at once, each as if it were alone: seeded draws, exact log-probabilities.

Nothing of a model's own generation settings is used: what a request says is all there is. Prompts are padded on the
left, where the mask hides the padding; a token is drawn by one uniform number of the request's own stream, so that
neither the batch nor the order of requests decides what is written.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.model import hooks
from monolex.model.language_model import LanguageModel

_POSITIONS = 128


class RankedToken(NamedTuple):
    """A token with its log-probability, and the likeliest ones at its place."""

    token: int
    """Its id."""
    logprob: float
    """In nats, of the model as it is (temperature 1), by a float64 softmax of its logits."""
    top: tuple[tuple[int, float], ...]
    """Ids and log-probabilities, the likeliest first."""


@dataclass
class Draw:
    """A prompt, how it is continued, and what came of it."""

    ids: list[int]
    """Tokens of the prompt; at least one."""
    new: int
    """Tokens to write at most."""
    temperature: float
    """0: the likeliest token."""
    top_p: float
    """Draw from the likeliest tokens that together have this probability."""
    stop: tuple[str, ...]
    """Texts before which to end."""
    top: int | None
    """How many likeliest tokens are wanted at each place; None: no log-probabilities."""
    echo: bool
    """Whether those of the prompt are wanted too."""
    generator: torch.Generator
    """Stream of the uniform numbers, on the CPU."""
    prompt: list[RankedToken] = field(default_factory=list)
    """Of every token of the prompt but the first, if wanted."""
    written: list[int] = field(default_factory=list)
    """Tokens that were written, without one that ends the text."""
    ranked: list[RankedToken] = field(default_factory=list)
    """Of each of them, if wanted."""
    cost: int = 0
    """Tokens that were drawn, with one that ends the text."""
    finish: str = "length"
    """Why it ended: `stop` or `length`."""


@torch.no_grad()
def run(lm: LanguageModel, draws: Sequence[Draw]) -> None:
    """Fill in what becomes of each of ``draws``, all in one batch."""
    width = max(len(draw.ids) for draw in draws)
    ids = torch.tensor([[0] * (width - len(draw.ids)) + draw.ids for draw in draws], device=lm.device)
    hooks.require_tokens(lm, ids)
    lengths = torch.tensor([len(draw.ids) for draw in draws], device=lm.device)
    mask = (torch.arange(width, device=lm.device) >= width - lengths[:, None]).long()
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    inputs["use_cache"] = any(draw.new for draw in draws)
    ranks = any(draw.echo and draw.top is not None for draw in draws)
    if not ranks and "logits_to_keep" in inspect.signature(lm.hf.forward).parameters:
        inputs["logits_to_keep"] = 1
    with hooks.edit(lm, {}):  # for eval mode alone
        out = lm.hf(attention_mask=mask, **inputs)
        for row, draw in enumerate(draws):
            if draw.echo and draw.top is not None:
                draw.prompt = _prompt(out.logits[row, width - len(draw.ids) :], draw.ids, draw.top)
        going = {row for row, draw in enumerate(draws) if draw.new > 0}
        while going:
            drawn = _step(lm, draws, going, out.logits[:, -1])
            if not going:
                break
            mask = torch.cat([mask, mask.new_ones(len(draws), 1)], 1)
            out = lm.hf(
                input_ids=torch.tensor(drawn, device=lm.device)[:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=out.past_key_values,
                use_cache=True,
            )


def _step(lm: LanguageModel, draws: Sequence[Draw], going: set[int], logits: Float[Tensor, "draws vocab"]) -> list[int]:
    """Draw a token for every row that is ``going``, and take out those that end; 0 for the others."""
    ends, drawn = end_tokens(lm), [0] * len(draws)
    for row in sorted(going):
        draw, log_p = draws[row], _wide(logits[row]).log_softmax(-1)
        token = drawn[row] = pick(log_p, draw.temperature, draw.top_p, draw.generator)
        draw.cost += 1
        if token in ends:
            draw.finish = "stop"
        else:
            draw.written.append(token)
            if draw.top is not None:
                draw.ranked.append(_rank(log_p[None], [token], draw.top)[0])
            if draw.stop and any(text in decoded(lm, draw.written) for text in draw.stop):
                draw.finish = "stop"
        if draw.finish == "stop" or draw.cost >= draw.new:
            going.discard(row)
    return drawn


def pick(log_p: Float[Tensor, "vocab"], temperature: float, top_p: float, generator: torch.Generator) -> int:
    """The next token: the likeliest, or one drawn by inverting the cumulated probabilities in float64."""
    if temperature == 0:
        return int(log_p.argmax())
    p, order = (log_p / temperature).softmax(-1).sort(descending=True, stable=True)
    total = p.cumsum(-1)
    # Those that begin below top_p; the first always does.
    kept = max(1, int((total - p < top_p).sum()))
    uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
    at = int(torch.searchsorted(total[:kept], uniform * float(total[kept - 1]), right=True))
    return int(order[min(at, kept - 1)])


def decoded(lm: LanguageModel, ids: Sequence[int]) -> str:
    """Tokens as text, without special ones."""
    assert lm.tokenizer is not None, "a client's model has a tokenizer"
    text = lm.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str), "one list of tokens is one text"
    return text


def _prompt(logits: Float[Tensor, "tokens vocab"], ids: list[int], top: int) -> list[RankedToken]:
    """What was predicted of every token but the first; some positions at a time, since float64 doubles the logits."""
    ranked = []
    for start in range(0, len(ids) - 1, _POSITIONS):
        end = min(start + _POSITIONS, len(ids) - 1)
        ranked += _rank(_wide(logits[start:end]).log_softmax(-1), ids[start + 1 : end + 1], top)
    return ranked


def _rank(log_p: Float[Tensor, "places vocab"], tokens: list[int], top: int) -> list[RankedToken]:
    chosen = log_p.gather(1, torch.tensor(tokens, device=log_p.device)[:, None])[:, 0].tolist()
    values, ids = log_p.topk(min(top, log_p.shape[1]), dim=1)
    likeliest = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    return [RankedToken(*entry) for entry in zip(tokens, chosen, likeliest, strict=True)]


def _wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float64, which Apple's accelerators lack."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def end_tokens(lm: LanguageModel) -> set[int]:
    """Tokens that end a text: of the model's generation settings (a chat model's end of turn) and of its tokenizer."""
    settings = lm.hf.generation_config
    named: Any = settings.eos_token_id if settings is not None else None
    several = named if isinstance(named, list) else [named]
    return {token for token in (*several, getattr(lm.tokenizer, "eos_token_id", None)) if isinstance(token, int)}


def pieces(lm: LanguageModel, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, special ones included: joined they are the text that all of them decode to.

    A character that is cut over several tokens is added by its last one; the others add nothing.
    """
    assert lm.tokenizer is not None, "a client's model has a tokenizer"
    ids, added = list(ids), []
    # As vLLM does: with a few tokens before them, since the first of a text may lose its leading space.
    context = done = 0
    for end in range(1, len(ids) + 1):
        before, after = (
            str(lm.tokenizer.decode(ids[context:to], skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for to in (done, end)
        )
        if after.endswith("\ufffd") and end < len(ids):
            added.append("")
            continue
        added.append(after[len(before) :])
        context, done = done, end
    return added
