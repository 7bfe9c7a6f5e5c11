"""What a feature looks at, found by asking the subject model itself; after Neuron-to-Graph (Foote et al. 2023).

From the explain fragments alone:

1. *Prune*: of the text that ends at an active token, the shortest suffix that keeps more than half of the activation.
2. *Saliency*: each token before it is replaced by another. Where that leaves no more than half, the token matters; the
   others may be any. Each is replaced alone: of two that stand in for each other, neither matters.
3. *Augment*: tokens like the active one, and like those that matter, take their places; those that keep more than half
   are let in.
4. *Lines*: what is left predicts the mean of the activations that were stored; lines alike become one.

One cut, a half, serves all three. For saliency that is a choice. Cuts that keep more tokens (a loss of .1 or .25)
predicted other documents worse at all four sites of the demo that were tried; one that keeps fewer (.75, as in
Neuron-to-Graph) did better at two, but calls any what takes most of the activation away.

Activations were stored in longer texts than the model is shown here. At most the last 16 tokens are tried, and shorter
suffixes must keep half of what the longest gives. A feature that needs text further back is weaker there (and the whole
suffix is kept if no shorter one will do), or not active at all: such an occurrence teaches nothing and is left out, and
if all are like that the feature has no pattern.

The corpus's separator goes before every suffix, as it stood before every document in training: many models have an
outlier at their first position, whose activation would say nothing about the token there.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monolex.activations.rule import EVERY_ROW, RowRule
from monolex.dictionaries.base import Dictionary
from monolex.interp.config import ExplainConfig
from monolex.interp.explain.pattern_rule import pattern_explanation, slots_of
from monolex.interp.explain.similar_tokens import similar_tokens
from monolex.interp.explain.subject import ActivationQuery, ReadActivations, subject_reader
from monolex.interp.records import Examples, Explanation, Failure
from monolex.interp.rules import Slot
from monolex.model.language_model import LanguageModel
from monolex.text.vocabulary import Texts

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Tokens of the suffixes that are tried; the last is the longest."""
KEPT = 0.5
"""Share of the activation that must be exceeded by what keeps it."""

Replacement = Callable[[tuple[int, ...], int], int | None]
"""Another token for one place of a text; None where there is none."""


class Occurrence(NamedTuple):
    """An occurrence of a feature: a token, and as much of the text before it as is under consideration."""

    owner: int
    """Which of the examples it is of."""
    query: ActivationQuery
    """The text that ends at the token, and the feature."""
    stored: float
    """Activation at the token in its own fragment."""
    alone: float = 0.0
    """Activation that the model gives for this text alone."""


Places = tuple[frozenset[int], ...]
"""The tokens that may stand at every place of an occurrence's text; none where any may."""


