"""What a model does on a set of prompts, measured before anything is read into an experiment on it.

A model that cannot do a task has no mechanism for it to be found: whatever a patch does then, it is not that. All
numbers are read at END, where the answer is predicted, and only that position is unembedded.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from monolex.causal.prompts import wordings as words
from monolex.causal.prompts.pairs import PromptPairs
from monolex.causal.prompts.tasks import ioi
from monolex.causal.suffix import at_end, unembed, until_end
from monolex.errors import UserError
from monolex.features.prompt_activations import tokenizer_of
from monolex.model import hooks
from monolex.model.language_model import LanguageModel
from monolex.stats import Estimate, mean, not_applicable

OVER = "prompts"
CHANCE = 0.5
LEVEL = 0.95


class Behaviour(NamedTuple):
    """How well a model does a task, over prompts."""

    accuracy: Estimate
    """Share of base prompts with a positive logit difference."""
    logit_difference: Estimate
    """logsumexp of the right answers' logits less that of the wrong ones', after the base prompt."""
    donor_accuracy: Estimate
    """Share of donor prompts after which their own right answers are likelier than the base's, without those that
    both have. Where the donor's include all of the base's (greater-than): share of pairs whose logit difference is
    larger after the base than after the donor, which is 0 for a model that always says 99."""
    probability: Estimate
    """P(a right answer) after the base prompt, of the whole vocabulary."""
    kl: Estimate
    """KL(base ‖ donor) in nats: what a patch has to bridge."""
    n: int
    """Pairs."""
    able: bool
    """Whether the intervals of both accuracies (of those that there are) lie above 0.5."""
    verdict: str
    """The same as a sentence for a page."""


class WordingBehaviour(NamedTuple):
    """How well a model does the prompts of one wording, or of one order of names."""

    by: str
    """`wording` or `order`."""
    value: str
    """Number of the wording, or `ABBA` or `BABA`."""
    accuracy: Estimate
    """As in :class:`Behaviour`."""
    logit_difference: Estimate
    """As in :class:`Behaviour`."""


class DemoRow(NamedTuple):
    """One cell of the table of wordings by names."""

    wordings: str
    """`practised`, `held-out` or `standard`."""
    names: str
    """`practised` or `held-out`."""
    behaviour: Behaviour
    """What the model does there."""
    left_out: tuple[str, ...]
    """Names of this list that are not one token."""


class _Scores(NamedTuple):
    """float64, one a pair."""

    difference: Float[NDArray, "pairs"]
    probability: Float[NDArray, "pairs"]
    donor_difference: Float[NDArray, "pairs"]
    """Above 0 where the donor is answered rightly; NaN where it has no right answer of its own."""
    kl: Float[NDArray, "pairs"]


def behaviour(lm: LanguageModel, pairs: PromptPairs, *, batch: int = 64) -> Behaviour:
    """What ``lm`` does on ``pairs``, in two forwards a batch; intervals are bootstraps over prompts.

    Where all prompts (or none) are right, a bootstrap would call a handful of them certain: the interval of such an
    accuracy is the exact binomial one instead.
    """
    scores = _scores(lm, pairs, batch)
    donor = scores.donor_difference[~np.isnan(scores.donor_difference)]
    donor_accuracy = _share(donor) if len(donor) else not_applicable("no donor has a right answer of its own")
    accuracy = _share(scores.difference)
    return Behaviour(
        accuracy,
        mean(scores.difference, OVER),
        donor_accuracy,
        mean(scores.probability, OVER),
        mean(scores.kl, OVER),
        len(pairs),
        *_verdict(accuracy, donor_accuracy),
    )


def by_wording(lm: LanguageModel, pairs: PromptPairs, *, batch: int = 64) -> list[WordingBehaviour]:
    """Accuracy and logit difference of every wording, and of each order of names where there are two."""
    difference = _scores(lm, pairs, batch).difference
    groups = {
        "wording": [str(number) for number in pairs.wording],
        "order": pairs.order if all(pairs.order) else (),
    }
    parts = []
    for by, values in groups.items():
        for value in dict.fromkeys(sorted(values, key=lambda text: (len(text), text))):
            part = difference[np.array(values) == value]
            parts.append(WordingBehaviour(by, value, _share(part), mean(part, OVER)))
    return parts


def demo_table(lm: LanguageModel, *, pairs: int = 240, seed: int = 0, batch: int = 64) -> list[DemoRow]:
    """IOI with practised, held-out and standard wordings by practised and held-out names, ``pairs`` each."""
    tokenizer = tokenizer_of(lm)
    table = []
    for wordings, sentences in words.SENTENCES.items():
        for who in ("practised", "held-out"):
            names = words.PEOPLE[who]
            try:
                prompts = ioi(tokenizer, pairs=pairs, seed=seed, wordings=sentences, names=names)
            except UserError as error:
                # a tokenizer of a small vocabulary may know too few of one list; the other rows still stand
                table.append(DemoRow(wordings, who, _unmeasured(str(error)), tuple(names)))
            else:
                table.append(DemoRow(wordings, who, behaviour(lm, prompts, batch=batch), prompts.left_out))
    return table


@torch.no_grad()
def end_log_probabilities(
    lm: LanguageModel, tokens: Int[Tensor, "pairs tokens"], end: Int[Tensor, "pairs"]
) -> Float[Tensor, "pairs vocab"]:
    """Log-probabilities of what follows position ``end`` of each row, in float32 or the model's wider precision."""
    last = f"resid_post.{lm.n_layers - 1}"
    seen = hooks.capture(lm, tokens, [last], mask=until_end(tokens, end)).activations[last]
    return unembed(lm, at_end(seen, end)).log_softmax(-1)


