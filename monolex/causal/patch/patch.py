"""Patching features of a base prompt with a donor's, and how far that takes the model towards the donor (paper, 4.1).

A :class:`Patch` is one set of prompt pairs, one site and one dictionary. It holds the difference that every feature
makes, ``(c_donor − c_base)_i f_i`` at every token, so that a set of features is a sum of them and a search never
encodes again. Features whose codes do not differ anywhere cannot matter and are no candidates. What a set does is the
KL divergence KL(patched ‖ donor) of what the model predicts after the prompt's last token, in nats.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.activations.rule import EVERY_ROW, RowRule
from monolex.causal.prompts.behaviour import kl, log_probability, without
from monolex.causal.prompts.pairs import PromptPairs
from monolex.causal.suffix import Suffix, prepare
from monolex.config import require
from monolex.dictionaries.base import Dictionary
from monolex.model.language_model import LanguageModel

BATCH_TOKENS = 1024
"""Tokens in a forward pass of a search, all versions together: on a CPU more gains nothing, and guesses would be lost;
an accelerator wants some ten thousands."""
ENCODED = 2**25
"""Codes held at once."""


class Outcome(NamedTuple):
    """What patching a set of features does, a number a prompt pair."""

    kl: Float[Tensor, "prompts"]
    """KL(patched ‖ donor), nats: the paper's measure."""
    reverse: Float[Tensor, "prompts"]
    """KL(donor ‖ patched)."""
    metric: Float[Tensor, "prompts"]
    """Logit of the base's right answer over that of the foil (see :attr:`Patch.foil`)."""


class Size(NamedTuple):
    """How large the edit of a set of features is, a number a prompt pair."""

    mean: Float[Tensor, "prompts"]
    """Mean of ‖x' − x‖ over the prompt's tokens: the paper's measure."""
    changed: Float[Tensor, "prompts"]
    """The same over the tokens that the set changes at all; 0 if there are none."""
    relative: Float[Tensor, "prompts"]
    """Root of the summed squares of ‖x' − x‖ over that of ‖donor − x‖."""


@final
@dataclass(frozen=True, eq=False)
class Patch:
    """Pairs, site and dictionary, ready to be searched; made by :func:`prepare_patch`.

    A set of features is a mask over ``candidates``; an edit is what the set adds to the activation.
    """

    suffix: Suffix
    """The base prompts, run up to the site."""
    donor: Float[Tensor, "prompts tokens d_in"]
    """The donor's activation at the site."""
    real: Bool[Tensor, "prompts tokens"]
    """Tokens that are no padding, and whose activations count."""
    candidates: Int[Tensor, "candidates"]
    """Features whose codes differ somewhere."""
    difference: Float[Tensor, "candidates prompts tokens"]
    """``c_donor − c_base``; 0 at padding and where either does not count."""
    directions: Float[Tensor, "candidates d_in"]
    """Decoder rows of the candidates, as they enter the reconstruction."""
    donor_log_p: Float[Tensor, "prompts vocab"]
    """What the model predicts after the donor."""
    right: Sequence[Sequence[int]]
    """Of each pair the tokens that are right after the base."""
    foil: Sequence[Sequence[int]]
    """Of each pair what they are compared with: what is right after the donor alone, and where nothing is, what is
    wrong after the base."""
    batch_tokens: int
    """Tokens in a forward pass."""

    @property
    def base(self) -> Float[Tensor, "prompts tokens d_in"]:
        """The base's activation at the site."""
        return self.suffix.x

    @property
    def fold(self) -> int:
        """Versions of all pairs that one forward pass takes."""
        return max(1, self.batch_tokens // self.real.numel())

    def all(self) -> Bool[Tensor, "candidates"]:
        """The set of all candidates."""
        return torch.ones(len(self.candidates), dtype=torch.bool, device=self.candidates.device)

    def contribution(self, candidate: int) -> Float[Tensor, "prompts tokens d_in"]:
        """What one candidate adds: an outer product, so that a step of a search is a rank-one update."""
        return self.difference[candidate][..., None] * self.directions[candidate]

    def edit(self, chosen: Bool[Tensor, "candidates"]) -> Float[Tensor, "prompts tokens d_in"]:
        """What a set adds, in the dictionary's precision."""
        return torch.einsum("cpt,cd->ptd", self.difference[chosen], self.directions[chosen])

    def outcomes(self, edits: Iterable[Float[Tensor, "prompts tokens d_in"]]) -> Iterator[Outcome]:
        """What each edit does; edits are drawn and run a fold at a time."""
        pending: list[Tensor] = []
        for edit in edits:
            pending.append(edit)
            if len(pending) == self.fold:
                yield from self.run(torch.stack(pending))
                pending.clear()
        if pending:
            yield from self.run(torch.stack(pending))

    def run(self, edits: Float[Tensor, "versions prompts tokens d_in"]) -> list[Outcome]:
        """What each edit does, in one forward pass."""
        logits = self.suffix.end_logits(self.base + edits.to(self.base.dtype))
        log_p, donor = logits.log_softmax(-1), self.donor_log_p
        forward, reverse = kl(log_p, donor), kl(donor.expand_as(log_p), log_p)
        return [Outcome(*numbers) for numbers in zip(forward, reverse, self.metric(log_p), strict=True)]

    def metric(self, log_p: Float[Tensor, "*versions prompts vocab"]) -> Float[Tensor, "*versions prompts"]:
        """Logit of the right answer over that of the foil; of several tokens the log of the summed exponentials."""
        return log_probability(log_p, self.right) - log_probability(log_p, self.foil)

    def mean_kl(self, edits: Float[Tensor, "versions prompts tokens d_in"]) -> Float[Tensor, "versions"]:
        """Mean of KL(patched ‖ donor) over the pairs: all that a search looks at."""
        means = []
        for part in edits.split(self.fold):
            logits = self.suffix.end_logits(self.base + part.to(self.base.dtype))
            means.append(kl(logits.log_softmax(-1), self.donor_log_p).mean(-1))
        return torch.cat(means)

    def kl(self, edit: Float[Tensor, "prompts tokens d_in"]) -> Float[Tensor, "prompts"]:
        """KL(patched ‖ donor) of every pair under one edit."""
        return self.run(edit[None])[0].kl

    def trials(
        self,
        edits: Sequence[Float[Tensor, "prompts tokens d_in"]],
        candidates: Sequence[int],
    ) -> list[tuple[Int[Tensor, "touched"], Float[Tensor, "touched"]]]:
        """For each edit, made from another by adding or dropping one candidate, the pairs that this candidate can
        change at all and their KL; those of the other pairs stay what they were, to the last bit, and are not run."""
        touched = [self.touched[candidate] for candidate in candidates]
        kls: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(edits), self.fold):
            part = touched[start : start + self.fold]
            rows = torch.cat(part)
            x = torch.cat([self.base[r] + e[r].to(self.base.dtype) for r, e in zip(part, edits[start:], strict=False)])
            values = kl(self.suffix.end_logits_of(x, rows).log_softmax(-1), self.donor_log_p[rows])
            kls += zip(part, values.split([len(pairs) for pairs in part]), strict=True)
        return kls

    @cached_property
    def touched(self) -> list[Int[Tensor, "touched"]]:
        """Of every candidate the pairs in which its codes differ."""
        return [row.nonzero()[:, 0] for row in (self.difference != 0).any(-1)]

    def unmoved(self) -> Bool[Tensor, "prompts"]:
        """Pairs whose activation all candidates together leave as it is: their codes do not differ, or what they add is
        lost in rounding."""
        added = self.edit(self.all()).to(self.base.dtype)
        return (self.base + added == self.base).all(-1).all(-1)

    def whole(self) -> Outcome:
        """The donor's activation at every token: 0 at a site of the residual stream, what the site can do at others."""
        return self.run((self.donor - self.base).masked_fill(~self.real[..., None], 0)[None])[0]

    def size(self, edit: Float[Tensor, "prompts tokens d_in"]) -> Size:
        """How large an edit is, recomputed from what is added."""
        lengths = edit.double().norm(dim=-1)
        whole = (self.donor - self.base).double().norm(dim=-1) * self.real
        changed = (lengths > 0).sum(1).clamp_min(1)
        return Size(
            lengths.sum(1) / self.real.sum(1),
            lengths.sum(1) / changed,
            lengths.square().sum(1).sqrt() / whole.square().sum(1).sqrt().clamp_min(1e-30),
        )


