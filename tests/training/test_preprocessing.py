"""What is done to activations folds into the dictionary that reads them as they are."""

import pytest
import torch
from helpers.planted import ALL, SITE, MemoryStream, config, planted

from monolex.activations.norms import Usual, usual
from monolex.errors import UserError
from monolex.kinds import KINDS
from monolex.training.members import members
from monolex.training.preprocessing import preprocessing
from monolex.training.records import StepBatch
from monolex.training.steps import encode
from monolex.training.sweep import Trainer

TURN = torch.randn(16, 16, generator=torch.Generator().manual_seed(5))
X = 3 * planted(2048).x @ TURN + torch.linspace(-4, 4, 16)
"""Correlated activations far from 0."""


@pytest.mark.parametrize("what", ["none", "centre", "scale", "whiten"])
@pytest.mark.parametrize("kind", ALL)
def test_a_folded_dictionary_gives_the_codes_of_training_on_raw_activations(kind, what):
    made = config(kinds=(kind,), preprocess=what, lrs=(3e-3,), batch_size=64, steps=30)
    trainer = Trainer(members(made, {SITE: 16}), made, 30, usual={SITE: usual(X, covariance=True)})
    stream = MemoryStream({SITE: X}, 64)
    for step in range(30):
        trainer.step(stream.at(step))
    (member,), (params,), (dictionary,) = trainer.members, trainer.params, trainer.dictionaries()
    done = trainer._preprocessing[SITE]
    rows = done.rows(X[:256])
    with torch.no_grad():
        passed = encode(params, StepBatch(rows, rows), member)
    codes = dictionary.encode(X[:256]) * done.factor
    pre = dictionary.pre_activations(X[:256]) * done.factor
    if KINDS[kind].loss != "gated":
        torch.testing.assert_close(pre, passed.pre, rtol=1e-3, atol=2e-3)
    # and decodes to what the rows of training do
    target = passed.centred if "b_dec" in params else rows
    ours = done.rows(dictionary.decode(codes / done.factor))
    theirs = codes @ passed.rows + (params["b_dec"].detach() if "b_dec" in params else 0)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3 * float(target.abs().max()))


def test_whitened_rows_have_no_covariance_and_count_alike():
    known = usual(X, covariance=True)
    done = preprocessing("whiten", known)
    rows = done.rows(X)
    covariance = rows.T @ rows / len(rows)
    torch.testing.assert_close(covariance.diag().mean(), torch.tensor(1.0), rtol=0.05, atol=0)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.08
    torch.testing.assert_close(done.back(rows), X, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="preprocess = 'whiten' needs a sample of rows"):
        preprocessing("whiten", Usual(1.0, torch.zeros(3)))


def test_a_direction_that_is_nearly_constant_is_not_blown_up_to_noise():
    rows = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 1e-6])
    done = preprocessing("whiten", usual(rows, covariance=True)).rows(rows)
    assert done[:, 0].std() == pytest.approx(1, rel=0.05) and done[:, 2].std() < 1e-3


def test_centred_rows_lie_around_the_centre_and_in_the_models_units():
    done = preprocessing("centre", usual(X))
    torch.testing.assert_close(done.rows(X), X - usual(X).centre)
    assert float(done.factor) == 1


def test_whitening_cannot_continue_a_dictionary():
    made = config(kinds=("untied",), preset="modern", preprocess="scale")
    trainer = Trainer(members(made, {SITE: 16}), made, 3)
    trainer.step({SITE: X[:16]})
    again = config(kinds=("untied",), preset="modern", preprocess="whiten")
    with pytest.raises(UserError, match="preprocess = 'whiten' cannot continue a dictionary"):
        Trainer(members(again, {SITE: 16}), again, 3, start=trainer.dictionaries()[0])
