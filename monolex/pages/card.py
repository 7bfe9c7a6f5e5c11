"""One feature as a card: all of its evidence as a piece of HTML that needs no script.

The same card stands in a gallery, small in the report, and in a notebook. Its look is ``static/card.css``, which
applies inside ``class="monolex"`` only, so a notebook keeps its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from monolex.features.evidence import Evidence, Neighbour, Summary, TokenShare, TokenWeight
from monolex.features.seeds import ALIKE
from monolex.interp.records import Scored
from monolex.pages import card_explanations, html, tokens
from monolex.pages.axis import Axis
from monolex.pages.card_contexts import groups
from monolex.pages.histogram import Layer, stacked, swatches
from monolex.pages.html import number

COLOURS = ("blue", "vermilion", "green", "purple", "olive")
"""Of the tokens in the token histogram; all others share the ink of the page."""
SIDE = "its smallest code; all other numbers are of the positive side"
Look = Callable[[int], str | None]
"""The address of a feature's card, or None where it has none."""


def card(
    evidence: Evidence,
    meta: Mapping[str, Any],
    *,
    text: Callable[[int | None], str] | None = None,
    link: Look = lambda _number: None,
    compact: bool = False,
    anchor: str = "",
    scored: Sequence[Scored] = (),
    attributes: Mapping[str, Any] | None = None,
) -> Markup:
    """The card of a feature of the store that ``meta`` is of.

    ``text`` gives the text of a token id (left out: of the tokens that the evidence itself names); ``link`` says where
    other cards are; ``compact`` leaves the head, the token histogram and a few contexts; ``anchor`` is the card's id;
    ``scored`` are the feature's explanations; ``attributes`` are added to its element.
    """
    summary = evidence.summary
    shown = compact or not summary.n_active
    return Markup(
        html.page(
            "card.html",
            anchor=anchor,
            attributes=attributes or {},
            compact=compact,
            s=summary,
            meta=meta,
            address=link(summary.id) if compact else None,
            said=_said(evidence),
            brief=card_explanations.summary(scored) if compact else [],
            explanations=[] if compact else card_explanations.explanations(scored),
            output=card_explanations.output_side(scored),
            stats=_stats(evidence, meta),
            token_chart=token_chart(evidence) if summary.n_active else "",
            legend=token_legend(evidence),
            chart="" if shown else activation_chart(evidence),
            tables=[] if shown else _tables(evidence),
            groups=groups(evidence, meta, compact),
            inactive_missing=not shown and not evidence.examples["inactive"],
            direct=_direct(evidence, meta),
            related=_related(evidence, meta, link),
            rows=_embedding(evidence, text or _known(evidence)),
        )
    )


def card_html(
    evidence: Evidence,
    meta: Mapping[str, Any],
    text: Callable[[int | None], str] | None = None,
    scored: Sequence[Scored] = (),
) -> str:
    """The card with its style, for a notebook."""
    shown = card(evidence, meta, text=text, scored=scored)
    return str(Markup(f'<div class="monolex"><style>{html.style()}</style>{shown}</div>'))


def token_chart(evidence: Evidence) -> Markup:
    """Counts of activations by size, stacked by token (paper, Fig. 4)."""
    said = "counts of activations by size, stacked by token"
    return stacked(_layers(evidence), _axis(evidence), said, log=True, width=340, height=165)


def token_legend(evidence: Evidence) -> Markup:
    """What the colours of :func:`token_chart` stand for, with each token's share of the activation."""
    shares = evidence.tokens[: len(COLOURS)]
    entries = [
        (Markup("{} {}").format(tokens.token(share.text), percent(share.share)), colour)
        for share, colour in zip(shares, COLOURS, strict=False)
    ]
    if evidence.summary.distinct_tokens > len(shares):
        others = evidence.summary.distinct_tokens - len(shares)
        rest = percent(max(0.0, 1 - sum(share.share for share in shares)))
        entries.append((Markup(f"{others:,} other{'s' if others > 1 else ''} {rest}"), "ink"))
    return swatches(entries) if entries else Markup("")


def activation_chart(evidence: Evidence) -> Markup:
    """Counts of all activations above zero, by size."""
    layer = Layer("activations", "blue", evidence.histogram.tolist())
    return stacked([layer], _axis(evidence), "counts of activations by size", log=True, width=340, height=130)


def percent(share: float) -> str:
    """A share as a percentage.

    >>> percent(0.9996), percent(0.123), percent(0.00004321)
    ('100 %', '12.3 %', '0.00432 %')
    """
    return f"{100 if share >= 0.9995 else number(100 * share)} %"


def _layers(evidence: Evidence) -> list[Layer]:
    shares = evidence.tokens[: len(COLOURS)]
    coloured = [Layer(tokens.plain(s.text), c, s.histogram.tolist()) for s, c in zip(shares, COLOURS, strict=False)]
    rest = evidence.token_histogram - sum(share.histogram for share in shares)
    return [*coloured, Layer("all other", "ink", rest.tolist())]


def _axis(evidence: Evidence) -> Axis:
    return Axis("activation", 0, evidence.summary.max or 1)


def _said(evidence: Evidence) -> Markup:
    """What the evidence says of the feature in one sentence."""
    if not evidence.tokens:
        return Markup("")
    first = evidence.tokens[0]
    said = Markup("{} of its activation is on {}").format(percent(first.share), tokens.token(first.text))
    if evidence.before:
        before = evidence.before[0]
        said += Markup(", {} comes after {}").format(percent(before.share), tokens.token(before.text))
    return said + "."


