"""What tokens cost: own prices first, then the list, and never a guess."""

from __future__ import annotations

import sys
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price

from llm_cache import CacheConfig, Price
from llm_cache.errors import ConfigurationError, MissingExtra
from llm_cache.prices import PriceList, check_price_list


def test_a_cost_is_exact():
    price = Price(input_usd=0.15, output_usd=0.6, cached_input_usd=0.075)
    assert price.cost_usd(1_000_000, 1_000_000) == Decimal("0.75")
    assert price.cost_usd(100, 10, cached_prompt_tokens=40) == Decimal("0.000018")


def test_tokens_the_provider_had_cached_cost_the_same_where_nobody_says_less():
    assert Price(input_usd=3).cost_usd(1_000_000, cached_prompt_tokens=500_000) == 3


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o", "claude-sonnet-4-5"])
def test_the_list_is_that_of_genai_prices(model):
    usage = Usage(input_tokens=1234, cache_read_tokens=200, output_tokens=567)
    price = PriceList().price(model, prompt_tokens=1234)
    assert price is not None
    assert price.cost_usd(1234, 567, cached_prompt_tokens=200) == pytest.approx(
        calc_price(usage, model).total_price
    )


@pytest.mark.parametrize("model", ["text-embedding-3-small", "openai/gpt-4o"])
def test_embedding_models_and_names_with_a_provider_are_found(model):
    assert PriceList().price(model) is not None


@pytest.mark.parametrize("model", ["", "in-house", "gpt-4o-mini-of-ours", "nobody/gpt-4o"])
def test_an_unknown_model_has_no_price(model):
    assert PriceList().price(model) is None


def test_long_prompts_cost_what_long_prompts_cost():
    prices = PriceList()
    short = prices.price("claude-sonnet-4-5", prompt_tokens=1_000)
    long = prices.price("claude-sonnet-4-5", prompt_tokens=300_000)
    assert short is not None
    assert long is not None
    assert short.input_usd == 3
    assert long.input_usd == 6


def test_own_prices_go_first_even_at_nothing():
    prices = PriceList({"gpt-4o-mini": Price(input_usd=0)})
    assert prices.price("gpt-4o-mini") == Price(input_usd=0)


def test_without_the_list_only_own_prices_are_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    prices = PriceList({"in-house": Price(input_usd=1)})
    prices.load()
    assert prices.price("gpt-4o-mini") is None
    assert prices.price("in-house") == Price(input_usd=1)
    with pytest.raises(MissingExtra, match=r"llm-cache\[prices\]"):
        check_price_list()


@pytest.mark.parametrize("usd", [-1, float("nan"), float("inf"), "1", True, None])
def test_what_is_no_price_is_refused(usd):
    with pytest.raises(ConfigurationError, match="input_usd must be USD per million"):
        Price(input_usd=usd)


@pytest.mark.parametrize("prices", [{"m": 1.5}, {1: Price(input_usd=1)}, [], "m"])
def test_config_refuses_what_maps_no_models_to_prices(prices):
    with pytest.raises(ConfigurationError, match="prices must map models to prices"):
        CacheConfig(prices=prices)
