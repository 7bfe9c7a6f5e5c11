"""Causal trees of features: which features of an earlier site a feature hangs on, and which those hang on in turn.

The paper's Figure 5 (5.3), with signs and errors. A node is a feature of the dictionary at a place in the residual
stream, with texts of the corpus, one a document, that end at a token on which it is active in ``[low·M, M]``. Each
feature of the dictionary at the nearest earlier site that is active in these texts is ablated everywhere in them (less
than rank one, the reconstruction error kept), the blocks in between are run again, and the effect is what the node's
activation loses at the token: positive where the earlier feature excites it, negative where it inhibits it. The
strongest become its children. The paper's sites are one block apart; over several an effect is the sum of all ways
through them, those through features of the sites in between included.

One backward pass ranks all candidates to first order, and the best of them are confirmed by ablation. Children are the
strongest of many, and corrected for it: each has a q-value (Benjamini–Hochberg over all features that are active in the
texts; those that were not confirmed count as tests that found nothing) below ``1 - level``, and its interval is as wide
as covers the true effects of all that were chosen from so many (Benjamini and Yekutieli's false coverage rate).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from monolex import runtime
from monolex.activations.rule import EVERY_ROW, RowRule, row_rule
from monolex.causal.config import TreeConfig
from monolex.causal.occurrences import Occurrences, occurrences
from monolex.causal.tree.blocks import (
    BlockTexts,
    Readings,
    ablate_each,
    ablate_target,
    ablate_wholes,
    attribute,
    block_texts,
    boundary,
)
from monolex.causal.tree.nodes import Kind, Leaf, Node, Tree
from monolex.config import require
from monolex.dictionaries.base import ENCODERS, Dictionary
from monolex.errors import UserError
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.stats import Estimate, benjamini_hochberg, not_applicable, paired, small_mean

LEAST_SHARE = 1e-4
"""An effect below this share of the activation is the rounding of a forward pass, however sure its interval."""
LEAST_TEXTS = 3
"""Fewer than so many say nothing of the spread of an effect."""
LABELS = {"error": "reconstruction error", "rest": "all features"}
LEAVES = 5
"""Tokens shown above the root."""


class Finder(Protocol):
    """Where a feature is active: :func:`monolex.causal.occurrences.occurrences` with the activations given."""

    def __call__(
        self, dictionary: Dictionary, features: Sequence[int], *, count: int, low: float, seed: int
    ) -> Mapping[int, Occurrences]: ...


class _Branch(NamedTuple):
    """A node before it was looked at: fields as in :class:`Node`."""

    parent: int | None
    site: str
    feature: int | None
    kind: Kind = "feature"
    effect: Estimate | None = None
    standard_error: float | None = None
    share: float | None = None
    pre_effect: Estimate | None = None
    q: float | None = None


@dataclass(frozen=True)
class _Plan:
    """The arguments of :func:`tree` that every node needs."""

    lm: LanguageModel
    dictionaries: Mapping[str, Dictionary]
    find: Callable[[Dictionary, Sequence[int]], Mapping[int, Occurrences]]
    config: TreeConfig
    label: Callable[[str, int], str]
    rules: Mapping[str, RowRule]


def tree(
    lm: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    site: str,
    feature: int,
    activations: Path | Finder,
    config: TreeConfig = TreeConfig(),  # noqa: B008 (frozen)
    *,
    text: Callable[[int], str],
    label: Callable[[str, int], str] = lambda _site, _feature: "",
) -> Tree:
    """The tree of ``feature`` at ``site``, as deep as ``config`` says or to the earliest site that has a dictionary.

    Args:
        dictionaries: One a site, all of the residual stream.
        activations: Stored activations of ``lm``, or what finds texts in another way.
        config: How the tree grows; which features and dictionaries it names is not read.
        text: A token's number as people read it.
        label: Words to put at a feature.

    Raises:
        UserError: a dictionary that does not fit, a feature that is never active, or no finished activations.
    """
    site = str(Site.parse(site))
    _require_dictionaries(lm, dictionaries, site, feature, config.depth)
    finder: Finder = partial(occurrences, activations) if isinstance(activations, Path) else activations
    find = partial(finder, count=config.contexts, low=config.low, seed=config.tree_seed)
    on_device = {name: dictionary.to(lm.device) for name, dictionary in dictionaries.items()}
    stored = activations if isinstance(activations, Path) else None
    rules = {name: EVERY_ROW if stored is None else row_rule(stored, name) for name in dictionaries}
    return _grow(_Plan(lm, on_device, find, config, label, rules), site, feature, text)


def _grow(plan: _Plan, site: str, feature: int, text: Callable[[int], str]) -> Tree:
    nodes: list[Node] = []
    leaves: tuple[Leaf, ...] = ()
    generation = [_Branch(None, site, feature)]
    with runtime.progress(1, "tree", "node") as bar:
        for number in range(plan.config.depth + 1):
            wanted = list(dict.fromkeys(branch.feature for branch in generation if branch.feature is not None))
            texts = plan.find(plan.dictionaries[site], wanted) if wanted else {}
            earlier = _earlier(plan.dictionaries, site) if number < plan.config.depth else None
            following: list[_Branch] = []
            first: dict[int, Node] = {}
            for branch in generation:
                node = _node(plan, len(nodes), branch)
                if branch.feature in first:
                    node = _again(node, first[branch.feature])
                elif branch.feature is not None:
                    at = _block_texts(plan, node, texts[branch.feature], earlier)
                    if number == 0:
                        leaves = _leaves(plan, _alive(at, node), site, text)
                    node, more = _expand(plan, node, texts[branch.feature].maximum, at, earlier)
                    first[branch.feature] = node
                    following += more
                nodes.append(node)
                bar.update(1)
            if earlier is None:
                break
            site, generation = earlier, following
            bar.total = len(nodes) + len(generation)
    return Tree(tuple(nodes), leaves)


def _node(plan: _Plan, number: int, branch: _Branch) -> Node:
    label = LABELS[branch.kind] if branch.feature is None else plan.label(branch.site, branch.feature)
    empty = {"activation": None, "maximum": None, "contexts": 0, "active": 0, "confirmed": 0}
    return Node(id=number, label=label, **branch._asdict(), **empty, correlation=None, same_as=None)


def _again(node: Node, known: Node) -> Node:
    """A feature reached for the second time: its effect on this parent, and what its own texts said before."""
    said = ("activation", "maximum", "contexts", "active", "confirmed", "correlation")
    return replace(node, **{name: getattr(known, name) for name in said}, same_as=known.id)


def _block_texts(plan: _Plan, node: Node, texts: Occurrences, earlier: str | None) -> BlockTexts | None:
    """The node's own texts, from ``earlier`` on; None where it is active only at tokens that were not stored."""
    assert node.feature is not None, "only features have texts"
    if len(texts.end) == 0:
        return None
    sites, rule = (earlier, node.site), plan.rules[earlier or node.site]
    target = plan.dictionaries[node.site]
    return block_texts(plan.lm, target, node.feature, sites, texts, plan.config.batch_tokens, rule)


