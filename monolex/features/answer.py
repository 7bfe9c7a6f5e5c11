"""What a search found: rows that know what they are, as an aligned table and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from monolex.evals.table import aligned
from monolex.features.evidence import Summary
from monolex.stats import Estimate
from monolex.text.characters import quoted

DENSE = 0.1
"""Density above which a feature is flagged: it is active on everything, so also on what was looked for."""


class Known(NamedTuple):
    """What the store says of a feature, where there is one."""

    density: float | None = None
    """Share of rows in which it is active."""
    top_token: str | None = None
    """Token with the largest share of its activation."""
    reappears: Estimate | None = None
    """Probability that it comes back under another seed (:mod:`monolex.features.seeds`); None without other seeds."""

    @property
    def dense(self) -> bool | None:
        """Whether it is active so often that finding it says little; None where nothing was gathered."""
        return None if self.density is None else self.density > DENSE


class PromptHit(NamedTuple):
    """A feature that is active on a prompt."""

    site: str
    """Where its dictionary reads."""
    dictionary: str
    """Its dictionary."""
    feature: int
    """Its number."""
    activation: float
    """Its activation: on the last token, or its largest."""
    of_max: float | None
    """That over the largest activation seen when evidence was gathered."""
    position: int
    """Token of the prompt, from 0."""
    token: str
    """That token."""
    known: Known
    """What its store says."""


class TokenHit(NamedTuple):
    """A feature that is active on a token."""

    site: str
    """Where its dictionary reads."""
    dictionary: str
    """Its dictionary."""
    feature: int
    """Its number."""
    share: float
    """Share of the sum of its activations that lies on the token."""
    mass: float
    """Sum of its activations on the token."""
    n_active: int
    """Rows with the token in which it is active."""
    n_active_all: int
    """All rows in which it is active."""
    known: Known
    """What its store says."""


class NumberHit(NamedTuple):
    """A feature chosen by its numbers."""

    site: str
    """Where its dictionary reads."""
    dictionary: str
    """Its dictionary."""
    feature: int
    """Its number."""
    summary: Summary
    """All its numbers."""
    known: Known
    """What its store says."""


class ContrastHit(NamedTuple):
    """A feature that tells two sets of texts apart."""

    site: str
    """Where its dictionary reads."""
    dictionary: str
    """Its dictionary."""
    feature: int
    """Its number."""
    more_in: str
    """`A` or `B`: the texts in which it is larger, by the choosing half."""
    auroc: Estimate
    """On the held half: probability that it is larger in a text of A than in one of B, ties counted half."""
    effect: Estimate
    """On the held half: difference of the means, A less B, over the pooled standard deviation (Cohen's d)."""
    p: float
    """Of the Mann-Whitney test on the held half, two-sided."""
    q: float
    """That by Benjamini-Hochberg over all tested features of all dictionaries of the answer."""
    chosen_auroc: float
    """On the choosing half, by which it was ranked: too good by selection."""
    known: Known
    """What its store says."""


class Comparison(NamedTuple):
    """What a direction that is no feature does with the same texts and halves."""

    site: str
    """Where it reads."""
    what: str
    """`linear probe`, `mean difference` or `random direction`."""
    auroc: Estimate
    """On the held half."""
    effect: Estimate
    """On the held half."""


Hit = PromptHit | TokenHit | NumberHit | ContrastHit


@dataclass(frozen=True)
class FoundFeatures:
    """An answer; ``print`` shows it as a table."""

    rows: tuple[Hit, ...]
    """The features, in order."""
    notes: tuple[str, ...] = ()
    """What a reader must know of it, a sentence each."""
    beside: tuple[Comparison, ...] = ()
    """Contrast: the baselines."""

    def __str__(self) -> str:
        parts = [_table([_cells(row) for row in self.rows])] if self.rows else ["no feature is found"]
        if self.beside:
            parts += ["", "beside them, no features but directions:", _table([_cells(row) for row in self.beside])]
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values, every number in full."""
        return {
            "rows": [_plain(row) for row in self.rows],
            "beside": [_plain(row) for row in self.beside],
            "notes": list(self.notes),
        }


def _plain(row: Hit | Comparison) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in row._asdict().items():
        if isinstance(value, Known):
            reappears = value.reappears and value.reappears._asdict()
            out |= {**value._asdict(), "dense": value.dense, "reappears": reappears}
        else:
            out[name] = value._asdict() if isinstance(value, Summary | Estimate) else value
    return out


def _cells(row: Hit | Comparison) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name, value in row._asdict().items():
        if isinstance(value, Known):
            cells["density"] = _number(value.density) + (" dense" if value.dense else "")
            cells["top token"] = "–" if value.top_token is None else quoted(value.top_token)
            cells["reappears"] = "–" if value.reappears is None else _estimate(value.reappears)
        elif isinstance(value, Summary):
            shown = ("n_active", "max", "mean_active", "skew", "kurtosis", "distinct_tokens", "top_share")
            cells |= {column: _number(getattr(value, column)) for column in shown}
        elif isinstance(value, Estimate):
            cells[name] = _estimate(value)
        else:
            cells[name] = quoted(value) if name == "token" else _number(value)
    return cells


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(aligned([list(rows[0]), *[list(row.values()) for row in rows]]))


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _estimate(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"n/a ({estimate.reason})"
    return f"{estimate.value:.3f}" + ("" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]")
