"""What explaining, scoring and their figures are asked; needs no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from tyro.conf import Positional

from monolex.config import place, require, unhashed
from monolex.interp.explainers import EXPLAINERS, LLM_EXPLAINERS, ExplainerName

Simulators = Literal["rules", "exact", "completions", "json"]
Scorer = Literal["correlation", "detection", "fuzz"]
SCORERS: tuple[str, ...] = ("correlation", "detection", "fuzz")
FIGURES: tuple[str, ...] = (
    "fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "fig10", "fig11", "fig16", "fig17", "fig18",
    "table1", "table2", "perplexity", "biases", "densities", "similarity", "training",
)  # fmt: skip
"""Of the paper, and what belongs beside them; :data:`monolex.report.paper.catalog.CATALOG` has a row of each."""
if TYPE_CHECKING:
    Figure = str
else:  # from the names, so that the flag lists and refuses what these say
    Figure = Literal[("all", *FIGURES)]
Metric = Literal["auto", "top_and_random", "top", "random", "detection", "detection_auc", "fuzz", "fuzz_auc"]


@dataclass(frozen=True)
class LlmConfig:
    """Which language model explains or simulates, and what it may cost."""

    llm: str = place("")
    """A folder or hub name of a local model, or with `base_url` the name that an endpoint knows."""
    base_url: str = unhashed("")
    """An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; left out: a local model. It may move: answers
    are known by the model's name."""
    key_env: str = unhashed("OPENAI_API_KEY")
    """Environment variable that holds the endpoint's key; the key itself is written nowhere."""
    calls: int = unhashed(8)
    """Calls under way at once."""
    timeout: float = unhashed(60.0)
    """Seconds that one call may take."""
    retries: int = unhashed(4)
    """Further tries of a call that timed out, was refused for its rate, or met a server's error. One that still fails
    is counted, and the same command tries it again."""
    budget_tokens: int | None = unhashed(None)
    """Stop, cleanly, when so many tokens were paid for in this run of the command; left out: no limit."""
    budget_usd: float | None = unhashed(None)
    """Likewise in dollars; needs `price_in` and `price_out`."""
    price_in: float = unhashed(0.0)
    """Dollars for a million tokens that are read."""
    price_out: float = unhashed(0.0)
    """Dollars for a million tokens that are written."""
    replies: str = unhashed("")
    """File (SQLite) that keeps every reply, so that nothing is asked twice; left out: RUN/replies.sqlite."""
    offline: bool = unhashed(False)
    """Answer from that file alone; what it lacks is a failure that the same command asks for when it is not offline."""
    llm_device: str = unhashed("auto")
    """Where a local model runs."""
    llm_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of a local model."""
    batch_tokens: int = unhashed(4096)
    """Tokens in a forward pass of a local model."""
    reply_tokens: int | None = None
    """Tokens that a chat model's reply may take; left out: 200 for an explanation, what a list needs for a judge. A
    reply that is longer is a counted failure: models that think before they answer want some thousands."""

    def __post_init__(self) -> None:
        for name in ("calls", "batch_tokens"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        require(self.timeout > 0, f"timeout = {self.timeout}: give seconds above 0")
        require(
            self.reply_tokens is None or self.reply_tokens >= 1,
            f"reply_tokens = {self.reply_tokens}: give at least 1, or leave it out",
        )
        require(self.retries >= 0, f"retries = {self.retries}: give 0 or more")
        for name in ("price_in", "price_out"):
            require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}: a price cannot be negative")
        for name in ("budget_tokens", "budget_usd"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} = {value}: give a limit above 0, or leave it out")
        require(
            self.budget_usd is None or self.price_in + self.price_out > 0,
            f"budget_usd = {self.budget_usd} without a price: give price_in and price_out, in dollars a million tokens",
        )
        if self.base_url:
            _require_address(self.base_url)
            require(bool(self.llm), "llm is empty: name the model that the endpoint at base_url knows")
            require(
                self.llm_dtype == "fp32",
                f"llm_dtype = {self.llm_dtype!r}: the endpoint at base_url decides on its own precision; leave it out",
            )
        # else two requests for the same would differ
        require(
            bool(self.llm) or self.llm_dtype == "fp32",
            f"llm_dtype = {self.llm_dtype!r} without llm: leave it out, or name a local model",
        )

    @property
    def local(self) -> bool:
        """Whether a local model is asked, not an endpoint or nobody."""
        return bool(self.llm) and not self.base_url


@dataclass(frozen=True)
class ExplainConfig(LlmConfig):
    """Which features are explained, from which text, and by what."""

    sites: tuple[str, ...] = ()
    """Sites; left out: every one with a dictionary."""
    dictionaries: tuple[str, ...] = ()
    """Names of dictionaries and baselines, or patterns of them; left out: all."""
    matched: bool = True
    """Of the top-k baselines, only those whose k is nearest the L0 of a chosen trained dictionary of the site."""
    controls: bool = True
    """Also the control models' dictionaries of these names, each on its own model's activations."""
    checkpoints: bool = False
    """Also the dictionaries that a sweep kept along training (`keep_checkpoints`), as NAME@STEP."""
    mode: Literal["paper", "modern"] = "paper"
    """`paper`: one fragment a document, top 20 and random ones; `modern`: explain and score on different documents,
    every strength."""
    features: int = 150
    """Features of a dictionary that are explained."""
    pick: Literal["auto", "first", "alive"] = "auto"
    """`first`: those with the lowest numbers (the paper); `alive`: a seeded sample of those that are ever active;
    `auto`: what the mode says."""
    activations: str = place("")
    """Activations that the fragments are taken from, of the same model; left out: the run's own."""
    split: Literal["train", "held_out"] = "train"
    """Which documents of them."""
    fragments: int = 50_000
    """Fragments, at most."""
    fragment_tokens: int = 64
    """Tokens of a fragment."""
    silent: int = 10
    """Silent fragments to score by, and as many again for explainers."""
    explainers: tuple[ExplainerName, ...] = ("token", "ngram", "pattern")
    """`token`, `ngram` and `pattern` need no language model; `openai` and `examples` ask one."""
    temperature: float = 1.0
    """Of what the explainers that ask a language model write (OpenAI's protocol: 1)."""
    output_tokens: int = 5
    """Tokens that the direction itself promotes and suppresses most, each, kept apart from the explanations."""
    explain_seed: int = 0
    """Seed of every draw."""
    explain_device: str = unhashed("auto")
    """Where the dictionaries and, for `pattern`, the subject run."""

    @property
    def folder_name(self) -> str:
        """Of its artefact, where none is given."""
        return self.mode

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("features", "fragments"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        require(self.fragment_tokens >= 2, f"fragment_tokens = {self.fragment_tokens}: give at least 2")
        for name in ("silent", "output_tokens", "explain_seed"):
            require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}: give 0 or more")
        _require_names("explainers", self.explainers, tuple(EXPLAINERS))
        require(self.temperature >= 0, f"temperature = {self.temperature}: give 0 or more")
        asks = [name for name in self.explainers if name in LLM_EXPLAINERS]
        require(not asks or bool(self.llm), f"llm is empty: explainers holds {asks[:1]}, which asks a language model")
        others = f"add one of {', '.join(LLM_EXPLAINERS)} to explainers"
        require(
            bool(asks) or not self.llm,
            f"llm = {self.llm!r}: nothing here asks a language model; leave it out, or {others}",
        )
        for name, default in (("temperature", 1.0), ("reply_tokens", None)):
            require(
                bool(asks) or getattr(self, name) == default,
                f"{name} = {getattr(self, name)}: nothing here asks a language model; leave it out, or {others}",
            )


