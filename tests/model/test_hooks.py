"""Identities of capture, edit and run_from on a tiny model of every architecture, in float64 unless said otherwise."""

from collections.abc import Iterator

import pytest
import torch
from helpers.tiny import ARCHITECTURES, all_sites, close, full, model, read, tiny, tiny_hf, tokens
from torch import Tensor, nn

from monolex.errors import UserError
from monolex.model.hooks import capture, edit, logits, run_from
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap
from monolex.model.sites import Site, SiteError

SERIAL = tuple(name for name in ARCHITECTURES if name != "gpt_neox")


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest) -> Iterator[LanguageModel]:
    """The model of each architecture, checked to be as it was when the test is over."""
    shared = model(request.param)
    before = state(shared)
    yield shared
    assert state(shared) == before


def state(lm: LanguageModel) -> list[tuple]:
    """Everything about a model that an analysis could leave changed, but for the weights' values."""
    modules = [
        (name, id(m), m.training, list(m._forward_hooks), list(m._forward_pre_hooks), "forward" in vars(m))
        for name, m in lm.hf.named_modules()
    ]
    return modules + [(name, p.requires_grad, p.grad is None, p.dtype) for name, p in lm.hf.named_parameters()]


# Capture


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_residual_stream_is_what_hugging_face_calls_hidden_states(architecture: str) -> None:
    lm, ids = tiny(architecture, double=True), tokens()  # its own model: output_hidden_states leaves hooks behind
    with torch.no_grad():
        hidden = lm.hf(ids, output_hidden_states=True, use_cache=False).hidden_states
    seen = capture(lm, ids, [f"resid_pre.{layer}" for layer in range(3)] + ["resid_post.2"]).activations
    for layer in range(3):
        assert torch.equal(seen[f"resid_pre.{layer}"], hidden[layer])
    assert torch.equal(lm.final_norm(seen["resid_post.2"]), hidden[3])


def test_the_stream_adds_up_and_the_parts_make_the_contributions(lm: LanguageModel) -> None:
    seen = capture(lm, tokens(), all_sites(lm)).activations
    for layer in range(3):
        at = {kind: seen[f"{kind}.{layer}"] for kind in lm.structure.places[layer]}
        assert close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"], 1e-13)
        if "resid_mid" in at:
            assert close(at["resid_pre"] + at["attn_out"], at["resid_mid"], 1e-13)
        for inner, outer in (("mlp_in", "mlp_out"), ("mlp_act", "mlp_out"), ("attn_z", "attn_out")):
            contribution = at[inner]
            for module in lm.place(Site(inner, layer)).through:
                contribution = module(contribution)
            assert close(contribution, at[outer])


def test_mlp_act_is_the_nonlinearity_of_the_mlp_input() -> None:
    lm, ids = model("llama"), tokens()
    seen = capture(lm, ids, ["mlp_in.1", "mlp_act.1"]).activations
    mlp = lm.structure.blocks[1].mlp
    assert close(nn.functional.silu(mlp.gate_proj(seen["mlp_in.1"])) * mlp.up_proj(seen["mlp_in.1"]), seen["mlp_act.1"])


def test_logits_come_with_a_capture_only_if_asked_for(lm: LanguageModel) -> None:
    ids = tokens()
    with torch.no_grad():
        expected = lm.hf(ids, use_cache=False).logits
    with_logits = capture(lm, ids, ["resid_post.0"], logits=True)
    assert torch.equal(full(with_logits), expected)
    assert torch.equal(logits(lm, ids), expected)
    without = capture(lm, ids, ["resid_post.0"])
    assert without.logits is None
    assert torch.equal(without.activations["resid_post.0"], with_logits.activations["resid_post.0"])


def test_sites_come_in_the_order_asked_for_and_once(lm: LanguageModel) -> None:
    names = ["mlp_out.1", "resid_pre.0", "mlp_out.1"]
    assert list(capture(lm, tokens(), names).activations) == ["mlp_out.1", "resid_pre.0"]


