"""Interventions: features ablated, clamped, added, scaled or exchanged, at all tokens, those of the prompt, or those
generated.

All interventions at a site read the activation as it is before any of them, and what they add is summed up: their order
does not matter. Rows that do not count at a site (separators, extreme norms) are left alone, as everywhere in monolex.
One that changes nothing is no error: :func:`idle` says why.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.causal.edits import Change, FeatureEdit, added, scaled, set_to
from monolex.config import require
from monolex.live.loaded import LoadedDictionary
from monolex.live.prompt import LivePrompt

How = Literal["ablate", "clamp", "add", "scale", "swap"]
"""What becomes of a feature's codes: 0, a value, so much more, so many times as much, or those of another feature."""
Where = Literal["all", "prompt", "generated"] | int
"""At which tokens: all; those of the prompt; from the last of these on, after which the first generated one comes; or
at that position alone, counted from 0."""
VALUED = ("clamp", "add", "scale")
"""Ways that take a value."""


@dataclass(frozen=True)
class Intervention:
    """An edit of a feature's codes; see the module's text.

    Raises:
        UserError: a value, another feature or a position that is missing, unusable or of no use.
    """

    dictionary: str
    """``SITE/NAME``."""
    feature: int
    """Which feature."""
    how: How = "ablate"
    """What becomes of its codes."""
    value: float | None = None
    """What it is clamped to, what is added, or the factor; in the activation's units, as codes are."""
    other: int | None = None
    """The feature of the same dictionary with which it exchanges its codes at every token."""
    where: Where = "all"
    """At which tokens."""

    def __post_init__(self) -> None:
        whole = all(type(feature) is int for feature in self.features)
        require(whole, f"feature = {self.feature!r}, other = {self.other!r}: give numbers of features")
        require(self.how in (*VALUED, "ablate", "swap"), f"how = {self.how!r}: ablate, clamp, add, scale or swap")
        where = self.where
        usable = where >= 0 if type(where) is int else where in ("all", "prompt", "generated")
        require(usable, f"where = {self.where!r}: give all, prompt, generated, or the position of a token from 0")
        what = f"value = {self.value!r}: to {self.how} feature {self.feature} of {self.dictionary} takes"
        if self.how in VALUED:
            finite = type(self.value) in (int, float) and abs(self.value or 0) <= torch.finfo(torch.float32).max
            require(finite, f"{what} a finite number")
        else:
            require(self.value is None, f"{what} none")
        second = self.other is not None and self.other != self.feature
        require(second == (self.how == "swap") and (second or self.other is None),
                f"other = {self.other}: another feature goes with swap, and with nothing else ({self})")  # fmt: skip

    def __str__(self) -> str:
        by = {"clamp": " to", "add": " by", "scale": " times"}.get(self.how, "")
        rest = f" with {self.other}" if self.how == "swap" else f"{by} {self.value:g}" if self.value is not None else ""
        at = {"all": "", "prompt": " in the prompt", "generated": " in what is generated"}.get(
            str(self.where), f" at token {self.where}"
        )
        return f"{self.how} feature {self.feature} of {self.dictionary}{rest}{at}"

    @property
    def features(self) -> tuple[int, ...]:
        """The features whose codes change."""
        return (self.feature,) if self.other is None else (self.feature, self.other)


class Effect(NamedTuple):
    """The first tokens at which an intervention comes further than at those before; None where it nowhere does."""

    meant: int | None = None
    """That it is meant for, and whose row counts."""
    active: int | None = None
    """At which one of its features is active."""
    changed: int | None = None
    """At which the activation becomes another."""

    def before(self, length: int) -> "Effect":
        """Of the first ``length`` tokens alone."""
        return Effect(*(None if at is None or at >= length else at for at in self))

    def then(self, later: "Effect") -> "Effect":
        """Of these tokens and of some behind them."""
        return Effect(*(new if old is None else old for old, new in zip(self, later, strict=True)))


class Placement(NamedTuple):
    """An intervention at some tokens; equal ones do the same to the same tokens."""

    intervention: Intervention
    """What is wanted."""
    start: int
    """The first token for which it is meant."""
    stop: int | None
    """The one behind the last of them; None: no end."""


