"""A member's parameters: how they start, how an existing dictionary becomes them, how they become a dictionary.

Initial values are a pure function of the member's seed, kind and shape, drawn in float32 on the CPU whatever the
device, so that a member starts alike in every sweep and on every machine. ``W_enc`` is absent where weights are tied
and ``b_dec`` where the recipe has no decoder bias.
"""

import torch
from torch import Tensor
from torch.nn.init import xavier_uniform_

from monolex import runtime
from monolex.config import require
from monolex.dictionaries.base import Dictionary
from monolex.errors import UserError
from monolex.kinds import KINDS
from monolex.training.members import SweepMember
from monolex.training.optim import Recipe
from monolex.training.steps import Params, unit

BIASES = ("b_enc", "b_dec")
"""The parameters that carry the units of the activations."""


def initial(member: SweepMember, chosen: Recipe) -> dict[str, Tensor]:
    """Xavier-uniform weights and zero biases (paper); with unit rows the encoder starts as the decoder's rows."""
    generator = runtime.generator("init", member.seed, member.kind, member.d_in, member.d_sae)
    rows = xavier_uniform_(torch.empty(member.d_sae, member.d_in), generator=generator)
    params = {"W_dec": unit(rows) if chosen.unit else rows, "b_enc": torch.zeros(member.d_sae)}
    if not KINDS[member.kind].tied:
        free = torch.empty(member.d_sae, member.d_in)
        params["W_enc"] = params["W_dec"].clone() if chosen.unit else xavier_uniform_(free, generator=generator)
    if chosen.bias:
        params["b_dec"] = torch.zeros(member.d_in)
    return params


def from_dictionary(dictionary: Dictionary, member: SweepMember, chosen: Recipe, where: str) -> dict[str, Tensor]:
    """Parameters of ``member`` that compute what ``dictionary`` does; k and alpha may differ.

    Raises:
        UserError: kind, width or site differ, or the recipe cannot express its biases or rows.
    """
    config, weights = dictionary.config, dictionary.weights
    start = (config.kind, config.site, config.d_in, config.d_sae)
    wanted = (member.kind, member.site, member.d_in, member.d_sae)
    if start != wanted:
        raise UserError(
            f"init = {where!r} is {_spell(start)} but member {member.name} is {_spell(wanted)}; "
            "train only members that match it, or choose another dictionary"
        )
    centred = bool(weights["centre"].any() or weights["b_dec"].any())
    require(
        chosen.bias or not centred,
        f"init = {where!r} has a decoder bias but this preset trains none; set preset = 'modern'",
    )
    lengths = weights["W_dec"].norm(dim=1)
    usual = torch.equal(weights["centre"], weights["b_dec"]) and torch.allclose(lengths, torch.ones_like(lengths))
    tied = not KINDS[member.kind].tied or torch.equal(weights["W_enc"], weights["W_dec"])
    require(
        usual and tied,
        f"init = {where!r} was not trained by monolex (its centre, decoder bias or row lengths differ from a "
        f"{member.kind} dictionary's); start from one of a sweep",
    )
    names = [name for name in ("W_dec", "b_enc", "W_enc", "b_dec") if name in initial(member, chosen)]
    return {name: weights[name].clone() for name in names}


def exported(params: Params, scale: float) -> dict[str, Tensor]:
    """The weights of a :class:`Dictionary`, on the CPU: unit decoder rows, and zeros where a bias is absent.

    What was trained on ``scale * x`` becomes a dictionary of ``x`` by dividing its biases, because ReLU and the choice
    of the largest commute with a positive factor.
    """
    params = {name: tensor.detach().cpu() for name, tensor in params.items()}
    params |= {name: params[name] / scale for name in BIASES if name in params}
    rows = unit(params["W_dec"])
    bias = params.get("b_dec", rows.new_zeros(rows.shape[1]))
    return {
        "W_enc": params.get("W_enc", rows).clone(),
        "b_enc": params["b_enc"].clone(),
        "centre": bias.clone(),
        "W_dec": rows,
        "b_dec": bias.clone(),
    }


def _spell(shape: tuple[str, str, int, int]) -> str:
    kind, site, d_in, d_sae = shape
    return f"{kind} at {site or 'no site'} with d_in {d_in} and d_sae {d_sae}"
