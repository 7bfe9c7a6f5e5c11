"""Edits of features: swap, ablate, clamp, scale, add — less than rank one, with the reconstruction error explicit.

An edit changes the codes of some features, ``c → c'``, and adds what that means to the activation:
``x' = x + Σ_{i∈F} (c'_i − c_i) f_i`` (paper, 4.1 and footnote 5). Direction *and* size come from the feature, so a
position at which it is silent is left alone, unlike under :class:`Projection`, which takes away all that lies along
the direction. Only the difference is added, in the activation's own precision: where nothing changes, the forward is
bit-exact.

Every edit is a function of an activation, so it goes into :func:`monolex.model.hooks.edit` and ``run_from``;
:func:`applied` adds what generation needs, the number of tokens that a key-value cache already holds, the copies of a
prompt that beams make, and what is padding.

Called on an activation, an edit may well do nothing. Applied to a model it may not: where it has changed no activation
when the ``with`` block, the forward or the generation ends, that is an error that says why (the features are active
nowhere, the positions fit no token, the codes are what they were). Whoever wants such an edit to pass, as a test of
identities does, gives the hook a plain function: ``lambda x: edit(x)``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.causal.positions import Positions, added_where, at_tokens, nowhere
from monolex.config import require
from monolex.dictionaries.base import Dictionary
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.model.padding import Mask, continued_tokens
from monolex.model.sites import Site

Error = Literal["keep", "zero", "mean", "donor"]
"""What becomes of ``e = x − decode(encode(x))``: kept, left out, replaced by its mean, or by the donor's."""
Change = Callable[[Float[Tensor, "batch tokens features"], int], Float[Tensor, "batch tokens features"]]
"""New codes for those of the chosen features; the second argument is the position of the first token."""


@dataclass(frozen=True, eq=False)
class FeatureEdit:
    """Codes of some features changed; see the module's text. Called with an activation, it gives the edited one.

    Raises:
        UserError: a feature that does not exist, an error without its value, or a dictionary that writes elsewhere.
    """

    dictionary: Dictionary
    """Whose features."""
    features: Sequence[int] | Int[Tensor, "features"] | None
    """Which ones; None means all."""
    change: Change
    """What becomes of their codes: :func:`set_to`, :func:`scaled`, :func:`added`, :func:`resampled`."""
    positions: Positions = None
    """Where; by default everywhere."""
    error: Error = "keep"
    """What becomes of the reconstruction error at those positions."""
    error_value: Float[Tensor, "*rows d_in"] | None = None
    """The error that takes its place, for ``mean`` (`[d_in]`) and ``donor`` (`[batch, tokens, d_in]`)."""

    def __post_init__(self) -> None:
        config = self.dictionary.config
        _require_own_site(self.dictionary)
        needed, present = self.error in ("mean", "donor"), self.error_value is not None
        require(
            needed == present, f"error = {self.error!r}: error_value goes with mean and donor, and only with those two"
        )
        chosen = torch.arange(config.d_sae) if self.features is None else torch.as_tensor(self.features).flatten()
        bad = chosen[(chosen < 0) | (chosen >= config.d_sae)].tolist() if len(chosen) else []
        require(not bad, f"feature {bad[:1]}: {self.dictionary} has features 0 to {config.d_sae - 1}")
        twice = chosen.numel() - chosen.unique().numel()
        require(twice == 0, f"features of {self.dictionary}: {twice} of them stand there twice; name each once")
        object.__setattr__(self, "features", chosen.to(self.dictionary.W_dec.device, torch.int64))

    @property
    def site(self) -> str:
        """Where its dictionary reads."""
        return self.dictionary.config.site

    def __call__(self, x: Float[Tensor, "batch tokens d_in"], start: int = 0) -> Float[Tensor, "batch tokens d_in"]:
        """``x'``; ``start`` is the position of the first token of ``x``."""
        return added_where(self.positions, x, start, lambda part: self.delta(part, start).to(x.dtype))

    def idle(self, x: Float[Tensor, "batch tokens d_in"], start: int = 0) -> str:
        """Why ``x`` is left as it is."""
        if why := nowhere(self.positions, x, start):
            return why
        assert isinstance(self.features, Tensor), "made a tensor at construction"
        if not len(self.features):
            return "it names no feature"
        codes = self.dictionary.encode_some(x, self.features)
        named = "none of its features is" if len(self.features) > 1 else f"feature {int(self.features[0])} is not"
        if not codes.any():
            return f"{named} active on any of these tokens"
        if torch.equal(self.change(codes, start), codes) and self.error == "keep":
            return "the codes are already what they are to become"
        return f"what it adds is lost in the rounding of {x.dtype}"

    def delta(self, x: Float[Tensor, "batch tokens d_in"], start: int = 0) -> Float[Tensor, "batch tokens d_in"]:
        """What is added at every position, before ``positions`` is looked at, in the dictionary's precision."""
        assert isinstance(self.features, Tensor), "made a tensor at construction"
        codes = self.dictionary.encode_some(x, self.features)
        delta = (self.change(codes, start) - codes) @ self.dictionary.W_dec[self.features]
        if self.error == "keep":
            return delta
        error = reconstruction_error(self.dictionary, x)
        if self.error_value is None:
            return delta - error
        return delta + at_tokens(self.error_value, x.shape[:2], start, "error_value").to(error) - error