@dataclass(frozen=True, eq=False)
class PlacedEdit:
    """An intervention as a function of activations."""

    placement: Placement
    """What is wanted, and where."""
    edit: FeatureEdit
    """The change of codes."""
    dictionary: LoadedDictionary
    """Of its features."""

    @property
    def site(self) -> str:
        """Where it edits."""
        return self.dictionary.site

    def delta(
        self, x: Float[Tensor, "tokens width"], ids: Int[Tensor, "tokens"], position: int
    ) -> tuple[Float[Tensor, "tokens width"], Effect]:
        """What it adds to activations of tokens from ``position`` on, in their precision, and how far it comes."""
        at = torch.arange(position, position + len(x), device=x.device)
        meant = (at >= self.placement.start) & self.dictionary.rule.counts(ids, x)
        if self.placement.stop is not None:
            meant &= at < self.placement.stop
        if not meant.any():
            return torch.zeros_like(x), Effect()
        # chosen, not multiplied: where it is not meant it may be infinite
        delta = torch.where(meant[:, None], self.edit.delta(x[None])[0].to(x.dtype), 0.0)
        changed = _first((x + delta != x).any(1), position)
        active = None
        if changed is None:
            assert isinstance(self.edit.features, Tensor), "made a tensor at construction"
            codes = self.edit.dictionary.encode_some(x, self.edit.features)
            active = _first((codes != 0).any(1) & meant, position)
        return delta, Effect(_first(meant, position), active, changed)


def place(
    interventions: Sequence[Intervention], prompt: LivePrompt, get: Callable[[str], LoadedDictionary]
) -> tuple[PlacedEdit, ...]:
    """Interventions in ``prompt`` and what it is continued by; ``get`` gives dictionaries by their titles.

    Raises:
        UserError: no such dictionary or feature, a feature that two change, a dictionary that writes elsewhere than it
            reads, or a position behind the tokens.
    """
    taken: set[tuple[str, int]] = set()
    placed = []
    for intervention in interventions:
        dictionary = get(intervention.dictionary)
        for feature in intervention.features:
            require(
                0 <= feature < dictionary.weights.d_sae,
                f"feature {feature}: {dictionary.title} has features 0 to {dictionary.weights.d_sae - 1}",
            )
        edit = FeatureEdit(dictionary.weights, intervention.features, _change(intervention))
        for feature in intervention.features:
            require(
                (dictionary.title, feature) not in taken,
                f"{intervention}: another intervention changes feature {feature} too; leave one of them out",
            )
            taken.add((dictionary.title, feature))
        where = intervention.where
        if isinstance(where, int):
            require(where < len(prompt.ids), f"{intervention}: the prompt has {len(prompt.ids)} tokens, from 0")
            start, stop = where, where + 1
        else:
            start = prompt.length - 1 if where == "generated" else 0
            stop = prompt.length if where == "prompt" else None
        placed.append(PlacedEdit(Placement(intervention, start, stop), edit, dictionary))
    return tuple(placed)


def idle(placements: Sequence[Placement], effects: Sequence[Effect]) -> tuple[str, ...]:
    """Why those of ``placements`` that have changed nothing have not, a sentence each."""
    return tuple(
        f"{placement.intervention}: {_why(placement.intervention, effect)}, so nothing changes"
        for placement, effect in zip(placements, effects, strict=True)
        if effect.changed is None
    )


def _why(intervention: Intervention, effect: Effect) -> str:
    if effect.meant is None:
        return "no token that it is meant for counts"
    if intervention.how != "add" and effect.active is None:
        subject = "neither feature" if intervention.how == "swap" else "the feature"
        where = "any" if intervention.how == "swap" else "none"
        return f"{subject} is active on {where} of these tokens"
    return "what it adds is nothing, or lost in rounding"


def _change(intervention: Intervention) -> Change:
    value = intervention.value or 0.0
    if intervention.how == "swap":
        return lambda codes, _: codes.flip(-1)
    return {"ablate": set_to(0.0), "clamp": set_to(value), "add": added(value), "scale": scaled(value)}[
        intervention.how
    ]


def _first(flags: Bool[Tensor, "tokens"], position: int) -> int | None:
    return position + int(flags.int().argmax()) if bool(flags.any()) else None
