"""Read and replace activations with plain PyTorch hooks: :func:`capture`, :func:`edit`, :func:`run_from`.

Every hook here is owned by a ``with`` block that removes exactly the handles it made, also when something raises. The
model is put into eval mode inside (dropout would make equal prompts differ) and gets each module's own flag back after.
A site that does not fire in a completed forward, fires twice or has another shape than its structure says is an error:
a silent no-op is the worst result an edit can have. A plain function may return what it was given, to the last bit; an
edit that says why it would do nothing (:class:`ActingEdit`: all edits of features) has to change something.

Padding is hidden by a mask, ``1`` for tokens; without one :mod:`monolex.model.padding` says what becomes of it. What
activations and logits hold at padding means nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from monolex.errors import UserError
from monolex.model.padding import Mask, forward_inputs
from monolex.model.sites import Place, Site, SiteError

if TYPE_CHECKING:
    from monolex.model.language_model import LanguageModel


class ActingEdit(Protocol):
    """An edit that is an error where it changes no activation at all, or is of another site."""

    @property
    def site(self) -> str:
        """Whose features it edits; empty where nothing is known of that."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """The replacement of an activation, of the same shape and dtype."""
        ...

    def idle(self, x: Tensor, /) -> str:
        """Why it leaves ``x`` as it is."""
        ...


EditFn = Callable[[Tensor], Tensor]
"""A pure function of an activation ``[batch, tokens, width]`` to its replacement of the same shape and dtype."""
Edits = Mapping[Site | str, EditFn] | Mapping[str, EditFn] | Mapping[Site, EditFn]
"""What replaces the activation at which site."""


@dataclass(frozen=True, eq=False)
class Captured:
    """What one forward gave."""

    activations: dict[str, Tensor]
    """By site name, ``[batch, tokens, width]`` in the model's own dtype, in the order the sites were asked for."""
    logits: Tensor | None
    """``[batch, tokens, vocab]``, or None where they were not asked for."""


class _Stop(Exception):
    """The deepest captured site has fired: the rest of the forward is not needed."""


