"""Fidelity: exact replacements change nothing, resuming equals editing, and document sums equal naive ones."""

import math

import pytest
import torch
from helpers.document_rows import constant, identity, make, noise, rotation
from helpers.tiny import VOCAB, tiny
from torch.nn import functional as F

from monolex.activations.rule import RowRule
from monolex.config import EvalConfig
from monolex.evals import fidelity as module
from monolex.evals.fidelity import (
    CLEAN,
    LEAST_EFFECT,
    MEAN,
    REFERENCES,
    ZERO,
    Fidelity,
    fidelity,
    loss_recovered,
    metrics,
    perplexity,
    replaced_logits,
)
from monolex.model import hooks
from monolex.model.sites import Site
from monolex.stats import Estimate
from monolex.text.rows import Rows

CONFIG = EvalConfig(resamples=100)
D, CONTEXT = 32, 10
SITES = ("resid_pre.0", "resid_pre.1", "resid_post.1", "resid_post.2", "mlp_out.1", "attn_z.0", "mlp_act.1")


@pytest.fixture(scope="module")
def lm():
    return tiny("gpt_neox")


def text(n: int = 5) -> Rows:
    """Packed rows of random tokens whose documents end within rows."""
    tokens = torch.randint(VOCAB, (n, CONTEXT), generator=torch.Generator().manual_seed(0))
    docs = torch.arange(n * CONTEXT).div(14, rounding_mode="floor").view(n, CONTEXT)
    return Rows(tokens.int(), docs.int(), torch.ones(n, CONTEXT, dtype=torch.bool))


def own_text(lm, n: int = 5) -> Rows:
    """Like :func:`text`, but each token is the one the model thinks likeliest: ablations then cost it something."""
    rows = text(n)
    for t in range(1, CONTEXT):
        rows.tokens[:, t] = hooks.logits(lm, rows.tokens[:, :t])[:, -1].argmax(-1)
    return rows


def activations(lm, site: str, rows: Rows) -> torch.Tensor:
    return hooks.capture(lm, rows.tokens, [site]).activations[site]


def mean_of(lm, site: str, rows: Rows) -> torch.Tensor:
    return activations(lm, site, rows).flatten(0, 1).mean(0)


@pytest.mark.parametrize("site", SITES)
def test_identity_is_bit_exact_and_rotation_nearly(lm, site):
    rows, width = own_text(lm), lm.width(site)
    exact = {"identity": identity(width), "rotation": rotation(width)}
    found = fidelity(lm, site, exact, rows, mean_of(lm, site, rows), batch=2)
    same, turned = (metrics(found, name, CONFIG) for name in exact)
    assert torch.equal(found.loss["identity"], found.loss[CLEAN])
    assert not found.divergence["identity"].any()
    assert same["loss_recovered_zero"].value == same["loss_recovered_mean"].value == 1
    assert turned["kl"].value == pytest.approx(0, abs=1e-6)
    assert turned["loss_recovered_zero"].value == pytest.approx(1, abs=1e-4)
    assert found.divergence[ZERO].sum() > 0


@pytest.mark.parametrize(
    "site", ["resid_pre.0", "resid_pre.2", "resid_post.0", "resid_post.2", "mlp_out.2", "attn_z.1"]
)
def test_resuming_equals_editing(lm, site):
    rows = text()
    x = activations(lm, site, rows)
    x = x + 0.3 * noise(*x.shape)
    before = activations(lm, f"resid_pre.{Site.parse(site).layer}", rows)
    edited = hooks.logits(lm, rows.tokens, {site: lambda _: x})
    resumed = replaced_logits(lm, Site.parse(site), rows.tokens, x, before)
    torch.testing.assert_close(resumed, edited, rtol=0, atol=1e-6)


def test_ablations_are_dictionaries_that_never_fire(lm):
    rows, site = own_text(lm), "resid_post.1"
    mean = mean_of(lm, site, rows)
    fakes = {"zero": constant(D, torch.zeros(D)), "mean": constant(D, mean)}
    found = fidelity(lm, site, fakes, rows, mean)
    assert torch.equal(found.loss["zero"], found.loss[ZERO])
    assert torch.equal(found.loss["mean"], found.loss[MEAN])
    assert metrics(found, "zero", CONFIG)["loss_recovered_zero"].value == 0
    assert metrics(found, "mean", CONFIG)["loss_recovered_mean"].value == 0


