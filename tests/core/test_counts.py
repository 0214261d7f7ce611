"""Rows of counts, and what is read from them."""

from __future__ import annotations

import pytest

from llm_cache._core.counts import (
    NOBODY,
    OTHER,
    Counts,
    Row,
    Table,
    bounded,
    by_reason,
    by_status,
    read,
    tokens_of,
)


def table(**calls: int) -> Table:
    made = Table()
    for label, count in calls.items():
        made.add(Row(NOBODY, label.replace("__", ":"), "m"), Counts(calls=count))
    return made


def test_a_miss_that_waited_is_a_miss():
    assert by_status(table(exact=1, miss=1, miss__shared=2)) == {
        "exact": 1,
        "semantic": 0,
        "stale": 0,
        "miss": 3,
        "bypass": 0,
        "hit_rate": 0.25,
    }


def test_a_bypass_counts_neither_as_hit_nor_as_miss():
    assert by_status(table(exact=1, bypass__redis=9))["hit_rate"] == 1.0


def test_reasons_come_most_frequent_first():
    reasons = by_reason(table(bypass__redis=1, bypass__policy=3, bypass=9, exact=1), "bypass")
    assert list(reasons.items()) == [("policy", 3), ("redis", 1)]


def test_names_beyond_the_limit_are_told_as_others():
    made = Table(max_tenants=2)
    for tenant in ("a", "b", "c", "a", "d", NOBODY):
        made.add(Row(tenant, "exact", "m"), Counts(calls=1))
    assert {row.tenant: counts.calls for row, counts in made} == {"a": 2, "b": 1, OTHER: 2, "-": 1}


@pytest.mark.parametrize(("name", "told"), [("x" * 128, "x" * 128), ("x" * 129, OTHER)])
def test_a_name_that_is_no_name_is_told_as_others(name, told):
    assert bounded(None)(name) == told


def test_a_name_may_hold_blanks():
    ((row, counts),) = read({"calls - exact my own model": 2})
    assert row == Row(NOBODY, "exact", "my own model")
    assert counts.calls == 2


@pytest.mark.parametrize("name", ["", "calls", "calls - exact", "hits - exact m"])
def test_what_another_release_wrote_is_left_out(name):
    assert len(read({name: 1})) == 0


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, None, 4)),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 0,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
            (3, 2, 0),
        ),
        ({"prompt_tokens": 10**9, "completion_tokens": 10**9 + 1}, (10**9, None, None)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (None, None, None)),
        ({"prompt_tokens": "3", "prompt_tokens_details": None}, (None, None, None)),
        ({"prompt_tokens": 1.5, "completion_tokens": 1}, (None, None, 1)),
        ({"input_tokens": 3, "output_tokens": 4}, (3, None, 4)),
        (
            {
                "input_tokens": 3,
                "output_tokens": 4,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 10,
            },
            (113, 100, 4),
        ),
        (
            {
                "input_tokens": 9,
                "output_tokens": 4,
                "input_tokens_details": {"cached_tokens": 8},
            },
            (9, 8, 4),
        ),
        (None, (None, None, None)),
        (5, (None, None, None)),
        ([], (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_a_usage_tells_what_it_can_mean(usage, tokens):
    assert tokens_of({"usage": usage}) == tokens


@pytest.mark.parametrize("answer", [None, [], "text", {}])
def test_an_answer_without_usage_tells_no_tokens(answer):
    assert tokens_of(answer) == (None, None, None)
