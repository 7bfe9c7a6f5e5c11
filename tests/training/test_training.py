import dataclasses
from functools import cache

import pytest
import torch
from helpers.planted import ALL, SITE, MemoryStream, batch, config, loss_of, one, planted, trained

from monolex.activations.norms import Usual, centre, usual
from monolex.dictionaries.base import Dictionary
from monolex.errors import UserError
from monolex.kinds import KINDS
from monolex.training.members import members, short
from monolex.training.optim import DECODER_RATE, RECIPES, adam, dead_after, learning_rate, recipe, schedule, set_rate
from monolex.training.parameters import ENCODER_LENGTH, from_dictionary, initial
from monolex.training.steps import free_rows
from monolex.training.sweep import Trainer


@pytest.mark.parametrize("auxk", [0.0, 1.0])
def test_auxk_revives_dead_features(auxk):
    data = planted(2048)
    made = config(kinds=("topk",), lrs=(1e-2,), auxk=auxk, dead_after=320, batch_size=64, steps=150)
    trainer = Trainer(members(made, {SITE: 16}), made, 150)
    with torch.no_grad():
        trainer.params[0]["b_enc"][:16] = -ENCODER_LENGTH  # what a row as long as the encoder's can reach at most
    stream = MemoryStream({SITE: data.x}, 64)
    for step in range(150):
        trainer.step(stream.at(step))
    fired = (trainer.dictionaries()[0].encode(data.x)[:, :16] > 0).any(0)
    assert (int(fired.sum()) > 8) == (auxk > 0), fired


def test_auxk_acts_in_a_run_of_any_length():
    assert dead_after(config(batch_size=16), 20) == 32
    assert dead_after(config(batch_size=1), 1) == 1
    assert dead_after(config(batch_size=1024), 10**6) == 1_000_000
    assert dead_after(config(dead_after=7), 20) == 7
    trainer = trained(config(kinds=("topk",), ks=(1,)), {SITE: planted().x}, 20)
    assert trainer.metrics()[0]["aux"] > 0
    assert trainer.dictionaries()[0].config.recipe["dead_after"] == 32


