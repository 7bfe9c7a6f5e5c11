"""What an agent may ask: the arguments of every tool, a frozen dataclass each; its strings are what the agent reads."""

from dataclasses import dataclass
from typing import Literal

from monolex.config import require

MOST = 100
"""Entries of a list, at most."""
LAST = 10_000
"""Pages that can be turned to."""
Sort = Literal[
    "interest", "density", "max", "share", "score", "reappears", "effect", "kurtosis", "skew", "layer", "number"
]
ClaimKind = Literal[
    "causes_token",
    "changes_predictions",
    "comes_back",
    "explained_beyond_chance",
    "reconstructs_better",
    "explained_better",
    "patches_with_fewer",
]


@dataclass(frozen=True)
class NoQuestion:
    """Nothing is to be said."""


@dataclass(frozen=True)
class LimitedQuestion:
    """A question that is answered by a list."""

    limit: int = 20
    """Entries of a list, 1 to 100."""

    def __post_init__(self) -> None:
        require(1 <= self.limit <= MOST, f"limit = {self.limit}: give 1 to {MOST}")


@dataclass(frozen=True, kw_only=True)
class DictionariesQuestion(LimitedQuestion):
    """Which dictionaries."""

    run: str
    """Name of the run, of the tool runs."""
    site: str = ""
    """Only of this site, such as resid_post.3."""
    trained: bool | None = None
    """Only trained ones (true), or only baselines (false)."""
    page: int = 1
    """Which page of the list, from 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.page <= LAST, f"page = {self.page}: give one from 1 to {LAST}")


@dataclass(frozen=True)
class FeaturesQuestion(LimitedQuestion):
    """Which features."""

    run: str = ""
    """Only of this run."""
    dictionary: str = ""
    """Only of the dictionary of this hash."""
    site: str = ""
    """Only of this site."""
    kind: Literal["", "single-token", "preceding-token", "mixed"] = ""
    """Only of this kind, by a rule of thumb over its tokens."""
    marked: Literal["", "labelled", "pinned", "explained", "ablated", "member"] = ""
    """Only those that a person labelled or pinned, that are explained, ablated, or in an experiment."""
    token: str = ""
    """Only those with exactly this token among their first ten, with its space: " def"."""
    low: float = 0.0
    """Smallest density."""
    high: float = 1.0
    """Largest density."""
    score: float | None = None
    """Smallest score of the best scored explanation."""
    kurtosis: float | None = None
    """Smallest kurtosis (fourth moment about zero over variance²)."""
    back: float | None = None
    """Smallest share of other seeds with a like feature."""
    sort: Sort = "interest"
    """By which number; the largest first, but for layer and number."""
    up: bool = False
    """The other way round."""
    state: Literal["alive", "dead", "all"] = "alive"
    """Those that were ever active, those that were not, or all."""
    page: int = 1
    """Which page of the list, from 1."""


@dataclass(frozen=True, kw_only=True)
class SearchQuestion(LimitedQuestion):
    """A word."""

    text: str
    """A token or words, at most 200 letters."""
    run: str = ""
    """Only in this run."""


@dataclass(frozen=True)
class FeatureQuestion:
    """Which feature, and how much of it."""

    dictionary: str
    """Hash of its dictionary."""
    number: int
    """Which feature."""
    contexts: int = 3
    """Contexts of each group (strongest, random), 0 to 20."""
    tokens: int = 8
    """Entries of each list of tokens and features, 0 to 50."""

    def __post_init__(self) -> None:
        require(0 <= self.contexts <= 20, f"contexts = {self.contexts}: give 0 to 20")
        require(0 <= self.tokens <= 50, f"tokens = {self.tokens}: give 0 to 50")


@dataclass(frozen=True, kw_only=True)
class MatchesQuestion(LimitedQuestion):
    """Which feature."""

    dictionary: str
    """Hash of the feature's dictionary."""
    number: int
    """Which feature."""


@dataclass(frozen=True, kw_only=True)
class CompareQuestion(LimitedQuestion):
    """Which two dictionaries."""

    first: str
    """Hash of a dictionary."""
    second: str
    """Hash of another, of the same site or both of the residual stream."""


@dataclass(frozen=True, kw_only=True)
class ExperimentsQuestion(LimitedQuestion):
    """Which experiments."""

    run: str
    """Name of the run."""
    path: str = ""
    """Of an experiment, such as ablate/def, for its result; left out, the list of them."""


@dataclass(frozen=True, kw_only=True)
class PromptQuestion(LimitedQuestion):
    """Which prompt."""

    run: str
    """Name of the run."""
    prompt: str
    """The text."""
    token: Literal["last", "any"] = "last"
    """Active on its last token, or most on any."""
    dictionaries: tuple[str, ...] = ()
    """SITE/NAME, SITE, NAME or patterns with *; left out, all whose evidence was gathered."""


@dataclass(frozen=True)
class AblationQuestion:
    """Which feature is taken away, and where."""

    dictionary: str
    """Hash of the feature's dictionary."""
    number: int
    """Which feature."""
    prompt: str
    """The text; the feature is taken away at every token on which it is active."""
    position: int | None = None
    """Of the token after which is predicted, from 0, the separator counted; left out, the last."""
    top: int = 8
    """Tokens of each list, 1 to 100."""

    def __post_init__(self) -> None:
        require(1 <= self.top <= MOST, f"top = {self.top}: give 1 to {MOST}")


@dataclass(frozen=True)
class ClaimQuestion:
    """A claim, and what it is about."""

    claim: ClaimKind
    """causes_token (the feature makes the token more probable), changes_predictions (more than a like feature),
    comes_back (under other seeds, with a probability above share), explained_beyond_chance, reconstructs_better (than
    another dictionary, or than every baseline as sparse), explained_better (likewise), patches_with_fewer (features
    than the baseline, at a level of the KL)."""
    dictionary: str
    """Hash of the dictionary."""
    feature: int | None = None
    """Number of the feature, of the first four claims."""
    token: str | None = None
    """causes_token: the token exactly, with its space: " def"."""
    against: str = ""
    """reconstructs_better, explained_better: hash of another dictionary; left out, every baseline of the site."""
    share: float = 0.5
    """comes_back: the probability that it is to be above."""
    level: float = 0.5
    """patches_with_fewer: 0.9, 0.75, 0.5 or 0.25 of the base's KL."""
    explainer: str = ""
    """explained_beyond_chance: of this explainer only."""
    experiment: str = ""
    """patches_with_fewer: of this patch only."""