def explain(
    lm: LanguageModel,
    dictionary: Dictionary,
    site: str,
    examples: Sequence[Examples],
    config: ExplainConfig,
    rule: RowRule = EVERY_ROW,
) -> list[Explanation | Failure]:
    """A pattern for the feature of each of ``examples``, all of one dictionary, where activations count by ``rule``.

    What is found for a feature does not depend on which others are asked with it.

    Raises:
        UserError: the model has no such site.
    """
    # Every step reads the texts of all features at once: forwards of short texts are only fast when they are many.
    read = subject_reader(lm, dictionary, site, config.batch_tokens, rule)
    longest = min(LENGTHS[-1], lm.max_context - 1)
    whole = [each for owner, feature in enumerate(examples) for each in active_tokens(owner, feature, longest)]
    occurrences = prune(read, whole)
    matters = saliency(read, occurrences, [replacements(feature, config.explain_seed) for feature in examples])
    similar = similar_tokens(lm, (token for occurrence in occurrences for token in occurrence.query.tokens))
    allowed = augment(read, occurrences, matters, similar)
    texts = _texts(lm, examples, allowed)
    lines: dict[int, dict[tuple[Slot, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    for occurrence, places in zip(occurrences, allowed, strict=True):
        lines[occurrence.owner][slots_of(places, texts)].append(occurrence.stored)
    return [pattern_explanation(feature, lines[owner]) for owner, feature in enumerate(examples)]


def active_tokens(owner: int, examples: Examples, longest: int) -> list[Occurrence]:
    """The most active token of every explain fragment, and one more of another text if above half the maximum."""
    occurrences = []
    for fragment in examples.explain:
        order = np.argsort(-fragment.activations, kind="stable").tolist()
        second = [at for at in order if fragment.texts[at] != fragment.texts[order[0]]][:1]
        chosen = [order[0], *(at for at in second if fragment.activations[at] > examples.maximum / 2)]
        for at in (at for at in chosen if fragment.activations[at] > 0):
            query = ActivationQuery(fragment.tokens[max(0, at + 1 - longest) : at + 1], examples.feature)
            occurrences.append(Occurrence(owner, query, float(fragment.activations[at])))
    return occurrences


def prune(read: ReadActivations, occurrences: Sequence[Occurrence]) -> list[Occurrence]:
    """Texts cut to the shortest suffix that keeps the activation; those that are not active alone are left out."""
    whole = [occurrence for occurrence in _read_alone(read, occurrences) if occurrence.alone > 0]
    pruned: dict[int, Occurrence] = {}
    # From the shortest on, and each length only for those that no shorter one kept, so that long texts are read rarely.
    for length in LENGTHS:
        numbers = [n for n, long in enumerate(whole) if n not in pruned and len(long.query.tokens) > length]
        suffixes = [whole[n]._replace(query=_last(whole[n].query, length)) for n in numbers]
        for n, suffix in zip(numbers, _read_alone(read, suffixes), strict=True):
            if suffix.alone > KEPT * whole[n].alone:
                pruned[n] = suffix
    return [pruned.get(n, long) for n, long in enumerate(whole)]


def _read_alone(read: ReadActivations, occurrences: Sequence[Occurrence]) -> list[Occurrence]:
    activations = read([occurrence.query for occurrence in occurrences]).tolist()
    return [each._replace(alone=activation) for each, activation in zip(occurrences, activations, strict=True)]


def _last(query: ActivationQuery, length: int) -> ActivationQuery:
    return query._replace(tokens=query.tokens[-length:])


def replacements(examples: Examples, seed: int) -> Replacement:
    """Draws from the tokens of the feature's own explain fragments, with and without it."""
    fragments = (*examples.explain, *examples.explain_silent)
    pool = np.array([token for fragment in fragments for token in fragment.tokens], dtype=np.int64)

    def replacement(tokens: tuple[int, ...], place: int) -> int | None:
        different = pool[pool != tokens[place]]
        # seeded by the text and the place, so that neither the batch nor the other features change what is drawn
        rng = np.random.default_rng([seed, place, *tokens])
        return int(rng.choice(different)) if len(different) else None

    return replacement


def saliency(
    read: ReadActivations, occurrences: Sequence[Occurrence], draws: Sequence[Replacement]
) -> list[list[bool]]:
    """Which tokens of every text matter: those without which the activation is not kept, those that have no other to
    put in their place, and the last; ``draws`` are of the features by their owner's number."""
    # What was not tried is taken to matter: a pattern that takes any token there would say more than was seen.
    matters = [[True] * len(occurrence.query.tokens) for occurrence in occurrences]
    queries: list[ActivationQuery] = []
    replaced: list[tuple[int, int]] = []
    for number, (owner, query, *_) in enumerate(occurrences):
        for place in range(len(query.tokens) - 1):
            token = draws[owner](query.tokens, place)
            if token is not None:
                queries.append(_replaced(query, place, token))
                replaced.append((number, place))
    for (number, place), activation in zip(replaced, read(queries).tolist(), strict=True):
        matters[number][place] = activation <= KEPT * occurrences[number].alone
    return matters


def augment(
    read: ReadActivations,
    occurrences: Sequence[Occurrence],
    matters: Sequence[Sequence[bool]],
    similar: Mapping[int, Sequence[int]],
) -> list[Places]:
    """What may stand at the places that matter: the token itself, and of those like it the ones that keep it active."""
    allowed = [
        [frozenset([token] if needed else []) for token, needed in zip(query.tokens, of_text, strict=True)]
        for (_, query, *_), of_text in zip(occurrences, matters, strict=True)
    ]
    tried = [
        (number, place, token)
        for number, (_, query, *_) in enumerate(occurrences)
        for place, needed in enumerate(matters[number])
        if needed
        for token in similar[query.tokens[place]]
    ]
    queries = [_replaced(occurrences[number].query, place, token) for number, place, token in tried]
    for (number, place, token), activation in zip(tried, read(queries).tolist(), strict=True):
        if activation > KEPT * occurrences[number].alone:
            allowed[number][place] |= {token}
    return [tuple(places) for places in allowed]


def _replaced(query: ActivationQuery, place: int, token: int) -> ActivationQuery:
    return query._replace(tokens=(*query.tokens[:place], token, *query.tokens[place + 1 :]))


def _texts(lm: LanguageModel, examples: Sequence[Examples], allowed: Sequence[Places]) -> dict[int, str]:
    """Texts of tokens, those of the fragments as they stand there."""
    texts = dict(Texts(lm).of(token for places in allowed for place in places for token in place))
    for fragment in (fragment for of_feature in examples for fragment in of_feature.explain):
        texts.update(zip(fragment.tokens, fragment.texts, strict=True))
    return texts