@pytest.mark.parametrize(
    ("site", "finished"), [("resid_pre.1", [1, 0, 0]), ("mlp_act.1", [1, 0, 0]), ("resid_post.1", [1, 1, 0])]
)
def test_the_forward_stops_after_the_deepest_site(lm: LanguageModel, site: str, finished: list[int]) -> None:
    counts = [0, 0, 0, 0]

    def count(index: int) -> None:
        counts[index] += 1

    watched = [*lm.structure.blocks, lm.final_norm]
    handles = [m.register_forward_hook(lambda *_, i=i: count(i)) for i, m in enumerate(watched)]
    capture(lm, tokens(), ["resid_pre.0", site])
    for handle in handles:
        handle.remove()
    assert counts == [*finished, 0]


def test_captured_tensors_are_free_of_the_graph_unless_asked(lm: LanguageModel) -> None:
    ids = tokens()
    assert not read(lm, "resid_post.1", ids).requires_grad
    kept = capture(lm, ids, ["resid_post.0", "resid_post.1"], grad=True).activations
    (gradient,) = torch.autograd.grad(kept["resid_post.1"][:, 4].sum(), kept["resid_post.0"])
    assert gradient[:, :5].abs().sum() > 0
    assert torch.equal(gradient[:, 5:], torch.zeros_like(gradient[:, 5:]))


def test_a_gradient_does_not_depend_on_later_tokens(lm: LanguageModel) -> None:
    def gradient(ids: Tensor) -> Tensor:
        kept = capture(lm, ids, ["resid_post.0"], logits=True, grad=True)
        return torch.autograd.grad(full(kept)[:, 4].logsumexp(-1).sum(), kept.activations["resid_post.0"])[0][:, :5]

    ids = tokens()
    other = torch.cat([ids[:, :5], tokens(seed=1)[:, 5:]], dim=1)
    assert close(gradient(other), gradient(ids), 1e-13)


def test_a_row_does_not_depend_on_its_batch_or_on_padding_to_its_right(lm: LanguageModel) -> None:
    ids = tokens(batch=3)
    together = capture(lm, ids, all_sites(lm), logits=True)
    alone = capture(lm, ids[1:2, :7], all_sites(lm), logits=True)
    assert close(full(alone), full(together)[1:2, :7])
    for name, x in alone.activations.items():
        assert close(x, together.activations[name][1:2, :7])


def test_dropout_is_off_inside_and_the_training_flags_come_back() -> None:
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    reference, hf = tiny("gpt2", **dropout), tiny_hf("gpt2", **dropout)
    hf.train()
    hf.transformer.h[1].eval()
    lm = wrap(hf)
    before, ids = state(lm), tokens()
    assert sum(m.training for m in hf.modules()) > 3
    assert torch.equal(logits(lm, ids), logits(reference, ids))
    assert torch.equal(read(lm, "mlp_out.2", ids), read(reference, "mlp_out.2", ids))
    assert state(lm) == before


# Edits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edits_that_change_nothing_are_bit_exact(architecture: str, dtype: torch.dtype) -> None:
    lm, ids = wrap(tiny_hf(architecture).to(dtype)), tokens()
    expected = logits(lm, ids)
    assert torch.equal(logits(lm, ids, {}), expected)
    for same in (lambda x: x, torch.clone, lambda x: x + torch.zeros_like(x)):
        assert torch.equal(logits(lm, ids, dict.fromkeys(all_sites(lm), same)), expected)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [(name, kind) for name in ARCHITECTURES for kind in ("resid_pre", "resid_post", "mlp_out", "attn_out")]
    + [(name, "resid_mid") for name in SERIAL],
)
def test_what_is_added_to_the_stream_stays_in_it(architecture: str, kind: str) -> None:
    lm = model(architecture)
    ids, v = tokens(), torch.linspace(-1, 1, 32, dtype=torch.float64)
    with edit(lm, {f"{kind}.1": lambda x: x + v}):
        seen = capture(lm, ids, all_sites(lm)).activations
    plain = capture(lm, ids, all_sites(lm)).activations
    assert close(seen[f"{kind}.1"], plain[f"{kind}.1"] + v)
    added = seen["attn_out.1"] + seen["mlp_out.1"] + seen["resid_pre.1"]
    outside = v if kind in ("resid_post", "resid_mid") else torch.zeros_like(v)
    assert close(seen["resid_post.1"], added + outside)
    assert torch.equal(seen["resid_pre.2"], seen["resid_post.1"])
    assert torch.equal(seen["resid_post.0"], plain["resid_post.0"])