def prepare_patch(
    lm: LanguageModel,
    pairs: PromptPairs,
    site: str,
    dictionary: Dictionary,
    *,
    rule: RowRule = EVERY_ROW,
    batch_tokens: int = BATCH_TOKENS,
) -> Patch:
    """Run base and donor and encode both; tokens that do not count by ``rule`` in either are left as they are.

    Raises:
        UserError: no pairs, a dictionary that does not fit the site, or a site at which every donor is its base.
    """
    require(len(pairs) > 0, "there are no prompt pairs; give at least one")
    width = lm.width(site)
    require(
        (dictionary.config.d_in, dictionary.config.d_out, dictionary.config.target) == (width, width, ""),
        f"{dictionary} does not fit {site}, which is {width} wide; give a dictionary of that site",
    )
    suffix = prepare(lm, site, pairs.base, pairs.end)
    donor = prepare(lm, site, pairs.donor, pairs.end)
    real = pairs.real.to(suffix.x.device)
    real &= rule.counts(pairs.base, suffix.x) & rule.counts(pairs.donor, donor.x)
    require(
        bool(((suffix.x != donor.x).any(-1) & real).any()),
        f"base and donor are the same at {site} in all {len(pairs)} pairs, so a patch there does nothing: choose a "
        "later site, or pairs that differ",
    )
    dictionary = dictionary.to(suffix.x.device)
    candidates, difference = _differences(dictionary, suffix.x, donor.x, real)
    log_p = donor.end_logits(donor.x[None])[0].log_softmax(-1)
    theirs = without(pairs.donor_right, pairs.right)
    return Patch(
        suffix,
        donor.x,
        real,
        candidates,
        difference,
        dictionary.W_dec[candidates],
        log_p,
        pairs.right,
        [after or wrong for after, wrong in zip(theirs, pairs.wrong, strict=True)],
        batch_tokens,
    )


def _differences(
    dictionary: Dictionary,
    base: Float[Tensor, "prompts tokens d_in"],
    donor: Float[Tensor, "prompts tokens d_in"],
    real: Bool[Tensor, "prompts tokens"],
) -> tuple[Int[Tensor, "candidates"], Float[Tensor, "candidates prompts tokens"]]:
    """Features whose codes differ, and by how much; all codes are there for a few prompts at a time only."""
    few = max(1, ENCODED // (dictionary.d_sae * base.shape[1]))
    batches = [slice(start, start + few) for start in range(0, len(base), few)]

    def changes() -> Iterator[Tensor]:
        for prompts in batches:
            yield (dictionary.encode(donor[prompts]) - dictionary.encode(base[prompts])) * real[prompts, :, None]

    differs = torch.stack([change.flatten(0, 1).any(0) for change in changes()]).any(0)
    candidates = differs.nonzero()[:, 0]
    return candidates, torch.cat([change[..., candidates].permute(2, 0, 1) for change in changes()], 1)
