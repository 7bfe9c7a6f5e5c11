"""The proof that a model's sites mean what they say.

No architecture is trusted by name: :func:`verify` runs a few tokens through every model, refuses one whose residual
stream does not add up, and takes away every site whose place is not proved.
"""

from dataclasses import replace

import torch
from torch import Tensor

from monolex.errors import UserError
from monolex.model.hooks import capture, edit, logits, primary, run_from
from monolex.model.language_model import LanguageModel
from monolex.model.sites import KINDS, Site, SiteError, Structure

STREAM = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""Kinds of sites without which nothing can be read."""
_CONTRIBUTION = {"attn_z": "attn_out", "mlp_in": "mlp_out", "mlp_act": "mlp_out"}
_LENGTH = 12
_PADDED = 3


def verify(lm: LanguageModel) -> Structure:
    """Run a few fixed tokens and check every identity the sites promise; the structure with what they showed.

    On all layers resid_pre + attn_out + mlp_out == resid_post and resid_post.l == resid_pre.(l+1); edits that change
    nothing leave the logits bit-exact; resuming at the first, middle and last layer gives the full forward's logits; no
    token sees a later one; embedding and unembedding are the matrices that they say. A model that fails in one of these
    is refused: peers read the wrong module for months without such a check (TransformerLens #1618, #1639, #1648).

    Where resid_pre + attn_out is not resid_mid, or the part's own modules do not make attn_out of attn_z, mlp_out of
    mlp_in and of mlp_act, that site alone is taken away (adapters, quantised projections). Where a row behind padding
    is not what it is alone, padding on the left is.

    Raises:
        UserError: the first identity of the residual stream that fails.
    """
    tokens = _fixed_tokens(lm)
    try:
        seen, result, refused = _seen(lm, tokens)
        if not bool(result.isfinite().all()):
            raise UserError(f"{lm.name} gives NaN or infinite logits in {lm.dtype}: choose model_dtype fp32 or bf16")
        for layer in range(lm.n_layers):
            _verify_stream(lm, layer, seen)
        refused |= _unproved(lm, seen)
        _verify_runs(lm, tokens, seen, result, [site for name in seen if (site := Site.parse(name)) not in refused])
        _verify_causal(lm, tokens, seen)
        _verify_vocabulary(lm, tokens, seen)
    except SiteError as error:
        raise unreadable(lm.architecture, str(error)) from error
    return replace(lm.structure.without(refused), unpadded=_unpadded(lm, tokens, seen))


@torch.no_grad()
def require_unhooked(lm: LanguageModel) -> None:
    """Refuse a model whose weights do not say what it computes, before anything of it is kept under their hash.

    Hooks that only look, and whatever was registered but changes no logit, are let be.

    Raises:
        UserError: forward hooks change what a few fixed tokens give.
    """
    hooks = [kept for module in lm.hf.modules() for kept in (module._forward_pre_hooks, module._forward_hooks) if kept]
    if not hooks:
        return
    tokens = _fixed_tokens(lm)
    before = logits(lm, tokens, mask=torch.ones_like(tokens))
    held = [dict(kept) for kept in hooks]
    try:
        for kept in hooks:
            kept.clear()
        alone = logits(lm, tokens, mask=torch.ones_like(tokens))
    finally:
        for kept, before_clearing in zip(hooks, held, strict=True):
            kept.update(before_clearing)
    if not torch.equal(before, alone):
        raise UserError(f"forward hooks on {lm.name} change what it computes, which no weight tells: remove them")


def _fixed_tokens(lm: LanguageModel) -> Tensor:
    length = min(_LENGTH, lm.max_context)
    return ((torch.arange(2 * length) * 7 + 3) % min(lm.vocab_size, lm.embedding.shape[0])).reshape(2, length)


def _seen(lm: LanguageModel, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor, dict[Site, str]]:
    """Activations of all sites that can be read, logits, and why others cannot; a site at a time where any fails."""
    layers = enumerate(lm.structure.places)
    sites = [Site(kind, layer) for layer, places in layers for kind in KINDS if kind in places]
    mask = torch.ones_like(tokens)
    refused: dict[Site, str] = {}
    try:
        seen = capture(lm, tokens, sites, mask=mask, logits=True)
        activations = seen.activations
    except SiteError:
        seen = capture(lm, tokens, [site for site in sites if site.kind in STREAM], mask=mask, logits=True)
        activations = dict(seen.activations)
        for site in sites:
            if site.kind not in STREAM:
                try:
                    # with logits, since a forward that ends at the site does not see it fire twice
                    activations |= capture(lm, tokens, [site], mask=mask, logits=True).activations
                except SiteError as error:
                    refused[site] = str(error)
    assert seen.logits is not None, "a forward with logits gives logits"
    return activations, seen.logits, refused


def _verify_stream(lm: LanguageModel, layer: int, seen: dict[str, Tensor]) -> None:
    pre, attn, mlp, post = (seen[f"{kind}.{layer}"] for kind in STREAM)
    pre, attn, mlp = pre.to(post.device), attn.to(post.device), mlp.to(post.device)
    total = f"resid_pre + attn_out + mlp_out against resid_post at layer {layer}"
    _require_close(lm, pre + attn + mlp, post, pre.abs() + attn.abs() + mlp.abs(), total)
    after = seen.get(f"resid_pre.{layer + 1}")
    if after is not None and not torch.equal(post.to(after.device), after):
        raise unreadable(lm.architecture, f"resid_post.{layer} is not resid_pre.{layer + 1}")


@torch.no_grad()
def _unproved(lm: LanguageModel, seen: dict[str, Tensor]) -> dict[Site, str]:
    """Sites inside a block that are not what they are called, and why."""
    refused = {}
    with edit(lm, {}):  # for eval mode alone
        for name, x in seen.items():
            site = Site.parse(name)
            if site.kind == "resid_mid":
                pre, attn = (seen[f"{kind}.{site.layer}"].to(x.device) for kind in ("resid_pre", "attn_out"))
                if _deviation(lm, pre + attn, x, pre.abs() + attn.abs()) is not None:
                    refused[site] = f"it is not resid_pre.{site.layer} + attn_out.{site.layer}"
            elif site.kind in _CONTRIBUTION:
                outer = f"{_CONTRIBUTION[site.kind]}.{site.layer}"
                if not _makes(lm, site, x, seen[outer]):
                    what = " and ".join(type(module).__name__ for module in lm.place(site).through)
                    refused[site] = f"what {what} makes of it is not {outer}"
    return refused


def _makes(lm: LanguageModel, site: Site, x: Tensor, contribution: Tensor) -> bool:
    """Whether the modules behind ``site`` make the part's contribution of ``x``."""
    for module in lm.place(site).through:
        x = primary(module(x))
    if x.shape != contribution.shape:
        return False
    return _deviation(lm, x, contribution.to(x.device), contribution.abs().max().to(x.device)) is None


def _verify_runs(lm: LanguageModel, tokens: Tensor, seen: dict[str, Tensor], result: Tensor, sites: list[Site]) -> None:
    """Edits that change nothing, and forwards that begin in the middle."""
    mask = torch.ones_like(tokens)
    if not torch.equal(logits(lm, tokens, dict.fromkeys(sites, torch.clone), mask=mask), result):
        raise unreadable(lm.architecture, "edits that change nothing change the logits")
    for layer in sorted({0, lm.n_layers // 2, lm.n_layers}):
        last = layer == lm.n_layers
        x = seen[f"resid_post.{layer - 1}" if last else f"resid_pre.{layer}"]
        resumed = run_from(lm, layer, x.to(lm.device), tokens, mask=mask).logits
        assert resumed is not None, "a resumed forward gives logits"
        _require_close(lm, resumed, result, result.abs().max(), f"resuming at layer {layer}")


def _verify_causal(lm: LanguageModel, tokens: Tensor, seen: dict[str, Tensor]) -> None:
    """Padding on the right, and most of what is measured, means nothing where a token sees later ones."""
    half, ids = tokens.shape[1] // 2, min(lm.vocab_size, lm.embedding.shape[0])
    other = torch.cat([tokens[:, :half], (tokens[:, half:] + 1) % ids], 1)
    names = _attention(lm)
    after = capture(lm, other, names, mask=torch.ones_like(other)).activations
    for name in names:
        x, expected = after[name][:, :half], seen[name][:, :half]
        # exact in the first block; behind a mixture of experts later tokens may at least change the rounding
        exact = _deviation(lm, x, expected, expected.abs().max()) is None if name == names[0] else True
        if not (exact and _alike(lm, x, expected)):
            raise unreadable(lm.architecture, f"at {name} tokens see later ones")


@torch.no_grad()
def _verify_vocabulary(lm: LanguageModel, tokens: Tensor, seen: dict[str, Tensor]) -> None:
    """An adapter on either would be left out wherever directions are compared with tokens."""
    embed, unembed = lm.hf.get_input_embeddings(), lm.hf.get_output_embeddings()
    assert embed is not None and unembed is not None, "a language model has both"
    with edit(lm, {}):  # for eval mode alone
        rows, read = lm.embedding[tokens.to(lm.device)].double(), embed(tokens.to(lm.device)).double()
        if not _alike(lm, rows * (read * rows).sum() / rows.square().sum().clamp_min(1e-300), read):
            raise unreadable(
                lm.architecture, "its embedding gives other rows than its matrix has: merge adapters into it"
            )
        x = lm.final_norm(seen[f"resid_post.{lm.n_layers - 1}"]).to(lm.unembedding.device)
        if not _alike(lm, x @ lm.unembedding.T, unembed(x) - unembed(torch.zeros_like(x))):
            raise unreadable(lm.architecture, "its unembedding is not its matrix alone: merge adapters into it")


def _unpadded(lm: LanguageModel, tokens: Tensor, seen: dict[str, Tensor]) -> str:
    """Why padding on the left cannot be hidden from this model; empty if it can."""
    length, names = tokens.shape[1] - _PADDED, _attention(lm)
    if length < 1:
        return f"it has only {lm.max_context} positions"
    padded = torch.cat([tokens[:1, length:], tokens[:1, :length]], 1)
    mask = (torch.arange(padded.shape[1]) >= _PADDED)[None]
    try:
        behind = capture(lm, padded, names, mask=mask).activations
    except TypeError:
        return "its forward takes no mask or no positions"
    wrong = [name for name in names if not _alike(lm, behind[name][:, _PADDED:], seen[name][:1, :length])]
    return f"{wrong[0]} of a text is then another than without" if wrong else ""


def _attention(lm: LanguageModel) -> list[str]:
    """Where a token sees other tokens."""
    return [f"attn_out.{layer}" for layer in range(lm.n_layers)]


def _alike(lm: LanguageModel, actual: Tensor, expected: Tensor) -> bool:
    """Equal in half of the digits: other kernels may run, whose rounding adds up over layers."""
    error = (actual.double() - expected.double()).abs().max()
    return bool(error <= torch.finfo(lm.dtype).eps ** 0.5 * expected.double().abs().max())


def _deviation(lm: LanguageModel, actual: Tensor, expected: Tensor, scale: Tensor) -> float | None:
    """How far two are apart; None if ``actual == expected`` up to the rounding of a few operations on numbers of size
    ``scale``."""
    error = (actual.double() - expected.double()).abs()
    allowed = 4 * torch.finfo(lm.dtype).eps * scale.double() + torch.finfo(lm.dtype).tiny
    return None if bool((error <= allowed).all()) else float(error.max())


def _require_close(lm: LanguageModel, actual: Tensor, expected: Tensor, scale: Tensor, what: str) -> None:
    error = _deviation(lm, actual, expected, scale)
    if error is not None:
        raise unreadable(lm.architecture, f"{what} differs by {error:.3g}")


def unreadable(architecture: str, why: str) -> UserError:
    """The error for an architecture whose sites cannot be read."""
    return UserError(f"architecture {architecture} is not one monolex can read: {why}")
