"""The clock of a run, with a clock that the test turns."""

import pytest

from cramming_train.budget import Budget


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_fraction_follows_the_clock_and_stays_in_bounds():
    clock = Clock()
    budget = Budget(100, clock=clock)
    seen = []
    for _ in range(5):
        seen.append(budget.fraction())
        clock.now += 30
    assert seen == [0, 0.3, 0.6, 0.9, 1.0]
    assert budget.remaining == -50


def test_time_used_before_a_resume_counts():
    clock = Clock()
    budget = Budget(100, used=40, clock=clock)
    clock.now += 10
    assert budget.elapsed == 50 and budget.fraction() == 0.5


def test_reserve_stops_early_enough_to_save():
    clock = Clock()
    budget = Budget(100, clock=clock)
    clock.now += 94
    assert not budget.is_used_up(reserve=5)
    clock.now += 2
    assert budget.is_used_up(reserve=5) and not budget.is_used_up()


def test_token_budget_ignores_time_until_time_is_up():
    clock = Clock()
    budget = Budget(100, tokens=1000, clock=clock)
    clock.now += 90
    budget.tokens_used = 250
    assert budget.fraction() == 0.25 and not budget.is_used_up()
    budget.tokens_used = 1000
    assert budget.is_used_up()
    budget.tokens_used = 10
    clock.now += 11
    assert budget.is_used_up()


def test_a_stopped_clock_stands():
    clock = Clock()
    budget = Budget(100, clock=clock)
    clock.now += 7
    assert budget.stop() == 7
    clock.now += 50
    assert budget.elapsed == 7 and budget.stop() == 7


def test_time_to_go():
    clock = Clock()
    budget = Budget(100, tokens=1000, clock=clock)
    budget.tokens_used = 500
    assert budget.seconds_to_go(50) == 10
    assert Budget(100, clock=clock).seconds_to_go(50) == 100


@pytest.mark.parametrize("arguments", [{"seconds": 0}, {"seconds": -1}, {"seconds": float("nan")}])
def test_bad_seconds(arguments):
    with pytest.raises(ValueError, match="seconds"):
        Budget(**arguments)


def test_bad_tokens():
    with pytest.raises(ValueError, match="tokens"):
        Budget(1, tokens=0)
