"""Ablation: equal to one full forward an occurrence, controls of equal size, and truths that were wired in by hand."""

import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import random_pairs, tiny
from helpers.ablations import IDS, MEAN, Case, add, case, occurring, over_documents, same_numbers
from helpers.tiny_harvests import make_lm
from helpers.wired import directions, wired
from scipy.stats import kstest, ttest_1samp
from torch import Tensor

from monolex import stats
from monolex.causal import edits
from monolex.causal.ablate.ablation import measure_effects
from monolex.causal.ablate.controls import batches, draws
from monolex.causal.ablate.interactions import interactions
from monolex.causal.ablate.records import Ablation
from monolex.causal.config import AblateConfig
from monolex.causal.occurrences import Occurrences
from monolex.causal.suffix import prepare
from monolex.dictionaries.base import Dictionary
from monolex.errors import UserError
from monolex.model import hooks
from monolex.model.language_model import LanguageModel

SITES = ("resid_post.0", "resid_post.2", "resid_pre.1", "mlp_out.1")


def at_rows(occurrences: Occurrences, rows: slice) -> Occurrences:
    return occurrences._replace(tokens=occurrences.tokens[rows], end=occurrences.end[rows], doc=occurrences.doc[rows])


class Naive(NamedTuple):
    total: Tensor
    direct: Tensor
    kl: Tensor


def naive(setup: Case, to: str = "zero", positions: str = "token") -> Naive:
    """One occurrence at a time, unpadded, through all layers: logits (base, ablated) and what follows from them."""
    lm, dictionary, feature, occurrences = setup
    site, last = dictionary.config.site, f"resid_post.{lm.n_layers - 1}"
    target = draws(occurrences, dictionary, AblateConfig(to=to)).target  # pyright: ignore[reportArgumentType]
    total, direct, divergence = [], [], []
    for row, end in enumerate(occurrences.end.tolist()):
        tokens = occurrences.tokens[row : row + 1, : end + 1]
        x = tiny.read(lm, site, tokens)
        active = dictionary.encode(x)[0, :, feature] > 0
        where = active if positions == "all" else active & (torch.arange(end + 1) == end)
        edit = edits.ablate(
            dictionary, [feature], to=target[row, : end + 1, None], positions=where.nonzero()[:, 0].tolist()
        )
        base, after = hooks.logits(lm, tokens)[0, -1], hooks.logits(lm, tokens, {site: edit.__call__})[0, -1]
        total.append(torch.stack([base, after]))
        p, q = base.log_softmax(-1), after.log_softmax(-1)
        divergence.append((p.exp() * (p - q)).sum())
        if site.startswith("resid"):
            moved = tiny.read(lm, last, tokens)
            moved = torch.cat([moved[:, :-1], moved[:, -1:] + (edit(x) - x)[:, -1:]], 1)
            direct.append(torch.stack([base, tiny.full(hooks.run_from(lm, lm.n_layers, moved, tokens))[0, -1]]))
    return Naive(torch.stack(total), torch.stack(direct) if direct else torch.empty(0), torch.stack(divergence))


def changed(logits: Tensor, measure: str) -> Tensor:
    """``[occurrences, vocab]`` of pairs of logits."""
    read = {
        "logit": logits,
        "centred": logits - logits.mean(-1, keepdim=True),
        "logprob": logits.log_softmax(-1),
        "probability": logits.softmax(-1),
    }[measure]
    return read[:, 1] - read[:, 0]


def by_token(ablation: Ablation, measure: str, field: str) -> Tensor:
    """What is said of every token, in order; all of them change in a random model."""
    listed = ablation.measures[measure].suppressed + ablation.measures[measure].promoted
    assert sorted(row.token for row in listed) == list(range(len(listed)))
    return torch.tensor([getattr(row, field) for row in sorted(listed)], dtype=torch.float64)


def check(setup: Case, **how) -> None:
    ablation, expected, doc = setup.run(**how), naive(setup, **how), setup.occurrences.doc
    for measure in ablation.measures:
        by = over_documents(changed(expected.total, measure), doc)
        assert tiny.close(by_token(ablation, measure, "change"), by.mean(0))
        half = 2.4469118511449692 * by.std(0) / len(by) ** 0.5  # the 97.5 % quantile of t with 6 degrees of freedom
        assert len(by) == 7
        assert tiny.close(by_token(ablation, measure, "low"), by.mean(0) - half)
        if len(expected.direct):
            direct = over_documents(changed(expected.direct, measure), doc).mean(0)
            assert tiny.close(by_token(ablation, measure, "direct"), direct)
    assert ablation.kl.feature.value == pytest.approx(float(over_documents(expected.kl, doc).mean()), abs=1e-12)


