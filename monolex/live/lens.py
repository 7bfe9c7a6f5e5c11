"""What the model would say after every layer of every token (the logit lens), and the strongest feature there."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.causal.suffix import unembed
from monolex.config import require
from monolex.live.interventions import Intervention, idle
from monolex.live.prompt import LivePrompt
from monolex.live.reading import ActiveFeature, Wanted, require_fitting, token_features
from monolex.live.session import LiveModel, TokenCost
from monolex.live.trace import Tape
from monolex.model.sites import Site

LOGITS: Final = 1 << 24
"""Logits made at once, at most (and those of a token)."""


class LensToken(NamedTuple):
    """A token that a layer says."""

    token: int
    """Its id."""
    text: str
    """Its text alone."""
    probability: float
    """By the final norm and the unembedding of that layer's residual stream."""


class LensLayer(NamedTuple):
    """The residual stream behind a block."""

    layer: int
    """Of the block."""
    says: tuple[tuple[LensToken, ...], ...]
    """After every token of the prompt the most probable tokens."""
    dictionary: str | None
    """Whose features are read there; None: there is none."""
    strongest: tuple[ActiveFeature | None, ...]
    """At every token the strongest feature of that dictionary; None where none fires or the row does not count."""


class LensGrid(NamedTuple):
    """Layers by tokens."""

    prompt: LivePrompt
    """The tokens."""
    layers: tuple[LensLayer, ...]
    """The layers, the first one first; the last says what the model says."""
    cost: TokenCost
    """Tokens that were computed."""
    notes: tuple[str, ...]
    """What a reader must know, a sentence each."""


def lens(
    live: LiveModel,
    prompt: LivePrompt,
    wanted: Wanted | None = None,
    interventions: Sequence[Intervention] = (),
    *,
    layers: Sequence[int] | None = None,
    top: int = 1,
) -> LensGrid:
    """What the model would say at ``layers`` (all by default), and at each the strongest feature of a dictionary.

    ``wanted`` names the dictionaries, each of another ``resid_post`` site; without it the first one of every such site
    is taken. This is one forward pass of its own and an unembedding for each layer and token.

    Raises:
        UserError: no such layer, a dictionary of another site or two of one site, or as :meth:`LiveModel.run`.
    """
    chosen = range(live.lm.n_layers) if layers is None else sorted(set(layers))
    wrong = [layer for layer in chosen if not 0 <= layer < live.lm.n_layers]
    require(not wrong, f"layers hold {wrong[:1]}: {live.lm.name} has layers 0 to {live.lm.n_layers - 1}")
    require(top > 0, f"top = {top}: give a number of tokens from 1 on")
    wanted = Wanted(_first_titles(live)) if wanted is None else wanted
    with live.lock:
        require_fitting(live, wanted)
        titles = _by_layer(live, wanted)
        sites = {layer: str(Site("resid_post", layer)) for layer in chosen}
        tape = Tape(live.lm, tuple(sites.values()), live.edits(interventions, prompt), caching=False)
        tape.feed(prompt.ids)
        trace = tape.trace()
    # layer by layer, so that others get their turn between
    rows = tuple(
        _layer(live, prompt, layer, trace.x[site], titles.get(layer), wanted, top) for layer, site in sites.items()
    )
    notes = (*prompt.notes, *idle(trace.edits, trace.effects))
    return LensGrid(prompt, rows, TokenCost(tape.computed, 0), notes)


def _first_titles(live: LiveModel) -> tuple[str, ...]:
    by_site: dict[str, str] = {}
    for title in live.titles:
        by_site.setdefault(title.split("/")[0], title)
    return tuple(title for site, title in by_site.items() if Site.parse(site).kind == "resid_post")


def _by_layer(live: LiveModel, wanted: Wanted) -> dict[int, str]:
    titles: dict[int, str] = {}
    for title in wanted.dictionaries:
        site = Site.parse(live.dictionary(title).site)
        require(site.kind == "resid_post", f"dictionary {title!r}: the grid shows residual streams; give one of those")
        require(site.layer not in titles, f"dictionary {title!r}: give a single dictionary of {site}")
        titles[site.layer] = title
    return titles


def _layer(
    live: LiveModel,
    prompt: LivePrompt,
    layer: int,
    x: Float[Tensor, "tokens d_model"],
    title: str | None,
    wanted: Wanted,
    top: int,
) -> LensLayer:
    with live.lock:
        says = _says(live, x, top)
        strongest: tuple[ActiveFeature | None, ...] = (None,) * len(x)
        if title is not None:
            single = Wanted((title,), 1, wanted.kept)
            read = token_features(live.dictionary(title), x, prompt.ids, single)
            strongest = tuple(features.top[0] if features.top else None for features in read)
    return LensLayer(layer, says, title, strongest)


def _says(live: LiveModel, x: Float[Tensor, "tokens d_model"], top: int) -> tuple[tuple[LensToken, ...], ...]:
    block = max(1, LOGITS // live.lm.vocab_size)
    values, tokens = [], []
    for start in range(0, len(x), block):
        log_p = unembed(live.lm, x[start : start + block]).log_softmax(-1)
        best = log_p.topk(min(top, log_p.shape[1]))
        values += best.values.exp().tolist()
        tokens += best.indices.tolist()
    texts = dict(live.texts.of(torch.tensor(tokens).flatten().tolist()))
    return tuple(
        tuple(LensToken(token, texts[token], p) for token, p in zip(*row, strict=True))
        for row in zip(tokens, values, strict=True)
    )
