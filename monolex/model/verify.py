"""The proof that a model's sites mean what they say.

No architecture is trusted by name: :func:`verify` runs a few tokens through every model and refuses one whose residual
stream does not add up.
"""

import torch
from torch import Tensor

from monolex.errors import UserError
from monolex.model.hooks import capture, logits, run_from
from monolex.model.language_model import LanguageModel
from monolex.model.sites import KINDS, Site, SiteError


def verify(lm: LanguageModel) -> None:
    """Run a few fixed tokens and check every identity the sites promise.

    On all layers resid_pre + attn_out + mlp_out == resid_post, resid_pre + attn_out == resid_mid where there is one,
    and resid_post.l == resid_pre.(l+1); edits that change nothing leave the logits bit-exact; resuming at the first,
    middle and last layer gives the full forward's logits. Peers read the wrong module for months without such a check
    (TransformerLens #1618, #1639, #1648).

    Raises:
        UserError: the first identity that fails.
    """
    length = min(12, lm.max_context)
    tokens = ((torch.arange(2 * length) * 7 + 3) % lm.vocab_size).reshape(2, length)
    sites = [Site(kind, layer) for layer in range(lm.n_layers) for kind in KINDS if kind in lm.structure.places[layer]]
    try:
        seen = capture(lm, tokens, sites, logits=True)
        assert seen.logits is not None, "a forward with logits gives logits"
        if not bool(seen.logits.isfinite().all()):
            raise UserError(f"{lm.name} gives NaN or infinite logits in {lm.dtype}: choose model_dtype fp32 or bf16")
        for layer in range(lm.n_layers):
            _verify_layer(lm, layer, seen.activations)
        if not torch.equal(logits(lm, tokens, dict.fromkeys(sites, torch.clone)), seen.logits):
            raise unreadable(lm.architecture, "edits that change nothing change the logits")
        for layer in sorted({0, lm.n_layers // 2, lm.n_layers}):
            last = layer == lm.n_layers
            x = seen.activations[f"resid_post.{layer - 1}" if last else f"resid_pre.{layer}"]
            resumed = run_from(lm, layer, x.to(lm.device), tokens).logits
            assert resumed is not None, "a resumed forward gives logits"
            _require_close(lm, resumed, seen.logits, seen.logits.abs().max(), f"resuming at layer {layer}")
    except SiteError as error:
        raise unreadable(lm.architecture, str(error)) from error


def _verify_layer(lm: LanguageModel, layer: int, seen: dict[str, Tensor]) -> None:
    pre, attn, mlp, post = (seen[f"{kind}.{layer}"] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    pre, attn, mlp = pre.to(post.device), attn.to(post.device), mlp.to(post.device)
    total = f"resid_pre + attn_out + mlp_out against resid_post at layer {layer}"
    _require_close(lm, pre + attn + mlp, post, pre.abs() + attn.abs() + mlp.abs(), total)
    middle = seen.get(f"resid_mid.{layer}")
    if middle is not None:
        half = f"resid_pre + attn_out against resid_mid at layer {layer}"
        _require_close(lm, pre + attn, middle.to(post.device), pre.abs() + attn.abs(), half)
    after = seen.get(f"resid_pre.{layer + 1}")
    if after is not None and not torch.equal(post.to(after.device), after):
        raise unreadable(lm.architecture, f"resid_post.{layer} is not resid_pre.{layer + 1}")


def _require_close(lm: LanguageModel, actual: Tensor, expected: Tensor, scale: Tensor, what: str) -> None:
    """``found == expected`` up to the rounding of a few operations on numbers of size ``scale``."""
    error = (actual.double() - expected.double()).abs()
    allowed = 4 * torch.finfo(lm.dtype).eps * scale.double() + torch.finfo(lm.dtype).tiny
    if not bool((error <= allowed).all()):
        raise unreadable(lm.architecture, f"{what} differs by {error.max():.3g}")


def unreadable(architecture: str, why: str) -> UserError:
    """The error for an architecture whose sites cannot be read."""
    return UserError(f"architecture {architecture} is not one monolex can read: {why}")