@pytest.mark.parametrize(
    ("architecture", "site"),
    # every site of two architectures, of the others one with layers behind it
    [(name, site) for name in tiny.EDITED for site in (SITES if name in ("gpt_neox", "gemma3_text") else SITES[:1])],
)
def test_the_fast_path_is_the_naive_one(architecture, site):
    check(case(tiny.model(architecture), site))


@pytest.mark.parametrize("positions", ["token", "all"])
@pytest.mark.parametrize("to", ["zero", "mean", "resample"])
def test_what_the_activation_becomes_and_where(to, positions):
    check(case(tiny.model("gpt_neox"), "resid_post.0"), to=to, positions=positions)


@pytest.mark.parametrize("within", [1.0, 1.1, 1.5, 3.0, 1e9])
def test_controls_are_of_a_like_size_or_none(within):
    setup = case(tiny.model("gpt_neox-serial"), "resid_post.0")
    lm, dictionary, feature, occurrences = setup
    nearest = []
    for row, end in enumerate(occurrences.end.tolist()):
        x = tiny.read(lm, "resid_post.0", occurrences.tokens[row : row + 1, : end + 1])
        sizes = dictionary.encode(x)[0, -1] * dictionary.W_dec.norm(dim=1)
        ratios = [float(size / sizes[feature]) for other, size in enumerate(sizes) if size > 0 and other != feature]
        nearest.append([ratio for ratio in ratios if 1 / within <= ratio <= within])
    ablation = setup.run(control_within=within)
    assert ablation.without_control == sum(not ratios for ratios in nearest)
    assert ablation.control_within == within
    if all(not ratios for ratios in nearest):
        assert ablation.size_range is None and ablation.kl.control_feature.value is None
        return
    assert ablation.size_ratio is not None and ablation.size_range is not None
    low, high = ablation.size_range
    known = [ratio for ratios in nearest for ratio in ratios]
    assert 1 / within <= low <= ablation.size_ratio <= high <= within
    assert any(low == pytest.approx(ratio) for ratio in known) and any(high == pytest.approx(r) for r in known)


def test_other_kinds_of_codes_and_places():
    check(case(tiny.model("gpt_neox"), "resid_post.1", "topk"), positions="all")
    check(case(tiny.model("gpt2"), "resid_mid.1"))
    check(case(tiny.model("llama"), "mlp_act.1"))


@pytest.mark.parametrize("to", ["zero", "mean"])
def test_controls_are_matched_features_and_random_directions(to):
    """Each occurrence alone: rank the other active features by size, take the drawn one, scale it to the edit."""
    setup = case(tiny.model("gpt_neox-serial"), "resid_post.0")
    lm, dictionary, feature, occurrences = setup
    ablation = setup.run(to=to, control_within=1e9)
    drawn = draws(occurrences, dictionary, AblateConfig(to=to))
    losses, ratios, logits = [], [], []
    for row, end in enumerate(occurrences.end.tolist()):
        tokens = occurrences.tokens[row : row + 1, : end + 1]
        codes = dictionary.encode(tiny.read(lm, "resid_post.0", tokens))[0, -1]
        sizes = codes * dictionary.W_dec.norm(dim=1)
        others = [one for one in codes.nonzero()[:, 0].tolist() if one != feature]
        others.sort(key=lambda one: abs(float((sizes[one] / sizes[feature]).log())))
        chosen = others[int(drawn.control[row] * min(4, len(others)))]
        ratios.append(float(sizes[chosen] / sizes[feature]))
        amount = ((MEAN if to == "mean" else 0) - codes[feature]) * dictionary.W_dec[feature].norm()
        ways = (dictionary.directions()[chosen], drawn.direction[row])
        assert all(float(way.norm()) == pytest.approx(1) for way in ways)
        base, *after = (hooks.logits(lm, tokens, {"resid_post.0": add(amount * way)})[0, -1] for way in (0, *ways))
        p = base.log_softmax(-1)
        losses.append(torch.stack([(p.exp() * (p - one.log_softmax(-1))).sum() for one in after]))
        logits.append(torch.stack([base, after[0]]))
    kl = over_documents(torch.stack(losses), occurrences.doc).mean(0)
    assert ablation.kl.control_feature.value == pytest.approx(float(kl[0]), abs=1e-12)
    assert ablation.kl.control_direction.value == pytest.approx(float(kl[1]), abs=1e-12)
    assert ablation.size_ratio == pytest.approx(float(torch.tensor(ratios, dtype=torch.float64).nanmedian()))
    assert ablation.without_control == 0
    control = changed(torch.stack(logits), "logprob")
    assert tiny.close(by_token(ablation, "logprob", "control"), over_documents(control, occurrences.doc).mean(0))
    difference = over_documents(changed(naive(setup, to).total, "logprob") - control, occurrences.doc)
    p = stats.benjamini_hochberg(stats.paired(difference.numpy()))
    assert np.allclose(by_token(ablation, "logprob", "p").numpy(), p, rtol=1e-6)