@dataclass(frozen=True, eq=False)
class Projection:
    """All that lies along some directions taken away, or replaced by the donor's: the full-rank edit, to compare with.

    ``x' = x − P x`` or ``x + P (x_donor − x)``, where P projects onto the span of the features' decoder rows.
    """

    dictionary: Dictionary
    """Whose features."""
    features: Sequence[int]
    """Which ones."""
    donor: Float[Tensor, "batch tokens d_in"] | None = None
    """Activation of the donor; None takes the directions away."""
    positions: Positions = None
    """Where; by default everywhere."""

    def __post_init__(self) -> None:
        _require_own_site(self.dictionary)

    @property
    def site(self) -> str:
        """Where its dictionary reads."""
        return self.dictionary.config.site

    def __call__(self, x: Float[Tensor, "batch tokens d_in"], start: int = 0) -> Float[Tensor, "batch tokens d_in"]:
        """``x'``; ``start`` is the position of the first token of ``x``."""
        rows = self.dictionary.W_dec[list(self.features)]
        # of features that share a direction the span is smaller: keep what the decomposition says is really there
        _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
        basis = basis[sizes > sizes.max() * 1e-6] if len(sizes) else basis

        def delta(part: Tensor) -> Tensor:
            now = part.to(basis.dtype)
            other = 0 if self.donor is None else at_tokens(self.donor, part.shape[:2], start, "donor").to(now)
            return ((other - now) @ basis.T @ basis).to(x.dtype)

        return added_where(self.positions, x, start, delta)

    def idle(self, x: Float[Tensor, "batch tokens d_in"], start: int = 0) -> str:
        """Why ``x`` is left as it is."""
        if why := nowhere(self.positions, x, start):
            return why
        if not len(self.features):
            return "it names no feature"
        return "along these directions the activation is already what it is to become"


Edit = FeatureEdit | Projection


