"""What the model predicts otherwise when a feature is taken away where it is active (paper, 5.2 and Fig. 4 right).

The ablation is less than rank one: ``x − c_i f_i``, down to where the feature stops being active. Beside its total
effect stand the direct one (the same difference added to the last residual stream: what reaches the logits through
the skip connections alone) and two controls of the same length in the same place: another feature that is active on
that very token, and a random direction. A feature whose ablation does no more than these causes nothing in particular.
Changes are ablated less base: negative where a token loses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from monolex import stats
from monolex.causal.ablate.controls import Draws, Scene, draws, matched, scenes
from monolex.causal.ablate.interactions import Interaction, Metric, tested, with_partners
from monolex.causal.ablate.vocabulary_changes import (
    DOCUMENTS,
    MEASURES,
    Changes,
    Measure,
    change,
    measure,
    over_documents,
    p_value,
)
from monolex.causal.config import AblateConfig, Positions, To
from monolex.causal.occurrences import Occurrences
from monolex.causal.prompts.behaviour import kl
from monolex.causal.suffix import Suffix, at_end, unembed
from monolex.config import require
from monolex.dictionaries.base import Dictionary
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.stats import Estimate

PARTNERS = 8
"""Features whose interaction with the ablated one is measured."""
SHOWN = 5
SHOWN_TOKENS = 24
LEAST_DOCUMENTS = 3
DIGITS = 6
"""Significant digits of a number in JSON."""
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


class Divergence(NamedTuple):
    """KL(base ‖ ablated) of the next token, nats, mean over documents."""

    feature: Estimate
    """The ablation."""
    control_feature: Estimate
    """The matched active feature ablated instead."""
    control_direction: Estimate
    """The random direction taken away instead."""
    p_feature: float | None
    """Paired t-test over documents that the ablation does as much as the first control."""
    p_direction: float | None
    """The same of the second."""


class Rescue(NamedTuple):
    """Share of the squared change of the log-probabilities undone by adding the feature back at a later site."""

    site: str
    """Where it is added back."""
    own: Estimate
    """``c_i f_i`` itself: 1 at the site of the ablation; later, what the layers between did not mediate."""
    control: Estimate
    """The random direction of the same length."""


class Example(NamedTuple):
    """An occurrence, as shown."""

    texts: list[str]
    """The last tokens of its context."""
    activation: float
    """On the last of them."""


class Ablation(NamedTuple):
    """All that was measured of one feature."""

    site: str
    """Where it is."""
    kind: str
    """Of its dictionary."""
    feature: int
    """Its number."""
    to: To
    """What its activation became."""
    positions: Positions
    """Where."""
    occurrences: int
    """Tokens at which it was ablated."""
    documents: int
    """Documents they are of."""
    active: int
    """Tokens of the corpus that they were drawn from."""
    maximum: float
    """Its largest activation."""
    without_control: int
    """Occurrences on which no other feature was active."""
    size_ratio: float | None
    """Median length of the control feature's own contribution over the ablated one's, before it is scaled to it."""
    metric_token: str
    """The token whose log-probability interactions are of, the one that loses most probability; empty for a metric of
    one's own."""
    kl: Divergence
    """How much changes in all."""
    measures: dict[str, Measure]
    """By :data:`monolex.causal.ablate.vocabulary_changes.MEASURES`."""
    rescue: list[Rescue]
    """By later site; empty outside the residual stream."""
    interactions: list[Interaction]
    """With the features most active beside it."""
    contexts: list[Example]
    """A few occurrences."""
    reasons: dict[str, str]
    """Why something is None or empty: `direct`, `rescue`, `control_feature`, `significant`."""

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, numbers to :data:`DIGITS` significant digits."""
        return _plain(self)


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
    lost: list[Float[Tensor, "rows"]] = field(default_factory=list)
    """Squared length of the change of the log-probabilities."""
    undone: dict[str, list[Float[Tensor, "versions rows"]]] = field(default_factory=dict)
    """By later site, how much shorter that is with the feature added back, and with the random direction."""
    together: Float[Tensor, "d_sae"] | float = 0.0
    """Sum of ``‖c_j f_j‖`` over the occurrences."""

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
) -> Ablation:
    """Ablate ``feature`` at every occurrence and compare what is predicted after it.

    ``config`` says how; which features and occurrences it names is not read. Interactions are of ``metric``, by default
    the log-probability of the token that loses most probability. Units of all intervals and tests are documents; of
    occurrences of one document the mean is taken first. Tokens are those of the tokenizer.

    Raises:
        UserError: a dictionary that does not fit its site, a feature that does not exist or has no occurrences.
    """
    _require_fitting(lm, dictionary, feature, occurrences)
    dictionary = dictionary.to(lm.device)
    interval = {"resamples": config.resamples, "level": config.level, "seed": config.ablate_seed}
    drawn = draws(occurrences, dictionary, config)
    made = effects(lm, dictionary, feature, occurrences, drawn, config)
    measures = {name: measure(made.changes, name, config, text) for name in MEASURES}
    total = made.changes.mean("feature", "probability")
    assert total is not None, "there are occurrences"
    worst = int(total.argmin())
    partners = _partners(made, feature)
    between = [
        with_partners(scene, dictionary, partners, metric or _log_probability(worst), config).cpu()
        for scene in scenes(lm, dictionary, feature, occurrences, drawn.target, config)
        if partners
    ]
    ratio = torch.cat(made.ratio)
    return Ablation(
        site=dictionary.config.site,
        kind=dictionary.config.kind,
        feature=feature,
        to=config.to,
        positions=config.positions,
        occurrences=len(occurrences.end),
        documents=made.changes.documents,
        active=occurrences.active,
        maximum=occurrences.maximum,
        without_control=int(ratio.isnan().sum()),
        size_ratio=None if ratio.isnan().all() else float(ratio.nanmedian()),
        metric_token="" if metric else text(worst),
        kl=_divergence(made, interval),
        measures=measures,
        rescue=_rescue(made, interval) if made.undone else [],
        interactions=tested(partners, torch.cat(between, 2), made.number, interval) if partners else [],
        contexts=_examples(occurrences, text),
        reasons=_reasons(measures["logprob"], dictionary.config.site, made),
    )


@torch.no_grad()
def effects(
    lm: LanguageModel,
    dictionary: Dictionary,
    feature: int,
    occurrences: Occurrences,
    drawn: Draws,
    config: AblateConfig,
) -> Effects:
    """Run every occurrence as it is, ablated, and with both controls, and in the residual stream rescued."""
    vocab = lm.vocab_size if lm.tokenizer is None else min(lm.vocab_size, len(lm.tokenizer))
    made = Effects(Changes(occurrences.doc, vocab, torch.promote_types(lm.dtype, torch.float32)))
    norms = dictionary.W_dec.norm(dim=1)
    for scene in scenes(lm, dictionary, feature, occurrences, drawn.target, config):
        control = matched(scene, dictionary, feature, drawn.control[scene.rows])
        ways = torch.stack([scene.way.expand_as(control.way), control.way, drawn.direction[scene.rows]])
        logits = scene.logits(ways)
        made.rows.append(scene.rows)
        made.ratio.append(control.ratio.cpu())
        made.together = made.together + (scene.codes * norms).sum(0).double().cpu()
        made.divergence.append(_compared(scene, logits, control.ratio.isnan(), made.changes))
        if scene.suffix.site.kind in RESIDUAL:
            made.changes.add("direct", scene.rows, change(logits[0], _direct(scene), vocab))
            _rescued(scene, logits, ways[[0, 2]], made)
    return made


def _compared(
    scene: Scene, logits: Float[Tensor, "versions rows logits"], alone: Tensor, changes: Changes
) -> Float[Tensor, "versions-1 rows"]:
    """Ablation and controls added to ``changes``; their KLs, NaN of the control feature where the token has none."""
    own, other, random = (change(logits[0], after, changes.vocab) for after in logits[1:])
    changes.add("feature", scene.rows, own)
    changes.add("control_direction", scene.rows, random)
    rows = scene.rows[~alone.cpu()]
    changes.add("control_feature", rows, other.where(~alone))
    changes.add("paired", rows, own.less(other).where(~alone))
    log_p = logits.log_softmax(-1)
    divergence = kl(log_p[:1].expand_as(log_p[1:]), log_p[1:])
    divergence[1, alone] = torch.nan
    return divergence.double().cpu()


def _direct(scene: Scene) -> Float[Tensor, "rows logits"]:
    """Logits with the difference added to the last residual stream."""
    suffix, last = scene.suffix, Site("resid_post", scene.suffix.lm.n_layers - 1)
    final = suffix.x if suffix.site == last else suffix.forward(suffix.x[None], (last,))[str(last)]
    added = at_end(scene.lengths, suffix.end)[:, None] * scene.way
    return unembed(suffix.lm, at_end(final, suffix.end) + added.to(final.dtype))


def _rescued(
    scene: Scene,
    logits: Float[Tensor, "versions rows logits"],
    ways: Float[Tensor, "2 rows d_in"],
    made: Effects,
) -> None:
    """Add back what was taken, at the site and after every later block; ``ways`` are its own and a random one."""
    suffix, vocab = scene.suffix, made.changes.vocab
    lm, site, back = suffix.lm, suffix.site, -scene.edits(ways)

    def lost(after: Tensor) -> Tensor:
        return change(logits[0], after, vocab).logprob().double().square().sum(1).cpu()

    before = lost(logits[1])
    made.lost.append(before)
    ablated = suffix.x - back[0].to(suffix.x.dtype)
    later = [Site("resid_post", at) for at in range(site.layer + (site.kind == "resid_post"), lm.n_layers)]
    streams = suffix.forward(ablated[None], tuple(later)) if later else {}
    rest = {site: suffix} | {
        at: Suffix(lm, at, suffix.tokens, suffix.end, streams[str(at)], at.layer + 1, None) for at in later
    }
    for at, after in rest.items():
        x = ablated if at == site else after.x
        undone = [before - lost(one) for one in after.end_logits(x + back.to(x.dtype))]
        made.undone.setdefault(str(at), []).append(torch.stack(undone))


def _rescue(made: Effects, interval: Mapping[str, Any]) -> list[Rescue]:
    _, lost = over_documents(torch.cat(made.lost), made.number, interval)

    def share(values: Tensor) -> Estimate:
        return stats.ratio(over_documents(values, made.number, interval)[1], lost, DOCUMENTS, **interval)

    return [Rescue(site, *map(share, torch.cat(parts, 1))) for site, parts in made.undone.items()]


def _divergence(made: Effects, interval: Mapping[str, Any]) -> Divergence:
    values = torch.cat(made.divergence, 1)
    feature, control, direction = (over_documents(row, made.number, interval)[0] for row in values)
    against = (over_documents(values[0] - row, made.number, interval)[1] for row in values[1:])
    p_feature, p_direction = map(p_value, against)
    return Divergence(feature, control, direction, p_feature, p_direction)


def _partners(made: Effects, feature: int) -> list[int]:
    sizes = torch.as_tensor(made.together).clone()
    sizes[feature] = 0
    largest = sizes.topk(min(PARTNERS, len(sizes)))
    return largest.indices[largest.values > 0].tolist()


def _log_probability(token: int) -> Metric:
    return lambda logits: logits.log_softmax(-1)[..., token]


def _reasons(one: Measure, site: str, made: Effects) -> dict[str, str]:
    controlled = len(made.changes.by_document("paired", "logprob"))
    found = {}
    if one.direct is None:
        found["direct"] = f"{site} is not the residual stream: what is written there first passes other modules"
        found["rescue"] = f"{site} is not the residual stream: later sites do not hold what was taken away"
    if one.control_feature is None:
        found["control_feature"] = "no other feature is active on any of the tokens"
    if one.significant is None and controlled < LEAST_DOCUMENTS:
        found["significant"] = (
            f"{controlled} documents have a control feature, and a test needs at least {LEAST_DOCUMENTS}"
        )
    elif one.significant is None:
        found["significant"] = "no token changes otherwise in one document than in another"
    return found


def _require_fitting(lm: LanguageModel, dictionary: Dictionary, feature: int, occurrences: Occurrences) -> None:
    config = dictionary.config
    width = lm.width(config.site)
    require(
        (config.d_in, config.d_out) == (width, width),
        f"{dictionary} does not fit {config.site}, which is {width} wide; give a dictionary of that site",
    )
    require(0 <= feature < config.d_sae, f"feature {feature}: {dictionary} has features 0 to {config.d_sae - 1}")
    require(len(occurrences.end) > 0, f"feature {feature} has no occurrences: there is nothing to ablate")


def _examples(occurrences: Occurrences, text: Callable[[int], str]) -> list[Example]:
    shown = []
    for row, end in enumerate(occurrences.end[:SHOWN].tolist()):
        last = occurrences.tokens[row, max(0, end + 1 - SHOWN_TOKENS) : end + 1].tolist()
        shown.append(Example([text(token) for token in last], float(occurrences.activation[row])))
    return shown


def _plain(value: Any) -> Any:
    """Named tuples, however deep in lists and tables, as tables; numbers rounded."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
