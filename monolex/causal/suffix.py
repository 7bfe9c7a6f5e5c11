"""Many edited versions of the same prompts through the rest of the model, and only what is needed of it.

The forward resumes behind the edited site, candidates are folded into the batch, and only the token that predicts the
answer is unembedded. Against one full forward a candidate this saves the blocks before the site, the unembedding of
all other positions, and the overhead of a call.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.causal.past import Past, after, remember
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site


@final
@dataclass(frozen=True, eq=False)
class Suffix:
    """Some prompts, run up to a site; made by :func:`prepare` or, of one token alone, by :func:`prepare_last`."""

    lm: LanguageModel
    """The model."""
    site: Site
    """Where versions differ."""
    tokens: Int[Tensor, "prompts tokens"]
    """The prompts, padded on the right."""
    end: Int[Tensor, "prompts"]
    """Position of every prompt's last token."""
    x: Float[Tensor, "prompts tokens d_in"]
    """The activation at the site, unedited."""
    resume: int
    """Block from which the forward goes on."""
    before: Float[Tensor, "prompts tokens d_model"] | None
    """What enters that block where the site lies inside it; None where the activation itself does."""
    past: Past | None = None
    """What the model keeps of the tokens before, where ``tokens`` are the last ones alone."""

    @property
    def states(self) -> int:
        """Tokens whose states a version of all prompts holds, those that are kept included."""
        return self.tokens.numel() + (0 if self.past is None else self.past.length * len(self.tokens))

    def later(self, site: Site, x: Float[Tensor, "prompts tokens d_model"]) -> "Suffix":
        """The same prompts at a later boundary of blocks, ``resid_post``, with ``x`` as their activation there."""
        return replace(self, site=site, x=x, resume=site.layer + 1, before=None)

    def forward(
        self, x: Float[Tensor, "versions prompts tokens d_in"], sites: tuple[Site, ...] = ()
    ) -> dict[str, Float[Tensor, "all tokens width"]]:
        """Activations at ``sites``, none before the site, with ``x`` in its place; versions folded into the batch."""
        return self._forward(x.flatten(0, 1), self._rows(len(x)), sites)

    def end_logits(self, x: Float[Tensor, "versions prompts tokens d_in"]) -> Float[Tensor, "versions prompts vocab"]:
        """Logits of what follows every prompt with ``x`` at the site, at least in float32."""
        return self.end_logits_of(x.flatten(0, 1), self._rows(len(x))).unflatten(0, x.shape[:2])

    def end_logits_of(
        self, x: Float[Tensor, "rows tokens d_in"], prompts: Int[Tensor, "rows"]
    ) -> Float[Tensor, "rows vocab"]:
        """The same of single versions of single prompts: row i of ``x`` is one of prompt ``prompts[i]``."""
        last = Site("resid_post", self.lm.n_layers - 1)
        final = x if self._final else self._forward(x, prompts, (last,))[str(last)]
        return unembed(self.lm, at_end(final, self.end[prompts]))

    def _rows(self, versions: int) -> Int[Tensor, "rows"]:
        return torch.arange(len(self.end), device=self.end.device).repeat(versions)

    def _forward(self, x: Tensor, prompts: Tensor, sites: tuple[Site, ...]) -> dict[str, Tensor]:
        tokens = self.tokens[prompts.to(self.tokens.device)]
        entering, edits = x, None
        if self.before is not None:
            # a forward keeps gradients where what enters it requires them
            entering = self.before[prompts].requires_grad_(x.requires_grad and torch.is_grad_enabled())
            edits = {self.site: lambda _: x}
        mask = until_end(tokens, self.end[prompts])
        with after(self.lm, self.past, prompts):
            run = hooks.run_from(
                self.lm, self.resume, entering, tokens, edits=edits, sites=sites, mask=mask, logits=False
            )
        return run.activations

    @property
    def _final(self) -> bool:
        return self.before is None and self.resume == self.lm.n_layers


def prepare(
    lm: LanguageModel,
    site: Site | str,
    tokens: Int[Tensor, "prompts tokens"],
    end: Int[Tensor, "prompts"],
) -> Suffix:
    """Run ``tokens`` up to ``site``.

    Raises:
        UserError: the model has no such site.
    """
    site = Site.parse(site)
    end = end.to(lm.device)
    mask = until_end(tokens, end)
    if site.kind in ("resid_pre", "resid_post"):
        x = hooks.capture(lm, tokens, [site], mask=mask).activations[str(site)]
        return Suffix(lm, site, tokens, end, x, site.layer + (site.kind == "resid_post"), None)
    entry = Site("resid_pre", site.layer)
    seen = hooks.capture(lm, tokens, [entry, site], mask=mask).activations
    return Suffix(lm, site, tokens, end, seen[str(site)], site.layer, seen[str(entry)])


def until_end(tokens: Int[Tensor, "rows tokens"], end: Int[Tensor, "rows"]) -> Bool[Tensor, "rows tokens"]:
    """Which tokens are of the text, in rows that are padded on the right."""
    return torch.arange(tokens.shape[1], device=tokens.device) <= end.to(tokens.device)[:, None]


def prepare_last(lm: LanguageModel, site: Site | str, tokens: Int[Tensor, "prompts tokens"]) -> Suffix:
    """Run prompts of one length up to ``site``, of which only the last token is edited: versions are of it alone.

    For a model that :func:`monolex.causal.past.continues`.

    Raises:
        UserError: the model has no such site.
    """
    past = remember(lm, tokens[:, :-1]) if tokens.shape[1] > 1 else None
    with after(lm, past, torch.arange(len(tokens))):
        last = prepare(lm, site, tokens[:, -1:], torch.zeros(len(tokens), dtype=torch.int64))
    return replace(last, past=past)


def at_end(x: Float[Tensor, "rows tokens *width"], end: Int[Tensor, "rows"]) -> Float[Tensor, "rows *width"]:
    """What every row has at its own last token."""
    return x[torch.arange(len(x), device=x.device), end.to(x.device)]


def unembed(lm: LanguageModel, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
    """Final norm and unembedding of residual streams that left the last block, at least in float32."""
    tokens = torch.zeros(len(x), 1, dtype=torch.int64)
    logits = hooks.run_from(lm, lm.n_layers, x[:, None], tokens).logits
    assert logits is not None, "asked for"
    return logits[:, 0] if logits.dtype == torch.float64 else logits[:, 0].float()
