"""Tiny models that are broken, or misread, or misused, in known ways; see `tests/model/test_silent.py`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from helpers.adapters import Sealed
from helpers.tiny import ARCHITECTURES, all_sites, close, tokens
from torch import Tensor, nn

from monolex.causal import edits
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.model.hooks import capture, watch
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Place, Structure
from monolex.model.verify import require_unhooked

GATED = ("llama", "qwen3", "gemma3_text", "olmo2", "phi3", "mistral")
NORMED_AFTER = ("gemma3_text", "olmo2")
ABSOLUTE = ("gpt2", "opt")
SERIAL = tuple(name for name in ARCHITECTURES if name != "gpt_neox")
IDS = tokens()
PAD = 0
PADDED = torch.cat([torch.full((2, 3), PAD), IDS.clamp_min(1)], 1)
MASK = (torch.arange(PADDED.shape[1]) >= 3).long().expand_as(PADDED)

Inject = Callable[[LanguageModel], Structure | None]
Use = Callable[[LanguageModel], object]


def read_all(lm: LanguageModel) -> None:
    capture(lm, IDS, [*all_sites(lm), *lm.structure.refused])


class Fault(NamedTuple):
    name: str
    says: str
    """What the sentence says."""
    inject: Inject = lambda _: None
    """Puts the fault into the model, or gives a structure that has it."""
    use: Use = read_all
    """What is done after the load."""
    sound: Use | None = None
    """The same without the fault, where that lies in the use."""
    only: tuple[str, ...] = ARCHITECTURES


# What monolex believes of a model


def at(lm: LanguageModel, kind: str) -> Place:
    return lm.place(f"{kind}.1")


def believing(change: Callable[[LanguageModel], dict[str, Place]]) -> Inject:
    """A structure whose layer 1 has other places."""

    def inject(lm: LanguageModel) -> Structure:
        first, second, third = lm.structure.places
        return dataclasses.replace(lm.structure, places=(first, {**second, **change(lm)}, third))

    return inject


def layers(*order: int) -> Inject:
    return lambda lm: dataclasses.replace(lm.structure, places=tuple(lm.structure.places[i] for i in order))


def parent(lm: LanguageModel, module: nn.Module) -> nn.Module:
    return next(outer for outer in lm.hf.modules() if any(inner is module for inner in outer.children()))


def part(lm: LanguageModel, kind: str) -> nn.Module:
    """Attention or MLP of layer 1."""
    return parent(lm, at(lm, kind).module)


def activation(lm: LanguageModel) -> nn.Module:
    names = ("act", "act_fn", "activation_fn")
    return next(module for name, module in part(lm, "mlp_act").named_children() if name in names)


def queries(lm: LanguageModel) -> dict[str, Place]:
    """What Phi-3's heads were taken for."""
    others = (module for module in part(lm, "attn_z").children() if module is not at(lm, "attn_z").module)
    first = next(module for module in others if getattr(module, "weight", torch.empty(0)).ndim == 2)
    return {"attn_z": Place(first, "input", lm.d_model, (first, *at(lm, "attn_z").through[1:]))}


# The model, when it is loaded


def changing(site: str, change: Callable[[Tensor], Tensor]) -> Inject:
    def inject(lm: LanguageModel) -> None:
        watch(lm.place(site), change)

    return inject


def remembering(lm: LanguageModel) -> None:
    """A later block reads what an earlier one left, which is not there where a forward resumes."""
    left: list[Tensor] = []
    watch(lm.place("resid_pre.0"), lambda x: left.append(torch.linspace(0, 1, lm.d_model)) or x)
    watch(lm.place("mlp_out.2"), lambda x: x + left.pop() if left else x)


def sealed(kind: str) -> Inject:
    def inject(lm: LanguageModel) -> None:
        module = at(lm, kind).module
        outer = parent(lm, module)
        setattr(outer, next(name for name, inner in outer.named_children() if inner is module), Sealed(module))  # pyright: ignore

    return inject


def run_twice(lm: LanguageModel) -> None:
    lm.structure.blocks[1] = lm.structure.blocks[0]


@torch.no_grad()
def not_a_number(lm: LanguageModel) -> None:
    lm.hf.get_output_embeddings().weight[3, 0] = torch.nan  # pyright: ignore


def on_vocabulary(which: str) -> Inject:
    def inject(lm: LanguageModel) -> None:
        module = getattr(lm.hf, f"get_{which}_embeddings")()
        weight = torch.randn(module.weight.shape[int(which == "input")], generator=torch.Generator().manual_seed(0))
        if which == "input":
            module.register_forward_hook(lambda _, args, out: out + args[0][..., None] * weight / 50)
        else:
            module.register_forward_hook(lambda _, args, out: out + args[0][..., :1] * weight)

    return inject


def arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Inject:
    """The model takes mask and positions for something else."""

    def inject(lm: LanguageModel) -> None:
        lm.hf.register_forward_pre_hook(lambda _, args, kwargs: (args, change(kwargs)), with_kwargs=True)

    return inject


def without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def positions(change: Callable[[Tensor], Tensor]) -> Inject:
    def changed(kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs | ({"position_ids": change(kwargs["position_ids"])} if "position_ids" in kwargs else {})

    return arguments(changed)


def read_padded(lm: LanguageModel) -> None:
    seen = capture(lm, PADDED, ["resid_post.2"], mask=MASK).activations["resid_post.2"][:, 3:]
    assert close(seen, capture(lm, PADDED[:, 3:], ["resid_post.2"], mask=MASK[:, 3:]).activations["resid_post.2"], 1e-4)


# What is done with it


def hooked(lm: LanguageModel) -> None:
    """Somebody left a hook between the load and the use."""
    watch(lm.place("mlp_out.1"), lambda x: x * 0.5)
    require_unhooked(lm)


def dictionary(lm: LanguageModel, site: str = "resid_post.1", *, bias: float = 0.0, size: float = 1.0) -> Dictionary:
    rows = torch.randn(16, lm.d_model, generator=torch.Generator().manual_seed(1))
    config = DictionaryConfig("untied", "relu", lm.d_model, lm.d_model, 16, site=site)
    zeros = torch.zeros(lm.d_model)
    weights = {"W_enc": rows, "W_dec": size * rows, "b_enc": torch.full((16,), bias), "b_dec": zeros, "centre": zeros}
    return Dictionary(config, weights)


def edited(make: Callable[[LanguageModel], edits.FeatureEdit]) -> Use:
    def use(lm: LanguageModel) -> None:
        with edits.applied(lm, {"resid_post.1": make(lm)}), torch.no_grad():
            lm.hf(IDS, use_cache=False)

    return use


def activations(lm: LanguageModel) -> Tensor:
    return capture(lm, IDS, ["resid_post.1"]).activations["resid_post.1"]


def continued(again: bool) -> Use:
    """A step of generation behind a cache; ``again`` feeds the tokens that it already holds."""

    def use(lm: LanguageModel) -> None:
        with edits.applied(lm, {"resid_post.1": edits.ablate(dictionary(lm), None)}), torch.no_grad():
            cache = lm.hf(IDS, use_cache=True).past_key_values
            step = {"attention_mask": torch.ones(2, IDS.shape[1] + (not again), dtype=torch.long)}
            lm.hf(IDS[:, -1:], past_key_values=cache, **step)

    return use


def pads_like_text(lm: LanguageModel) -> None:
    lm.hf.config.get_text_config().pad_token_id = lm.hf.config.get_text_config().eos_token_id = PAD
