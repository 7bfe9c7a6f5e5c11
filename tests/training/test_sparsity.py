"""How many features are active: annealed, and held by JumpReLU's controller."""

import math

import pytest
import torch
from helpers.planted import SITE, MemoryStream, config, planted

from monolex.training import sweep
from monolex.training.members import members
from monolex.training.sparse.compiled import Compiled
from monolex.training.sparse.operators import Operators
from monolex.training.sparsity import annealed, first_threshold, hold, k_at, p_at
from monolex.training.sweep import Trainer


def test_annealing_goes_evenly_from_start_to_end_and_stays():
    assert [annealed(10, 2, step, 10, 0.8) for step in (0, 2, 4, 8, 9)] == [10, 8, 6, 2, 2]
    made = config(kinds=("topk",), ks=(2,), k_start=10)
    assert [k_at(made, 2, step, 20) for step in (0, 8, 16, 19)] == [10, 6, 2, 2]
    assert k_at(config(ks=(2,)), 2, 0, 20) == 2
    assert [p_at(config(p_end=0.5), step, 20) for step in (0, 8, 16, 19)] == pytest.approx([1, 0.75, 0.5, 0.5])


def test_an_annealed_member_has_the_codes_of_its_step():
    made = config(kinds=("topk", "batchtopk"), ks=(2,), k_start=6, lrs=(1e-3,), steps=10, anneal=0.5)
    trainer = Trainer(members(made, {SITE: 16}), made, 10)
    stream, l0 = MemoryStream({SITE: planted().x}, 64), []
    for step in range(10):
        trainer.step(stream.at(step))
        l0.append([row["l0"] for row in trainer.metrics()])
    assert [batchwide for _, batchwide in l0] == pytest.approx([6, 5, 4, 4, 3, 2, 2, 2, 2, 2], abs=1)
    assert l0[0] == pytest.approx([6, 6]) and l0[-1] == pytest.approx([2, 2])
    recipe = trainer.dictionaries()[0].config.recipe
    assert (recipe["k_start"], recipe["anneal"]) == (6, 0.5)


def test_the_first_threshold_keeps_k_of_a_row():
    pre = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    for k in (1, 5, 17):
        assert int((pre > first_threshold(pre, k)).sum()) == 50 * k
    # half are positive: more cannot be active, and of a threshold of nearly nothing nothing would ever come
    least = 0.01 * float(pre[pre > 0].mean())
    assert [float(first_threshold(pre, k)) for k in (39, 40)] == pytest.approx([least, least])
    assert float(first_threshold(-pre.abs(), 3)) > 0


@pytest.mark.parametrize("parts", [Compiled, Operators])
@pytest.mark.parametrize("target", [1, 4, 12])
def test_jumprelu_reaches_its_l0_and_holds_it(target, parts, monkeypatch):
    monkeypatch.setattr(sweep, "parts_for", lambda _device: parts)
    made = config(kinds=("jumprelu",), ks=(target,), ratios=(4.0,), lrs=(3e-3,), batch_size=256, steps=300)
    trainer = Trainer(members(made, {SITE: 16}), made, 300)
    x = planted(8192).x
    stream = MemoryStream({SITE: x}, 256)
    l0 = []
    for step in range(300):
        trainer.step(stream.at(step))
        if step in (49, 99, 199, 299):
            l0.append(trainer.metrics()[0]["l0"])
    assert l0 == pytest.approx([target] * 4, rel=0.2) and l0[2:] == pytest.approx([target] * 2, rel=0.05)
    dictionary = trainer.dictionaries()[0]
    assert float((dictionary.encode(x) > 0).sum(1).float().mean()) == pytest.approx(target, rel=0.05)
    assert dictionary.config.activation == "jumprelu" and dictionary.config.recipe["pressure"] > 0
    # every feature has found a threshold of its own
    thresholds = dictionary.weights["threshold"].log()
    assert float(thresholds.std()) > 0.01


def test_a_threshold_is_of_the_last_k_however_late_k_was_annealed():
    x = planted(8192).x
    for anneal in (0.5, 1.0):
        made = config(
            kinds=("batchtopk", "matryoshka"), ks=(2,), k_start=16, anneal=anneal, ratios=(2.0,), lrs=(1e-3,),
            batch_size=64, steps=300,
        )  # fmt: skip
        trainer = Trainer(members(made, {SITE: 16}), made, 300)
        stream = MemoryStream({SITE: x}, 64)
        for step in range(300):
            trainer.step(stream.at(step))
        for dictionary in trainer.dictionaries():
            assert float((dictionary.encode(x) > 0).sum(1).float().mean()) == pytest.approx(2, rel=0.25)


def test_the_controller_moves_thresholds_at_once_and_the_pressure_by_what_is_left():
    for l0, up in ((8.0, True), (2.0, False), (0.0, False)):
        thresholds, pressure = torch.zeros(3), torch.ones(())
        hold(thresholds, pressure, torch.tensor(l0), 4)
        distance = max(-1.0, math.log(l0 / 4)) if l0 else -1.0
        assert thresholds.tolist() == pytest.approx([0.2 * distance] * 3)
        assert float(pressure) == pytest.approx(math.exp(0.01 * distance)) and (float(pressure) > 1) == up
    thresholds, pressure = torch.zeros(3), torch.ones(())
    hold(thresholds, pressure, torch.tensor(4.0), 4)
    assert not thresholds.any() and float(pressure) == 1
