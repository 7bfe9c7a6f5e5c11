"""Dead features start anew at rows that are badly reconstructed."""

import pytest
import torch
from helpers.planted import SITE, MemoryStream, config, one, planted
from helpers.trainer_states import saved, tensors

from monolex.kinds import KINDS
from monolex.training.members import members
from monolex.training.optim import MOMENTS, recipe
from monolex.training.parameters import initial
from monolex.training.records import PER_FEATURE, StepBatch
from monolex.training.resample import resample, resampling_steps
from monolex.training.sweep import Trainer


@pytest.mark.parametrize("kind", ["tied", "untied", "topk", "jumprelu", "gated"])
def test_dead_features_take_the_directions_of_bad_rows_and_nothing_else_moves(kind):
    member = one(kind, d_in=5, ratios=(2.0,))
    params = initial(member, recipe(config(preset="modern"), kind))
    for tensor in params.values():
        tensor += 0.1
    before = {name: tensor.clone() for name, tensor in params.items()}
    moments = {tensor: {moment: torch.ones_like(tensor) for moment in MOMENTS} for tensor in params.values()}
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    squares = torch.tensor([0.0, 0, 0, 9.0, 0, 0])
    dead = torch.zeros(10, dtype=torch.bool)
    dead[[2, 7]] = True
    resample(params, moments, StepBatch(x, x), squares, dead, torch.Generator().manual_seed(0))
    direction = torch.nn.functional.normalize((x[3] - before["b_dec"])[None])[0]
    torch.testing.assert_close(params["W_dec"][dead], direction.expand(2, 5))
    if "W_enc" in params:
        length = 0.2 * before["W_enc"][~dead].norm(dim=1).mean()
        torch.testing.assert_close(params["W_enc"][dead], direction.expand(2, 5) * length)
    for name, tensor in params.items():
        still = ~dead if name in PER_FEATURE else slice(None)
        assert torch.equal(tensor[still], before[name][still]), name
        for moment in MOMENTS:
            assert moments[tensor][moment][still].eq(1).all(), name
            assert name not in PER_FEATURE or not moments[tensor][moment][dead].any(), name
    for name in ("b_enc", "b_mag", "r_mag"):
        assert name not in params or not params[name][dead].any()


def test_bad_rows_are_drawn_by_the_square_of_their_error():
    member = one("topk", d_in=3, ratios=(1000.0,))
    params = initial(member, recipe(config(preset="modern"), "topk"))
    x = torch.eye(3)
    moments = {tensor: {moment: torch.ones_like(tensor) for moment in MOMENTS} for tensor in params.values()}
    every = torch.ones(3000, dtype=torch.bool)
    resample(params, moments, StepBatch(x, x), torch.tensor([1.0, 2.0, 0.0]), every, torch.Generator().manual_seed(0))
    shares = params["W_dec"].mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.8, 0.0]), rtol=0.1, atol=1e-6)


def test_where_nothing_is_dead_or_everything_is_reconstructed_nothing_happens():
    params = initial(one("tied"), recipe(config(preset="modern"), "tied"))
    before = params["W_dec"].clone()
    for squares, dead in ((torch.ones(4), torch.zeros(10)), (torch.zeros(4), torch.ones(10))):
        rows = StepBatch(torch.randn(4, 5), torch.randn(4, 5))
        resample(params, {}, rows, squares, dead.bool(), torch.Generator())
        assert torch.equal(params["W_dec"], before)


def test_resamplings_are_even_over_four_fifths():
    assert resampling_steps(100, 4) == {20, 40, 60, 80}
    assert resampling_steps(100, 0) == frozenset() and resampling_steps(2, 3) == {1, 2}


@pytest.mark.parametrize("kind", [name for name, row in KINDS.items() if not row.frozen])
def test_a_sweep_revives_its_dead_and_resumes_to_the_same_bits(kind, tmp_path):
    made = config(
        kinds=(kind,), ratios=(2.0,), lrs=(1e-2,), auxk=0.0 if KINDS[kind].auxk else None, dead_after=320,
        batch_size=64, steps=120, resamplings=2, preset="modern", alphas=(0.02,),
    )  # fmt: skip
    data = planted(2048)
    stream = MemoryStream({SITE: data.x}, 64)

    def fresh() -> Trainer:
        return Trainer(members(made, {SITE: 16}), made, 120)

    trainer, still = fresh(), fresh()
    still._resample_after = frozenset()
    for each in (trainer, still):
        with torch.no_grad():
            each.params[0]["b_enc"][:16] = -100.0
        for step in range(50):
            each.step(stream.at(step))
    again = fresh()
    again.load_state(saved(trainer, tmp_path))
    for step in range(50, 120):
        for each in (trainer, again, still):
            each.step(stream.at(step))
    alive = [int((each.dictionaries()[0].encode(data.x)[:, :16] > 0).any(0).sum()) for each in (trainer, still)]
    assert alive[0] > alive[1] + 3, alive
    for name, tensor in tensors(trainer).items():
        assert torch.equal(tensors(again)[name], tensor), name
