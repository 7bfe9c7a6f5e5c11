"""What is proved of a model on every load: its stream, or it is refused; a site's place, or that site is."""

import pytest
import torch
from helpers.adapters import LoraLinear, Sealed
from helpers.tiny import ARCHITECTURES, all_sites, close, read, tiny, tiny_hf, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from monolex.errors import UserError
from monolex.model.hooks import capture
from monolex.model.load import wrap
from monolex.model.sites import Site

EPS = torch.finfo(torch.float32).eps

# Each of ten architectures is read whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_refused_without_a_reason(architecture: str, dtype: torch.dtype) -> None:
    lm = wrap(tiny_hf(architecture).to(dtype))
    assert not lm.structure.refused and not lm.structure.unpadded
    assert len(all_sites(lm)) == 3 * (7 if architecture == "gpt_neox" else 8)


def test_the_heads_of_phi3_are_what_its_output_projection_reads() -> None:
    lm = tiny("phi3", double=True)
    attention = lm.structure.blocks[1].self_attn
    assert lm.place("attn_z.1").module is attention.o_proj
    assert close(attention.o_proj(read(lm, "attn_z.1", tokens())), read(lm, "attn_out.1", tokens()))


# Adapters and projections of which nothing is known


@pytest.mark.parametrize(
    ("architecture", "part", "projection", "kind", "outer"),
    [
        ("llama", "self_attn", "o_proj", "attn_z", "attn_out"),
        ("llama", "mlp", "down_proj", "mlp_act", "mlp_out"),
        ("gemma3_text", "self_attn", "o_proj", "attn_z", "attn_out"),
        ("phi3", "mlp", "down_proj", "mlp_act", "mlp_out"),
        ("opt", "self_attn", "out_proj", "attn_z", "attn_out"),
        ("opt", "", "fc2", "mlp_act", "mlp_out"),
    ],
)
def test_an_adapter_is_read_where_it_reads(
    architecture: str, part: str, projection: str, kind: str, outer: str
) -> None:
    hf = tiny_hf(architecture)
    plain = read(wrap(hf), f"{kind}.0", tokens())
    lora = wrapped(hf, part, projection, LoraLinear)
    lm = wrap(hf)
    assert lm.place(f"{kind}.0").module is lora and not lm.structure.refused
    seen = capture(lm, tokens(), [f"{kind}.0", f"{outer}.0"]).activations
    assert close(seen[f"{kind}.0"], plain, 1e-6)  # nothing before it has changed
    made = lora(seen[f"{kind}.0"])
    for module in lm.place(f"{kind}.0").through[1:]:
        made = module(made)
    assert close(made, seen[f"{outer}.0"], 1e-5)


@pytest.mark.parametrize(
    ("part", "projection", "kind"), [("self_attn", "o_proj", "attn_z"), ("mlp", "down_proj", "mlp_act")]
)
def test_a_projection_of_which_nothing_is_known_costs_its_own_site_alone(part: str, projection: str, kind: str) -> None:
    hf = tiny_hf("qwen3" if kind == "mlp_act" else "llama")
    wrapped(hf, part, projection, Sealed)
    lm = wrap(hf)
    with pytest.raises(UserError, match=rf"site {kind}\.0 cannot be read in this model: .*; choose another site"):
        capture(lm, tokens(), ["resid_post.0", f"{kind}.0"])
    assert set(lm.structure.refused) == {Site(kind, 0)}
    assert len(all_sites(lm)) == 3 * 8 - 1
    capture(lm, tokens(), all_sites(lm))


def wrapped(hf: PreTrainedModel, part: str, projection: str, by: type[nn.Module]) -> nn.Module:
    """The ``by`` around the first block's projection, put in its place."""
    block = next(module for module in hf.modules() if isinstance(module, nn.ModuleList))[0]
    parent = block.get_submodule(part)
    new = by(getattr(parent, projection))
    setattr(parent, projection, new)
    return new


def test_a_wrongly_guessed_neighbour_is_refused_with_what_it_makes() -> None:
    hf = tiny_hf("llama", num_key_value_heads=4)  # now v_proj is as wide as o_proj, the last that is known
    wrapped(hf, "self_attn", "o_proj", Sealed)
    with pytest.raises(UserError, match=r"attn_z.0 .*: what Linear makes of it is not attn_out.0"):
        read(wrap(hf), "attn_z.0", tokens())


def test_a_middle_that_is_not_the_sum_costs_that_site_alone() -> None:
    hf = tiny_hf("llama")
    norm = hf.model.layers[1].post_attention_layernorm
    norm.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    lm = wrap(hf)
    assert set(lm.structure.refused) == {Site("resid_mid", 1)}
    with pytest.raises(UserError, match="resid_mid.1 .*: it is not resid_pre.1 \\+ attn_out.1"):
        read(lm, "resid_mid.1", tokens())


