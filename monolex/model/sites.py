"""Sites: where activations are read and edited, and which module of a Hugging Face model each of them is.

A site is found by the *structure* of a decoder block rather than by a table of architectures: the blocks are the
``ModuleList`` as long as the configuration says the model is deep, a block has one attention and one MLP, and the
output projection of each is its last matrix. What a name cannot prove, :func:`monolex.model.verify.verify`
proves with numbers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import nn

from monolex.errors import UserError

T = TypeVar("T")

KINDS: tuple[str, ...] = (
    "resid_pre",
    "resid_post",
    "resid_mid",
    "mlp_in",
    "mlp_act",
    "mlp_out",
    "attn_out",
    "attn_z",
)
"""The residual stream before, after and in the middle of a block; the MLP's input, neurons and contribution; the
attention's contribution and its heads before the output projection."""

_FORMAT = re.compile(r"(\w+)\.(\d+|\*)")
_PRE_MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
_PARALLEL = (
    "resid_mid does not exist in this model: its blocks add attention and MLP in parallel "
    "(use_parallel_residual); use resid_pre or resid_post"
)


class SiteError(RuntimeError):
    """A site did not do what the model's structure promises: it did not fire, fired twice or had another shape."""


@dataclass(frozen=True)
class Site:
    """Where activations are read, for example ``resid_post.3``."""

    kind: str
    """One of :data:`KINDS`."""
    layer: int
    """Block index, from 0."""

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """The site that ``text`` names; a :class:`Site` is returned as it is.

        Raises:
            UserError: not of the form ``kind.layer``, or an unknown kind.
        """
        if isinstance(text, Site):
            return text
        kind, layer = _split(text)
        if layer == "*":
            raise UserError(f"site {text!r} names every layer: name a single one here, for example {kind}.0")
        return cls(kind, int(layer))


def _split(text: str) -> tuple[str, str]:
    match = _FORMAT.fullmatch(text)
    if match is None:
        raise UserError(f"site {text!r}: write kind.layer, for example resid_post.3; kinds are {', '.join(KINDS)}")
    if match[1] not in KINDS:
        raise UserError(f"site {text!r}: unknown kind {match[1]!r}; kinds are {', '.join(KINDS)}")
    return match[1], match[2]


def expand(names: Sequence[str], n_layers: int) -> tuple[Site, ...]:
    """Sites named by ``names`` in a model of ``n_layers`` blocks; ``resid_post.*`` means every layer.

    The order is kept and duplicates are dropped.

    Raises:
        UserError: a malformed name, an unknown kind, or a layer that does not exist.
    """
    if isinstance(names, str):
        raise UserError(f"sites = {names!r}: give a list of sites, [{names!r}]")
    sites: dict[Site, None] = {}
    for name in names:
        kind, layer = _split(name)
        layers = range(n_layers) if layer == "*" else (int(layer),)
        for index in layers:
            _require_layer(name, index, n_layers)
            sites[Site(kind, index)] = None
    return tuple(sites)


def select(names: Sequence[str], available: Sequence[str], holder: str) -> tuple[str, ...]:
    """Those of the ``available`` sites that ``names`` mean: all for none, `resid_post.*` for every one of a kind.

    Raises:
        UserError: a name that matches none; ``holder`` is what the message says holds them.
    """
    selected: dict[str, None] = {}
    for name in names or available:
        kind = name.removesuffix("*") if name.endswith(".*") else None
        matching = [site for site in available if (site == name if kind is None else site.startswith(kind))]
        if not matching:
            raise UserError(f"{holder} holds no site {name!r}; it holds {', '.join(available)}")
        selected |= dict.fromkeys(matching)
    return tuple(selected)


def _require_layer(name: str, layer: int, n_layers: int) -> None:
    if not 0 <= layer < n_layers:
        raise UserError(f"site {name!r}: the model has layers 0 to {n_layers - 1}, there is no layer {layer}")


@dataclass(frozen=True)
class Place:
    """The end of a module at which a site is read."""

    module: nn.Module
    """The module a hook goes on."""
    side: Literal["input", "output"]
    """Whether the site is the module's first argument or its (first) result."""
    width: int
    """Size of the last dimension."""


