"""The formula of the savings, and its example."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llm_cache import Price, savings
from llm_cache.errors import ConfigurationError

EXAMPLE: dict[str, Any] = {
    "daily_requests": 10_000,
    "hit_rate": 0.5,
    "prompt_tokens": 500,
    "completion_tokens": 300,
    "price": Price(input_usd=5, output_usd=15),
}


def test_the_example_saves_35_usd_a_day_and_1050_a_month():
    saved = savings(**EXAMPLE)
    assert saved.daily_usd == pytest.approx(35)
    assert saved.monthly_usd == saved.net_usd == pytest.approx(1_050)


def test_redis_and_embeddings_are_taken_off():
    saved = savings(
        **EXAMPLE, redis_usd=20, embedding_tokens=100, embedding_price=Price(input_usd=0.02)
    )
    assert saved.embedding_usd == pytest.approx(0.02)
    assert saved.monthly_usd == pytest.approx(1_049.4)
    assert saved.net_usd == pytest.approx(1_029.4)


def test_a_cache_that_never_hits_costs():
    assert savings(**{**EXAMPLE, "hit_rate": 0}, redis_usd=20).net_usd == -20


@pytest.mark.parametrize("hit_rate", [0, 1])
def test_hit_rates_go_from_nothing_to_all(hit_rate):
    assert savings(**{**EXAMPLE, "hit_rate": hit_rate}).daily_usd == pytest.approx(70 * hit_rate)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hit_rate", 1.01),
        ("hit_rate", -0.01),
        ("hit_rate", math.nan),
        ("daily_requests", -1),
        ("prompt_tokens", math.inf),
        ("completion_tokens", math.nan),
        ("redis_usd", -5),
        ("embedding_tokens", -1),
    ],
)
def test_impossible_figures_are_named(name, value):
    with pytest.raises(ConfigurationError, match=name):
        savings(**{**EXAMPLE, name: value})