def _alive(at: BlockTexts | None, root: Node) -> BlockTexts:
    if at is None:
        raise UserError(
            f"feature {root.feature} of {root.site} is never active in the stored activations: choose another"
        )
    return at


def _expand(
    plan: _Plan, node: Node, maximum: float, at: BlockTexts | None, earlier: str | None
) -> tuple[Node, list[_Branch]]:
    """The node with what its own texts say, and what it hangs on at the ``earlier`` site, if there is one."""
    if at is None:
        return replace(node, maximum=maximum), []
    node = replace(node, activation=float(at.base.code.mean()), maximum=maximum, contexts=len(at.end))
    if earlier is None:
        return node, []
    source = plan.dictionaries[earlier]
    estimate, active = attribute(at, source)
    chosen = active.nonzero()[:, 0]
    if not plan.config.exact:
        largest = estimate[chosen].abs().argsort(descending=True, stable=True)
        chosen = chosen[largest[: plan.config.confirm]].sort().values
    lost = ablate_each(at, source, chosen)
    effects = lost.code.mean(1)
    correlation = _rank_correlation(estimate[chosen], effects)
    node = replace(node, active=int(active.sum()), confirmed=len(chosen), correlation=correlation)
    q = _q_values(lost.code, node)
    order = effects.abs().argsort(descending=True, stable=True).tolist()
    kept = list(islice((i for i in order if q[i] < 1 - plan.config.level), plan.config.children))
    level = 1 - (1 - plan.config.level) * max(1, len(kept)) / node.active if node.active else plan.config.level
    children = [
        _branch(plan, node, earlier, int(chosen[i]), "feature", Readings(lost.code[i], lost.pre[i]), level, q[i])
        for i in kept
    ]
    error, features = ablate_wholes(at, source)
    wholes = [_branch(plan, node, earlier, None, "error", error), _branch(plan, node, earlier, None, "rest", features)]
    return node, [*children, *wholes]


