"""What is kept of tokens that a model was given, and a model that goes on from there.

Keys and values of tokens depend on what is before them alone, so texts that begin alike share them; what a sliding
window has dropped is gone, and such a trace goes on at its end or not at all. A model that keeps something else than
keys and values, or that does not go on from them as it should (:func:`monolex.causal.past.continues`), is given all
tokens anew.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from monolex.causal.past import PLAIN
from monolex.causal.suffix import unembed
from monolex.errors import UserError
from monolex.live.interventions import Effect, PlacedEdit, Placement
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site


@final
@dataclass(frozen=True, eq=False)
class Trace:
    """Some tokens under some edits; never changed."""

    ids: tuple[int, ...]
    """The tokens."""
    edits: tuple[Placement, ...]
    """Its edits, in the order in which they were given."""
    effects: tuple[Effect, ...]
    """Of every edit, how far it has come."""
    cache: DynamicCache | None
    """Keys and values of all tokens; None where the model keeps something else."""
    x: Mapping[str, Float[Tensor, "tokens width"]]
    """Activations by site, behind the edits there."""

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        layers = [] if self.cache is None else self.cache.layers
        kept = [tensor for layer in layers for tensor in vars(layer).values() if isinstance(tensor, Tensor)]
        return sum(tensor.nbytes for tensor in (*kept, *self.x.values()))

    def usable(self, length: int) -> bool:
        """Whether the model can go on behind the first ``length`` tokens."""
        if self.cache is None:
            return False
        return length == len(self.ids) or all(map(_whole, self.cache.layers))

    def unedited(self, length: int, edits: Sequence[PlacedEdit]) -> int:
        """How many of the first ``length`` tokens, which nothing has edited here, are the same under ``edits``."""
        ids = torch.tensor(self.ids[:length])
        for edit in edits:
            _, effect = edit.delta(self.x[edit.site][:length], ids[:length], 0)
            length = length if effect.changed is None else effect.changed
        return length


class _Fed(NamedTuple):
    """What a forward is of, and what hooks put there."""

    ids: Tensor
    start: int
    effects: list[Effect]
    seen: dict[str, Tensor]


@final
class Tape:
    """A model that is given tokens piece by piece, under edits; not for two threads at once.

    ``caching``: whether keys and values may be kept at all.
    """

    def __init__(
        self, lm: LanguageModel, sites: Sequence[str], edits: Sequence[PlacedEdit] = (), *, caching: bool = True
    ) -> None:
        self.lm, self.edits = lm, tuple(edits)
        self.placements = tuple(edit.placement for edit in edits)
        self._sites = {site: Site.parse(site) for site in (*sites, last_site(lm))}
        # looked up once: each takes a share of a small model's step
        self._last, self._device, self._room = last_site(lm), lm.device, lm.max_context
        self.ids: list[int] = []
        self.computed = self.reused = 0
        self._caching, self._cache = caching, None
        self._parts: dict[str, list[Tensor]] = {site: [] for site in self._sites}
        self._effects = [Effect()] * len(self.edits)
        self._logits: Tensor | None = None
        self._fed, self._hooked = _Fed(torch.empty(0, dtype=torch.int64), 0, [], {}), False
        # the logits of the last token are all that is wanted, where a model can leave out the others
        single = "logits_to_keep" in inspect.signature(lm.hf.forward).parameters
        self._options = {"logits_to_keep": 1} if single else {}

    def resume(self, trace: Trace, length: int) -> None:
        """Begin with the first ``length`` tokens of ``trace``, which have to be the same under these edits."""
        assert not self.ids and trace.cache is not None, "at the beginning"
        self.ids, self.reused = list(trace.ids[:length]), length
        self._cache = _cropped(trace.cache, len(trace.ids), length)
        self._parts = {site: [trace.x[site][:length]] for site in self._sites}
        if trace.edits == self.placements:
            self._effects = [effect.before(length) for effect in trace.effects]
        else:  # nothing has changed there, but edits were looked at
            ids = torch.tensor(self.ids)
            self._effects = [edit.delta(trace.x[edit.site][:length], ids, 0)[1] for edit in self.edits]

    def feed(self, ids: Sequence[int]) -> None:
        """Give the model the next tokens.

        Raises:
            UserError: tokens that it cannot take, or logits that are not finite.
        """
        assert len(self.ids) + len(ids) <= self._room, "the caller stops there"
        anew = self._cache is None
        tokens = torch.tensor([[*self.ids, *ids] if anew else list(ids)])
        # it grows in place: after a forward that fails nobody knows what is in it
        cache, self._cache = self._cache, None
        effects = [Effect()] * len(self.edits) if anew else list(self._effects)
        self._fed = _Fed(tokens[0], 0 if anew else len(self.ids), effects, {})
        with self.hooked(), torch.inference_mode():
            output = self.lm.hf(
                tokens.to(self._device), past_key_values=cache, use_cache=self._caching, **self._options
            )
        seen = self._fed.seen
        assert len(seen) == len(self._sites), f"a site did not fire in a forward of {self.lm.name}"
        logits = output.logits[0, -1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        self._require_finite(logits, seen[self._last])
        self.computed += tokens.shape[1]
        self.ids += ids
        self._cache, self._effects, self._logits = _known(output), effects, logits
        for site, x in seen.items():
            if anew:
                self._parts[site].clear()
            self._parts[site].append(x)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While active, further tokens need no hooks of their own, which of a small model are a share of every step."""
        if self._hooked:
            yield
            return
        if self.ids and self._cache is not None:
            _ = self.logits  # a forward of another kind, which the hooks must not see
        with hooks.edit(self.lm, self._edited()), ExitStack() as stack:
            for name, site in self._sites.items():
                stack.callback(hooks.watch(self.lm.place(site), partial(self._see, name)).remove)
            self._hooked = True
            stack.callback(setattr, self, "_hooked", False)
            yield

    @property
    def logits(self) -> Float[Tensor, "vocab"]:
        """Of what follows the last token, at least in float32."""
        if self._logits is None:
            self._logits = unembed(self.lm, self.rows(self._last, len(self.ids) - 1))[0]
        return self._logits

    def rows(self, site: str, start: int) -> Float[Tensor, "tokens width"]:
        """Activations at ``site`` of the tokens from ``start`` on."""
        parts, missing = [], len(self.ids) - start
        for part in reversed(self._parts[site]):
            if missing <= 0:
                break
            parts.insert(0, part[-missing:])
            missing -= len(part)
        return torch.cat(parts)

    def trace(self) -> Trace:
        """What there is now, to go on from later."""
        for site, parts in self._parts.items():
            self._parts[site] = [torch.cat(parts)]
        cache = None if self._cache is None else _cropped(self._cache, len(self.ids), len(self.ids))
        x = {site: parts[0] for site, parts in self._parts.items()}
        return Trace(tuple(self.ids), self.placements, tuple(self._effects), cache, x)

    def _see(self, site: str, x: Tensor) -> Tensor:
        assert site not in self._fed.seen and x.shape[:2] == (1, len(self._fed.ids)), f"{site} is no row a token"
        self._fed.seen[site] = x[0]
        return x

    def _edited(self) -> dict[str, hooks.EditFn]:
        """One function a site: the sum of what its edits add to the activation as it comes."""
        by_site: dict[str, list[int]] = {}
        for number, edit in enumerate(self.edits):
            by_site.setdefault(edit.site, []).append(number)

        def editing(numbers: list[int]) -> hooks.EditFn:
            def apply(x: Tensor) -> Tensor:
                total, fed = torch.zeros_like(x[0]), self._fed
                for number in numbers:
                    delta, effect = self.edits[number].delta(x[0], fed.ids, fed.start)
                    fed.effects[number] = fed.effects[number].then(effect)
                    total = total + delta
                return x + total

            return apply

        return {site: editing(numbers) for site, numbers in by_site.items()}

    def _require_finite(self, logits: Tensor, x: Tensor) -> None:
        # the largest of some numbers is NaN where one of them is; of tokens before the last there are no logits yet
        if bool(logits.max().isfinite()) and (len(x) == 1 or bool(x.isfinite().all())):
            return
        if not self.edits:
            raise UserError(f"{self.lm.name} gives logits that are not finite on these tokens; load it in fp32")
        what = "; ".join(str(placement.intervention) for placement in self.placements)
        raise UserError(f"{what}: the model's logits are no longer finite; take a value nearer to the feature's codes")


def last_site(lm: LanguageModel) -> str:
    """The residual stream behind the last block, of which logits are made."""
    return str(Site("resid_post", lm.n_layers - 1))


def _known(output: Any) -> DynamicCache | None:
    """The cache that a forward leaves, if it is known what it holds."""
    cache = getattr(output, "past_key_values", None)
    return cache if isinstance(cache, DynamicCache) and all(map(_plain, cache.layers)) else None


def _plain(layer: Any) -> bool:
    return type(layer) in PLAIN and isinstance(layer.keys, Tensor)


def _whole(layer: Any) -> bool:
    """Whether it still holds every token."""
    return not isinstance(layer, DynamicSlidingWindowLayer) or layer.cumulative_length < layer.sliding_window


def _cropped(cache: DynamicCache, tokens: int, length: int) -> DynamicCache:
    """The first ``length`` of ``tokens`` of a cache, as one of its own; what lies in both is shared until one grows."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in copied.layers if length < tokens else ():
        assert isinstance(layer, DynamicLayer) and _whole(layer), "as `usable` says"
        assert isinstance(layer.keys, Tensor) and isinstance(layer.values, Tensor), "filled"
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = length
    return copied