def test_sums_by_document_equal_naive_ones(lm):
    rows, site = text(), "resid_post.0"
    dictionary = make(noise(40, D, seed=1), noise(40, D, seed=2), b_enc=noise(40, seed=3))
    found = fidelity(lm, site, {"sae": dictionary}, rows, torch.zeros(D), batch=3)

    def replace(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1], dictionary.reconstruct(x[:, 1:])], 1)

    log_p = hooks.logits(lm, rows.tokens).double().log_softmax(-1)
    log_q = hooks.logits(lm, rows.tokens, {site: replace}).double().log_softmax(-1)
    for number, document in enumerate(rows.docs.unique().tolist()):
        loss = divergence = count = 0.0
        for row in range(len(rows)):
            for t in range(1, CONTEXT - 1):
                if rows.docs[row, t] == document:
                    count += 1
                    loss -= log_q[row, t, rows.tokens[row, t + 1]].item()
                    divergence += F.kl_div(log_q[row, t], log_p[row, t], reduction="sum", log_target=True).item()
        assert found.predictions[number] == count
        assert found.loss["sae"][number].item() == pytest.approx(loss, rel=1e-5)
        assert found.divergence["sae"][number].item() == pytest.approx(divergence, rel=1e-4)


def test_first_position_keeps_its_activation(lm):
    rows, seen = text(), []

    class Spy:
        d_sae, W_enc = 4, torch.zeros(4, D)

        def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.full_like(x, 5.0)

    written = []
    original = hooks.run_from

    def record(lm, layer, x, tokens, mask):
        written.append(x)
        return original(lm, layer, x, tokens, mask=mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "run_from", record)
        fidelity(lm, "resid_post.1", {"spy": Spy()}, rows, torch.zeros(D), batch=len(rows))
    x = activations(lm, "resid_post.1", rows)
    assert len(written) == 3
    assert all(torch.equal(replaced[:, 0], x[:, 0]) for replaced in written)
    assert (written[-1][:, 1:] == 5).all()
    assert torch.equal(torch.cat(seen), x[:, 1:].flatten(0, 1))


def test_tokens_that_do_not_count_keep_their_activation_and_are_counted(lm):
    """Separators and outliers are left as the first position is, by the very logits that this gives."""
    rows, site, zero = own_text(lm), "resid_post.1", torch.zeros(D)
    x = activations(lm, site, rows)
    rule = RowRule(int(rows.tokens[0, 4]), float(x.norm(dim=-1)[:, 1:].quantile(0.8)))
    counts = rule.counts(rows.tokens, x)
    spared = int((~counts[:, 1:]).sum())
    assert spared > int((x.norm(dim=-1)[:, 1:] > rule.limit).sum()) > 0
    counts[:, 0] = False
    log_q = hooks.logits(lm, rows.tokens, {site: lambda x: torch.where(counts[..., None], 0.0, x)}).log_softmax(-1)
    loss = -log_q[:, 1:-1].gather(2, rows.tokens[:, 2:, None].long()).double().sum().item()
    found = fidelity(lm, site, {"zero": constant(D, zero)}, rows, zero, rule=rule, batch=2)
    assert found.loss["zero"].sum().item() == found.loss[ZERO].sum().item() == pytest.approx(loss, rel=1e-5)
    assert loss < 0.99 * fidelity(lm, site, {}, rows, zero).loss[ZERO].sum().item()
    assert (found.spared, found.positions) == (spared, rows.tokens[:, 1:].numel())


