"""The one contract of everything that decomposes activations: trained dictionaries, PCA, ICA, NMF, random, neurons.

A dictionary is linear–activation–linear: ``pre = (x - centre) W_encᵀ + b_enc``, ``code = activation(pre)``,
``x̂ = code W_dec + b_dec``. What differs between kinds is the weights and the name of the activation, so one final
class with a table of activations serves all; only those bring an encoder of their own (:data:`ENCODERS`) whose codes
depend on what others reconstruct: NMF, matching pursuit, and a LISTA step.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from monolex import tensor_file
from monolex.artifact import FileEntry, digest, read_json, write_json
from monolex.dictionaries import nmf
from monolex.dictionaries.refined import lista_codes, pursuit_codes
from monolex.errors import UserError
from monolex.kinds import THRESHOLDED
from monolex.products import by_rows
from monolex.tables import from_table
from monolex.tensor_file import whole

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
SKIP = "W_skip"
"""Weight of a transcoder's linear skip."""
CONTENT = "content"
"""Entry of a saved config: the hash of all others and of the weights' file."""
SCHEMA = 1


@dataclass(frozen=True)
class DictionaryConfig:
    """All that is needed, beside the weights, to use a dictionary and to know where it comes from."""

    kind: str
    """A name of :mod:`monolex.kinds`, or of a version that knows more."""
    activation: str
    """Key of :data:`ACTIVATIONS` (or of :data:`ENCODERS`)."""
    d_in: int
    """Width of the activations it reads."""
    d_out: int
    """Width of what it reconstructs (differs from d_in only for transcoders)."""
    d_sae: int
    """Number of features."""
    k: int | None = None
    """Active features of the TopK kinds (mean over a batch for BatchTopK)."""
    threshold: float | None = None
    """BatchTopK and those like it: the pre-activation above which a feature is active outside training."""
    site: str = ""
    """Where the activations were read."""
    target: str = ""
    """Transcoders: the site whose activations it reconstructs; empty means its own."""
    model: str = ""
    """Name of the language model."""
    model_fingerprint: str = ""
    """Hash of its weights."""
    loss_convention: str = ""
    """How the numbers of the training loss are to be read."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """How it was trained or fitted."""
    schema: int = SCHEMA
    """Version of this file's layout."""


class SparseCodes(NamedTuple):
    """Codes of some rows as row offsets, features and values (compressed sparse rows); signs are kept."""

    offsets: Int[Tensor, "rows+1"]
    """Row r's entries are ``offsets[r]:offsets[r + 1]``."""
    features: Int[Tensor, "nonzero"]
    """Feature of every entry, ascending within a row."""
    values: Float[Tensor, "nonzero"]
    """Its activation."""
    d_sae: int
    """Number of features."""

    def dense(self) -> Float[Tensor, "rows d_sae"]:
        """The same codes as a matrix."""
        rows = len(self.offsets) - 1
        out = self.values.new_zeros(rows, self.d_sae)
        row = torch.repeat_interleave(torch.arange(rows, device=out.device), self.offsets.diff())
        out[row, self.features] = self.values
        return out


def sparse(codes: Float[Tensor, "rows d_sae"]) -> SparseCodes:
    """The entries of ``codes`` that are not zero."""
    if codes.ndim != 2:
        raise UserError(f"sparse codes are of rows: give x as [rows, d_in], not {list(codes.shape)} (x.flatten(0, -2))")
    row, feature = codes.nonzero(as_tuple=True)
    offsets = torch.zeros(len(codes) + 1, dtype=torch.int64, device=codes.device)
    offsets[1:] = torch.bincount(row, minlength=len(codes)).cumsum(0)
    return SparseCodes(offsets, feature, codes[row, feature], codes.shape[1])


def relu(pre: Tensor, _config: DictionaryConfig, _threshold: Tensor | None) -> Tensor:
    """Non-negative codes."""
    return pre.relu()


def linear(pre: Tensor, _config: DictionaryConfig, _threshold: Tensor | None) -> Tensor:
    """Signed codes, as PCA's and ICA's."""
    return pre