def test_schedule_rises_stays_and_falls_to_zero():
    assert [schedule(s, 10, 0.2, 0.5) for s in range(10)] == [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert [schedule(s, 3, 0.0, 0.0) for s in range(3)] == [1, 1, 1]
    assert all(0 < schedule(s, 10, 1.0, 1.0) <= 1 for s in range(10))


def test_scheduled_rate_reaches_adam():
    made = config(kinds=("tied", "topk"), lrs=(1e-2,), warmup=0.5, steps=4)
    trainer = Trainer(members(made, {SITE: 5}), made, 4)
    first = trainer.params[0]["W_dec"].detach().clone()
    trainer.step({SITE: batch(16).float()})
    moved = (trainer.params[0]["W_dec"].detach() - first).abs().max()
    # Adam's first step is the learning rate itself, here half of 1e-2.
    torch.testing.assert_close(moved, torch.tensor(5e-3), rtol=1e-3, atol=0)


def test_presets():
    assert members(config(preset="paper"), {SITE: 512})[0].lr == 1e-3
    assert members(config(preset="paper-effective"), {SITE: 512})[0].lr == 3.2e-4
    assert learning_rate(RECIPES["modern"], 2**12) == pytest.approx(4e-4)
    assert not recipe(config(preset="paper"), "tied").bias
    assert recipe(config(preset="paper"), "topk").bias and recipe(config(preset="modern"), "tied").bias
    assert recipe(config(auxk=0.0), "topk").auxk == 0 and recipe(config(), "topk").auxk == 1 / 32
    assert recipe(config(preset="modern", warmup=0.0), "tied").warmup == 0
    params = initial(one("untied"), recipe(config(preset="paper"), "untied"))
    assert set(params) == {"W_dec", "W_enc", "b_enc"}


def test_paper_effective_rate_is_what_the_released_code_settles_at():
    # Adam whose bias correction is frozen at step 1, with a constant gradient of 1.
    m = v = 0.0
    for _ in range(20_000):
        m, v = 0.9 * m + 0.1, 0.999 * v + 0.001
    step = (m / (1 - 0.9)) / (v / (1 - 0.999)) ** 0.5
    assert RECIPES["paper"].lr * step == pytest.approx(RECIPES["paper-effective"].lr, rel=0.02)


def test_fused_adam_is_adam_with_a_rate_for_the_decoder_of_each_member():
    g = torch.Generator().manual_seed(0)
    names, rates = ("W_dec", "b_enc"), (0.01, 0.03)
    ours, theirs = (
        [{name: torch.linspace(-1, 1, 50, dtype=torch.float64).requires_grad_() for name in names} for _ in rates]
        for _ in range(2)
    )
    a = adam(ours)
    groups = [
        {"params": [params[name]], "lr": rate * (4.0 if name == "W_dec" else 1.0)}
        for params, rate in zip(theirs, rates, strict=True)
        for name in names
    ]
    b = torch.optim.Adam(groups, foreach=False, fused=False)
    for number, rate in enumerate(rates):
        set_rate(a, number, rate, 4.0)
    for _ in range(30):
        for mine, other in zip(ours, theirs, strict=True):
            for name in names:
                mine[name].grad = torch.randn(50, generator=g).double()
                other[name].grad = mine[name].grad.clone()
        a.step()
        b.step()
    for mine, other in zip(ours, theirs, strict=True):
        for name in names:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_of_a_decoder_is_its_own_rate(kind):
    """Adam's first step is the rate itself, in every entry with a gradient, but for what brings a row back to unit."""
    plain = config(kinds=(kind,), lrs=(1e-3,), preset="modern", warmup=0.0, steps=9, auxk=None)
    rates = (None, 1.0, 2.0) if plain.acts("decoder_rate", kind) else (None,)
    moved = {}
    for rate in rates:
        made = dataclasses.replace(plain, decoder_rate=rate)
        trainer = Trainer(members(made, {SITE: 16}), made, 9)
        old = {name: tensor.detach().clone() for name, tensor in trainer.params[0].items()}
        trainer.step({SITE: planted(64).x})
        moved[rate] = {name: float((trainer.params[0][name].detach() - old[name]).abs().max()) for name in old}
    decoder = {rate: by_name["W_dec"] for rate, by_name in moved.items()}
    if rates == (None,):
        expected = 0.0 if KINDS[kind].frozen == "W_dec" else 1e-3
        assert decoder[None] == pytest.approx(expected, rel=0.7)  # to be unit again moves a row too
    else:
        assert decoder[2.0] == pytest.approx(2 * decoder[1.0], rel=0.02)
        assert decoder[None] == pytest.approx(DECODER_RATE * decoder[1.0], rel=0.03)
        assert moved[2.0]["W_enc"] == moved[1.0]["W_enc"] == pytest.approx(1e-3, rel=1e-3)


def test_every_trained_parameter_is_in_one_group_and_decoders_in_their_own():
    made = config(kinds=tuple(KINDS), preset="modern")
    trainer = Trainer(members(made, {SITE: 16}), made, 9)
    groups = [{id(tensor) for tensor in group["params"]} for group in adam(trainer.params).param_groups]
    for number, params in enumerate(trainer.params):
        trained = {name: id(tensor) for name, tensor in params.items() if tensor.requires_grad}
        decoder = {trained.pop("W_dec")} if "W_dec" in trained else set()
        assert groups[2 * number : 2 * number + 2] == [set(trained.values()), decoder]


def test_members_are_every_combination_by_unique_names():
    made = config(alphas=(8.6e-4, 1.0), ks=(2, 3), ratios=(0.5, 4.0), seeds=(0, 1), lrs=(1e-3, 3e-4))
    found = members(made, {"a": 7, "b": 8})
    assert len(found) == 2 * len(KINDS) * 2 * 2 * 2 * 2 == len({(m.site, m.name) for m in found})
    assert found[0].name == "tied-a8.6e-4-r0.5-s0-lr1e-3"
    assert {m.d_sae for m in found} == {4, 28, 32}
    assert all((m.alpha is None) == (KINDS[m.kind].sparsity == "k") == (m.k is not None) for m in found)
    assert [m.name for m in members(config(kinds=("topk",)), {SITE: 5})] == ["topk-k2-r2-s0"]


def test_names_spell_numbers_exactly():
    for value in (8.6e-4, 0.0, 4.0, 0.5, 1 / 3, 1e-12, 123456.789, 0.1 + 0.2):
        assert float(short(value)) == value
    assert (short(8.6e-4), short(4.0), short(0.0)) == ("8.6e-4", "4", "0")


def test_weights_that_stay_random_are_no_trained_numbers():
    numbers = {}
    for kind in ("batchtopk", "frozen-decoder", "frozen-encoder"):
        made = config(kinds=(kind,))
        numbers[kind] = Trainer(members(made, {SITE: 5}), made, 2).n_parameters
    assert numbers["batchtopk"] == 2 * 5 * 10 + 10 + 5
    assert numbers["frozen-decoder"] == numbers["frozen-encoder"] == 5 * 10 + 10 + 5


def test_member_mistakes():
    with pytest.raises(UserError, match="k = 9 is more than the 4 features"):
        members(config(kinds=("topk",), ks=(9,), ratios=(0.5,)), {SITE: 7})
    with pytest.raises(UserError, match="k_start = 15 is more than the 14 features"):
        members(config(kinds=("topk",), k_start=15), {SITE: 7})
    with pytest.raises(UserError, match="two members tied-a0.01-r2-s0"):
        members(config(kinds=("tied",), alphas=(0.01, 0.01)), {SITE: 5})


@pytest.mark.parametrize(
    ("kind", "length"), [("topk", 0.577), ("untied", 0.577), ("frozen-decoder", 0.577), ("frozen-encoder", 1)]
)
def test_encoder_rows_begin_short_along_the_decoders(kind, length):
    params = initial(one(kind), recipe(config(preset="modern"), kind))
    torch.testing.assert_close(
        params["W_enc"].norm(dim=1), torch.full((len(params["W_enc"]),), float(length)), atol=1e-3, rtol=0
    )
    along = torch.cosine_similarity(params["W_enc"], params["W_dec"])
    assert bool((along > 0.999).all()) == (kind != "frozen-encoder")
    assert "W_enc" not in initial(one("tied"), recipe(config(preset="modern"), "tied"))


def test_initialisation_depends_on_seed_kind_and_shape_only():
    chosen = recipe(config(), "tied")
    a = initial(one("tied"), chosen)
    b = initial(one("tied", alphas=(0.5,), lrs=(0.1,)), chosen)
    c = initial(one("tied", seeds=(1,)), chosen)
    assert torch.equal(a["W_dec"], b["W_dec"]) and not torch.equal(a["W_dec"], c["W_dec"])
    bound = (6 / (5 + 10)) ** 0.5
    assert 0.8 * bound < a["W_dec"].abs().max() <= bound
    assert not a["b_enc"].any()


@pytest.mark.parametrize(
    ("dtype", "steps", "preset", "kinds"),
    [(torch.float64, 200, "modern", ("tied", "batchtopk")), (torch.float32, 20, "paper", ALL)],
)
def test_sweep_member_is_the_member_trained_alone(dtype, steps, preset, kinds):
    x = {site: planted(512, d_in=d, seed=d).x for site, d in (("a", 7), ("b", 8))}
    fields = {"lrs": (1e-3,), "dead_after": 64, "preset": preset, "steps": steps}
    together = trained(config(kinds=kinds, alphas=(1e-3, 1e-1), **fields), x, steps, dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for site, kind in zip("ab" * 2, reversed(kinds), strict=False):
        alone = trained(config(kinds=(kind,), alphas=(1e-1,), **fields), {site: x[site]}, steps, dtype)
        number = together.members.index(alone.members[0])
        for name, tensor in alone.params[0].items():
            torch.testing.assert_close(together.params[number][name], tensor, rtol=tolerance, atol=tolerance * 1e-3)


@cache
def toy() -> tuple[Trainer, list[Dictionary]]:
    alphas = (0.0, 3e-3, 2.5e-2)
    made = config(preset="paper", alphas=alphas, kinds=("tied", "topk", "batchtopk"), lrs=(1e-2,), batch_size=256)
    made = dataclasses.replace(made, dead_after=50_000, steps=500, decay=0.3)
    trainer = trained(made, {SITE: planted().x}, 500)
    return trainer, trainer.dictionaries()


def quality(dictionary: Dictionary) -> tuple[float, float, float]:
    """FVU, L0 and the mean over planted rows of the best cosine."""
    data = planted()
    codes = dictionary.encode(data.x)
    fvu = (data.x - dictionary.decode(codes)).square().sum() / (data.x - data.x.mean(0)).square().sum()
    cosines = (dictionary.W_dec @ data.rows.T).max(0).values
    return float(fvu), float((codes > 0).sum(1).float().mean()), float(cosines.mean())


def test_toy_recovers_planted_features():
    _, found = toy()
    assert quality(found[2])[2] > 0.9, "tied"
    assert quality(found[3])[2] > 0.9, "topk"
    assert quality(found[0])[2] < 0.8, "alpha 0 has no reason to find them"


def test_toy_sparsity_costs_reconstruction():
    _, found = toy()
    fvus, l0s, _ = zip(*(quality(d) for d in found[:3]), strict=True)
    assert fvus[0] < fvus[1] < fvus[2]
    assert l0s[0] > l0s[1] > l0s[2]


def test_toy_encoder_biases_are_negative():
    assert (toy()[1][2].weights["b_enc"] < 0).float().mean() > 0.9


def test_topk_keeps_k_at_most_and_batchtopk_k_on_average():
    _, found = toy()
    x = planted().x
    assert int((found[3].encode(x) > 0).sum(1).max()) == 2
    counts = (found[4].encode(x) > 0).sum(1)
    assert float(counts.float().mean()) == pytest.approx(2, rel=0.1)
    assert int(counts.max()) > 2
    assert found[4].config.threshold is not None and found[4].config.threshold > 0


def test_exported_rows_are_unit_and_compute_what_was_trained():
    trainer, found = toy()
    x = planted(64, seed=0).x
    for number, dictionary in enumerate(found[:4]):
        torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(dictionary.d_sae))
        loss = loss_of(trainer.params[number], x, trainer.members[number])
        error = (x - dictionary.reconstruct(x)).square().mean()
        torch.testing.assert_close(error, loss.parts["mse"])
    paper = found[0]
    assert not paper.weights["centre"].any() and torch.equal(paper.W_enc, paper.W_dec)
    assert torch.equal(found[3].weights["centre"], found[3].weights["b_dec"])


def test_decoder_bias_starts_at_the_centre_of_the_first_batch():
    made = config(preset="modern", preprocess="none", lrs=(1e-12,))
    trainer = Trainer(members(made, {SITE: 5}), made, 20)
    x = batch(16).float() + 3
    trainer.step({SITE: x})
    for params in trainer.params:
        torch.testing.assert_close(params["b_dec"].detach(), centre(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(params["W_dec"].detach().norm(dim=1), torch.ones(10))


def test_training_begins_in_the_unit_and_centre_that_are_told():
    """What is known of all rows goes before what the first batch says, which a sink may be in."""
    chosen = config(preset="modern", preprocess="scale", lrs=(1e-12,))
    known = Usual(10.0, torch.arange(5.0))
    trainer = Trainer(members(chosen, {SITE: 5}), chosen, 20, usual={SITE: known})
    x = batch(16).float()
    x[3] *= 1e4
    trainer.step({SITE: x})
    assert known.scale == pytest.approx(5**0.5 / 10)
    for dictionary in trainer.dictionaries():
        assert dictionary.config.recipe["scale"] == pytest.approx(known.scale)
        torch.testing.assert_close(dictionary.weights["b_dec"], torch.arange(5.0), rtol=1e-4, atol=1e-4)
    alone = Trainer(members(chosen, {SITE: 5}), chosen, 20)
    alone.step({SITE: x})
    assert alone.dictionaries()[0].config.recipe["scale"] == pytest.approx(usual(x).scale)


def test_a_site_of_zeros_has_a_unit():
    assert usual(torch.zeros(8, 5)).scale == 1.0


def test_stored_rows_stay_unit_in_modern_and_are_free_in_paper():
    for preset, unit_kinds in (("modern", ALL), ("paper", [kind for kind in ALL if KINDS[kind].modern])):
        trainer = trained(config(preset=preset, lrs=(1e-2,)), {SITE: planted(64).x}, 5)
        for member, params in zip(trainer.members, trainer.params, strict=True):
            if free_rows(member):
                continue
            away = (params["W_dec"].detach().norm(dim=1) - 1).abs().max()
            assert (away < 1e-6) == (member.kind in unit_kinds), (preset, member.kind, away)


@pytest.mark.parametrize("kind", ALL)
def test_one_feature_of_an_odd_width(kind):
    made = config(kinds=(kind,), ratios=(0.1,), ks=(1,), auxk=1.0 if KINDS[kind].auxk else None, dead_after=1)
    trainer = trained(made, {SITE: planted(64, d_in=7).x}, 3)
    rows = trainer.metrics()
    assert trainer.dictionaries()[0].W_dec.shape == (1, 7)
    assert 0 <= rows[0]["l0"] <= 1


def test_metrics_are_means_since_the_last_read():
    made = config(kinds=("tied",), lrs=(1e-12,))
    trainer = Trainer(members(made, {SITE: 5}), made, 20)
    x = [batch(16, seed=s).float() for s in range(3)]
    losses = [loss_of(trainer.params[0], b, trainer.members[0]) for b in x]
    trainer.step({SITE: x[0]})
    assert trainer.metrics()[0]["loss"] == pytest.approx(float(losses[0].total.detach()), rel=1e-5)
    trainer.step({SITE: x[1]})
    trainer.step({SITE: x[2]})
    row = trainer.metrics()[0]
    assert row["mse"] == pytest.approx(sum(float(loss.parts["mse"]) for loss in losses[1:]) / 2, rel=1e-5)
    spread = sum(float((b - b.mean(0)).square().mean()) for b in x[1:])
    assert row["fvu"] == pytest.approx(sum(float(loss.parts["mse"]) for loss in losses[1:]) / spread, rel=1e-5)


def test_metrics_of_constant_activations_have_no_fvu():
    trainer = trained(config(kinds=("tied",)), {SITE: torch.ones(64, 5)}, 2)
    assert trainer.metrics()[0]["fvu"] is None


def test_dead_counts_features_idle_for_dead_after_rows():
    made = config(kinds=("tied",), dead_after=40, lrs=(1e-12,))
    trainer = Trainer(members(made, {SITE: 5}), made, 20)
    with torch.no_grad():
        trainer.params[0]["b_enc"][:3] = -100
    dead = []
    for step in range(3):
        trainer.step({SITE: batch(16, seed=step).float() * 10})
        dead.append(trainer.metrics()[0]["dead"])
    assert dead == [None, None, 3]


def test_loss_that_is_not_finite_names_step_member_and_rate():
    made = config(lrs=(1e-3,))
    trainer = Trainer(members(made, {SITE: 5}), made, 20)
    for step in range(4):
        trainer.step({SITE: batch(16).float() * (torch.inf if step == 2 else 1)})
    with pytest.raises(UserError, match=r"tied-a0.01-r2-s0 at resid_post.0 is not finite at step 3 \(lr = 0.001\)"):
        trainer.metrics()
    with pytest.raises(UserError, match="step 3"):
        trainer.verify()


def test_parameters_that_are_not_finite_are_refused():
    made = config(kinds=("tied",))
    trainer = Trainer(members(made, {SITE: 5}), made, 20)
    trainer.step({SITE: batch(16).float()})
    trainer.verify()
    with torch.no_grad():
        trainer.params[0]["b_enc"][0] = torch.nan
    with pytest.raises(UserError, match="not finite at step 1"):
        trainer.verify()


@pytest.mark.parametrize("kind", ALL)
def test_start_from_a_dictionary_computes_what_it_computes(kind):
    made = config(kinds=(kind,), preset="modern", preprocess="none")
    found = trained(made, {SITE: planted(256, d_in=5).x}, 10).dictionaries()[0]
    trainer = Trainer(members(made, {SITE: 5}), made, 20, start=found)
    again = trainer.dictionaries()[0]
    torch.testing.assert_close(again.weights, found.weights, rtol=1e-6, atol=1e-7)
    assert again.config.threshold == found.config.threshold
    before = trainer.params[0]["b_dec"].detach().clone()
    trainer.step({SITE: batch(16).float() + 100})
    assert (trainer.params[0]["b_dec"].detach() - before).abs().max() < 1, "centred again"


def test_start_that_does_not_match_names_both():
    found = trained(config(kinds=("tied",), preset="modern"), {SITE: planted(256, d_in=5).x}, 3).dictionaries()[0]
    paper, modern = recipe(config(preset="paper"), "tied"), recipe(config(preset="modern"), "tied")
    with pytest.raises(UserError, match=r"tied at resid_post.0 with d_in 5 and d_sae 10 but member .* d_sae 20"):
        from_dictionary(found, one("tied", ratios=(4.0,)), modern, "there")
    with pytest.raises(UserError, match="has a decoder bias but this preset trains none"):
        from_dictionary(found, one("tied"), paper, "there")
    around = recipe(config(preset="paper", preprocess="centre"), "tied")
    with pytest.raises(UserError, match="preprocess = 'centre' cannot continue a dictionary without a decoder bias"):
        from_dictionary(found, one("tied"), around, "there")
    other = Dictionary(found.config, {**found.weights, "W_enc": found.W_enc * 2})
    with pytest.raises(UserError, match="was not trained by monolex"):
        from_dictionary(other, one("tied"), modern, "there")


@pytest.mark.parametrize("kind", ALL)
def test_scale_makes_training_blind_to_the_units_of_the_activations(kind):
    x = planted(2048).x.double()
    chosen = config(kinds=(kind,), preprocess="scale", lrs=(3e-3,), batch_size=64)
    small = trained(chosen, {SITE: x}, 60, torch.float64).dictionaries()[0]
    large = trained(chosen, {SITE: 40 * x}, 60, torch.float64).dictionaries()[0]
    torch.testing.assert_close(large.encode(40 * x), 40 * small.encode(x), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(large.reconstruct(40 * x), 40 * small.reconstruct(x), rtol=1e-6, atol=1e-8)
    assert small.config.recipe["scale"] == pytest.approx(40 * large.config.recipe["scale"])
    plain = trained(
        config(kinds=(kind,), preprocess="none", lrs=(3e-3,), batch_size=64), {SITE: 40 * x}, 60, torch.float64
    )
    assert plain.dictionaries()[0].config.recipe["scale"] == 1.0
    assert not torch.allclose(plain.dictionaries()[0].encode(40 * x), large.encode(40 * x))


def test_a_scaled_start_computes_what_the_dictionary_computed():
    x = planted(2048).x
    chosen = config(kinds=("batchtopk",), preprocess="scale", batch_size=64)
    first = trained(chosen, {SITE: 9 * x}, 30).dictionaries()[0]
    slow = dataclasses.replace(chosen, lrs=(1e-30,))
    trainer = Trainer(members(slow, {SITE: 16}), slow, 1, start=first)
    trainer.step({SITE: 9 * x[:64]})
    again = trainer.dictionaries()[0]
    torch.testing.assert_close(again.pre_activations(9 * x), first.pre_activations(9 * x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ALL)
def test_scaled_metrics_and_convention_are_in_the_units_of_the_model(kind):
    x = (40 * planted(64).x).double()
    chosen = config(kinds=(kind,), preset="modern", preprocess="scale", lrs=(1e-30,), batch_size=64, steps=1)
    trainer = Trainer(members(chosen, {SITE: 16}), chosen, 1, dtype=torch.float64)
    trainer.step({SITE: x})
    row, saved, member = trainer.metrics()[0], trainer.dictionaries()[0], trainer.members[0]
    scale = saved.config.recipe["scale"]
    assert scale < 0.2
    if member.alpha is not None:
        member = dataclasses.replace(member, alpha=member.alpha / scale)
    if member.alpha is not None and KINDS[kind].loss == "l1":
        assert row["loss"] == pytest.approx(row["mse"] + member.alpha * row["l1"])
        assert "alpha / scale ·" in saved.config.loss_convention
        assert row["mse"] == pytest.approx(float((x - saved.reconstruct(x)).square().mean()))
        assert row["l1"] == pytest.approx(float(saved.encode(x).sum(1).mean()))
    if KINDS[kind].loss in ("gated", "jumprelu"):
        return  # saved as what is not the parameters
    params = {name: tensor for name, tensor in saved.weights.items() if name in trainer.params[0]}
    plain = loss_of(params, x, member)
    if KINDS[kind].loss == "p-anneal":
        plain = plain._replace(total=plain.parts["mse"] + 1.01 * (member.alpha or 0) * plain.parts["l1"])
    assert row["loss"] == pytest.approx(float(plain.total))
    assert {name: row[name] for name in plain.parts} == pytest.approx({n: float(v) for n, v in plain.parts.items()})
    assert row["fvu"] == pytest.approx(float(plain.parts["mse"] / (x - x.mean(0)).square().mean()))


@pytest.mark.parametrize("parts", [(25, 15), (25, 5, 10)])
def test_a_start_continues_the_threshold_as_if_nothing_had_been_between(parts):
    stream = MemoryStream({SITE: 9 * planted(2048).x}, 16)
    # Nothing moves but the threshold.
    still = config(kinds=("batchtopk",), preset="modern", preprocess="scale", lrs=(1e-30,))
    whole = trained(still, stream.x, sum(parts)).dictionaries()[0]
    found, step = None, 0
    for part in parts:
        trainer = Trainer(members(still, {SITE: 16}), still, part, start=found)
        for _ in range(part):
            trainer.step(stream.at(step))
            step += 1
        found = trainer.dictionaries()[0]
    assert found is not None and whole.config.threshold is not None
    assert found.config.threshold == pytest.approx(whole.config.threshold, rel=1e-4)
    other = dataclasses.replace(still, ks=(5,))
    trainer = Trainer(members(other, {SITE: 16}), other, 1, start=found)
    trainer.step(stream.at(0))
    codes = found.pre_activations(stream.at(0)[SITE]).relu().flatten().topk(5 * 16).values
    assert trainer.dictionaries()[0].config.threshold == pytest.approx(float(codes.min()), rel=1e-3)
