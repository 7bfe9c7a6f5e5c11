"""What is kept of scores: whose fragments a number is of, and which document a fragment is of."""

import numpy as np
import pytest
from helpers.made_fragments import fragment

from monolex.interp.config import ScoreConfig
from monolex.interp.examples.drawn import FeatureMoments
from monolex.interp.explain.saved import ExplainedDictionary
from monolex.interp.protocol import SAYS_NOTHING, correlation
from monolex.interp.records import Examples, Failure
from monolex.interp.score.lines import arrays_of, line_of
from monolex.interp.score.means import _plain, cell_of
from monolex.interp.score.scorers import FeatureScore

RNG = np.random.default_rng(0)


def made(count: int, first_doc: int) -> tuple:
    return tuple(fragment(list("abcdef"), RNG.random(6).tolist(), doc=first_doc + 7 * i) for i in range(count))


def guesses(count: int) -> tuple:
    return tuple(RNG.random(6) for _ in range(count))


# more random fragments than top ones, of documents in no order
EXAMPLES = Examples(3, (), (), made(2, 40), made(4, 5), (), 1.0)
SCORE = FeatureScore(guesses(2), guesses(4), (guesses(6), guesses(6)))


def of(fragments, predicted) -> float:
    actual = np.concatenate([one.activations for one in fragments])
    return correlation(actual, np.concatenate(predicted)).value


def test_every_number_of_a_line_is_of_its_own_fragments():
    facts = {name: name for name in ("model", "site", "name", "kind", "method", "layer")}
    explained = ExplainedDictionary(facts, [EXAMPLES], FeatureMoments(*np.ones((4, 1))), {}, [{}])
    cells = line_of(explained, 0, "token", "rules", "text", SCORE)["scores"]
    top, random = EXAMPLES.top, EXAMPLES.random
    wanted = {
        "top": of(top, SCORE.top),
        "random": of(random, SCORE.random),
        "top_and_random": of(top + random, SCORE.top + SCORE.random),
        "chance": np.mean([of(top + random, chance) for chance in SCORE.chance]),
        "chance_top": np.mean([of(top, chance[:2]) for chance in SCORE.chance]),
        "chance_random": np.mean([of(random, chance[2:]) for chance in SCORE.chance]),
    }
    assert {name: cell["value"] for name, cell in cells.items()} == pytest.approx(wanted)
    assert len({round(value, 9) for value in wanted.values()}) == 6


def test_fragments_are_of_their_documents_which_intervals_resample():
    failed = FeatureScore((SCORE.top[0], Failure("timed out")), SCORE.random, ())
    few = Examples(4, (), (), EXAMPLES.top[:1], EXAMPLES.random[:1], (), 1.0)
    arrays = arrays_of([EXAMPLES, few], [failed, FeatureScore(guesses(1), guesses(1), ())])
    assert arrays["docs"].tolist() == [[40, 47, 5, 12, 19, 26], [40, 5, -1, -1, -1, -1]]
    assert arrays["top"].tolist() == [2, 1]
    assert np.isnan(arrays["predictions"][0, 1]).all() and np.isnan(arrays["sums"][0, 1]).all()
    assert arrays["predictions"][0, 2] == pytest.approx(SCORE.random[0])


def test_what_says_nothing_counts_as_zero_in_the_mean_of_chance_too():
    cells = [{"value": value, "reason": ""} for value in (0.2, 0.4)] + [{"value": None, "reason": SAYS_NOTHING}]
    cells += [{"value": None, "reason": "timed out"}]
    mean = _plain(cells, ScoreConfig(resamples=20))
    assert cell_of(mean.estimate)["value"] == pytest.approx(0.2) and mean.estimate.n == 3
    assert (mean.missing, mean.constant, mean.others) == ({"timed out": 1}, 1, pytest.approx(0.3))
