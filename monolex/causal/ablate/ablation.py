"""What the model predicts otherwise when a feature is taken away where it is active (paper, 5.2 and Fig. 4 right).

The ablation is less than rank one: ``x − c_i f_i``, down to where the feature stops being active. Beside its total
effect stand the direct one (the same difference added to the last residual stream: what reaches the logits through
the skip connections alone) and two controls of the same length in the same place: another feature that is active on
that very token, and a random direction. A feature whose ablation does no more than these causes nothing in particular.
Changes are ablated less base: negative where a token loses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from monolex.causal.ablate.controls import AblationBatch, Draws, batches, draws, matched
from monolex.causal.ablate.interactions import Metric, tested, with_partners
from monolex.causal.ablate.measures import Measure, measure, over_documents, p_value
from monolex.causal.ablate.records import Ablation, Divergence, Example
from monolex.causal.ablate.rescue import RESIDUAL, Undone, add_back, later_sites, measured, rescue_sites
from monolex.causal.ablate.vocabulary_changes import MEASURES, Changes, change
from monolex.causal.config import AblateConfig
from monolex.causal.occurrences import Occurrences
from monolex.causal.prompts.behaviour import kl
from monolex.causal.suffix import at_end, unembed
from monolex.config import require
from monolex.dictionaries.base import Dictionary
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.stats import Bootstrap

PARTNERS = 8
"""Features whose interaction with the ablated one is measured."""
SHOWN = 5
SHOWN_TOKENS = 24
LEAST_DOCUMENTS = 3


@final
@dataclass(eq=False)
class Effects:
    """What the ablation and its controls do, an entry an occurrence, in the order in which they were run."""

    changes: Changes
    """Of the vocabulary, by document."""
    rows: list[Tensor] = field(default_factory=list)
    """Which occurrences."""
    divergence: list[Float[Tensor, "versions rows"]] = field(default_factory=list)
    """KL(base ‖ ablated) of the ablation and both controls, NaN where there is no control feature."""
    ratio: list[Float[Tensor, "rows"]] = field(default_factory=list)
    """As in :class:`monolex.causal.ablate.controls.Control`."""
    undone: list[Undone] = field(default_factory=list)
    """What adding the feature back undoes; none outside the residual stream."""
    together: Float[Tensor, "d_sae"] | float = 0.0
    """Sum of ``‖c_j f_j‖`` over the occurrences."""

    unmoved: int = 0
    """Occurrences at which nothing was changed."""

    @property
    def number(self) -> NDArray[np.int64]:
        """Every occurrence's document, counted from 0."""
        return self.changes.number(torch.cat(self.rows))