@pytest.mark.parametrize("architecture", SERIAL)
def test_replacing_resid_mid_replaces_both_what_the_mlp_reads_and_what_skips_it(architecture: str) -> None:
    lm = model(architecture)
    fixed = torch.randn(2, 10, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for seed in (0, 1):
        with edit(lm, {"resid_mid.1": lambda _: fixed}):
            seen = capture(lm, tokens(seed=seed), ["resid_mid.1", "mlp_out.1", "resid_post.1"]).activations
        assert torch.equal(seen["resid_mid.1"], fixed)
        assert close(seen["resid_post.1"], fixed + seen["mlp_out.1"])
        results.append(seen["resid_post.1"])
    assert close(results[0], results[1])


@pytest.mark.parametrize("kind", ["mlp_in", "mlp_act", "attn_z"])
def test_an_edit_inside_a_part_changes_its_contribution_only(lm: LanguageModel, kind: str) -> None:
    ids, part = tokens(), "attn_out" if kind == "attn_z" else "mlp_out"
    before = capture(lm, ids, ["resid_pre.1", f"{part}.1"]).activations
    with edit(lm, {f"{kind}.1": torch.zeros_like}):
        after = capture(lm, ids, ["resid_pre.1", f"{kind}.1", f"{part}.1"]).activations
    assert not after[f"{kind}.1"].any()
    assert torch.equal(after["resid_pre.1"], before["resid_pre.1"])
    assert not close(after[f"{part}.1"], before[f"{part}.1"], 1e-6)


def test_copying_a_donors_stream_gives_the_donors_logits(lm: LanguageModel) -> None:
    base, donor = tokens(), tokens(seed=1)
    x = read(lm, "resid_post.1", donor)
    assert torch.equal(logits(lm, base, {"resid_post.1": lambda _: x}), logits(lm, donor))


def test_nested_edits_compose_from_the_outside_in(lm: LanguageModel) -> None:
    ids, site = tokens(), "resid_post.0"
    x = read(lm, site, ids)
    with edit(lm, {site: lambda x: x + 1}), edit(lm, {site: lambda x: 2 * x}):
        assert torch.equal(read(lm, site, ids), 2 * (x + 1))
    assert torch.equal(read(lm, site, ids), x)


def test_nested_edits_of_resid_mid_compose() -> None:
    lm, ids = model("llama"), tokens()
    with edit(lm, {"resid_mid.1": lambda x: x + 1}), edit(lm, {"resid_mid.1": lambda x: 2 * x}):
        seen = capture(lm, ids, ["resid_mid.1", "mlp_out.1", "resid_post.1"]).activations
    assert torch.equal(seen["resid_mid.1"], 2 * (read(lm, "resid_mid.1", ids) + 1))
    assert close(seen["resid_post.1"], seen["resid_mid.1"] + seen["mlp_out.1"])


@pytest.mark.parametrize("inner", ["resid_post", "mlp_out", "attn_out", "resid_pre"])
@pytest.mark.parametrize("architecture", SERIAL)
def test_two_edits_at_one_layer_do_not_depend_on_their_order(architecture: str, inner: str) -> None:
    """What an edit of resid_mid adds has reached the block's end when an edit there reads it."""
    lm, ids, v = model(architecture), tokens(), torch.linspace(-1, 1, 32, dtype=torch.float64)
    one, other = {"resid_mid.1": lambda x: x + v}, {f"{inner}.1": lambda x: x * x}
    orders = []
    for edits in ({**one, **other}, {**other, **one}):
        with edit(lm, edits):
            orders.append(capture(lm, ids, all_sites(lm), logits=True))
    for name, x in orders[0].activations.items():
        assert torch.equal(x, orders[1].activations[name])
    assert torch.equal(full(orders[0]), full(orders[1]))
    if inner == "resid_post":
        seen = capture(lm, ids, ["resid_pre.1", "attn_out.1"]).activations
        middle = seen["resid_pre.1"] + seen["attn_out.1"] + v
        with edit(lm, one):
            end = middle + read(lm, "mlp_out.1", ids)
        assert close(orders[0].activations["resid_post.1"], end * end, 1e-9)


def test_an_edit_is_seen_by_forwards_and_by_gradients_of_the_callers_own(lm: LanguageModel) -> None:
    ids, v = tokens(), torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with edit(lm, {"resid_post.1": lambda x: x + v}):
        out = lm.hf(ids, use_cache=False).logits
    (through_edit,) = torch.autograd.grad(out.logsumexp(-1).sum(), v)
    x = read(lm, "resid_pre.2", ids).requires_grad_()
    resumed = full(run_from(lm, 2, x, ids))
    (through_x,) = torch.autograd.grad(resumed.logsumexp(-1).sum(), x)
    assert close(through_edit, through_x.sum((0, 1)))


@pytest.mark.parametrize("use_cache", [True, False])
def test_edits_work_inside_generate(lm: LanguageModel, use_cache: bool) -> None:
    ids, lengths = tokens(batch=1, length=4), []

    def steer(x: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return x + 3 * torch.sin(torch.arange(32, dtype=x.dtype))

    def generate() -> list[int]:
        return lm.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, use_cache=use_cache
        )[0].tolist()

    expected = ids
    for _ in range(5):
        step = logits(lm, expected, {"resid_post.1": steer})[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, step], dim=1)
    lengths.clear()
    with edit(lm, {"resid_post.1": steer}):
        assert generate() == expected[0].tolist()
    assert lengths == ([4, 1, 1, 1, 1] if use_cache else [4, 5, 6, 7, 8])
    plain = generate()
    with edit(lm, {"resid_post.1": lambda x: x, "resid_pre.0": torch.clone}):
        assert generate() == plain