def test_a_site_that_fires_twice_costs_that_site_alone() -> None:
    hf = tiny_hf("llama")
    mlp = hf.model.layers[2].mlp
    mlp.down_proj.register_forward_hook(lambda module, args, _: module.forward(args[0]))
    again = mlp.forward
    mlp.forward = lambda x: (mlp.down_proj(x[..., :1].expand(*x.shape[:2], 48)) * 0) + again(x)
    lm = wrap(hf)
    assert set(lm.structure.refused) == {Site("mlp_act", 2)}
    with pytest.raises(UserError, match="mlp_act.2 .* fired twice"):
        read(lm, "mlp_act.2", tokens())


@pytest.mark.parametrize(
    ("part", "message"), [("lm_head", "its unembedding is not"), ("embed_tokens", "its embedding gives")]
)
def test_adapters_on_the_vocabulary_are_refused(part: str, message: str) -> None:
    hf = tiny_hf("llama")
    module = hf.lm_head if part == "lm_head" else hf.model.embed_tokens
    way = torch.linspace(-1, 1, 32)
    if part == "lm_head":
        module.register_forward_hook(lambda _, args, out: out + (args[0] @ way)[..., None] * torch.linspace(-1, 1, 101))
    else:
        module.register_forward_hook(lambda _, args, out: out + args[0][..., None] * way / 50)
    with pytest.raises(UserError, match=f"architecture llama .*: {message}"):
        wrap(hf)


# The residual stream: the model is refused


def blocks(hf: PreTrainedModel) -> nn.ModuleList:
    return hf.model.layers


def test_a_stream_that_changes_between_two_blocks_is_refused() -> None:
    hf = tiny_hf("llama")
    blocks(hf)[1].register_forward_pre_hook(lambda _, args: (args[0] * (1 + EPS), *args[1:]))
    with pytest.raises(UserError, match="resid_post.0 is not resid_pre.1"):
        wrap(hf)


def test_a_block_that_remembers_another_one_is_refused() -> None:
    """Value residuals: a later block reads what an earlier one left, which is not there where a forward resumes."""
    hf, left = tiny_hf("llama"), []
    blocks(hf)[0].register_forward_pre_hook(lambda *_: left.append(1.0))
    blocks(hf)[2].mlp.register_forward_hook(lambda *args: args[2] + (left.pop() if left else 0.0))
    with pytest.raises(UserError, match="resuming at layer 1 differs by"):
        wrap(hf)


@pytest.mark.parametrize(("times", "refused"), [(0.4, False), (40, True)])
def test_the_stream_adds_up_to_a_few_roundings_and_no_further(times: float, refused: bool) -> None:
    """Forty times too far is refused, so that a bound a hundred times too wide would be noticed."""
    hf = tiny_hf("llama")
    parts: dict[str, Tensor] = {}
    for name in ("self_attn", "mlp"):
        part = blocks(hf)[1].get_submodule(name)
        part.register_forward_hook(
            lambda _m, _a, out, name=name: parts.update({name: out[0] if name != "mlp" else out})
        )

    def deviate(_block: nn.Module, args: tuple, out: Tensor) -> Tensor:
        terms = args[0].abs() + parts["self_attn"].abs() + parts["mlp"].abs()
        return out + times * 4 * EPS * terms

    blocks(hf)[1].register_forward_hook(deviate)
    if not refused:
        assert wrap(hf).n_layers == 3
        return
    with pytest.raises(UserError, match="resid_pre \\+ attn_out \\+ mlp_out against resid_post at layer 1 differs by"):
        wrap(hf)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    hf = tiny_hf("llama")
    attention = blocks(hf)[0].self_attn
    attention.register_forward_hook(lambda _m, _a, out: (out[0] + 1e-4 * out[0].mean(1, keepdim=True), *out[1:]))
    with pytest.raises(UserError, match="at attn_out.0 tokens see later ones"):
        wrap(hf)


def test_a_part_without_its_stream_site_is_still_refused_whole() -> None:
    hf = tiny_hf("llama")
    blocks(hf)[1].self_attn.register_forward_hook(lambda _m, _a, out: (out[0][..., :16].repeat(1, 1, 2), *out[1:]))
    lm = wrap(hf)  # an attention that halves and repeats is an attention all the same, but for its heads
    assert set(lm.structure.refused) == {Site("attn_z", 1)}
    blocks(hf)[0].mlp.register_forward_hook(lambda _m, _a, out: out[:, :1])
    with pytest.raises(UserError, match="architecture llama is not one monolex can read: mlp_out.0 has shape"):
        wrap(hf)
