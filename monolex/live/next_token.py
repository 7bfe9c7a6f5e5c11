"""What comes next after a token of a prompt, and what interventions change of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.causal.suffix import unembed
from monolex.config import require
from monolex.live.interventions import Intervention
from monolex.live.prompt import LivePrompt
from monolex.live.session import LiveModel, TokenCost
from monolex.live.trace import Trace, last_site


class NextChance(NamedTuple):
    """A token that may come next."""

    token: int
    """Its id."""
    text: str
    """Its text alone."""
    before: float
    """Its probability."""
    after: float
    """The same under the interventions."""
    rank_before: int
    """Its place among all tokens, 1 for the most probable; equal ones share it."""
    rank_after: int
    """The same under the interventions."""
    differs: bool
    """Whether it takes another place under the interventions."""


class NextToken(NamedTuple):
    """The distribution of the token after a position."""

    position: int
    """Of the last token that it depends on, from 0."""
    before: tuple[NextChance, ...]
    """The most probable tokens."""
    after: tuple[NextChance, ...]
    """The most probable ones under the interventions."""
    changed: tuple[NextChance, ...]
    """Those whose probability changes most, less or more."""
    kl: float
    """Σ p (log p − log q) in nats, of the model p and the edited one q."""
    kl_back: float
    """The same the other way round, Σ q (log q − log p)."""
    cost: TokenCost
    """Tokens that were computed, and that were not, without and with the interventions together."""
    notes: tuple[str, ...]
    """What a reader must know, a sentence each."""


def next_token(
    live: LiveModel,
    prompt: LivePrompt,
    interventions: Sequence[Intervention] = (),
    *,
    position: int | None = None,
    top: int = 10,
) -> NextToken:
    """What comes after ``position`` (by default the last token), with and without ``interventions``; ``top`` of each.

    Raises:
        UserError: no such position, or as :meth:`LiveModel.run`.
    """
    at = len(prompt.ids) - 1 if position is None else position
    require(0 <= at < len(prompt.ids), f"position = {position}: the prompt has {len(prompt.ids)} tokens, from 0")
    require(top > 0, f"top = {top}: give a number of tokens from 1 on")
    with live.lock:
        base = live.run(prompt)
        edited = live.run(prompt, interventions) if interventions else None
        log_p = log_probabilities(live, base.trace, at)
        # where nothing has changed up to there, the two are one
        acted = edited is not None and _acted(edited.trace, at)
        log_q = log_probabilities(live, edited.trace, at) if edited is not None and acted else log_p
        p, q = log_p.exp(), log_q.exp()
        top = min(top, len(p))
        lists = [values.topk(top).indices.tolist() for values in (p, q, (p - q).abs())]
        rows = _rows(live, p, q, {token for tokens in lists for token in tokens})
    before, after, changed = (tuple(rows[token] for token in tokens) for tokens in lists)
    runs = [base] if edited is None else [base, edited]
    cost = TokenCost(sum(run.cost.computed for run in runs), sum(run.cost.reused for run in runs))
    notes = (*prompt.notes, *runs[-1].notes)
    return NextToken(at, before, after, changed, _kl(log_p, log_q), _kl(log_q, log_p), cost, notes)


def log_probabilities(live: LiveModel, trace: Trace, position: int) -> Float[Tensor, "vocab"]:
    """Of every token, to come after that at ``position``, in float64 on the CPU; for a caller that holds the lock."""
    return unembed(live.lm, trace.x[last_site(live.lm)][position : position + 1])[0].cpu().double().log_softmax(-1)


def _acted(trace: Trace, position: int) -> bool:
    return any(effect.changed is not None and effect.changed <= position for effect in trace.effects)


def _rows(live: LiveModel, p: Tensor, q: Tensor, tokens: set[int]) -> dict[int, NextChance]:
    texts = dict(live.texts.of(tokens))
    rows = {}
    for token in sorted(tokens):
        before, after = (int((values > values[token]).sum()) + 1 for values in (p, q))
        rows[token] = NextChance(token, texts[token], float(p[token]), float(q[token]), before, after, before != after)
    return rows


def _kl(log_p: Tensor, log_q: Tensor) -> float:
    p = log_p.exp()
    # of what has no probability nothing is missed; rounding alone makes the sum negative
    return max(0.0, float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum()))