class _PassThrough(nn.Module):
    """Stands in for a block that :func:`run_from` skips."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states


def capture(
    lm: "LanguageModel",
    tokens: Int[Tensor, "batch tokens"],
    sites: Sequence[Site | str],
    *,
    mask: Mask = None,
    logits: bool = False,
    grad: bool = False,
) -> Captured:
    """Activations at ``sites`` of one forward of ``tokens``; without ``logits`` it stops after the deepest of them.

    Inside an :func:`edit` block the captured values are those after the edits. With ``grad`` the tensors stay in the
    autograd graph; otherwise they are free of it. No copy is made: change a captured tensor only after cloning it.

    Raises:
        UserError: an unknown site, no site, tokens the model cannot take, or padding that no ``mask`` tells from text.
        SiteError: a site did not fire exactly once, or had another shape.
    """
    return _forward(lm, tokens, sites, mask=mask, logits=logits, grad=grad)


def logits(
    lm: "LanguageModel",
    tokens: Int[Tensor, "batch tokens"],
    edits: Edits | None = None,
    *,
    mask: Mask = None,
    grad: bool = False,
) -> Float[Tensor, "batch tokens vocab"]:
    """Logits of a full forward, with ``edits`` (see :func:`edit`) if there are any."""
    with edit(lm, edits or {}):
        result = _forward(lm, tokens, (), mask=mask, logits=True, grad=grad).logits
    assert result is not None, "a full forward gives logits"
    return result


def run_from(
    lm: "LanguageModel",
    layer: int,
    x: Float[Tensor, "batch tokens d_model"],
    tokens: Int[Tensor, "batch tokens"],
    *,
    edits: Edits | None = None,
    sites: Sequence[Site | str] = (),
    mask: Mask = None,
    logits: bool = True,
) -> Captured:
    """Resume a forward of ``tokens`` with ``x`` as ``resid_pre`` of block ``layer``; earlier blocks are not computed.

    ``layer == n_layers`` applies only the final norm and the unembedding. Edits and captures see ``x`` at
    ``resid_pre.layer``. Gradients flow where ``x`` requires them. Works because positions and masks are made outside
    the blocks, which :func:`monolex.model.verify.verify` checks for every model.

    Raises:
        UserError: a layer that does not exist, an ``x`` of another shape or dtype, or a site before ``layer``.
        SiteError: as :func:`capture`.
    """
    edits = edits or {}
    if not 0 <= layer <= lm.n_layers:
        raise UserError(f"layer = {layer}: resume at a layer from 0 to {lm.n_layers} (which is the final norm)")
    for site in (*map(Site.parse, edits), *map(Site.parse, sites)):
        if site.layer < layer:
            raise UserError(f"site {site} lies before layer {layer}, where the forward resumes")
    expected = (*tokens.shape, lm.d_model)
    if x.shape != expected or x.dtype != lm.dtype:
        raise UserError(f"x is {_describe(x)}: give resid_pre.{layer} as {lm.dtype} {list(expected)}")
    if layer == lm.n_layers:  # no token sees another there
        mask = torch.ones_like(tokens)
    grad = x.requires_grad and torch.is_grad_enabled()
    with _resumed(lm, layer, x), edit(lm, edits):
        return _forward(lm, tokens, sites, mask=mask, logits=logits, grad=grad)


@contextmanager
def edit(lm: "LanguageModel", edits: Edits) -> Iterator[None]:
    """While active, every forward of ``lm.hf`` (and ``generate``) has each site's activation replaced by ``fn(x)``.

    A ``fn`` that returns its argument leaves the forward bit-exact. Blocks nest: the inner edit sees the outer one's
    result. An edit of ``resid_mid`` changes both what the MLP reads and what the block passes on.

    Raises:
        UserError: an unknown site, a ``fn`` whose result has another shape, dtype or device, or an
            :class:`ActingEdit` of another site or that has changed nothing when the block ends.
        SiteError: a forward completed in which an edited site did not fire exactly once.
    """
    counts = {Site.parse(name): 0 for name in edits}
    idle = {Site.parse(name): "no forward inside reached it" for name, fn in edits.items() if hasattr(fn, "idle")}
    with _evaluating(lm.hf), ExitStack() as stack:
        for name, fn in edits.items():
            site = Site.parse(name)
            _require_own_site(site, fn)
            for handle in _install(lm, site, _checked(lm, site, fn, counts, idle)):
                stack.callback(handle.remove)
        if counts:
            stack.callback(lm.hf.register_forward_pre_hook(_reset(counts)).remove)
            stack.callback(lm.hf.register_forward_hook(_require_once(counts)).remove)
        yield
    for site, why in idle.items():
        raise UserError(f"the edit of {site} changes nothing: {why}")


class Handles(NamedTuple):
    """Hooks that belong together."""

    several: tuple[torch.utils.hooks.RemovableHandle, ...]
    """Each of them."""

    def remove(self) -> None:
        """Take all of them off."""
        for handle in self.several:
            handle.remove()


def watch(place: Place, fn: EditFn, *, prepend: bool = False) -> Handles:
    """Call ``fn`` on the activation at ``place`` in every forward and put its result there, if it is another tensor."""
    if place.flat is None:
        return Handles((_hook(place, fn, prepend),))
    shape: list[int] = []

    def count(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        shape[:] = (args[0] if args else kwargs["hidden_states"]).shape[:2]

    def unflattened(x: Tensor) -> Tensor:
        # what fn saw goes on even where it is unchanged: a gradient is asked of that tensor
        return fn(x.unflatten(0, shape)).flatten(0, 1) if x.ndim == 2 else fn(x)

    counter = place.flat.register_forward_pre_hook(count, with_kwargs=True)
    return Handles((counter, _hook(place, unflattened, prepend)))


def _hook(place: Place, fn: EditFn, prepend: bool) -> torch.utils.hooks.RemovableHandle:

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        x = args[0] if args else kwargs["hidden_states"]
        y = fn(x)
        if y is x:
            return None
        return ((y, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": y})

    def after(_module: nn.Module, _args: tuple, output: Any) -> Any:
        x = primary(output)
        y = fn(x)
        return None if y is x else _withprimary(output, y)

    if place.side == "input":
        return place.module.register_forward_pre_hook(before, with_kwargs=True, prepend=prepend)
    return place.module.register_forward_hook(after, prepend=prepend)


def _forward(
    lm: "LanguageModel", tokens: Tensor, sites: Sequence[Site | str], *, mask: Mask, logits: bool, grad: bool
) -> Captured:
    require_tokens(lm, tokens)
    inputs = forward_inputs(lm, tokens, mask)
    wanted = list(dict.fromkeys(map(Site.parse, sites)))
    if not wanted and not logits:
        raise UserError("sites is empty: name at least one site to capture, for example resid_post.3")
    seen: dict[Site, Tensor] = {}
    output = None
    with _evaluating(lm.hf), ExitStack() as stack, torch.set_grad_enabled(grad):
        for site in wanted:
            keep = _keeper(lm, site, tokens, seen, None if logits else len(wanted))
            stack.callback(watch(lm.place(site), keep).remove)
        with suppress(_Stop):
            output = lm.hf(tokens.to(lm.device), use_cache=False, **inputs).logits
    missing = [str(site) for site in wanted if site not in seen]
    if missing:
        raise SiteError(f"{', '.join(missing)} did not fire in a forward of {lm.name}")
    return Captured({str(site): seen[site] for site in wanted}, output)


def _keeper(lm: "LanguageModel", site: Site, tokens: Tensor, seen: dict[Site, Tensor], stop_at: int | None) -> EditFn:
    """A hook that stores the activation at ``site``, and ends the forward once ``stop_at`` sites are in."""
    expected = (*tokens.shape, lm.place(site).width)

    def keep(x: Tensor) -> Tensor:
        if site in seen:
            raise SiteError(f"{site} fired twice in one forward of {lm.name}")
        if x.shape != expected:
            raise SiteError(f"{site} has shape {list(x.shape)} instead of {list(expected)} in {lm.name}")
        seen[site] = x
        if len(seen) == stop_at:
            raise _Stop
        return x

    return keep


def require_tokens(lm: "LanguageModel", tokens: Tensor) -> None:
    """Refuse what is no batch of token ids of this model.

    Raises:
        UserError: another shape or dtype, more positions than the model has, or an id without an embedding row.
    """
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.numel() == 0:
        raise UserError(f"tokens are {_describe(tokens)}: give token ids as integers [batch, tokens]")
    if tokens.shape[1] > lm.max_context:
        raise UserError(f"tokens have {tokens.shape[1]} positions: {lm.name} takes at most {lm.max_context}")
    rows = lm.embedding.shape[0]
    wrong = tokens[(tokens < 0) | (tokens >= rows)]
    if len(wrong):
        raise UserError(f"token id {int(wrong[0])} has no row in the embedding of {lm.name}, which has 0 to {rows - 1}")


def _install(lm: "LanguageModel", site: Site, fn: EditFn) -> list[Handles]:
    if site.kind != "resid_mid":
        return [watch(lm.place(site), fn)]
    # The norm that reads resid_mid is only one of its two readers; the other is the skip connection around the MLP,
    # which no module sees. What the edit added is therefore added again where the block ends, before any other hook.
    deltas: list[Tensor] = []

    def replace(x: Tensor) -> Tensor:
        y = fn(x)
        deltas[:] = [] if y is x else [y - x]
        return y

    def pass_on(x: Tensor) -> Tensor:
        return x + deltas.pop() if deltas else x

    end = lm.place(Site("resid_post", site.layer))
    return [watch(lm.place(site), replace), watch(end, pass_on, prepend=True)]


def _checked(
    lm: "LanguageModel", site: Site, fn: EditFn | ActingEdit, counts: dict[Site, int], idle: dict[Site, str]
) -> EditFn:
    """``fn`` with its result checked; a forward that it changes takes its site out of ``idle``."""
    width = lm.place(site).width

    def apply(x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[-1] != width:
            raise SiteError(f"{site} has shape {list(x.shape)} instead of [batch, tokens, {width}] in {lm.name}")
        counts[site] += 1
        y = fn(x)
        if not isinstance(y, Tensor) or (y.shape, y.dtype, y.device) != (x.shape, x.dtype, x.device):
            raise UserError(f"the edit of {site} returned {_describe(y)}: return {_describe(x)} like its argument")
        if site in idle:
            if torch.equal(x, y):
                idle[site] = fn.idle(x)  # pyright: ignore[reportFunctionMemberAccess]
            else:
                del idle[site]
        return y

    return apply


def _require_own_site(site: Site, fn: EditFn | ActingEdit) -> None:
    of = getattr(fn, "site", "")
    if of not in ("", str(site)):
        raise UserError(
            f"features of {of} edited at {site}: use a dictionary of {site}, or, if the other site is meant, give the "
            "edit as a plain function (lambda x: edit(x))"
        )


def _reset(counts: dict[Site, int]) -> Callable[..., None]:
    def reset(*_: Any) -> None:
        counts.update(dict.fromkeys(counts, 0))

    return reset


def _require_once(counts: dict[Site, int]) -> Callable[..., None]:
    def require_once(*_: Any) -> None:
        for site, count in counts.items():
            if count != 1:
                raise SiteError(f"the edit of {site} fired {count} times in one forward, expected once")

    return require_once


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own training flag restored after."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _resumed(lm: "LanguageModel", layer: int, x: Tensor) -> Iterator[None]:
    """Blocks before ``layer`` are replaced by pass-throughs, and what reaches ``layer`` by ``x``."""
    blocks = lm.structure.blocks
    skipped = [blocks[index] for index in range(layer)]
    entry = blocks[layer] if layer < lm.n_layers else lm.final_norm
    handle = watch(Place(entry, "input", lm.d_model), lambda _: x, prepend=True)
    try:
        for index in range(layer):
            blocks[index] = _PassThrough()
        yield
    finally:
        handle.remove()
        for index, block in enumerate(skipped):
            blocks[index] = block


def primary(output: Any) -> Tensor:
    """The activation that a module returned, alone or as the first of several."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, ModelOutput | tuple):
        return output[0]
    raise SiteError(f"a module returned {type(output).__name__}, expected a Tensor, tuple or ModelOutput")


def _withprimary(output: Any, value: Tensor) -> Any:
    if isinstance(output, Tensor):
        return value
    if isinstance(output, ModelOutput):
        return type(output)(**{**output, next(iter(output)): value})
    return (value, *output[1:])


def _describe(x: Any) -> str:
    if not isinstance(x, Tensor):
        return type(x).__name__
    return f"{x.dtype} {list(x.shape)} on {x.device}"