def ablate_feature(
    lm: LanguageModel,
    dictionary: Dictionary,
    feature: int,
    occurrences: Occurrences,
    config: AblateConfig = AblateConfig(),  # noqa: B008 (frozen)
    *,
    text: Callable[[int], str],
    metric: Metric | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> Ablation:
    """Ablate ``feature`` at every occurrence and compare what is predicted after it.

    ``config`` says how; which features and occurrences it names is not read. Interactions are of ``metric``, by default
    the log-probability of the token that loses most probability. Units of all intervals and tests are documents; of
    occurrences of one document the mean is taken first. Tokens are those of the tokenizer. ``advance`` is told every
    occurrence twice: as the ablation was run, and as its interactions were.

    Raises:
        UserError: a dictionary that does not fit its site, a feature that does not exist or has no occurrences, a site
            in ``rescue`` that is not a later one, or an ablation that changes none of the occurrences.
    """
    _require_fitting(lm, dictionary, feature, occurrences)
    dictionary = dictionary.to(lm.device)
    bootstrap = Bootstrap(config.resamples, config.level, config.ablate_seed)
    drawn = draws(occurrences, dictionary, config)
    ablated = measure_effects(lm, dictionary, feature, occurrences, drawn, config, advance)
    _require_changed(dictionary, feature, ablated, config)
    measures = {name: measure(ablated.changes, name, config, text) for name in MEASURES}
    total = ablated.changes.mean("feature", "probability")
    assert total is not None, "there are occurrences"
    worst = int(total.argmin())
    partners = _partners(ablated, feature)
    between = []
    for batch in batches(lm, dictionary, feature, occurrences, drawn.target, config) if partners else ():
        between.append(with_partners(batch, dictionary, partners, metric or _log_probability(worst), config).cpu())
        advance(len(batch.rows))
    return Ablation(
        site=dictionary.config.site,
        kind=dictionary.config.kind,
        feature=feature,
        to=config.to,
        positions=config.positions,
        occurrences=len(occurrences.end),
        documents=ablated.changes.documents,
        active=occurrences.active,
        maximum=occurrences.maximum,
        unmoved=ablated.unmoved,
        **_control_sizes(torch.cat(ablated.ratio)),
        control_within=config.control_within,
        metric_token="" if metric else text(worst),
        kl=_divergence(ablated, bootstrap),
        measures=measures,
        rescue=measured(ablated.undone, ablated.number, bootstrap) if ablated.undone else [],
        later=len(later_sites(dictionary.config.site, lm.n_layers)),
        interactions=tested(partners, torch.cat(between, 2), ablated.number, bootstrap) if partners else [],
        contexts=_examples(occurrences, text),
        reasons=_reasons(measures["logprob"], dictionary.config.site, ablated),
    )


@torch.no_grad()
def measure_effects(
    lm: LanguageModel,
    dictionary: Dictionary,
    feature: int,
    occurrences: Occurrences,
    drawn: Draws,
    config: AblateConfig,
    advance: Callable[[int], None] = lambda _count: None,
) -> Effects:
    """Run every occurrence as it is, ablated, and with both controls, and in the residual stream rescued.

    ``advance`` is told of occurrences as they are done.
    """
    sites = rescue_sites(dictionary.config.site, lm.n_layers, config.rescue)
    vocab = lm.vocab_size if lm.tokenizer is None else min(lm.vocab_size, len(lm.tokenizer))
    effects = Effects(Changes(occurrences.doc, vocab, torch.promote_types(lm.dtype, torch.float32)))
    norms = dictionary.W_dec.norm(dim=1)
    for batch in batches(lm, dictionary, feature, occurrences, drawn.target, config):
        control = matched(batch, dictionary, feature, drawn.control[batch.rows], config.control_within)
        ways = torch.stack([batch.way.expand_as(control.way), control.way, drawn.direction[batch.rows]])
        logits = batch.logits(ways)
        effects.rows.append(batch.rows)
        effects.unmoved += batch.unmoved()
        effects.ratio.append(control.ratio.cpu())
        effects.together = effects.together + (batch.codes * norms).sum(0).double().cpu()
        effects.divergence.append(_compared(batch, logits, control.ratio.isnan(), effects.changes))
        if batch.suffix.site.kind in RESIDUAL:
            effects.changes.add("direct", batch.rows, change(logits[0], _direct(batch), vocab))
            effects.undone.append(add_back(batch, ways[[0, 2]], logits[1], sites, _squared(logits[0], vocab)))
        advance(len(batch.rows))
    return effects


def _control_sizes(ratio: Float[Tensor, "rows"]) -> dict[str, Any]:
    """How many occurrences have no control, and how large the others' controls are."""
    known = ratio[~ratio.isnan()]
    if not len(known):
        return {"without_control": len(ratio), "size_ratio": None, "size_range": None}
    sizes = {"size_ratio": float(known.median()), "size_range": (float(known.min()), float(known.max()))}
    return {"without_control": len(ratio) - len(known), **sizes}


def _squared(base: Float[Tensor, "rows logits"], vocab: int) -> Callable[[Tensor], Float[Tensor, "rows"]]:
    """What gives the squared length of the change of the log-probabilities to other logits."""
    return lambda logits: change(base, logits, vocab).logprob().double().square().sum(1).cpu()


def _compared(
    batch: AblationBatch, logits: Float[Tensor, "versions rows logits"], alone: Tensor, changes: Changes
) -> Float[Tensor, "versions-1 rows"]:
    """Ablation and controls added to ``changes``; their KLs, NaN of the control feature where the token has none."""
    ablated, other, random = (change(logits[0], after, changes.vocab) for after in logits[1:])
    changes.add("feature", batch.rows, ablated)
    changes.add("control_direction", batch.rows, random)
    rows = batch.rows[~alone.cpu()]
    changes.add("control_feature", rows, other.where(~alone))
    changes.add("paired", rows, ablated.less(other).where(~alone))
    log_p = logits.log_softmax(-1)
    divergence = kl(log_p[:1].expand_as(log_p[1:]), log_p[1:])
    divergence[1, alone] = torch.nan
    return divergence.double().cpu()


def _direct(batch: AblationBatch) -> Float[Tensor, "rows logits"]:
    """Logits with the difference added to the last residual stream."""
    suffix, last = batch.suffix, Site("resid_post", batch.suffix.lm.n_layers - 1)
    final = suffix.x if suffix.site == last else suffix.forward(suffix.x[None], (last,))[str(last)]
    added = at_end(batch.lengths, suffix.end)[:, None] * batch.way
    return unembed(suffix.lm, at_end(final, suffix.end) + added.to(final.dtype))


def _divergence(effects: Effects, bootstrap: Bootstrap) -> Divergence:
    values = torch.cat(effects.divergence, 1)
    feature, control, direction = (over_documents(row, effects.number, bootstrap)[0] for row in values)
    against = (over_documents(values[0] - row, effects.number, bootstrap)[1] for row in values[1:])
    p_feature, p_direction = map(p_value, against)
    return Divergence(feature, control, direction, p_feature, p_direction)


def _partners(effects: Effects, feature: int) -> list[int]:
    sizes = torch.as_tensor(effects.together).clone()
    sizes[feature] = 0
    largest = sizes.topk(min(PARTNERS, len(sizes)))
    return largest.indices[largest.values > 0].tolist()


def _log_probability(token: int) -> Metric:
    return lambda logits: logits.log_softmax(-1)[..., token]


def _reasons(measured: Measure, site: str, effects: Effects) -> dict[str, str]:
    controlled = len(effects.changes.by_document("paired", "logprob"))
    reasons = {}
    if measured.direct is None:
        reasons["direct"] = f"{site} is not the residual stream: what is written there first passes other modules"
        reasons["rescue"] = f"{site} is not the residual stream: later sites do not hold what was taken away"
    if measured.control_feature is None:
        reasons["control_feature"] = "no other active feature is of a like size on any of the tokens"
    if measured.significant is None and controlled < LEAST_DOCUMENTS:
        reasons["significant"] = (
            f"{controlled} documents have a control feature, and a test needs at least {LEAST_DOCUMENTS}"
        )
    elif measured.significant is None:
        reasons["significant"] = "no token changes otherwise in one document than in another"
    return reasons


def _require_fitting(lm: LanguageModel, dictionary: Dictionary, feature: int, occurrences: Occurrences) -> None:
    config = dictionary.config
    width = lm.width(config.site)
    require(
        (config.d_in, config.d_out, config.target) == (width, width, ""),
        f"{dictionary} does not fit {config.site}, which is {width} wide; give a dictionary of that site",
    )
    require(0 <= feature < config.d_sae, f"feature {feature}: {dictionary} has features 0 to {config.d_sae - 1}")
    require(len(occurrences.end) > 0, f"feature {feature} has no occurrences: there is nothing to ablate")


def _require_changed(dictionary: Dictionary, feature: int, ablated: Effects, config: AblateConfig) -> None:
    require(
        ablated.unmoved < sum(map(len, ablated.rows)),
        f"feature {feature} of {dictionary}: to = {config.to!r} changes its site on none of {ablated.unmoved} "
        "occurrences: choose another feature or another to",
    )


def _examples(occurrences: Occurrences, text: Callable[[int], str]) -> list[Example]:
    shown = []
    for row, end in enumerate(occurrences.end[:SHOWN].tolist()):
        last = occurrences.tokens[row, max(0, end + 1 - SHOWN_TOKENS) : end + 1].tolist()
        shown.append(Example([text(token) for token in last], float(occurrences.activation[row])))
    return shown
