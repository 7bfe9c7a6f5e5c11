"""Sites: where activations are read and edited, and which module of a Hugging Face model each of them is.

A site is found by the *structure* of a decoder block rather than by a table of architectures: the blocks are the
``ModuleList`` as long as the configuration says the model is deep, a block has one attention and one MLP (or, in OPT,
the MLP's two matrices), and the output projection of each is its last matrix that writes into the residual stream.
What a name cannot prove, :func:`monolex.model.verify.verify` proves with numbers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from torch import Tensor, nn

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
    through: tuple[nn.Module, ...] = ()
    """Inside attention and MLP: the modules that make the part's contribution of the activation, one after another."""
    flat: nn.Module | None = None
    """Where the module sees ``[batch * tokens, width]`` (OPT): the block around it, whose input has both."""


@dataclass(frozen=True, eq=False)
class Structure:
    """A causal LM taken apart."""

    blocks: nn.ModuleList
    """The decoder blocks."""
    final_norm: nn.Module
    """The norm between the last block and the unembedding."""
    places: tuple[Mapping[str, Place], ...]
    """Of every layer, the place of each kind of site that exists there."""
    refused: Mapping[Site, str] = field(default_factory=dict)
    """Sites that cannot be read in this model, and why."""
    unpadded: str = ""
    """Why rows cannot be padded on the left; empty where they can."""

    def place(self, site: Site) -> Place:
        """The place of ``site``.

        Raises:
            UserError: a layer that does not exist, ``resid_mid`` in a parallel architecture, or a site whose place was
                not found or not proved.
        """
        _require_layer(str(site), site.layer, len(self.places))
        if site in self.refused:
            raise UserError(f"site {site} cannot be read in this model: {self.refused[site]}; choose another site")
        if site.kind not in self.places[site.layer]:
            raise UserError(_PARALLEL)
        return self.places[site.layer][site.kind]

    def without(self, refused: Mapping[Site, str]) -> "Structure":
        """The same without some sites, of which is said why."""
        gone = {**self.refused, **refused}
        places = tuple(
            {kind: place for kind, place in layer.items() if Site(kind, index) not in gone}
            for index, layer in enumerate(self.places)
        )
        return replace(self, places=places, refused=gone)


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
    layers = [_block_places(block, d_model) for block in blocks]
    unknown = {Site(kind, n): why for n, (_, missing) in enumerate(layers) for kind, why in missing.items()}
    return Structure(blocks, final_norm, tuple(places for places, _ in layers), unknown)


def _is_stack(module: nn.Module, n_layers: int) -> bool:
    if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
        return False
    return bool(_attentions(module[0])) and (hasattr(module[0], "mlp") or _is_opt_mlp(module[0]))


def _block_places(block: nn.Module, d_model: int) -> tuple[dict[str, Place], dict[str, str]]:
    """Places by kind, and of kinds that have none the reason."""
    attention = _only(_attentions(block), f"attention in {type(block).__name__}")
    if _is_opt_mlp(block):
        return _opt_places(block, attention, d_model)
    mlp = _only([child for name, child in block.named_children() if name == "mlp"], "mlp")
    post_norm = _child(block, "post_feedforward_layernorm")
    # Gemma and OLMo-2 normalise what attention and MLP give before adding it: the contribution is the norm's output.
    mlp_out = mlp if post_norm is None else post_norm
    attn_out = attention if post_norm is None else _child(block, "post_attention_layernorm")
    if attn_out is None:
        raise LookupError(f"{type(block).__name__} has a post-MLP norm but no post_attention_layernorm")
    after_mlp, after_attention = ((),) * 2 if post_norm is None else ((mlp_out,), (attn_out,))
    places = {
        "resid_pre": Place(block, "input", d_model),
        "resid_post": Place(block, "output", d_model),
        "mlp_in": Place(mlp, "input", d_model, (mlp, *after_mlp)),
        "mlp_out": Place(mlp_out, "output", d_model),
        "attn_out": Place(attn_out, "output", d_model),
    }
    missing = {}
    for kind, part, after in (("mlp_act", mlp, after_mlp), ("attn_z", attention, after_attention)):
        try:
            projection = _projection(part, d_model)
            places[kind] = Place(projection, "input", _sizes(projection)[0], (projection, *after))
        except LookupError as error:
            missing[kind] = str(error)
    middle = _after_attention(block, mlp, attn_out)
    if middle is not None:
        places["resid_mid"] = Place(middle, "input", d_model)
    return places, missing


def _is_opt_mlp(block: nn.Module) -> bool:
    """OPT's MLP is no module of its own."""
    return all(_child(block, name) is not None for name in ("fc1", "activation_fn", "fc2", "final_layer_norm"))


def _opt_places(block: nn.Module, attention: nn.Module, d_model: int) -> tuple[dict[str, Place], dict[str, str]]:
    norm, first, neurons, second = (
        block.get_submodule(name) for name in ("final_layer_norm", "fc1", "activation_fn", "fc2")
    )
    heads = _projection(attention, d_model)
    places = {
        "resid_pre": Place(block, "input", d_model),
        "resid_post": Place(block, "output", d_model),
        "resid_mid": Place(norm, "input", d_model, flat=block),
        "mlp_in": Place(first, "input", d_model, (first, neurons, second), block),
        "mlp_act": Place(second, "input", _sizes(second)[0], (second,), block),
        "mlp_out": Place(second, "output", d_model, flat=block),
        "attn_out": Place(attention, "output", d_model),
        "attn_z": Place(heads, "input", _sizes(heads)[0], (heads,)),
    }
    return places, {}


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


def _projection(module: nn.Module, d_model: int) -> nn.Module:
    """The last child with a matrix that writes ``d_model`` wide: how every supported family writes an output
    projection. Phi-3's is the first child, but its other one writes queries, keys and values at once."""
    matrices = [child for child in module.children() if _weight_ndim(child) == 2 and _sizes(child)[1] == d_model]
    if not matrices:
        raise LookupError(f"no output projection in {type(module).__name__}")
    return matrices[-1]


def _weight_ndim(module: nn.Module) -> int:
    """Dimensions of a module's weight, also where it is another's that the module wraps (an adapter); 0 without one."""
    weight = getattr(module, "weight", None)
    return weight.ndim if isinstance(weight, Tensor) else 0


def _sizes(matrix: nn.Module) -> tuple[int, int]:
    """Input and output width of a Linear (or of what wraps one), or of GPT-2's Conv1D (`nx`, `nf`)."""
    sizes = (
        getattr(matrix, "in_features", getattr(matrix, "nx", None)),
        getattr(matrix, "out_features", getattr(matrix, "nf", None)),
    )
    if not all(isinstance(size, int) for size in sizes):
        raise LookupError(f"{type(matrix).__name__} is not a linear map of known width")
    return sizes  # pyright: ignore[reportReturnType]


def _only(candidates: Sequence[T], what: str) -> T:
    if len(candidates) != 1:
        raise LookupError(f"expected one {what}, found {len(candidates)}")
    return candidates[0]
