"""One flat frozen dataclass a stage. The string under a field is its ``--help``.

A field marked ``unhashed(...)`` says only *how* to compute a result (device, batch of the forward pass), never *which*
result: it is left out of :func:`identity` and therefore of the hash that decides whether a stage is done. A field
marked ``place(...)`` may hold a path, which :func:`located` writes out in full.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from monolex.errors import UserError
from monolex.kinds import BASELINES, BaselineKind

T = TypeVar("T")

Dtype = Literal["fp32", "bf16", "fp16"]
Control = Literal["none", "random", "shuffled"]


def unhashed(default: Any) -> Any:
    """A field that changes how a result is computed but not what it is: not hashed."""
    return field(default=default, metadata={"hashed": False})


def place(default: Any) -> Any:
    """A field that holds a path or a name."""
    return field(default=default, metadata={"place": True})


def require(condition: bool, sentence: str) -> None:
    """Raise :class:`UserError` with ``sentence`` unless ``condition`` holds."""
    if not condition:
        raise UserError(sentence)


@dataclass(frozen=True)
class ModelConfig:
    """Which language model, and which control of it."""

    model: str = place("demo")
    """`demo` (bundled), a folder in the Hugging Face layout, a .gguf file, or a hub name."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    model_dtype: Literal[Dtype, "auto"] = "auto"
    """Precision of the model's weights and forward pass. `auto`: `bf16` where the processor has it natively, the model
    has 50 million parameters or more, and its KL to fp32 is measured below .005 nats a token; else `fp32` (fp16 gives
    NaNs in Pythia-70M)."""
    control: Control = "none"
    """`random`: the architecture's own seeded initialisation; `shuffled`: every weight matrix shuffled elementwise."""
    control_seed: int = 0
    """Seed of the control model."""
    device: str = unhashed("auto")
    """`auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, `mps`."""
    device_map: str | None = unhashed(None)
    """Spread a large model with accelerate's `device_map` (for example `auto`) instead of one device."""


@dataclass(frozen=True)
class CorpusConfig:
    """Which text, and how it is cut into rows of tokens."""

    corpus: str = place("stdlib")
    """`stdlib` (the running Python's documentation and source), a text file, a folder, a .jsonl file, or `hf:NAME`."""
    corpus_format: Literal["auto", "text", "jsonl", "chat"] = "auto"
    """How files are read; `auto` goes by the ending (JSON lines under any but a text's by content), and lines are chats
    if the first has `messages`."""
    text_field: str = "text"
    """Field of a JSONL line or of a dataset that holds the text."""
    subset: str | None = None
    """Configuration name of a Hugging Face dataset."""
    dataset_split: str = "train"
    """Split of a Hugging Face dataset."""
    roles: tuple[str, ...] = ("assistant",)
    """Chat: rows are kept only at tokens inside messages of these roles (the whole chat stays as context)."""
    separator: str = "auto"
    """Token before every document and prompt: `auto` measures which of the tokenizer's own the model expects, `none`
    puts none there, or a token as the tokenizer spells it, such as `<|endoftext|>`."""
    row_separator: bool = True
    """Also begin every row with it that begins within a document; false for a model trained on rows without."""
    context_length: int = 256
    """Tokens in a packed row."""
    max_tokens: int = 2_000_000
    """Stop reading text after this many tokens, held-out ones included."""
    document_tokens: int | None = None
    """Take at most this many tokens of a document, its beginning, so that more documents fit into `max_tokens`."""
    positions: str = ":"
    """Python slice of the positions of a row that are kept, e.g. `1:` or `:128`."""
    held_out: float = 0.1
    """Fraction of documents kept apart for evaluation."""
    corpus_seed: int = 0
    """Seed of the order of documents and of the held-out split."""

    def __post_init__(self) -> None:
        require(self.context_length >= 2, f"context_length = {self.context_length}: a row needs at least 2 tokens")
        require(self.max_tokens >= 1, f"max_tokens = {self.max_tokens}: give a positive number of tokens")
        require(
            self.document_tokens is None or self.document_tokens >= 1,
            f"document_tokens = {self.document_tokens}: give a positive number of tokens, or leave it out",
        )
        require(0 <= self.held_out < 1, f"held_out = {self.held_out}: give a fraction of documents in [0, 1)")
        require(len(self.position_slice()) > 0, f"positions = {self.positions!r} keeps no position of a row")

    def position_slice(self) -> range:
        """The kept positions of a row."""
        parts = self.positions.split(":")
        try:
            bounds = [int(part) if part.strip() else None for part in parts]
        except ValueError:
            bounds = []
        if len(bounds) not in (2, 3) or (len(bounds) == 3 and bounds[2] == 0):
            raise UserError(f"positions = {self.positions!r}: write a Python slice such as `1:` or `:128`")
        return range(self.context_length)[slice(*bounds)]


