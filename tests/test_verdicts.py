"""What numbers say of a claim: the other way round says the contrary, and no control is outvoted."""

from itertools import product
from typing import Any

import pytest

from monolex.stats import Estimate
from monolex.verdicts import (
    Verdict,
    agreed,
    below,
    beside_controls,
    beyond,
    changes_more,
    corrected,
    of_every,
    opposite,
)

ENDS = (-2.0, -1.0, 0.0, 1.0, None)
INTERVALS = [{"low": low, "high": high} for low, high in product(ENDS, ENDS) if None in (low, high) or low <= high]
DECIDED: tuple[Verdict, ...] = ("confirmed", "contradicted", "undecided")


@pytest.mark.parametrize("a", INTERVALS)
def test_the_other_way_round_says_the_contrary(a):
    for b in INTERVALS:
        assert below(a, b) == opposite(below(b, a))
    for level in (-1.5, 0.0, 0.5):
        assert beyond(a, level) == below({"low": level, "high": level}, a)
    assert beyond(Estimate(0.0, a["low"], a["high"])) == beyond(a)


def test_several_agree_or_are_undecided():
    assert agreed(["contradicted", "contradicted"]) == "contradicted"
    assert agreed(["confirmed", "contradicted"]) == agreed(["confirmed", "cannot say"]) == "undecided"
    assert agreed([]) == "cannot say" and agreed([], "not measured") == of_every([], "not measured") == "not measured"
    for pair in product(DECIDED, DECIDED):
        assert of_every(pair) == ("contradicted" if "contradicted" in pair else agreed(pair))


def test_a_control_that_is_as_good_leaves_nothing_confirmed():
    for verdict, control in product(DECIDED, DECIDED):
        capped = beside_controls(verdict, ["confirmed", control])
        assert capped == ("undecided" if (verdict, control != "confirmed") == ("confirmed", True) else verdict)


def ablation(p: float | None, effect: float | None = 0.5, control: float | None = 0.1) -> dict[str, Any]:
    return {"kl": {"feature": {"value": effect}, "control_feature": {"value": control}, "p_feature": p}}


def test_p_is_corrected_for_all_that_were_tested():
    assert corrected([ablation(0.04)]) == [0.04] and corrected([]) == []
    several = corrected([ablation(0.04), ablation(None), ablation(0.9)])
    assert several == [pytest.approx(0.08), None, pytest.approx(0.9)]


@pytest.mark.parametrize(
    ("q", "effect", "control", "verdict"),
    [
        (0.01, 0.5, 0.1, "confirmed"),
        (0.01, 0.1, 0.5, "contradicted"),
        (0.05, 0.5, 0.1, "undecided"),
        (None, 0.5, 0.1, "undecided"),
        (0.01, None, 0.1, "undecided"),
        (0.01, 0.5, None, "undecided"),
    ],
)
def test_an_ablation_changes_more_where_its_corrected_p_says_so(q, effect, control, verdict):
    assert changes_more(ablation(q, effect, control)["kl"], q) == verdict