@dataclass(frozen=True)
class ScoreConfig(LlmConfig):
    """How explanations are scored."""

    explanations: str = unhashed("")
    """Name of the explanations in RUN/explain; left out: the only ones there."""
    simulator: Simulators = "rules"
    """`rules`: the explanations' own rules; `exact`: a local model, one forward pass a fragment; `completions`: what
    gives log-probabilities of its prompt, some endpoints and local models; `json`: any chat model."""
    scorers: tuple[Scorer, ...] = ("correlation", "detection", "fuzz")
    """`correlation` of simulated with true activations; `detection` of fragments with the feature; `fuzz`: whether the
    right tokens are marked. With `json`, `detection` and `fuzz` alone simulate nothing, which is cheaper."""
    shuffles: int = 1
    """How often every explanation is scored on another feature of its dictionary: the level of chance."""
    limit: int | None = None
    """Score at most so many features of a dictionary; left out: all that were explained."""
    score_seed: int = 0
    """Seed of the shuffles, of fuzzing and of the bootstrap."""
    resamples: int = 1000
    """Bootstrap resamples of an interval."""
    level: float = 0.95
    """Coverage of the intervals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_names("scorers", self.scorers, SCORERS)
        for name in ("shuffles", "score_seed"):
            require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}: give 0 or more")
        require(self.limit is None or self.limit >= 1, f"limit = {self.limit}: give at least 1, or leave it out")
        require(self.resamples >= 1, f"resamples = {self.resamples}: give at least 1")
        require(0 < self.level < 1, f"level = {self.level}: give a coverage in (0, 1)")
        require(
            self.simulator == "rules" or bool(self.llm),
            f"llm is empty: the simulator {self.simulator!r} needs a language model",
        )
        require(
            self.simulator != "rules" or not self.llm,
            f"llm = {self.llm!r}: nothing here asks a language model; leave it out, or choose another simulator than "
            "rules",
        )
        require(
            self.simulator == "json" or self.reply_tokens is None,
            f"reply_tokens = {self.reply_tokens}: the simulator {self.simulator!r} writes no replies; leave it out, or "
            "choose json",
        )
        require(
            self.simulator != "exact" or not self.base_url,
            "base_url: the simulator 'exact' is a local model; leave base_url out, or choose completions or json",
        )


@dataclass(frozen=True)
class FigureConfig:
    """Which figure or table of the paper is made of a run, and of which of its scores."""

    which: Positional[Figure] = "all"
    """`fig2` to `fig18`, `table1` and `table2` as the paper numbers them (`fig11`: 11 to 15); `perplexity`, `biases`,
    `densities`, `similarity` and `training` have no number there. `all`: those that there is something of, and one page
    of them. docs/figures.md says what each is made of."""
    scores: tuple[str, ...] = ()
    """Of figures on scores, names of score artefacts (folders of RUN/score); left out: all. Those that can be compared
    are joined, the others stay apart."""
    explainers: tuple[str, ...] = ()
    """Of figures on scores, explainers; left out: all, each in a panel of its own."""
    together: bool = False
    """Draw explainers into one panel."""
    dictionaries: tuple[str, ...] = ()
    """Of figures on scores, names of dictionaries and baselines, or patterns of them; left out: all (`table1`: the
    first trained one)."""
    metric: Metric = "auto"
    """Which score; `auto`: the paper's, `random` for `fig9` and `top_and_random` for all others."""
    rows: int = 5
    """Features in `table1`."""
    figure_seed: int = 0
    """Seed of the bootstrap of `table2`."""
    resamples: int = 1000
    """Bootstrap resamples of an interval of `table2`."""
    level: float = 0.95
    """Coverage of the intervals of `table2`."""

    def __post_init__(self) -> None:
        for name in ("rows", "resamples"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        require(self.figure_seed >= 0, f"figure_seed = {self.figure_seed}: give 0 or more")
        require(0 < self.level < 1, f"level = {self.level}: give a coverage in (0, 1)")


def _require_address(base_url: str) -> None:
    """An address without a secret, which would be shown and written; what is refused is not repeated."""
    named = "@" in base_url
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    fix = "leave that out, and put a key into the environment variable that key_env names"
    require(not named, f"base_url holds a name or password; {fix}")
    require("?" not in base_url and "#" not in base_url, f"base_url holds a query, the part behind ? or #; {fix}")
    require(usable, f"base_url = {base_url!r}: give an address such as http://127.0.0.1:8000/v1")


def _require_names(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    require(len(names) > 0, f"{field} is empty: give at least one of {', '.join(known)}")
    for name in names:
        require(name in known, f"{field} holds {name!r}: choose from {', '.join(known)}")
    require(len(set(names)) == len(names), f"{field} = {list(names)}: one is given twice")
