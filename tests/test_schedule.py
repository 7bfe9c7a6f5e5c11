"""Which piece of work comes next, and how long all takes."""

import itertools
import random

import pytest

from monolex.schedule import Schedule, alone, span

CHAIN = [(), (), (), (2,), (3,)]


def test_the_longest_chain_is_begun_first_and_equals_in_order():
    schedule, order = Schedule(CHAIN), []
    while (number := schedule.begin()) is not None:
        order.append(number)
        schedule.end(number)
    assert order == [2, 3, 0, 1, 4] and schedule.over


def test_nothing_begins_before_what_it_waits_for_has_ended():
    schedule = Schedule([(), (0,)])
    assert schedule.begin() == 0 and schedule.begin() is None and not schedule.over
    schedule.end(0)
    assert schedule.begin() == 1 and not schedule.over
    schedule.end(1)
    assert schedule.begin() is None and schedule.over


def test_alone_is_what_nothing_can_be_done_beside():
    assert alone([(), (0,), (0,), (1, 2)]) == [True, False, False, True]
    assert alone([()]) == [True] and alone([(), ()]) == [False, False]


def test_span_of_one_job_is_the_sum_and_of_many_the_longest_chain():
    assert span(CHAIN, [1, 2, 3, 4, 5], 1) == 15
    assert span(CHAIN, [1, 2, 3, 4, 5], 5) == 12
    assert span(CHAIN, [1, 2, 3, 4, 5], 2) == 12
    assert span([], [], 2) == 0


@pytest.mark.parametrize("seed", range(5))
def test_span_lies_between_its_bounds(seed):
    draw = random.Random(seed)
    needs = [tuple(j for j in range(i) if draw.random() < 0.2) for i in range(12)]
    seconds = [draw.random() for _ in needs]
    spans = [span(needs, seconds, jobs) for jobs in (1, 2, 3, 12)]
    assert spans[0] == pytest.approx(sum(seconds))
    for jobs, spent in zip((1, 2, 3, 12), spans, strict=True):
        assert sum(seconds) / jobs - 1e-9 <= spent <= sum(seconds) + 1e-9
    longest: list[float] = []
    for number, before in enumerate(needs):
        longest.append(seconds[number] + max((longest[i] for i in before), default=0.0))
    assert spans[-1] == pytest.approx(max(longest))


def test_alone_agrees_with_orders_in_which_all_could_be_done():
    needs = [(), (0,), (), (1, 2), (3,)]
    orders = [p for p in itertools.permutations(range(5)) if all(p.index(b) < p.index(i) for i in p for b in needs[i])]
    places = [{order.index(number) for order in orders} for number in range(5)]
    assert alone(needs) == [len(place) == 1 for place in places]
