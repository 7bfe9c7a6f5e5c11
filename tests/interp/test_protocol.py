"""The arithmetic of OpenAI's protocol against its reference vectors."""

import doctest

import numpy as np
import pytest

from monolex.interp import protocol, rule_text, token_classes
from monolex.interp.protocol import correlation, expected_value, largest, normalise, random_splits, top_splits


@pytest.mark.parametrize("module", [protocol, rule_text, token_classes])
def test_examples_in_the_documentation(module):
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_splits_are_every_fourth_and_every_third():
    top = top_splits(range(25))
    assert top == ((0, 4, 8, 12, 16), (1, 5, 9, 13, 17), (2, 6, 10, 14, 18), (3, 7, 11, 15, 19))
    assert random_splits(range(20)) == ((0, 3, 6, 9, 12), (1, 4, 7, 10, 13), (2, 5, 8, 11, 14))
    assert not set(top.train) & set(top.valid)


def test_normalisation_rounds_down():
    assert normalise([-1, 0, 0.1, 0.299999, 0.3, 2.999, 3, 4], 3).tolist() == [0, 0, 0, 0, 1, 9, 10, 10]
    assert normalise([1.0, 2.0], 0).tolist() == [0, 0]
    assert normalise([-3.0, -1.0], -1.0).tolist() == [0, 0]
    assert normalise([0.5, 1.0], 1.0, top=9).tolist() == [4, 9]
    assert largest([[0.5, -2], [1.5]]) == 1.5
    assert largest([]) == 0


def test_the_correlation_of_the_reference():
    actual, predicted = [-0.1, 0, 3, 1], [0, 1, 7, 2]
    assert correlation(actual, predicted).value == pytest.approx(0.98754869, abs=5e-9)


def test_a_correlation_minds_neither_scale_nor_shift_but_the_sign():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 640))
    r = correlation(x, y).value
    assert correlation(x, 7 * y + 3).value == pytest.approx(r)
    assert correlation(x, -y).value == pytest.approx(-r)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])


@pytest.mark.parametrize(
    ("actual", "predicted", "reason"),
    [
        ([1, 1, 1], [0, 1, 2], "the activations are constant"),
        ([0, 1, 2], [0, 0, 0], "the predictions are constant"),
        ([0, np.nan], [0, 1], "the activations are not finite"),
        ([0, 1], [np.inf, 1], "the predictions are not finite"),
        ([], [], "no token"),
    ],
)
def test_no_correlation_is_nan_with_a_reason(actual, predicted, reason):
    value, why = correlation(actual, predicted)
    assert np.isnan(value)
    assert why == reason


def test_expected_values_take_exact_numbers_alone():
    half = float(np.log(0.5))
    assert expected_value({"0": half, "10": half}) == pytest.approx(5)
    assert expected_value({"3": -30.0}) == pytest.approx(3)
    # a space, a sign, a longer number and 11 are other tokens
    assert expected_value({" 3": 0.0, "+3": 0.0, "11": 0.0, "03": 0.0, "7": -50.0}) == pytest.approx(7)
    assert expected_value({"10": 0.0, "4": -60.0}, top=9) == pytest.approx(4)
    assert expected_value({" 3": 0.0, "the": 0.0}) is None


def test_expected_values_are_the_mean_of_the_renormalised_distribution():
    rng = np.random.default_rng(1)
    logprobs = {str(i): float(v) for i, v in enumerate(rng.normal(size=11) - 5)}
    p = np.exp(list(logprobs.values()))
    assert expected_value(logprobs) == pytest.approx(float((np.arange(11) * p).sum() / p.sum()))
