"""When a dependency is left alone, and when it is tried again."""

import pytest

from llm_cache._core.breaker import Breaker, Limits, State

LIMITS = Limits(
    refusals=3, refusals_last_s=1.0, timeouts=2, timeouts_last_s=4.0, open_s=10.0, probe_s=30.0
)


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(LIMITS)


def fail(breaker: Breaker, *times_s: float, is_timeout: bool = False) -> list[bool]:
    return [breaker.fail(breaker.generation, now_s, is_timeout=is_timeout) for now_s in times_s]


def opened(breaker: Breaker, now_s: float = 1.0) -> Breaker:
    assert fail(breaker, now_s - 1, now_s - 1, now_s)[-1]
    return breaker


def test_streak_that_is_long_enough_and_lasts_opens(breaker):
    assert fail(breaker, 0.0, 0.5, 1.0) == [False, False, True]
    assert breaker.state is State.OPEN


def test_burst_that_does_not_last_opens_nothing(breaker):
    assert not any(fail(breaker, *[0.999] * 100))
    assert fail(breaker, 1.998) == [False]
    assert fail(breaker, 1.999) == [True]


def test_few_failures_open_nothing_however_long_they_last(breaker):
    assert not any(fail(breaker, 0.0, 3600.0))
    assert breaker.state is State.CLOSED


def test_success_ends_a_streak(breaker):
    fail(breaker, 0.0, 0.5)
    assert not breaker.is_quiet
    assert not breaker.succeed(breaker.generation, 0.7)
    assert breaker.is_quiet
    assert not any(fail(breaker, 1.0, 1.9))


def test_timeouts_have_a_streak_of_their_own(breaker):
    assert not any(fail(breaker, 0.0, 0.1))
    assert fail(breaker, 0.2, 4.1, is_timeout=True) == [False, False]
    assert fail(breaker, 4.2, is_timeout=True) == [True]


def test_open_breaker_lets_nobody_through_until_its_time(breaker):
    opened(breaker, 1.0)
    assert breaker.admit(10.9) is None
    assert breaker.admit(11.0) is not None


def test_half_open_breaker_lets_one_probe_through(breaker):
    opened(breaker)
    probe = breaker.admit(20.0)
    assert breaker.state is State.HALF_OPEN
    assert [breaker.admit(20.0) for _ in range(5)] == [None] * 5
    assert breaker.succeed(probe, 20.5)
    assert breaker.admit(20.5) is not None
    assert breaker.is_quiet


def test_probe_that_fails_opens_again_for_the_whole_time(breaker):
    opened(breaker)
    probe = breaker.admit(20.0)
    assert not breaker.fail(probe, 21.0, is_timeout=True)
    assert breaker.admit(30.9) is None
    assert breaker.admit(31.0) is not None


def test_late_success_of_an_older_generation_closes_nothing(breaker):
    old = breaker.admit(0.0)
    opened(breaker)
    assert not breaker.succeed(old, 2.0)
    assert str(breaker.state) == "open"

    breaker.admit(20.0)
    assert not breaker.succeed(old, 20.1)
    assert str(breaker.state) == "half_open"


def test_late_failure_of_an_older_generation_opens_nothing(breaker):
    old = breaker.admit(0.0)
    opened(breaker)
    assert breaker.succeed(breaker.admit(20.0), 20.0)
    assert not any(breaker.fail(old, 20.0 + n, is_timeout=False) for n in range(10))
    assert breaker.is_quiet


def test_probe_that_goes_away_leaves_its_place_to_the_next_caller(breaker):
    opened(breaker)
    breaker.leave(breaker.admit(20.0), 20.1)
    assert breaker.state is State.OPEN
    assert breaker.admit(20.1) is not None


def test_caller_who_leaves_a_closed_breaker_changes_nothing(breaker):
    fail(breaker, 0.0, 0.5)
    breaker.leave(breaker.generation, 0.6)
    assert fail(breaker, 1.0) == [True]


def test_probe_that_is_never_heard_of_again_is_replaced(breaker):
    opened(breaker)
    lost = breaker.admit(20.0)
    assert breaker.admit(49.9) is None
    assert breaker.admit(50.0) is not None
    assert not breaker.succeed(lost, 50.1)