def _stats(evidence: Evidence, meta: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Label, value, what stands under it, and tooltip."""
    s = evidence.summary
    if not s.n_active:
        return []
    rare, mean = f"1 in {number(max(1.0, 1 / s.density))}", f"mean active {number(s.mean_active)}"
    stats = [
        ("Density", percent(s.density), rare, "share of activations in which it is above zero"),
        ("Active", number(s.n_active), f"of {meta['rows']:,}", "activations in which it is above zero"),
        ("Contexts", number(s.fragments), "with it active", "fragments of documents in which it is active"),
        ("Maximum", number(s.max), mean, "its largest activation, and the mean of those above zero"),
        *([("Minimum", number(s.min), "negative side", SIDE)] if s.min < 0 else []),
        ("Skew", number(s.skew), "moment about 0", "third moment over variance^1.5, over all activations"),
        ("Kurtosis", number(s.kurtosis), "moment about 0", "fourth moment over variance², over all activations"),
        ("Tokens", number(s.distinct_tokens), "different ones", "different tokens on which it is active"),
        *_back(s),
    ]
    # other tools' files know none of these
    unknown = () if s.fragments else ("Contexts", "Skew", "Kurtosis", "Tokens")
    return [stat for stat in stats if stat[0] not in unknown]


def _back(s: Summary) -> list[tuple[str, str, str, str]]:
    """How often it comes back under other seeds, where there are any."""
    if s.reappears is None:
        return []
    interval = f"{number(s.reappears_low)} to {number(s.reappears_high)}"
    about = (
        f"other seeds whose dictionary has a like feature: encoder and decoder rows of cosine {ALIKE} or more, each "
        f"the other's nearest; as a probability {interval} (95 %); mean likeness of the nearest {number(s.seed_cosine)}"
    )
    under = f"seeds, cosine ≥ {ALIKE}; {interval}"
    return [("Comes back", f"{round(s.reappears * s.seeds)} of {s.seeds}", under, about)]


def _tables(evidence: Evidence) -> list[tuple[str, str, Sequence[tuple[Markup, TokenShare, str, str]]]]:
    """Head, tooltip, and rows of the tokens it is active on and those it is active after."""
    plans = (
        ("On", "tokens by their share of the sum of its activations", evidence.tokens),
        ("After", "the token before, by its share of the sum of its activations", evidence.before),
    )
    return [
        (head, about, [(tokens.token(s.text), s, f"{100 * min(1.0, s.share):.0f}", percent(s.share)) for s in shares])
        for head, about, shares in plans
        if shares
    ]


def _direct(evidence: Evidence, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Promoted and suppressed tokens, or why there are none."""
    sides = (("Raises", evidence.promoted), ("Lowers", evidence.suppressed))
    reason = meta.get("direct_reason") or "not computed for this dictionary"
    shown = [(name, [_weight(token) for token in side]) for name, side in sides if side]
    return {"sides": shown, "reason": "" if shown else reason}


def _weight(token: TokenWeight) -> tuple[Markup, str]:
    return tokens.token(token.text), number(token.weight)


def _related(
    evidence: Evidence, meta: Mapping[str, Any], link: Look
) -> list[tuple[str, str, list[tuple[int, str | None, str, Markup]]]]:
    """Neighbours: head, tooltip, and number, address, value and first token of each."""

    def shown(
        others: Sequence[Neighbour], said: Callable[[Neighbour], str]
    ) -> list[tuple[int, str | None, str, Markup]]:
        return [(n.feature, link(n.feature), said(n), _first(n)) for n in others]

    sampled = meta.get("coactive_rows")
    over = f", over {sampled:,} sampled activations" if sampled else ""
    together = shown(evidence.coactive, lambda neighbour: f"{number(neighbour.value)} ({neighbour.both:,})")
    near = shown(evidence.neighbours, lambda neighbour: number(neighbour.value))
    plans = (
        (
            "Similar direction",
            "features by the cosine of their decoder directions, each with the token of its largest share",
            near,
        ),
        (
            "Active together",
            f"features by the Jaccard index of being active (times both are), with their first token{over}",
            together,
        ),
    )
    return [(head, about, rows) for head, about, rows in plans if rows]


def _first(neighbour: Neighbour) -> Markup:
    return Markup("") if neighbour.top_token is None else tokens.token(neighbour.top_token)


def _embedding(evidence: Evidence, text: Callable[[int | None], str]) -> list[tuple[str, Markup, str]]:
    """Nearest rows of the embedding and the unembedding, where the direction lives in their space."""
    s = evidence.summary
    plans = (
        ("embedding", s.embedding_token, s.embedding_cosine),
        ("unembedding", s.unembedding_token, s.unembedding_cosine),
    )
    return [(name, tokens.token(text(token)), number(value)) for name, token, value in plans if token is not None]


def _known(evidence: Evidence) -> Callable[[int | None], str]:
    """The texts of the tokens that the evidence names; another token is called by its number."""
    named = [(each.token, each.text) for group in (evidence.tokens, evidence.before) for each in group]
    named += [(each.token, each.text) for each in (*evidence.promoted, *evidence.suppressed)]
    for contexts in evidence.examples.values():
        named += [pair for each in contexts for pair in zip(each.tokens, each.texts, strict=True)]
    texts = dict(named)
    return lambda token: "" if token is None else texts.get(token, f"token {token}")
