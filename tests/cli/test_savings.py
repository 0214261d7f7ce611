"""`llm-cache savings`: what a cache saves in a month."""

from __future__ import annotations

import json

import pytest

EXAMPLE = (
    *("savings", "--requests", "10000", "--hit-rate", "0.5"),
    *("--prompt-tokens", "500", "--completion-tokens", "300"),
)
PRICES = ("--input-price", "5", "--output-price", "15")


def test_the_example_saves_35_usd_a_day_and_1050_a_month(cli):
    told = json.loads(cli(*EXAMPLE, *PRICES, "--redis-price", "20", "--json").stdout)

    assert (told["daily_usd"], told["monthly_usd"]) == (pytest.approx(35), pytest.approx(1050))
    assert told["net_usd"] == pytest.approx(1030)
    assert "1,050.00 USD" in cli(*EXAMPLE, *PRICES).stdout


def test_a_models_own_price_is_that_of_the_list(cli):
    told = json.loads(cli(*EXAMPLE, "--price-model", "gpt-4o", "--json").stdout)

    assert told["daily_usd"] == pytest.approx(5000 * (500 * 2.5 + 300 * 10) / 1e6)


@pytest.mark.parametrize("args", [("--price-model", "nobody's"), ("--input-price", "5")])
def test_a_price_that_is_not_known_is_wrong_usage(cli, args):
    assert cli(*EXAMPLE, *args).exit_code == 2


@pytest.fixture
def counted(cli, redis_url, namespace, service):
    """A miss and a hit of two models, one of them without a price."""
    at = ("--redis-url", redis_url, "--namespace", namespace)
    for model in ("gpt-4o", "in-house"):
        ran = cli("chat", *at, "--no-semantic", "--model", model, stdin="hi\nhi\n", env=service)
        assert ran.exit_code == 0
    return ("savings", *at)


def test_without_figures_it_goes_by_what_was_counted(cli, counted):
    told = json.loads(cli(*counted, "--json").stdout)
    priced = json.loads(cli(*counted, "--price", "in-house=2.5,10", "--json").stdout)

    assert (told["basis"], told["hit_rate"]) == ("counts", 0.5)
    assert told["unpriced_models"] == ["in-house"]
    assert told["monthly_usd"] == pytest.approx(30 * told["daily_usd"])
    # Less than twice as much only if an hour went by between the two.
    assert priced["daily_usd"] == pytest.approx(2 * told["daily_usd"], rel=0.01)


def test_people_are_told_what_is_not_in_it(cli, counted):
    assert "for want of a price: in-house" in cli(*counted).stdout


def test_where_nothing_was_counted_it_says_what_to_give(cli, redis_url, namespace):
    ran = cli("savings", "--redis-url", redis_url, "--namespace", namespace)

    assert ran.exit_code == 1
    assert "nothing was counted" in ran.stderr
    assert "--hit-rate" in ran.stderr