def test_clean_row_is_the_model_s_own_loss(lm):
    rows = text()
    found = fidelity(lm, "resid_post.1", {}, rows, torch.zeros(D))
    log_p = hooks.logits(lm, rows.tokens)[:, 1:-1].log_softmax(-1)
    loss = F.nll_loss(log_p.flatten(0, 1), rows.tokens[:, 2:].flatten().long())
    clean = metrics(found, CLEAN, CONFIG)
    assert clean["ce"].value == pytest.approx(loss.item(), rel=1e-6)
    assert clean["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-5)
    assert clean["kl"].value == clean["ce_added"].value == 0
    for name in REFERENCES:
        assert "reference" in metrics(found, name, CONFIG)["loss_recovered_zero"].reason


def test_batches_and_blocks_do_not_matter(lm, monkeypatch):
    rows, dictionary, shares = text(), make(noise(40, D)), []
    whole = fidelity(lm, "mlp_out.1", {"sae": dictionary}, rows, torch.zeros(D), batch=100)
    monkeypatch.setattr("monolex.evals.reconstruction.CODES_AT_ONCE", 50)
    parts = fidelity(lm, "mlp_out.1", {"sae": dictionary}, rows, torch.zeros(D), batch=2, advance=shares.append)
    assert sum(shares) == pytest.approx(1)
    assert torch.equal(whole.predictions, parts.predictions)
    for name in whole.loss:
        torch.testing.assert_close(whole.loss[name], parts.loss[name], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(whole.divergence[name], parts.divergence[name], rtol=1e-3, atol=1e-5)


def test_left_out_positions_and_padding_are_not_counted(lm):
    rows = text(2)
    docs, keep = rows.docs.clone(), rows.keep.clone()
    keep[0, 3] = False
    docs[1, 6:], keep[1, 6:] = -1, False
    found = fidelity(lm, "resid_post.1", {}, Rows(rows.tokens, docs, keep), torch.zeros(D))
    assert found.predictions.sum() == (CONTEXT - 2 - 1) + 4
    assert (found.predictions > 0).all()


def test_two_tokens_leave_nothing_to_predict(lm):
    rows = Rows(*(t[:, :2] for t in (text().tokens, text().docs, text().keep)))
    ce = metrics(fidelity(lm, "resid_post.1", {}, rows, torch.zeros(D)), ZERO, CONFIG)["ce"]
    assert ce.value is None
    assert ce.reason == "no data"


def test_low_precision_models_are_measured():
    lm = tiny("llama")
    lm.hf.to(torch.bfloat16)
    found = fidelity(lm, "resid_post.1", {"identity": identity(D)}, text(), torch.zeros(D))
    assert not found.divergence["identity"].any()
    assert found.loss[CLEAN].dtype == torch.float64


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text"])
def test_other_architectures(architecture):
    lm = tiny(architecture)
    for site in ("resid_post.1", "mlp_out.0"):
        found = fidelity(lm, site, {"identity": identity(D)}, text(2), torch.zeros(D))
        assert torch.equal(found.loss["identity"], found.loss[CLEAN])


def sums(**loss: float) -> Fidelity:
    """Two documents of ten predictions with these mean losses."""
    return Fidelity(torch.full((2,), 10.0), {n: torch.full((2,), 10 * v) for n, v in loss.items()}, {}, 20, 0)


def test_loss_recovered():
    found = sums(**{CLEAN: 3.0, ZERO: 8.0, MEAN: 5.0, "sae": 4.0, "worse": 10.0})
    assert loss_recovered(found, "sae", ZERO, CONFIG).value == pytest.approx(0.8)
    assert loss_recovered(found, "sae", MEAN, CONFIG).value == pytest.approx(0.5)
    assert loss_recovered(found, "worse", ZERO, CONFIG).value == pytest.approx(-0.4)
    assert loss_recovered(found, "sae", ZERO, CONFIG).over == "documents"


@pytest.mark.parametrize("effect", [0.0, -0.5, LEAST_EFFECT / 2])
def test_a_model_at_chance_has_no_loss_recovered(effect):
    found = loss_recovered(sums(**{CLEAN: 4.6, ZERO: 4.6 + effect, "sae": 4.6}), "sae", ZERO, CONFIG)
    assert found.value is None
    assert "the model itself is at chance" in found.reason


def test_non_finite_losses_are_named():
    found = sums(**{CLEAN: 3.0, ZERO: math.nan, MEAN: 5.0, "sae": 4.0})._replace(
        divergence={"sae": torch.tensor([math.inf, 1])}
    )
    numbers = metrics(found, "sae", CONFIG)
    assert numbers["loss_recovered_zero"].reason == numbers["kl"].reason == "not finite"
    assert numbers["loss_recovered_mean"].value == pytest.approx(0.5)


def test_perplexity():
    assert perplexity(Estimate(2.0, 1.0, 3.0, 5, "documents")) == Estimate(
        math.exp(2), math.exp(1), math.exp(3), 5, "documents"
    )
    assert "beyond" in perplexity(Estimate(800.0, 700.0, 900.0, 5, "documents")).reason
    nothing = Estimate(None, reason="no data")
    assert perplexity(nothing) is nothing


def test_a_dictionary_may_not_be_called_like_a_reference(lm):
    with pytest.raises(AssertionError, match="zero-ablation"):
        fidelity(lm, "resid_post.1", {module.ZERO: identity(D)}, text(), torch.zeros(D))
