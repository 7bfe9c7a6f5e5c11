"""What hooks refuse: sites that do not do what they promise, edits and tokens that make no sense, unknown outputs."""

import pytest
import torch
from helpers.tiny import model, tokens
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from monolex.errors import UserError
from monolex.model.hooks import capture, logits, run_from, watch
from monolex.model.sites import Place, SiteError

# Sites that do not do what they promise


def test_a_site_that_fires_twice_is_an_error() -> None:
    lm, ids = model("llama"), tokens()

    def run_the_mlp(block: nn.Module, args: tuple) -> None:
        block.mlp(args[0])

    again = lm.structure.blocks[0].register_forward_pre_hook(run_the_mlp)
    try:
        with pytest.raises(SiteError, match="mlp_out.0 fired twice"):
            capture(lm, ids, ["mlp_out.0"], logits=True)
        with pytest.raises(SiteError, match="mlp_out.0 fired 2 times"):
            logits(lm, ids, {"mlp_out.0": torch.clone})
    finally:
        again.remove()


def test_a_site_that_does_not_fire_is_an_error() -> None:
    lm, ids = model("llama"), tokens()
    block = lm.structure.blocks[1]
    block.mlp.forward = lambda x: x
    try:
        with pytest.raises(SiteError, match="mlp_act.1 did not fire"):
            capture(lm, ids, ["resid_post.0", "mlp_act.1"])
        with pytest.raises(SiteError, match="mlp_act.1 fired 0 times"):
            logits(lm, ids, {"mlp_act.1": torch.clone})
    finally:
        del block.mlp.forward


def test_a_site_of_another_shape_is_an_error() -> None:
    lm, ids = model("llama"), tokens()
    handle = lm.structure.blocks[1].mlp.register_forward_hook(lambda _module, _args, out: out[..., :16])
    try:
        with pytest.raises(SiteError, match=r"mlp_out.1 has shape \[2, 10, 16\] instead of \[2, 10, 32\]"):
            capture(lm, ids, ["mlp_out.1"])
        with pytest.raises(SiteError, match="mlp_out.1 has shape"):
            logits(lm, ids, {"mlp_out.1": torch.clone})
    finally:
        handle.remove()


@pytest.mark.parametrize("fn", [lambda x: x[:, :1], lambda x: x.float(), lambda _: None])
def test_an_edit_that_returns_something_else_is_refused(fn) -> None:
    with pytest.raises(UserError, match="the edit of resid_post.1 returned"):
        logits(model("gpt_neox"), tokens(), {"resid_post.1": fn})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(5, dtype=torch.long), "token ids as integers"),
        (torch.zeros(1, 5), "token ids as integers"),
        (torch.zeros(1, 0, dtype=torch.long), "token ids as integers"),
        (torch.zeros(1, 65, dtype=torch.long), "65 positions: .* at most 64"),
    ],
)
@pytest.mark.usefixtures("unchecked_arrays")
def test_tokens_the_model_cannot_take_are_refused(ids: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        capture(model("gpt2"), ids, ["resid_post.0"])


def test_capturing_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="sites is empty"):
        capture(model("gpt2"), tokens(), [])


# Modules may return a Tensor, a tuple or a ModelOutput


class Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, hidden_states: Tensor) -> object:
        if self.kind == "tuple":
            return hidden_states, "weights"
        if self.kind == "output":
            return BaseModelOutput(last_hidden_state=hidden_states, attentions=())
        return hidden_states if self.kind == "tensor" else {"x": hidden_states}


@pytest.mark.parametrize("kind", ["tensor", "tuple", "output"])
def test_an_edit_keeps_the_type_a_module_returns(kind: str) -> None:
    module, x = Returns(kind), torch.ones(1, 2, 3)
    handle = watch(Place(module, "output", 3), lambda x: x + 1)
    changed = module(x)
    handle.remove()
    plain = module(x)
    assert type(changed) is type(plain)
    first = (lambda out: out) if kind == "tensor" else (lambda out: out[0])
    assert torch.equal(first(changed), first(plain) + 1)
    if kind == "tuple":
        assert changed[1] == "weights"


@pytest.mark.parametrize("kind", ["tensor", "tuple", "output"])
def test_gradients_pass_through_an_edit_whatever_a_module_returns(kind: str) -> None:
    module, x = Returns(kind), torch.ones(1, 2, 3, requires_grad=True)
    added = torch.zeros(3, requires_grad=True)
    handle = watch(Place(module, "output", 3), lambda x: 2 * x + added)
    changed = module(x)
    handle.remove()
    first = changed if kind == "tensor" else changed[0]
    of_x, of_added = torch.autograd.grad(first.sum(), (x, added))
    assert torch.equal(of_x, torch.full_like(x, 2)) and torch.equal(of_added, torch.full_like(added, 2))


def test_a_module_that_returns_something_unknown_is_an_error() -> None:
    module = Returns("dict")
    watch(Place(module, "output", 3), torch.clone)
    with pytest.raises(SiteError, match="returned dict"):
        module(torch.ones(1, 2, 3))


def test_inputs_are_edited_whether_given_by_position_or_by_name() -> None:
    module, x = Returns("tensor"), torch.ones(1, 2, 3)
    watch(Place(module, "input", 3), lambda x: x + 1)
    assert torch.equal(module(x), x + 1)
    assert torch.equal(module(hidden_states=x), x + 1)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
@pytest.mark.parametrize("wrong", [101, -1])
def test_a_token_without_an_embedding_row_is_refused(architecture: str, wrong: int) -> None:
    lm = model(architecture)
    with pytest.raises(
        UserError, match=rf"token id {wrong} has no row in the embedding of tiny-.*, which has 0 to 100"
    ):
        capture(lm, torch.tensor([[5, wrong, 7]]), ["resid_post.0"])
    with pytest.raises(UserError, match=f"token id {wrong} has no row"):
        run_from(lm, 1, torch.zeros(1, 3, 32, dtype=torch.float64), torch.tensor([[5, wrong, 7]]))