# Resuming in the middle


def test_resuming_anywhere_gives_the_full_forward(lm: LanguageModel) -> None:
    ids = tokens()
    seen = capture(lm, ids, all_sites(lm), logits=True)
    for layer in range(4):
        x = seen.activations[f"resid_pre.{layer}" if layer < 3 else "resid_post.2"]
        later = [site for site in all_sites(lm) if site.layer >= layer]
        resumed = run_from(lm, layer, x, ids, sites=later)
        assert torch.equal(full(resumed), full(seen))
        for name, activation in resumed.activations.items():
            assert torch.equal(activation, seen.activations[name])


def test_resuming_uses_x_and_not_the_tokens(lm: LanguageModel) -> None:
    base, donor = tokens(), tokens(seed=1)
    x = read(lm, "resid_pre.1", donor)
    assert torch.equal(full(run_from(lm, 1, x, base)), logits(lm, donor))


def test_resuming_skips_earlier_blocks_and_can_stop_early(lm: LanguageModel) -> None:
    ids, ran = tokens(), []
    x = read(lm, "resid_pre.1", ids)
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(lm.structure.blocks)]
    result = run_from(lm, 1, x, ids, sites=["resid_post.1"], logits=False)
    for handle in handles:
        handle.remove()
    assert ran == [1]
    assert result.logits is None
    assert torch.equal(result.activations["resid_post.1"], read(lm, "resid_post.1", ids))