@dataclass(frozen=True)
class HarvestConfig:
    """Which activations are stored."""

    sites: tuple[str, ...] = ()
    """Sites such as `resid_post.3` or `mlp_act.2`; `resid_post.*` means every layer."""
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Stored precision; `auto` takes for a site the first of fp16, bf16, fp32 that keeps its values. A shard that holds
    a value which does not fit is stored in fp32."""
    drop_bos: bool = True
    """Leave out the separator, whose norm is often far above the rest."""
    store: bool = True
    """Store the activations of all text. `false` stores those of the held-out text and of a sample of the rest, from
    which baselines, evidence and units are taken; [train] then reads all training text through the model itself."""
    sample_tokens: int = 250_000
    """With `store = false`, training tokens that are stored all the same, evenly spread over the text."""
    max_norm: float = 10.0
    """Leave out rows whose norm at any site exceeds this multiple of that site's median norm over all rows; 0 leaves
    none out."""
    shard_mb: int = 128
    """Size of a shard over all sites, in MB; a killed harvest loses at most one shard of work."""
    batch_rows: int = unhashed(16)
    """Packed rows in a forward pass."""

    def __post_init__(self) -> None:
        require(not isinstance(self.sites, str), f"sites = {self.sites!r}: give a list of sites")
        require(len(self.sites) > 0, "[harvest] sites is empty: name at least one site, for example resid_post.3")
        require(self.max_norm == 0 or self.max_norm > 1, f"max_norm = {self.max_norm}: give a multiple above 1, or 0")
        require(self.sample_tokens >= 1, f"sample_tokens = {self.sample_tokens}: give at least 1")
        require(self.shard_mb >= 1, f"shard_mb = {self.shard_mb}: give at least 1")
        require(self.batch_rows >= 1, f"batch_rows = {self.batch_rows}: give at least 1")


@dataclass(frozen=True)
class BaselineConfig:
    """Dictionaries nobody trained by gradient descent: what every claim is compared with."""

    sites: tuple[str, ...] = ()
    """Sites to fit on; empty means every harvested site."""
    kinds: tuple[BaselineKind, ...] = ("neurons", "neurons-pm", "random", "random-topk", "pca", "pca-pm", "pca-topk")
    """`-pm`: both directions of each axis with a ReLU; `-topk`: the same with only the k largest kept."""
    ks: tuple[int, ...] | None = None
    """Active features of the `-topk` kinds; left out: those of `match`, or 32 at a site where nothing is."""
    match: tuple[str, ...] = unhashed(())
    """Sweeps (folders; in a run.toml names of `[train.NAME]`) whose dictionaries the `-topk` kinds are compared with:
    there is one for the measured L0, rounded, of each of them at the same site."""
    ratio: float = 4.0
    """d_sae / d_in of the random directions."""
    fit_rows: int = 1_000_000
    """Rows that PCA streams over."""
    ica_rows: int = 100_000
    """Rows that ICA is fitted on (in memory)."""
    ica_iterations: int = 400
    """Iterations after which an ICA that has not converged is given up: its kinds are left out, with that reason."""
    nmf_rows: int = 20_000
    """Rows that NMF is fitted on (in memory)."""
    nmf_features: int = 128
    """Number of NMF components."""
    baseline_seed: int = 0
    """Seed of the random directions, of ICA and of NMF."""

    def __post_init__(self) -> None:
        require(len(self.kinds) > 0, "kinds is empty: give at least one baseline")
        require_known(self.kinds, BASELINES)
        require(all(k >= 1 for k in self.ks or ()), f"ks = {self.ks}: at least one feature must be active")
        require(self.ratio > 0, f"ratio = {self.ratio}: must be positive")
        for name in ("fit_rows", "ica_rows", "ica_iterations", "nmf_rows", "nmf_features"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")


@dataclass(frozen=True)
class EvalConfig:
    """What is measured of every dictionary, on held-out text."""

    rows: int = 100_000
    """Held-out activations for FVU, L0, densities and the rest."""
    contexts: int = 64
    """Held-out packed rows for cross-entropy, KL and perplexity with the site replaced."""
    resamples: int = 1000
    """Bootstrap resamples of an interval."""
    level: float = 0.95
    """Coverage of the intervals."""
    eval_seed: int = 0
    """Seed of the bootstrap."""
    batch_contexts: int = unhashed(16)
    """Packed rows in a forward pass."""
    eval_device: str = unhashed("auto")
    """Where the evaluation runs."""

    def __post_init__(self) -> None:
        for name in ("rows", "resamples", "batch_contexts"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        require(self.contexts >= 0, f"contexts = {self.contexts}: give 0 (no fidelity) or more")
        require(0 < self.level < 1, f"level = {self.level}: give a coverage in (0, 1)")


@dataclass(frozen=True)
class FeaturesConfig:
    """The evidence that is kept of every feature."""

    dictionaries: tuple[str, ...] = ()
    """Names of the dictionaries, or patterns as `batchtopk-*`; empty means every one of the given sources."""
    sites: tuple[str, ...] = ()
    """Sites; empty means every one at which the sources have dictionaries."""
    split: Literal["train", "held_out"] = "train"
    """Which documents are read."""
    feature_rows: int | None = None
    """Activations that are read, from the beginning; left out: all."""
    fragment_tokens: int = 64
    """Longest context: packed rows are cut at multiples of this and where a document ends."""
    top: int = 20
    """Contexts with the largest maxima; where codes are signed, as many with the smallest minima."""
    quantiles: int = 5
    """Equal groups of a feature's active contexts, by rank of their maximum."""
    per_quantile: int = 4
    """Contexts from each of them."""
    near_zero: int = 5
    """Active contexts with the smallest maxima."""
    random: int = 10
    """Active contexts chosen at random."""
    inactive: int = 10
    """Contexts in which the feature was seen to be silent, chosen at random."""
    disjoint: bool = False
    """Keep at most one context of a document for a feature, that with the largest maximum (of the most negative ones,
    that with the smallest minimum)."""
    tokens: int = 10
    """Tokens (and preceding tokens) kept with their share of the activation."""
    direct: int = 10
    """Promoted and suppressed tokens, each."""
    neighbours: int = 10
    """Decoder neighbours and co-activating features, each."""
    coactive_rows: int = 20_000
    """Rows over which co-activation is counted."""
    features_seed: int = 0
    """Seed of the random contexts and rows."""
    memory_mb: int = unhashed(1024)
    """Working memory, beside the row table (20 bytes a row), the model and the dictionaries."""
    features_device: str = unhashed("auto")
    """Where rows are encoded."""

    def __post_init__(self) -> None:
        for name in ("fragment_tokens", "quantiles", "coactive_rows", "tokens", "direct", "neighbours"):
            require(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: give at least 1")
        require(self.fragment_tokens <= 65_535, f"fragment_tokens = {self.fragment_tokens}: give at most 65535")
        for name in ("top", "per_quantile", "near_zero", "random", "inactive"):
            require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}: give 0 or more")
        require(
            self.feature_rows is None or self.feature_rows >= 1, f"feature_rows = {self.feature_rows}: give 1 or more"
        )
        require(self.memory_mb >= 64, f"memory_mb = {self.memory_mb}: give at least 64")


def require_known(kinds: Iterable[str], known: Collection[str]) -> None:
    for kind in kinds:
        require(kind in known, f"kinds holds {kind!r}: choose from {', '.join(known)}")


def identity(config: Any) -> dict[str, Any]:
    """The fields that identify the result, as plain JSON values; what is hashed."""
    hashed = [f.name for f in dataclasses.fields(config) if f.metadata.get("hashed", True)]
    return {name: plain(getattr(config, name)) for name in hashed}


def located(config: T) -> T:
    """The same configuration with absolute paths: one request has one spelling, and a later stage finds what it names.

    A default (`demo`, `stdlib`), and what is no file or folder here (the name of a hub model), stays. Links are not
    followed: the ending of a file says how it is read.
    """
    full = {}
    for f in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        value = getattr(config, f.name)
        if f.metadata.get("place") and value != f.default and os.path.exists(os.path.expanduser(value)):
            full[f.name] = os.path.abspath(os.path.expanduser(value))
    return dataclasses.replace(config, **full)  # pyright: ignore[reportArgumentType]


def plain(value: Any) -> Any:
    """``value`` with tuples as lists: what JSON gives back."""
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value
