"""Exact bounds on rates."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cache._core.bounds import clustered_bound, lower_bound, trials_needed, upper_bound


def at_most(wrong: int, trials: int, rate: float) -> float:
    terms = (math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(wrong + 1))
    return math.fsum(terms)


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_bound_is_where_so_few_wrong_ones_become_unlikely(trials, wrong, confidence):
    bound = upper_bound(wrong, trials, confidence)
    if wrong >= trials:
        assert bound == 1.0
    else:
        assert at_most(wrong, trials, bound) == pytest.approx(1 - confidence, rel=1e-6)


def test_the_rule_of_three():
    assert upper_bound(0, 299, 0.95) <= 0.01 < upper_bound(0, 298, 0.95)


def test_without_trials_nothing_is_known():
    assert upper_bound(0, 0, 0.95) == 1.0
    assert lower_bound(0, 0, 0.95) == 0.0


def test_the_lower_bound_mirrors_the_upper():
    assert lower_bound(3, 10, 0.95) == pytest.approx(1 - upper_bound(7, 10, 0.95))


def test_one_mistake_made_ten_times_weighs_more_than_ten_in_number():
    alone = clustered_bound([1] * 10, 2000, 0.95)
    assert alone == pytest.approx(upper_bound(10, 2000, 0.95))
    assert clustered_bound([10], 2000, 0.95) > 2 * alone
    assert clustered_bound([], 2000, 0.95) == upper_bound(0, 2000, 0.95)


def test_trials_needed_is_the_least_number_that_shows_it():
    assert trials_needed(0.0, 0.01, 0.95) == 299
    assert trials_needed(0.01, 0.01, 0.95) is None
    assert trials_needed(0.5, 0.01, 0.95) is None


def test_large_counts_do_not_overflow():
    assert 0.0099 < upper_bound(99_000, 10_000_000, 0.95) < 0.01