def test_edits_apply_to_a_resumed_forward_on_top_of_x(lm: LanguageModel) -> None:
    ids = tokens()
    x = read(lm, "resid_pre.1", ids)
    edits = {"resid_pre.1": lambda x: 2 * x, "mlp_out.2": torch.zeros_like}
    expected = logits(lm, ids, edits)
    assert torch.equal(full(run_from(lm, 1, x, ids, edits=edits)), expected)
    with edit(lm, edits):
        assert torch.equal(full(run_from(lm, 1, x, ids)), expected)


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        (4, lambda x: x, "layer = 4"),
        (-1, lambda x: x, "layer = -1"),
        (1, lambda x: x[:, 1:], "give resid_pre.1"),
        (1, lambda x: x.float(), "give resid_pre.1"),
    ],
)
@pytest.mark.usefixtures("unchecked_arrays")
def test_resuming_with_nonsense_is_refused(layer: int, change, message: str) -> None:
    lm, ids = model("gpt_neox"), tokens()
    x = read(lm, "resid_pre.1", ids)
    with pytest.raises(UserError, match=message):
        run_from(lm, layer, change(x), ids)


def test_sites_before_the_resumed_layer_are_refused() -> None:
    lm, ids = model("gpt_neox"), tokens()
    x = read(lm, "resid_pre.1", ids)
    with pytest.raises(UserError, match="resid_post.0 lies before layer 1"):
        run_from(lm, 1, x, ids, sites=["resid_post.0"])
    with pytest.raises(UserError, match="mlp_out.0 lies before layer 1"):
        run_from(lm, 1, x, ids, edits={"mlp_out.0": torch.clone})
    with edit(lm, {"mlp_out.0": torch.clone}), pytest.raises(SiteError, match="mlp_out.0 fired 0 times"):
        run_from(lm, 1, x, ids)


# The caller's model


def broken(_: Tensor) -> Tensor:
    raise ZeroDivisionError


def test_exceptions_leave_the_model_as_it_was(lm: LanguageModel) -> None:
    before, ids = state(lm), tokens()
    x = read(lm, "resid_pre.2", ids)
    with pytest.raises(ZeroDivisionError):
        logits(lm, ids, {"mlp_act.1": broken})
    with pytest.raises(ZeroDivisionError):
        run_from(lm, 2, x, ids, edits={"mlp_act.2": broken})
    with pytest.raises(ZeroDivisionError), edit(lm, {"resid_post.0": torch.clone}):
        raise ZeroDivisionError
    with pytest.raises(UserError), edit(lm, {"resid_post.0": torch.clone, "resid_post.7": torch.clone}):
        pass
    with pytest.raises(UserError):
        capture(lm, ids, ["resid_post.0", "resid_post.7"])
    assert state(lm) == before


def test_hooks_of_others_keep_working_and_stay() -> None:
    lm, ids, calls = model("llama"), tokens(), []
    block = lm.structure.blocks[1]
    handle = block.register_forward_hook(lambda *_: calls.append("forward"))
    pre = block.register_forward_pre_hook(lambda *_: calls.append("pre"))
    capture(lm, ids, ["resid_pre.1", "resid_post.1"])
    with edit(lm, {"resid_post.1": torch.clone}):
        logits(lm, ids)
    assert calls == ["pre", "forward", "pre", "forward"]
    assert handle.id in block._forward_hooks
    assert pre.id in block._forward_pre_hooks
    handle.remove()
    pre.remove()


def test_frozen_parameters_stay_frozen() -> None:
    hf = tiny_hf("qwen3")
    for index, parameter in enumerate(hf.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    flags = [p.requires_grad for p in hf.parameters()]
    lm, ids = wrap(hf), tokens()
    x = read(lm, "resid_pre.1", ids).requires_grad_()
    torch.autograd.grad(full(run_from(lm, 1, x, ids)).sum(), x)
    assert [p.requires_grad for p in hf.parameters()] == flags
    assert all(p.grad is None for p in hf.parameters())