def _q_values(lost: Float[Tensor, "candidates texts"], node: Node) -> list[float]:
    """Of every candidate the p-value of its effect, corrected for all active features, of which they were chosen.

    What is not larger than rounding, and features that were not confirmed, are tests that found nothing.
    """
    values = lost.double().cpu().numpy()
    mean, texts = values.mean(1), values.shape[1]
    p = paired(values.T)
    p[np.isnan(p)] = float(texts < LEAST_TEXTS)  # no test of few texts; the same effect in all texts is a sure one
    p[np.abs(mean) < LEAST_SHARE * abs(node.activation or 0)] = 1.0
    return benjamini_hochberg(np.concatenate([p, np.ones(node.active - len(p))]))[: len(p)].tolist()


def _branch(
    plan: _Plan,
    parent: Node,
    site: str,
    feature: int | None,
    kind: Kind,
    lost: Readings,
    level: float | None = None,
    q: float | None = None,
) -> _Branch:
    level = plan.config.level if level is None else level
    effect = small_mean(lost.code, "contexts", level=level)
    pre = small_mean(lost.pre, "contexts", level=level)
    if plan.dictionaries[parent.site].config.activation in ENCODERS:
        pre = not_applicable("its codes depend on what others reconstruct: there is no pre-activation")
    share = effect.value / parent.activation if effect.value is not None and parent.activation else None
    return _Branch(parent.id, site, feature, kind, effect, _standard_error(lost.code), share, pre, q)


def _leaves(plan: _Plan, at: BlockTexts, site: str, text: Callable[[int], str]) -> tuple[Leaf, ...]:
    """The tokens that lose most probability; by log-probability most would be tokens that were never likely."""
    taken = ablate_target(at, site, plan.rules[site])
    falls = taken.log_probability
    lost = (taken.base.exp() - (taken.base - falls).exp()).mean(0)
    return tuple(
        Leaf(
            token,
            text(token),
            small_mean(falls[:, token], "contexts", level=plan.config.level),
            _standard_error(falls[:, token]),
            small_mean(taken.logit[:, token], "contexts", level=plan.config.level),
            float(taken.base[:, token].exp().mean()),
        )
        for token in lost.topk(min(LEAVES, len(lost))).indices.tolist()
    )


def _earlier(dictionaries: Mapping[str, Dictionary], site: str) -> str | None:
    """The nearest site before ``site`` that has a dictionary; of two names of one place resid_post."""
    before = [name for name in dictionaries if boundary(name) < boundary(site)]
    return max(before, key=lambda name: (boundary(name), Site.parse(name).kind == "resid_post"), default=None)


def _standard_error(values: Float[Tensor, "texts"]) -> float | None:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None


def _rank_correlation(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> float | None:
    if len(a) < 3 or a.min() == a.max() or b.min() == b.max():
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _require_dictionaries(
    lm: LanguageModel, dictionaries: Mapping[str, Dictionary], site: str, feature: int, depth: int
) -> None:
    require(site in dictionaries, f"site {site!r} has no dictionary: they are of {', '.join(dictionaries)}")
    for name, dictionary in dictionaries.items():
        boundary(name)
        config = dictionary.config
        require(
            config.d_in == config.d_out == lm.width(name) and not config.target,
            f"{dictionary} does not rebuild the {lm.width(name)} numbers of {name}: give a dictionary of that site",
        )
        require(config.site in ("", name), f"{dictionary} is of {config.site}, not of {name}: put it at its own site")
    size = dictionaries[site].d_sae
    require(0 <= feature < size, f"feature {feature}: {dictionaries[site]} has features 0 to {size - 1}")
    require(
        depth == 0 or boundary(site) == 0 or _earlier(dictionaries, site) is not None,
        f"{site} has no children: no dictionary is of an earlier place in the residual stream; add one, or ask for "
        "depth = 0",
    )