@dataclass(frozen=True, eq=False)
class Structure:
    """A causal LM taken apart."""

    blocks: nn.ModuleList
    """The decoder blocks."""
    final_norm: nn.Module
    """The norm between the last block and the unembedding."""
    places: tuple[Mapping[str, Place], ...]
    """Of every layer, the place of each kind of site that exists there."""

    def place(self, site: Site) -> Place:
        """The place of ``site``.

        Raises:
            UserError: a layer that does not exist, or ``resid_mid`` in a parallel architecture.
        """
        _require_layer(str(site), site.layer, len(self.places))
        if site.kind not in self.places[site.layer]:
            raise UserError(_PARALLEL)
        return self.places[site.layer][site.kind]


def resolve(model: nn.Module, n_layers: int, d_model: int) -> Structure:
    """Take ``model`` apart by structure.

    Raises:
        LookupError: a part is missing or ambiguous; the message says which.
    """
    stacks = [
        (parent, stack) for parent in model.modules() for stack in parent.children() if _is_stack(stack, n_layers)
    ]
    parent, blocks = _only(stacks, f"stack of {n_layers} blocks with attention and MLP")
    assert isinstance(blocks, nn.ModuleList)
    norms = [child for child in parent.children() if _weight_ndim(child) == 1]
    final_norm = _only(norms, "final norm")
    return Structure(blocks, final_norm, tuple(_block_places(block, d_model) for block in blocks))


def _is_stack(module: nn.Module, n_layers: int) -> bool:
    if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
        return False
    return bool(_attentions(module[0])) and hasattr(module[0], "mlp")


def _block_places(block: nn.Module, d_model: int) -> dict[str, Place]:
    attention = _only(_attentions(block), f"attention in {type(block).__name__}")
    mlp = _only([child for name, child in block.named_children() if name == "mlp"], "mlp")
    post_norm = _child(block, "post_feedforward_layernorm")
    # Gemma and OLMo-2 normalise what attention and MLP give before adding it: the contribution is the norm's output.
    mlp_out = mlp if post_norm is None else post_norm
    attn_out = attention if post_norm is None else _child(block, "post_attention_layernorm")
    if attn_out is None:
        raise LookupError(f"{type(block).__name__} has a post-MLP norm but no post_attention_layernorm")
    neurons, heads = _projection(mlp), _projection(attention)
    places = {
        "resid_pre": Place(block, "input", d_model),
        "resid_post": Place(block, "output", d_model),
        "mlp_in": Place(mlp, "input", d_model),
        "mlp_act": Place(neurons, "input", _width_in(neurons)),
        "mlp_out": Place(mlp_out, "output", d_model),
        "attn_out": Place(attn_out, "output", d_model),
        "attn_z": Place(heads, "input", _width_in(heads)),
    }
    middle = _after_attention(block, mlp, attn_out)
    if middle is not None:
        places["resid_mid"] = Place(middle, "input", d_model)
    return places


def _after_attention(block: nn.Module, mlp: nn.Module, attn_out: nn.Module) -> nn.Module | None:
    """The first module that reads the residual stream after attention; None where the two run in parallel."""
    if getattr(block, "use_parallel_residual", False):
        return None
    norms = [child for name in _PRE_MLP_NORMS if (child := _child(block, name)) is not None and child is not attn_out]
    if norms:
        return norms[0]
    return mlp if _child(block, "post_feedforward_layernorm") is not None else None


def _attentions(block: nn.Module) -> list[nn.Module]:
    def is_attention(name: str) -> bool:
        return ("attn" in name or "attention" in name) and not any(word in name for word in ("norm", "dropout", "ln_"))

    return [child for name, child in block.named_children() if is_attention(name)]


def _child(module: nn.Module, name: str) -> nn.Module | None:
    return dict(module.named_children()).get(name)


def _projection(module: nn.Module) -> nn.Module:
    """The last child with a matrix: how every supported family writes an attention's or MLP's output projection."""
    matrices = [child for child in module.children() if _weight_ndim(child) == 2]
    if not matrices:
        raise LookupError(f"no output projection in {type(module).__name__}")
    return matrices[-1]


def _weight_ndim(module: nn.Module) -> int:
    weight = module._parameters.get("weight")
    return 0 if weight is None else weight.ndim


def _width_in(projection: nn.Module) -> int:
    """Input width of a Linear, or of GPT-2's Conv1D (`nx`)."""
    width = getattr(projection, "in_features", getattr(projection, "nx", None))
    if not isinstance(width, int):
        raise LookupError(f"{type(projection).__name__} is not a linear map of known input width")
    return width


def _only(candidates: Sequence[T], what: str) -> T:
    if len(candidates) != 1:
        raise LookupError(f"expected one {what}, found {len(candidates)}")
    return candidates[0]