def topk(pre: Tensor, config: DictionaryConfig, _threshold: Tensor | None) -> Tensor:
    """The k largest pre-activations of a row, those above zero (as OpenAI's TopK)."""
    assert config.k is not None, config
    values, features = pre.topk(config.k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter_(-1, features, values.relu())


def above_threshold(pre: Tensor, config: DictionaryConfig, _threshold: Tensor | None) -> Tensor:
    """BatchTopK outside training: pre-activations above the threshold learned as a mean over batches."""
    assert config.threshold is not None, config
    # in a single pass, of which a wide dictionary has many
    return torch.nn.functional.threshold(pre, max(config.threshold, 0.0), 0.0)


def jumprelu(pre: Tensor, config: DictionaryConfig, threshold: Tensor | None) -> Tensor:
    """Pre-activations above the feature's own threshold (Rajamanoharan et al. 2024); Gated comes to this too."""
    assert threshold is not None, config
    return pre.relu() * (pre > threshold)


Activation = Callable[[Tensor, DictionaryConfig, Tensor | None], Tensor]
"""Pre-activations, what the dictionary is, and the thresholds of their features where each has its own."""
ACTIVATIONS: dict[str, Activation] = {
    "relu": relu,
    "linear": linear,
    "topk": topk,
    "threshold": above_threshold,
    "jumprelu": jumprelu,
}


def by_pursuit(x: Tensor, weights: Mapping[str, Tensor], config: DictionaryConfig) -> Tensor:
    """Matching pursuit: k features one after the other."""
    assert config.k is not None, config
    return _of_rows(x, config, pursuit_codes(x.reshape(-1, config.d_in), weights, config.k))


def by_lista(x: Tensor, weights: Mapping[str, Tensor], config: DictionaryConfig) -> Tensor:
    """A TopK refined by one step, then as BatchTopK."""
    assert config.k is not None and config.threshold is not None, config
    return _of_rows(x, config, lista_codes(x.reshape(-1, config.d_in), weights, config.k, config.threshold))


def _of_rows(x: Tensor, config: DictionaryConfig, codes: Tensor) -> Tensor:
    return codes.reshape(*x.shape[:-1], config.d_sae)


Encoder = Callable[[Tensor, Mapping[str, Tensor], DictionaryConfig], Tensor]
ENCODERS: dict[str, Encoder] = {
    "nmf": lambda x, weights, _config: nmf.codes(x, weights["H"]),
    "pursuit": by_pursuit,
    "lista": by_lista,
}


class Dictionary:
    """A decomposition of activations into features.

    Weights are float32 (float64 is kept for tests): ``W_enc`` and ``W_dec`` ``(d_sae, d_in)`` and ``(d_sae, d_out)``
    with features as rows, ``b_enc (d_sae,)``, ``b_dec (d_out,)``, ``centre (d_in,)``; with the activation ``jumprelu``
    ``threshold (d_sae,)``, and of a transcoder with a linear skip ``W_skip (d_out, d_in)``. Inputs are cast to the
    weights' dtype, so encoding is done in full precision whatever the model's.
    """

    def __init__(self, config: DictionaryConfig, weights: Mapping[str, Tensor]) -> None:
        shapes = {
            "W_enc": (config.d_sae, config.d_in),
            "b_enc": (config.d_sae,),
            "centre": (config.d_in,),
            "W_dec": (config.d_sae, config.d_out),
            "b_dec": (config.d_out,),
        }
        if config.activation == "jumprelu":
            shapes["threshold"] = (config.d_sae,)
        if SKIP in weights:
            shapes[SKIP] = (config.d_out, config.d_in)
        if config.activation == "nmf":
            shapes["H"] = (config.d_sae, 2 * config.d_in)
        for name, shape in shapes.items():
            actual = tuple(weights[name].shape) if name in weights else "nothing"
            if actual != shape:
                raise UserError(f"dictionary {config.kind!r}: weight {name} should be {shape} but is {actual}")
        for name, tensor in weights.items():
            if tensor.dtype not in (torch.float32, torch.float64):
                raise UserError(
                    f"dictionary {config.kind!r}: weight {name} is {tensor.dtype}, in which other features pass a "
                    "threshold; use float32"
                )
            if not bool(all_finite(tensor)):
                raise UserError(f"dictionary {config.kind!r}: weight {name} holds NaN or infinity; train it again")
        if config.activation not in ACTIVATIONS and config.activation not in ENCODERS:
            known = ", ".join([*ACTIVATIONS, *ENCODERS])
            raise UserError(f"dictionary {config.kind!r}: activation {config.activation!r} is none of {known}")
        if config.activation in ("topk", "pursuit", "lista") and not 1 <= (config.k or 0) <= config.d_sae:
            raise UserError(
                f"k = {config.k} does not fit a dictionary of {config.d_sae} features; choose 1 ≤ k ≤ d_sae"
            )
        if config.activation in THRESHOLDED and config.threshold is None:
            raise UserError(f"dictionary {config.kind!r}: threshold is missing; train it again")
        self.config = config
        self.weights = dict(weights)

    def __repr__(self) -> str:
        c = self.config
        return f"Dictionary({c.kind}, {c.site or 'no site'}, d_in={c.d_in}, d_sae={c.d_sae})"

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.config.d_sae

    @property
    def W_enc(self) -> Float[Tensor, "d_sae d_in"]:
        """Encoder rows."""
        return self.weights["W_enc"]

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        """Decoder rows: the features' directions, as they enter the reconstruction."""
        return self.weights["W_dec"]

    @property
    def signed(self) -> bool:
        """Whether codes can be negative."""
        return self.config.activation == "linear"

    def directions(self) -> Float[Tensor, "d_sae d_out"]:
        """Decoder rows scaled to unit length (a zero row stays zero)."""
        return self.W_dec / self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8)

    def pre_activations(
        self, x: Float[Tensor, "*rows d_in"], features: Int[Tensor, "features"] | slice = slice(None)
    ) -> Float[Tensor, "*rows features"]:
        """What the activation function is applied to; with ``features`` of these alone."""
        w = self.weights
        centred = self._input(x) - w["centre"]
        return by_rows(centred, w["W_enc"][features], w["b_enc"][features])

    def _input(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        # a last dimension of 1 would otherwise be broadcast against the centre
        if x.shape[-1:] != (self.config.d_in,):
            raise UserError(f"{self} cannot read activations of shape {tuple(x.shape)}; give rows of its own site")
        return x.to(self.W_enc.dtype)

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """Codes of ``x``, dense."""
        if self.config.activation in ENCODERS:
            return ENCODERS[self.config.activation](self._input(x), self.weights, self.config)
        return ACTIVATIONS[self.config.activation](self.pre_activations(x), self.config, self.weights.get("threshold"))

    def encode_some(
        self, x: Float[Tensor, "*rows d_in"], features: Int[Tensor, "features"]
    ) -> Float[Tensor, "*rows features"]:
        """Codes of ``features`` alone; where no feature looks at another's pre-activation, only they are computed."""
        if self.config.activation not in ("relu", "linear", "threshold", "jumprelu") or len(features) == self.d_sae:
            return self.encode(x)[..., features]
        threshold = self.weights["threshold"][features] if "threshold" in self.weights else None
        return ACTIVATIONS[self.config.activation](self.pre_activations(x, features), self.config, threshold)

    def encode_sparse(self, x: Float[Tensor, "rows d_in"]) -> SparseCodes:
        """Codes of ``x`` as row offsets, features and values; :meth:`SparseCodes.dense` gives :meth:`encode` back."""
        return sparse(self.encode(x))

    def decode(
        self, codes: Float[Tensor, "*rows d_sae"], x: Float[Tensor, "*rows d_in"] | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """The reconstruction that ``codes`` stand for, and what a linear skip makes of ``x``.

        Raises:
            UserError: there is a skip and no ``x``: the codes alone stand for another function.
        """
        out = by_rows(codes, self.W_dec.T, self.weights["b_dec"])
        if SKIP not in self.weights:
            return out
        if x is None:
            raise UserError(f"{self} has a linear skip: decode(codes, x) takes what was encoded too")
        return out + (self._input(x) - self.weights["centre"]) @ self.weights[SKIP].T

    def reconstruct(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """``decode(encode(x), x)``."""
        return self.decode(self.encode(x), x)

    def to(self, target: torch.device | torch.dtype | str) -> "Dictionary":
        """The same dictionary on another device or in another precision."""
        return Dictionary(self.config, {name: w.to(target) for name, w in self.weights.items()})

    def save(self, folder: Path) -> dict[str, FileEntry]:
        """Write ``weights.safetensors`` and, last, ``config.json``; return their sizes and hashes."""
        weights = tensor_file.write(folder / WEIGHTS, {name: whole(weight) for name, weight in self.weights.items()})
        config = dataclasses.asdict(self.config)
        content = {CONTENT: digest([config, weights.sha256])}
        return {WEIGHTS: weights, CONFIG: write_json(folder / CONFIG, {**config, **content})}


def all_finite(tensor: Float[Tensor, "*any"]) -> Bool[Tensor, ""]:
    """Whether no entry is NaN or infinite, without a copy of all: the largest or the smallest would be."""
    return torch.stack(torch.aminmax(tensor.detach())).isfinite().all()


def load(folder: str | Path, device: torch.device | str = "cpu") -> Dictionary:
    """Load a dictionary by path alone.

    Raises:
        UserError: the folder holds no dictionary, a damaged one, or parts of two.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        content = (folder / WEIGHTS).read_bytes()
        weights = load_tensors(content)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} is missing or damaged ({error}); train this dictionary again") from error
    dictionary = Dictionary(config, weights)
    raw = read_json(folder / CONFIG)
    saved = raw.pop(CONTENT, None)
    if saved is not None and saved != digest([raw, hashlib.sha256(content).hexdigest()]):
        raise UserError(
            f"{folder}: {CONFIG} or {WEIGHTS} has changed since both were saved together; make this dictionary again, "
            f"or, if the change is meant, take {CONTENT!r} out of {CONFIG}"
        )
    return dictionary.to(device)


def read_config(folder: Path) -> DictionaryConfig:
    """What a dictionary is, without its weights.

    Raises:
        UserError: the folder holds no dictionary, or one of another version.
    """
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder} holds no dictionary (no {CONFIG}); give the folder of one member")
    raw = read_json(path)
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path} has dictionary schema {schema!r}, this version reads {SCHEMA}; make it again")
    for required in ("kind", "activation", "d_in", "d_out", "d_sae"):
        if required not in raw:
            raise UserError(f"{path} lacks {required!r}; make this dictionary again")
    return from_table(DictionaryConfig, {name: value for name, value in raw.items() if name != CONTENT}, str(path))