@dataclass(frozen=True, eq=False)
class _Running:
    """An edit inside forwards that go on from a cache, hold copies of a prompt, and padding."""

    edit: Edit
    start: Callable[[], int]
    mask: Bool[Tensor, "prompts tokens"] | None

    @property
    def site(self) -> str:
        return self.edit.site

    def __call__(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return self.edit(x, self.start())
        edited = torch.stack([self.edit(part, self.start()) for part in self._copies(x)], 1).flatten(0, 1)
        return torch.where(self._real(x)[..., None], edited, x)

    def idle(self, x: Tensor) -> str:
        return self.edit.idle(self._copies(x)[0], self.start())

    def _copies(self, x: Tensor) -> tuple[Tensor, ...]:
        """The first copy of every prompt, the second, ...; the copies of a prompt (beams) lie together."""
        if self.mask is None:
            return (x,)
        copies, rest = divmod(len(x), len(self.mask))
        require(rest == 0, f"an edit of {len(self.mask)} prompts ran on {len(x)} rows: run each prompt equally often")
        return x.unflatten(0, (-1, copies)).unbind(1)

    def _real(self, x: Tensor) -> Bool[Tensor, "rows tokens"]:
        assert self.mask is not None, "asked for where there is one"
        after = self.mask.new_ones(len(self.mask), self.start() + x.shape[1])
        after[:, : self.mask.shape[1]] = self.mask[:, : after.shape[1]]
        return after[:, self.start() :].repeat_interleave(len(x) // len(self.mask), 0).to(x.device)


def set_to(value: float | Float[Tensor, "*rows features"]) -> Change:
    """Codes become ``value``: 0 ablates; a number or one a feature clamps (its mean: mean ablation); the donor's codes
    ``[batch, tokens, features]`` patch."""

    def change(codes: Tensor, start: int) -> Tensor:
        if not isinstance(value, Tensor):
            return torch.full_like(codes, value)
        return at_tokens(value, codes.shape[:2], start, "value").to(codes).expand_as(codes)

    return change


def scaled(factor: float) -> Change:
    """Codes become ``factor`` times what they are."""
    return lambda codes, _: codes * factor


def added(amount: float) -> Change:
    """``amount`` more of each feature at every position, active or not: steering."""
    return lambda codes, _: codes + amount


def resampled(pool: Float[Tensor, "rows features"], seed: int) -> Change:
    """Codes become those of a row of ``pool`` drawn for every position: resample ablation.

    The draw depends on seed, batch and position only, so that generation is the same with and without a cache.
    """

    def change(codes: Tensor, start: int) -> Tensor:
        batch, tokens = codes.shape[:2]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(pool), (start + tokens, batch), generator=generator)[start:].T
        return pool[drawn.to(pool.device)].to(codes)

    return change


def swap(
    dictionary: Dictionary,
    donor: Float[Tensor, "batch tokens d_in"],
    features: Sequence[int] | Int[Tensor, "features"] | None = None,
    *,
    positions: Positions = None,
    error: Error = "keep",
) -> FeatureEdit:
    """The paper's patch (4.1): the features' codes become those of the donor's activation at the same site.

    ``error="donor"`` takes over the donor's reconstruction error too, so that all features then give its activation;
    ``mean`` takes the mean of the donor's.
    """
    chosen = torch.arange(dictionary.d_sae) if features is None else torch.as_tensor(features, dtype=torch.int64)
    # encoded by the very call that encodes the base, so that equal activations give equal codes to the last bit
    codes = dictionary.encode_some(donor, chosen.to(dictionary.W_dec.device))
    value = None
    if error in ("mean", "donor"):
        value = reconstruction_error(dictionary, donor)
        value = value.mean((0, 1)) if error == "mean" else value
    return FeatureEdit(dictionary, chosen, set_to(codes), positions, error, value)


def ablate(
    dictionary: Dictionary,
    features: Sequence[int] | Int[Tensor, "features"] | None,
    *,
    to: float | Float[Tensor, "*rows features"] = 0.0,
    positions: Positions = None,
    error: Error = "keep",
    error_value: Float[Tensor, "*rows d_in"] | None = None,
) -> FeatureEdit:
    """The features' codes become ``to``: zero, their means, or those of another prompt."""
    return FeatureEdit(dictionary, features, set_to(to), positions, error, error_value)


def _require_own_site(dictionary: Dictionary) -> None:
    config = dictionary.config
    require(
        config.d_in == config.d_out and not config.target,
        f"{dictionary} reconstructs {config.target or f'{config.d_out} numbers'}, not the site that it reads: edit "
        "features of a dictionary of its own site",
    )


def reconstruction_error(dictionary: Dictionary, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
    """``e = x − decode(encode(x))``, in the dictionary's precision."""
    return x.to(dictionary.W_dec.dtype) - dictionary.reconstruct(x)


@contextmanager
def applied(lm: LanguageModel, edits: Mapping[str, Edit] | Mapping[Site, Edit], *, mask: Mask = None) -> Iterator[None]:
    """While active, every forward of ``lm.hf`` and ``generate``, with or without a key-value cache, is edited.

    A step of generation with a cache runs on the newest token only; its position is counted from the cache, so that
    ``positions`` mean the same tokens either way. ``mask`` is that of the prompts, 1 for their tokens: with it padding
    stays unedited, and a forward may hold every prompt several times, copies side by side, as beams do.

    Raises:
        UserError: an edit that has changed nothing when the block ends; values or masks of fewer prompts than a forward
            has rows; a cache and an attention mask that do not agree on how many tokens came before; and as
            :func:`monolex.model.hooks.edit`.
        SiteError: as :func:`monolex.model.hooks.edit`.
    """
    held = 0

    def count(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal held
        cache = kwargs.get("past_key_values")
        held = 0 if cache is None else int(cache.get_seq_length())
        tokens, attention = args[0] if args else kwargs.get("input_ids"), kwargs.get("attention_mask")
        if held and isinstance(tokens, Tensor) and isinstance(attention, Tensor) and attention.ndim == 2:
            require(
                attention.shape[1] == held + tokens.shape[1],
                f"the key-value cache holds {held} tokens before {tokens.shape[1]} new ones, and attention_mask is of "
                f"{attention.shape[1]}: give every token once, and the mask of all of them",
            )

    real = None if mask is None else mask.bool()
    handle = lm.hf.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with hooks.edit(lm, {str(site): _Running(edit, lambda: held, real) for site, edit in edits.items()}):
            yield
    finally:
        handle.remove()


def generate(
    lm: LanguageModel,
    tokens: Int[Tensor, "batch tokens"],
    edits: Mapping[str, Edit] | Mapping[Site, Edit],
    max_new_tokens: int,
    *,
    mask: Mask = None,
    cache: bool = True,
    **options: Any,
) -> Int[Tensor, "rows more"]:
    """``lm.hf.generate`` under ``edits``, greedy unless ``options`` (as transformers takes them) say otherwise.

    Prompts of different lengths are padded on the left; ``mask`` says where (see :mod:`monolex.model.padding`), and
    ``positions`` of an edit count columns, padding included. With beams, or several sequences a prompt, the edit of a
    prompt is that of all its rows. To steer only what is generated give the edit
    ``positions=slice(tokens.shape[1] - 1, None)``: the last token of the prompt is where the first new one comes from.

    Raises:
        UserError: padding on the right, or that no mask tells from text, and as :func:`applied`.
    """
    hooks.require_tokens(lm, tokens)
    require("attention_mask" not in options, "attention_mask: give it as mask=")
    real = continued_tokens(lm, tokens, mask).to(lm.device)
    settings = {"do_sample": False, "use_cache": cache, "attention_mask": real.long(), **options}
    with applied(lm, edits, mask=real), torch.no_grad():
        return lm.hf.generate(tokens.to(lm.device), max_new_tokens=max_new_tokens, **settings)  # pyright: ignore