def log_probability(
    log_p: Float[Tensor, "*versions pairs vocab"], answers: Sequence[Sequence[int]]
) -> Float[Tensor, "*versions pairs"]:
    """Log-probability that any of each pair's ``answers`` follows; -inf where there are none.

    The difference of two of these is that of the logsumexps of the logits, since the normaliser is common.
    """
    widest = max(1, *map(len, answers))
    ids = torch.tensor([[*row, *[-1] * (widest - len(row))] for row in answers]).to(log_p.device)
    ids = ids.expand(*log_p.shape[:-1], -1)
    return log_p.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).logsumexp(-1)


def kl(p: Float[Tensor, "*#rows vocab"], q: Float[Tensor, "*#rows vocab"]) -> Float[Tensor, "*#rows"]:
    """KL(p ‖ q) of log-probabilities, in nats; rows are broadcast."""
    return (p.exp() * (p - q)).sum(-1)


def without(answers: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of each pair the ``answers`` that are not among the ``others``."""
    return [[token for token in row if token not in left] for row, left in zip(answers, others, strict=True)]


def _scores(lm: LanguageModel, pairs: PromptPairs, batch: int) -> _Scores:
    parts = []
    for part in pairs.batches(batch):
        base = end_log_probabilities(lm, part.base, part.end)
        donor = end_log_probabilities(lm, part.donor, part.end)
        right = log_probability(base, part.right)
        difference = right - log_probability(base, part.wrong)
        answer = log_probability(donor, without(part.donor_right, part.right))
        foil = log_probability(donor, without(part.right, part.donor_right))
        fallen = difference - (log_probability(donor, part.right) - log_probability(donor, part.wrong))
        answered = torch.where(foil.isneginf(), fallen, answer - foil).masked_fill(answer.isneginf(), torch.nan)
        parts.append(torch.stack([difference, right.exp(), answered, kl(base, donor)]))
    return _Scores(*torch.cat(parts, 1).double().cpu().numpy())


def _share(difference: Float[NDArray, "prompts"]) -> Estimate:
    """Share of prompts whose difference is above 0; where none or all are, with the exact interval of such a count."""
    # a NaN stays one, rather than a wrong answer
    share = mean(np.heaviside(difference, 0.0), OVER, level=LEVEL)
    if share.low is None or share.value not in (0, 1):
        return share
    bound = ((1 - LEVEL) / 2) ** (1 / share.n)
    return share._replace(low=bound) if share.value == 1 else share._replace(high=1 - bound)


def _verdict(accuracy: Estimate, donor: Estimate) -> tuple[bool, str]:
    for which, estimate in (("the task", accuracy), ("the task of the donor prompts", donor)):
        if estimate.value is None and which != "the task":
            continue
        if estimate.value is None or estimate.low is None or estimate.high is None:
            return False, f"whether this model can do {which} cannot be said: {estimate.reason}"
        if estimate.low <= CHANCE:
            interval = f"[{estimate.low:.2f}, {estimate.high:.2f}]"
            measured = f"accuracy {estimate.value:.2f} {interval}; read nothing into the curves"
            if estimate.value > CHANCE:
                return False, f"whether this model can do {which} cannot be said from so few prompts: {measured}"
            return False, f"this model cannot do {which}: {measured}"
    return True, f"the model does this task on {100 * (accuracy.value or 0):.3g} % of prompts"


def _unmeasured(reason: str) -> Behaviour:
    nothing = not_applicable(reason)
    return Behaviour(nothing, nothing, nothing, nothing, nothing, 0, False, f"not measured: {reason}")