@pytest.mark.parametrize(("to", "positions"), [("zero", "token"), ("resample", "all")])
def test_how_much_is_run_together_does_not_matter(to, positions):
    setup = case(tiny.model("qwen3"), "resid_post.0", ids=IDS[:5])
    one, all_ = (setup.run(to=to, positions=positions, batch_tokens=tokens).to_json() for tokens in (1, 10**6))
    flat_one, flat_all = json.dumps(one), json.dumps(all_)
    assert len(one["rescue"]) == 3 and len(one["interactions"]) == 8
    same_numbers(json.loads(flat_one), json.loads(flat_all))


def test_an_occurrence_alone_is_what_it_is_in_a_batch():
    setup = case(tiny.model("gemma3_text"), "resid_post.0")
    lm, dictionary, feature, occurrences = setup
    drawn = draws(occurrences, dictionary, AblateConfig())
    together = measure_effects(lm, dictionary, feature, occurrences, drawn, AblateConfig())
    order = torch.cat(together.rows).argsort()
    for row in (0, 5):
        part = slice(row, row + 1)
        there = type(drawn)(*(one[part] for one in drawn))
        alone = measure_effects(lm, dictionary, feature, at_rows(occurrences, part), there, AblateConfig())
        assert tiny.close(alone.divergence[0], torch.cat(together.divergence, 1)[:, order][:, part])
        assert tiny.close(alone.undone[0].lost, torch.cat([batch.lost for batch in together.undone])[order][part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positions", ["token", "all"])
@pytest.mark.parametrize("to", ["zero", "mean", "resample"])
def test_nothing_changes_where_the_feature_is_silent(dtype, positions, to):
    lm = tiny.tiny("gpt_neox", double=dtype == torch.float64)
    lm, dictionary, feature, occurrences = case(lm, "resid_post.0")
    codes = dictionary.encode(tiny.read(lm, "resid_post.0", occurrences.tokens))[..., feature]
    for row, end in enumerate(occurrences.end.tolist()):
        off = (codes[row, : end + 1] <= 0).nonzero()[:, 0]
        if row % 2 and len(off):
            occurrences.end[row] = off[0]
    config = AblateConfig(to=to, positions=positions, batch_tokens=10**6)
    target, quiet = draws(occurrences, dictionary, config).target, []
    for batch in batches(lm, dictionary, feature, occurrences, target, config):
        active = dictionary.encode_some(batch.suffix.x, torch.tensor([feature]))[..., 0] > 0
        assert not (batch.lengths[~active] != 0).any()
        assert not (batch.lengths[torch.arange(active.shape[1]) > batch.suffix.end[:, None]] != 0).any()
        base, after = batch.logits(batch.way.expand(1, len(batch.rows), -1))
        silent = ~(batch.lengths != 0).any(1)
        quiet += silent.tolist()
        assert torch.equal(base[silent], after[silent])
        assert (base[~silent] != after[~silent]).any(1).all()
    assert any(quiet) and not all(quiet)


def test_a_feature_that_is_silent_everywhere_changes_exactly_nothing_which_is_an_error():
    setup = case(tiny.model("gpt2"), "resid_post.0")
    setup.dictionary.weights["b_enc"][setup.feature] = -1e6
    config = AblateConfig()
    drawn = draws(setup.occurrences, setup.dictionary, config)
    effects = measure_effects(*setup, drawn, config)
    assert not torch.cat(effects.divergence, 1)[[0, 2]].any()
    assert effects.unmoved == len(setup.occurrences.end)
    assert not any(undone.lost.any() for undone in effects.undone)
    with pytest.raises(UserError, match=rf"to = 'zero' changes its site on none of {effects.unmoved} occurrences"):
        setup.run()


def test_direct_is_total_where_no_layer_follows():
    ablation = case(tiny.model("gpt_neox"), "resid_post.2").run()
    for measure in ablation.measures:
        assert tiny.close(by_token(ablation, measure, "change"), by_token(ablation, measure, "direct"))
    early = case(tiny.model("gpt_neox"), "resid_post.0").run()
    assert not tiny.close(by_token(early, "logit", "change"), by_token(early, "logit", "direct"), 1e-2)


def test_outside_the_residual_stream_there_is_no_direct_effect_and_no_rescue():
    ablation = case(tiny.model("gpt2"), "mlp_out.1").run()
    assert ablation.rescue == [] and all(one.direct is None for one in ablation.measures.values())
    assert {"direct", "rescue"} == set(ablation.reasons) and all(
        "mlp_out.1" in text for text in ablation.reasons.values()
    )


# --- models wired by hand


def gate(kind: str) -> tuple[LanguageModel, Dictionary]:
    """Feature 0 and 1 are on in every token; what the block writes to dimension 2 is read by token 4 alone."""
    into, bias, out = {
        "or": ([[10, 10], [10, 10]], [0, -1], [1, -1]),
        "and": ([[1, 1]], [-1], [1]),
        "sum": ([[1, 1]], [0], [1]),
    }[kind]
    read = torch.tensor(into, dtype=torch.float64)
    write = torch.zeros(3, len(out), dtype=torch.float64)
    write[2] = torch.tensor(out)
    embedding, unembedding = torch.zeros(6, 3, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.float64)
    embedding[:, :2] = 1
    unembedding[4, 2] = 1
    padded = torch.cat([read, torch.zeros(len(read), 1, dtype=torch.float64)], 1)
    lm = wired(embedding, unembedding, padded, torch.tensor(bias, dtype=torch.float64), write)
    return lm, directions(torch.eye(3, dtype=torch.float64)[:2], "resid_pre.0")


@pytest.mark.parametrize(("kind", "alone", "between"), [("or", 0, -1), ("and", -1, 1), ("sum", -1, 0)])
def test_gates(kind, alone, between):
    """Ablating one input of an OR gate does nothing, ablating both does; of an AND gate one is as good as both."""
    lm, dictionary = gate(kind)
    tokens = torch.tensor([[1, 2], [3, 0]])
    suffix = prepare(lm, "resid_pre.0", tokens, torch.tensor([1, 1]))
    deltas = -torch.eye(3, dtype=torch.float64)[:2, None, None].expand(2, 2, 2, 3)
    occurrences = interactions(suffix, deltas, lambda logits: logits[..., 4])
    expected = torch.tensor([[alone, between], [between, alone]], dtype=torch.float64)
    assert torch.equal(occurrences, expected[..., None].expand(2, 2, 2))
    code = torch.ones(4, 1, dtype=torch.float64)
    one = Case(lm, dictionary, 0, occurring(code, torch.arange(4)[:, None])).run(metric=lambda logits: logits[..., 4])
    (partner,) = one.interactions
    assert (partner.feature, partner.alone.value, partner.interaction.value) == (1, alone, between)
    assert partner.both.value == between + 2 * alone
    assert one.metric_token == ""


def test_interactions_are_the_naive_ones():
    lm, site = tiny.model("gpt_neox"), "resid_post.0"
    tokens = tiny.tokens(3, 6)
    suffix = prepare(lm, site, tokens, torch.tensor([5, 5, 5]))
    deltas = 0.3 * torch.randn(3, 3, 6, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(*chosen: int) -> Tensor:
        edit = deltas[list(chosen)].sum(0)
        return hooks.logits(lm, tokens, {site: lambda x: x + edit})[:, -1, 7]

    occurrences = interactions(suffix, deltas, lambda logits: logits[..., 7], batch_tokens=40)
    part = interactions(suffix, deltas, lambda logits: logits[..., 7], of=1)
    for i in range(3):
        assert tiny.close(occurrences[i, i], value(i) - value())
        for j in {0, 1, 2} - {i}:
            assert tiny.close(occurrences[i, j], value(i, j) - value(i) - value(j) + value())
            assert bool(part[i, j].isnan().all()) == (1 not in (i, j))
    assert tiny.close(part[1], occurrences[1])


def test_interactions_are_with_the_most_active_features_and_where_both_are_active():
    setup = case(tiny.model("gpt_neox"), "resid_post.1", "topk")
    lm, dictionary, feature, occurrences = setup
    ablation = setup.run()
    codes = dictionary.encode(tiny.read(lm, "resid_post.1", occurrences.tokens))[
        torch.arange(len(occurrences.end)), occurrences.end
    ]
    sizes = (codes * dictionary.W_dec.norm(dim=1)).sum(0)
    sizes[feature] = 0
    largest = sizes.argsort(descending=True)[: min(8, int((sizes > 0).sum()))].tolist()
    assert [one.feature for one in ablation.interactions] == largest
    token = int(by_token(ablation, "probability", "change").argmin())
    assert ablation.metric_token == str(token)
    plain: dict[int, float] = {}
    for one in ablation.interactions:
        rows = (codes[:, one.feature] > 0).nonzero()[:, 0].tolist()
        values = []
        for row in rows:
            end = int(occurrences.end[row])
            tokens = occurrences.tokens[row : row + 1, : end + 1]
            read = []
            for chosen in ([], [feature], [one.feature], [feature, one.feature]):
                edit = edits.ablate(dictionary, chosen, positions=[end])
                read.append(hooks.logits(lm, tokens, {"resid_post.1": edit.__call__})[0, -1].log_softmax(-1)[token])
            none, own, other, both = read
            values.append(torch.stack([other - none, both - none, both - own - other + none]))
        by = over_documents(torch.stack(values), occurrences.doc[rows])
        assert [one.alone.value, one.both.value, one.interaction.value] == pytest.approx(by.mean(0).tolist(), abs=1e-10)
        assert one.interaction.n == len(by)
        if len(by) > 2:
            plain[one.feature] = float(ttest_1samp(by[:, 2].numpy(), 0).pvalue)
    corrected = {one.feature: one.p for one in ablation.interactions if one.p is not None}
    assert len(plain) > 2
    assert corrected == pytest.approx(step_up(plain), rel=1e-6)
    assert any(corrected[partner] > 1.1 * p for partner, p in plain.items())


def step_up(plain: dict[int, float]) -> dict[int, float]:
    """Benjamini and Hochberg, written out: of every p and those above it the smallest, times tests over rank."""
    ranked = sorted(plain, key=lambda partner: plain[partner])
    times = [plain[partner] * len(ranked) / rank for rank, partner in enumerate(ranked, 1)]
    return {partner: min(1.0, *times[rank:]) for rank, partner in enumerate(ranked)}


def planted(seed: int, readout: Tensor) -> Case:
    """Feature 0 is on in each of 60 tokens beside one of 30 other features; the block does nothing.

    ``readout`` is what the unembedding reads along feature 0. The others come in pairs of opposite directions, so
    that over documents a control raises a token as often as it lowers it.
    """
    generator = torch.Generator().manual_seed(seed)
    width, vocab = 16, 60
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    rows = torch.cat([basis, -basis[1:]])
    other = torch.randint(1, len(rows), (vocab,), generator=generator)
    strength = 1 + torch.rand(vocab, generator=generator, dtype=torch.float64)
    embedding = strength[:, None] * rows[0] + rows[other]
    noise = torch.randn(vocab, width - 1, generator=generator, dtype=torch.float64)
    unembedding = readout[:, None] * basis[0] + 0.3 * noise @ basis[1:]
    lm, dictionary = wired(embedding, unembedding), directions(rows, "resid_post.0")
    tokens = torch.arange(vocab)[:, None]
    occurrences = Occurrences(tokens, tokens[:, 0] * 0, strength, tokens[:, 0], 2.0, vocab, 0.0, strength)
    return Case(lm, dictionary, 0, occurrences)


def test_a_planted_readout_is_found():
    readout = torch.zeros(60, dtype=torch.float64)
    readout[17] = 3
    setup = planted(0, readout)
    ablation = setup.run()
    logit = ablation.measures["logit"]
    strength = float(setup.occurrences.activation.mean())
    assert logit.suppressed[0].token == 17
    assert logit.suppressed[0].change == pytest.approx(-3 * strength)
    assert logit.suppressed[0].direct == pytest.approx(-3 * strength)
    assert max(abs(row.change) for row in logit.suppressed[1:]) < 1e-12
    assert logit.suppressed[0].p is not None and logit.suppressed[0].p < 1e-6
    assert (logit.significant, logit.significant_down) == (1, 1)
    for measure in ("probability", "logprob", "centred"):
        assert ablation.measures[measure].suppressed[0].token == 17
    assert ablation.metric_token == "17"
    assert sum(logit.total.counts) == 60 and logit.total.counts[0] == 1 and logit.total.counts[20] == 59
    shared = [logit.total, logit.direct, logit.control_feature, logit.control_direction]
    assert all(one is not None and one.edges == logit.total.edges for one in shared)


def test_of_a_feature_that_does_nothing_the_p_values_are_about_uniform():
    p, significant = [], []
    for seed in range(12):
        setup = planted(seed, torch.zeros(60, dtype=torch.float64))
        lm, dictionary, feature, occurrences = setup
        config = AblateConfig(ablate_seed=seed)
        ablation = measure_effects(lm, dictionary, feature, occurrences, draws(occurrences, dictionary, config), config)
        one = stats.paired(ablation.changes.by_document("paired", "logit"))
        p.append(one)
        significant.append((stats.benjamini_hochberg(one) < 0.05).any())
    every = np.concatenate(p)
    # tokens of one model are not independent: a looser bound than that of 720 draws
    assert kstest(every, "uniform").statistic < 0.08
    assert 0.02 < (every < 0.05).mean() < 0.09
    assert np.mean(significant) <= 0.25


# --- edges


def test_too_few_documents_are_said():
    setup = case(tiny.model("gpt_neox"), "resid_post.0")
    for documents in (1, 2, 3):
        doc = torch.arange(len(setup.occurrences.end)) % documents
        ablation = setup._replace(occurrences=setup.occurrences._replace(doc=doc)).run()
        one = ablation.measures["logprob"]
        assert ablation.documents == documents
        assert (one.significant is None) == (ablation.kl.p_feature is None) == (documents < 3)
        assert ("significant" in ablation.reasons) == (documents < 3)
        assert (one.suppressed[0].low is None) == (documents == 1)
        assert (ablation.kl.feature.low is None) == (documents == 1)
        json.dumps(ablation.to_json(), allow_nan=False)


def test_without_another_active_feature_there_is_no_control():
    setup = case(tiny.model("gpt_neox"), "resid_post.0")
    b_enc = setup.dictionary.weights["b_enc"]
    b_enc[torch.arange(len(b_enc)) != setup.feature] = -1e6
    ablation = setup.run()
    assert (
        ablation.without_control == ablation.occurrences and ablation.size_ratio is None and ablation.interactions == []
    )
    assert ablation.kl.control_feature.value is None and ablation.kl.control_feature.reason
    assert ablation.kl.p_feature is None and ablation.kl.p_direction is not None
    assert ablation.measures["logit"].control_feature is None and "control_feature" in ablation.reasons
    assert ablation.measures["logit"].suppressed[0].control is None
    json.dumps(ablation.to_json(), allow_nan=False)


def test_occurrences_that_an_ablation_leaves_as_they_are_are_counted():
    setup = case(tiny.model("gpt_neox"), "resid_post.0")
    assert setup.run().unmoved == 0
    x = tiny.read(setup.lm, "resid_post.0", setup.occurrences.tokens)
    silent = setup.dictionary.encode(x)[..., setup.feature] <= 0
    silent &= torch.arange(x.shape[1]) < setup.occurrences.end[:, None]
    row, position = silent.nonzero()[0].tolist()
    end = setup.occurrences.end.clone()
    end[row] = position
    assert setup._replace(occurrences=setup.occurrences._replace(end=end)).run().unmoved == 1


def test_json_has_the_fields_and_as_many_tokens_as_asked_for():
    setup = case(tiny.model("gpt_neox"), "resid_post.0")
    ablation = json.loads(json.dumps(setup.run(top=3).to_json(), allow_nan=False))
    assert set(ablation) == {
        *("site", "kind", "feature", "to", "positions", "occurrences", "documents", "active", "maximum"),
        *(
            "without_control",
            "unmoved",
            "size_ratio",
            "size_range",
            "control_within",
            "metric_token",
            "kl",
            "measures",
            "rescue",
            "later",
        ),
        *("interactions", "contexts", "reasons"),
    }
    assert set(ablation["kl"]) == {"feature", "control_feature", "control_direction", "p_feature", "p_direction"}
    assert set(ablation["kl"]["feature"]) == {"value", "low", "high", "n", "over", "reason"}
    assert set(ablation["measures"]) == {"probability", "logprob", "logit", "centred"}
    for one in ablation["measures"].values():
        assert len(one["suppressed"]) == len(one["promoted"]) == 3
        falls, rises = ([row["change"] for row in one[side]] for side in ("suppressed", "promoted"))
        assert falls == sorted(falls) and falls[-1] < 0 and rises == sorted(rises, reverse=True) and rises[-1] > 0
        for version in ("total", "direct", "control_feature", "control_direction"):
            assert (len(one[version]["edges"]), len(one[version]["counts"])) == (42, 41)
            assert sum(one[version]["counts"]) == tiny.VOCAB
    assert len(ablation["contexts"]) == 5
    end = int(setup.occurrences.end[0])
    assert ablation["contexts"][0]["texts"] == [str(token) for token in setup.occurrences.tokens[0, : end + 1].tolist()]


def test_rows_that_pad_the_vocabulary_are_no_tokens():
    lm = replace(make_lm(), name="padded")
    assert lm.tokenizer is not None
    named = len(lm.tokenizer)
    assert named <= lm.vocab_size
    lm.tokenizer.add_tokens([f"<{number}>" for number in range(max(0, lm.vocab_size - named) // 2)])
    ablation = case(lm, "resid_post.1", ids=IDS % named).run()
    for one in ablation.measures.values():
        assert sum(one.total.counts) == min(lm.vocab_size, len(lm.tokenizer))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature": 40}, "feature 40: .* has features 0 to 39"),
        ({"feature": -1}, "feature -1"),
        ({"to": "max"}, "to = 'max': choose one of zero, mean, resample"),
        ({"positions": "some"}, "positions = 'some': choose one of token, all"),
        ({"occurrences": slice(0, 0)}, "has no occurrences"),
        (
            {"dictionary": random_pairs.dictionary(31, 40, site="resid_post.0")},
            "does not fit resid_post.0, which is 32 wide",
        ),
    ],
)
def test_mistakes(changes, message):
    setup = case(tiny.model("gpt_neox"), "resid_post.0")
    options = {name: value for name, value in changes.items() if name in ("to", "positions")}
    fields = {name: value for name, value in changes.items() if name not in options}
    if "occurrences" in fields:
        fields["occurrences"] = at_rows(setup.occurrences, fields["occurrences"])
    with pytest.raises(UserError, match=message):
        setup._replace(**fields).run(**options)


def test_seeds():
    setup = case(tiny.model("gpt_neox"), "resid_post.0")
    first, again, other = (setup.run(ablate_seed=seed).to_json() for seed in (0, 0, 1))
    assert first == again
    assert first["kl"]["feature"]["value"] == other["kl"]["feature"]["value"]
    for control in ("control_feature", "control_direction"):
        assert first["kl"][control]["value"] != other["kl"][control]["value"]


def hooks_of(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.hf.modules())


def test_the_model_is_left_as_it_was_and_dropout_is_off():
    lm = tiny.tiny("gpt2", double=True, attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3)
    setup = case(lm, "resid_post.0")
    calm = setup.run().to_json()
    lm.hf.train()
    lm.hf.lm_head.eval()
    before = [(module.training, len(list(module.parameters()))) for module in lm.hf.modules()], hooks_of(lm)
    weights = {name: one.clone() for name, one in lm.hf.state_dict().items()}
    assert setup.run().to_json() == calm
    assert ([(module.training, len(list(module.parameters()))) for module in lm.hf.modules()], hooks_of(lm)) == before
    assert all(torch.equal(one, weights[name]) for name, one in lm.hf.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in lm.hf.parameters())
