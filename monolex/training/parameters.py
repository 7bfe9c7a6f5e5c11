"""A member's parameters: how they start, how an existing dictionary becomes them, how they become a dictionary.

Initial values are a pure function of the member's seed, kind and shape, drawn in float32 on the CPU whatever the
device, so that a member starts alike in every sweep and on every machine. ``W_enc`` is absent where weights are tied
and ``b_dec`` where the recipe has no decoder bias.
"""

import math

import torch
from torch import Tensor

from monolex import runtime
from monolex.config import require
from monolex.dictionaries.base import SKIP, Dictionary
from monolex.errors import UserError
from monolex.kinds import KINDS
from monolex.training.members import SweepMember
from monolex.training.optim import Recipe
from monolex.training.preprocessing import Preprocessing, folded
from monolex.training.records import Params
from monolex.training.steps import free_rows, unit

ENCODER_LENGTH = 3**-0.5
"""How long encoder rows are at first, where decoder rows are unit: as those of torch's linear layers. A rate turns a
short row further: held-out FVU is 2 to 8 % lower than from unit rows (docs/log.md); at half of it features begin to
die."""
DRAWN = 4096
"""Rows that are drawn at once."""
OF_LOSS = {"jumprelu": ("log_threshold",), "gated": ("r_mag", "b_mag")}
"""Parameters that some losses have beside the linear ones, a number a feature each."""
STILL = {"pursuit": ("b_enc",)}
"""Parameters that some losses have no use for and leave at 0."""


def initial(member: SweepMember, chosen: Recipe, owned: range | None = None) -> dict[str, Tensor]:
    """The parameters of the features ``owned`` (all for None), and those that all features share.

    Xavier-uniform weights and zero biases (paper); with unit rows the encoder starts along the decoder's rows.

    Its rows are :data:`ENCODER_LENGTH` long, or 1 where they stay random. Where a decoder row cannot be an encoder row,
    or one of both stays random, they have directions of their own. A transcoder's centre is constant and its linear
    skip starts at nothing; thresholds are set by the first batch.
    """
    kind, owned = KINDS[member.kind], range(member.d_sae) if owned is None else owned
    generator = runtime.generator("init", member.seed, member.kind, member.d_in, member.d_sae, *_of_target(member))
    rows = _xavier_uniform(member.d_sae, member.d_out, owned, generator)
    params = {"W_dec": unit(rows) if chosen.unit else rows, "b_enc": torch.zeros(len(owned))}
    if not kind.tied:
        separate = bool(member.target or kind.frozen == "W_enc") or not chosen.unit
        free = params["W_dec"].clone()
        if separate:
            free = _xavier_uniform(member.d_sae, member.d_in, owned, generator)
        length = 1.0 if kind.frozen == "W_enc" else ENCODER_LENGTH
        params["W_enc"] = length * unit(free) if chosen.unit else free
    if chosen.bias:
        params["b_dec"] = torch.zeros(member.d_out)
    if member.target:
        params["centre"] = torch.zeros(member.d_in)
    if member.skip:
        params[SKIP] = torch.zeros(member.d_out, member.d_in)
    for name in OF_LOSS.get(kind.loss, ()):
        params[name] = torch.zeros(len(owned))
    return params


def _xavier_uniform(n: int, d: int, owned: range, generator: torch.Generator) -> Tensor:
    """Rows ``owned`` of what torch's function of that name draws for n rows; the others are drawn and forgotten."""
    bound = math.sqrt(3.0) * math.sqrt(2.0 / (n + d))
    rows = torch.empty(len(owned), d)
    for begin in range(0, n, DRAWN):
        block = torch.empty(min(DRAWN, n - begin), d).uniform_(-bound, bound, generator=generator)
        low, high = max(owned.start, begin), min(owned.stop, begin + len(block))
        if low < high:
            rows[low - owned.start : high - owned.start] = block[low - begin : high - begin]
    return rows


def constant(member: SweepMember) -> frozenset[str]:
    """Parameters that training leaves as they are."""
    kind = KINDS[member.kind]
    return frozenset({"centre", kind.frozen, *STILL.get(kind.loss, ())})


