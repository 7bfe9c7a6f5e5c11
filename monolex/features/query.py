"""What is looked for among the features of a run, checked before anything is loaded; needs no torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

from monolex.config import require
from monolex.errors import UserError, nearest

COLUMNS = (
    "id",
    "n_active",
    "fragments",
    "density",
    "max",
    "min",
    "mean",
    "variance",
    "skew",
    "kurtosis",
    "mean_active",
    "distinct_tokens",
    "top_share",
    "embedding_cosine",
    "unembedding_cosine",
    "seeds",
    "reappears",
    "reappears_low",
    "reappears_high",
    "seed_cosine",
)
"""Numbers of a feature that it can be sorted by and chosen by (see ``store.Summary``)."""
OPERATORS = ("<", "<=", ">", ">=", "=", "!=")
MODES = ("prompt", "on", "contrast")
ONLY_WITH = {
    "token": ("prompt",),
    "literal": ("prompt", "contrast"),
    "ascending": ("sort",),
    **dict.fromkeys(("aggregate", "text_field", "find_seed", "resamples", "level"), ("contrast",)),
}
"""What each option needs beside it."""


@dataclass(frozen=True)
class FindConfig:
    """What is looked for: a `prompt`, a token (`on`), a `contrast`, or numbers (`sort`, `where`)."""

    prompt: str | None = None
    """Features that are active on this text, the most active first."""
    token: Literal["last", "any"] = "last"
    """Where in the prompt: on its last token, or on any."""
    literal: bool = False
    """Prompt and contrast: names of special tokens, such as <|im_start|>, are ordinary characters, as in a corpus."""
    on: str | None = None
    """Features by the share of their activation that lies on this token, as pages show it, such as ' def'."""
    contrast: tuple[Path, Path] | None = None
    """Two JSONL files of texts: features that tell the first from the second, ranked on one half of the texts and
    measured on the other."""
    sort: str | None = None
    """Features by one of their numbers, such as kurtosis; the largest first."""
    ascending: bool = False
    """The smallest first."""
    where: tuple[str, ...] = ()
    """Conditions such as 'density<0.01'; with anything that is looked for, or alone."""
    dictionaries: tuple[str, ...] = ()
    """SITE/NAME, SITE, NAME, or a pattern of one of them; left out: every dictionary of the run."""
    limit: int = 10
    """Features printed: of every dictionary (`prompt`, `contrast`), or in all."""
    aggregate: Literal["max", "mean", "last"] = "max"
    """Contrast: what a feature is in a text, over its tokens."""
    text_field: str = "text"
    """Contrast: the field that holds a line's text."""
    find_seed: int = 0
    """Contrast: seed of the halves, the intervals and the random direction."""
    resamples: int = 1000
    """Contrast: bootstrap resamples of an interval."""
    level: float = 0.95
    """Contrast: coverage of the intervals."""
    find_device: str = "auto"
    """Where the model runs."""

    def __post_init__(self) -> None:
        modes = [name for name in MODES if getattr(self, name) is not None]
        numbers = [name for name in ("sort", "where") if getattr(self, name)]
        require(bool(modes or numbers), "nothing to find: give --prompt, --on, --contrast, --sort or --where")
        require(len(modes) < 2, f"--{' and --'.join(modes)} ask for different things: give one of them")
        require(
            not (modes and self.sort), f"--sort = {self.sort!r} does not go with --{''.join(modes)}: give one of them"
        )
        require(self.prompt is None or self.prompt != "", "prompt = '' has no token: give a text")
        require(self.on is None or self.on != "", "on = '' is no token: give one, such as ' def'")
        for name in ("where", "dictionaries"):
            said = getattr(self, name)
            require(not isinstance(said, str), f"{name} = {said!r} is one text: give a tuple, as ({said!r},)")
        require(self.limit >= 1, f"limit = {self.limit}: give at least 1")
        require(self.resamples >= 1, f"resamples = {self.resamples}: give at least 1")
        require(0 < self.level < 1, f"level = {self.level}: give a coverage in (0, 1)")
        for field in fields(self):
            needed = ONLY_WITH.get(field.name, ())
            idle = bool(needed) and not any(getattr(self, name) for name in needed)
            flag, beside = field.name.replace("_", "-"), " or ".join(f"--{name}" for name in needed)
            require(
                not idle or getattr(self, field.name) == field.default, f"--{flag} goes with {beside}: leave it out"
            )
        if self.sort is not None:
            _known(self.sort, f"sort = {self.sort!r}")
        for text in self.where:
            condition(text)

    @property
    def conditions(self) -> list["Condition"]:
        """``where``, read."""
        return [condition(text) for text in self.where]


class Condition(NamedTuple):
    """What a number of a feature must be."""

    column: str
    """One of :data:`COLUMNS`."""
    operator: str
    """One of :data:`OPERATORS`."""
    number: float
    """What it is compared with."""


def condition(text: str) -> Condition:
    """Read ``COLUMN OPERATOR NUMBER``.

    Raises:
        UserError: it is not that, or one of the three is unknown.
    """
    parts = re.fullmatch(r"\s*(\w+)\s*([<>=!]+)\s*(\S+)\s*", text)
    if parts is None:
        raise UserError(f"where = {text!r}: write a column, an operator and a number, such as 'density<0.01'")
    column, operator, said = parts.groups()
    _known(column, f"where = {text!r}: {column!r}")
    require(operator in OPERATORS, f"where = {text!r}: {operator!r} is none of {' '.join(OPERATORS)}")
    try:
        number = float(said)
    except ValueError:
        number = math.nan
    require(math.isfinite(number), f"where = {text!r}: {said!r} is no number")
    return Condition(column, operator, number)


def as_sql(conditions: Sequence[Condition]) -> tuple[str, list[float]]:
    """Conditions for ``FeatureStore.summaries``, with the values of their marks."""
    if not conditions:
        return "1", []
    return " AND ".join(f"{c.column} {c.operator} ?" for c in conditions), [c.number for c in conditions]


def _known(column: str, what: str) -> None:
    if column not in COLUMNS:
        raise UserError(f"{what} is no number of a feature; {nearest(column, COLUMNS)}")