def from_dictionary(dictionary: Dictionary, member: SweepMember, chosen: Recipe, where: str) -> dict[str, Tensor]:
    """Parameters of ``member`` that compute what ``dictionary`` does; k and alpha may differ.

    Raises:
        UserError: kind, width or site differ, or the recipe cannot express its biases or rows.
    """
    config, weights = dictionary.config, dictionary.weights
    start = (config.kind, config.site, config.d_in, config.d_sae, config.target)
    wanted = (member.kind, member.site, member.d_in, member.d_sae, member.target)
    if start != wanted:
        raise UserError(
            f"init = {where!r} is {_spell(start)} but member {member.name} is {_spell(wanted)}; "
            "train only members that match it, or choose another dictionary"
        )
    require(
        (SKIP in weights) == member.skip,
        f"init = {where!r} has {'a' if SKIP in weights else 'no'} linear skip; set skip to {SKIP in weights}",
    )
    require(
        "whiten" not in (chosen.preprocess, config.recipe.get("preprocess")),
        "preprocess = 'whiten' cannot continue a dictionary, whose rows are those of raw activations; give another",
    )
    require(
        chosen.bias or chosen.preprocess != "centre",
        "preprocess = 'centre' cannot continue a dictionary without a decoder bias, which would be another around the "
        "centre; set preset = 'modern', or preprocess = 'scale'",
    )
    centred = bool(weights["b_dec"].any()) or (not member.target and bool(weights["centre"].any()))
    require(
        chosen.bias or not centred,
        f"init = {where!r} has a decoder bias but this preset trains none; set preset = 'modern'",
    )
    lengths = weights["W_dec"].norm(dim=1)
    usual = bool(member.target) or torch.equal(weights["centre"], weights["b_dec"])
    usual = usual and (free_rows(member) or torch.allclose(lengths, torch.ones_like(lengths)))
    tied = not KINDS[member.kind].tied or torch.equal(weights["W_enc"], weights["W_dec"])
    require(
        usual and tied,
        f"init = {where!r} was not trained by monolex (its centre, decoder bias or row lengths differ from a "
        f"{member.kind} dictionary's); start from one of a sweep",
    )
    params = {name: weights[name].clone() for name in initial(member, chosen) if name in weights}
    if KINDS[member.kind].loss == "jumprelu":
        params["log_threshold"] = weights["threshold"].log()
    if KINDS[member.kind].loss == "gated":
        # with a factor of 1 the gate opens where the magnitude's pre-activation passes the threshold
        params |= {"b_mag": weights["b_enc"].clone(), "r_mag": torch.zeros(member.d_sae)}
        params["b_enc"] = weights["b_enc"] - weights["threshold"]
    return params


def preprocessed(params: Params, read: Preprocessing, written: Preprocessing) -> None:
    """Bring the parameters of :func:`from_dictionary`, of raw activations, to preprocessed ones, in place."""
    for name, at in (("centre", read), ("b_dec", written)):
        if name in params:
            params[name].copy_(at.rows(params[name][None])[0])
    for name in ("b_enc", "b_mag"):
        if name in params:
            params[name].mul_(written.factor)
    for name in ("W_enc", SKIP):
        if name in params:
            params[name].mul_(written.factor / read.factor)
    if "log_threshold" in params:
        params["log_threshold"].add_(written.factor.log())


def exported(params: Params, member: SweepMember, read: Preprocessing, written: Preprocessing) -> dict[str, Tensor]:
    """The weights of a :class:`Dictionary` of raw activations, on the CPU; zeros where a bias is absent.

    Gated comes to a JumpReLU (its paper, section 3.2): magnitudes whose features are active above a threshold.
    """
    params = {name: tensor.detach().cpu() for name, tensor in params.items()}
    rows = params["W_dec"] if free_rows(member) else unit(params["W_dec"])
    bias = params.get("b_dec", rows.new_zeros(rows.shape[1]))
    weights = {
        "W_enc": params.get("W_enc", rows),
        "b_enc": params["b_enc"],
        "centre": params.get("centre", bias),
        "W_dec": rows,
        "b_dec": bias,
    }
    if SKIP in params:
        weights[SKIP] = params[SKIP]
    if "log_threshold" in params:
        weights["threshold"] = params["log_threshold"].exp()
    if "r_mag" in params:
        factor = params["r_mag"].exp()
        weights |= {"W_enc": weights["W_enc"] * factor[:, None], "b_enc": params["b_mag"]}
        weights["threshold"] = (params["b_mag"] - factor * params["b_enc"]).relu()
    on_cpu = (done.to(torch.device("cpu")) for done in (read, written))
    # own memory for each: safetensors refuses tensors that share it, and training goes on in its own
    used, out = {tensor.data_ptr() for tensor in params.values()}, {}
    for name, tensor in folded(weights, *on_cpu).items():
        out[name] = tensor.clone() if tensor.data_ptr() in used else tensor
        used.add(tensor.data_ptr())
    return out


def _of_target(member: SweepMember) -> tuple[str, ...]:
    return (member.target, str(member.d_out)) if member.target else ()


def _spell(shape: tuple[str, str, int, int, str]) -> str:
    kind, site, d_in, d_sae, target = shape
    to = f" to {target}" if target else ""
    return f"{kind} at {site or 'no site'}{to} with d_in {d_in} and d_sae {d_sae}"
