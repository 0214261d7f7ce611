"""Prices as they are given and shown on the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable

import typer

from llm_cache import Price
from llm_cache.errors import ConfigurationError, MissingExtra
from llm_cache.prices import PriceList, check_price_list


def given_prices(options: Iterable[str]) -> dict[str, Price]:
    """Return the prices that `--price MODEL=IN,OUT` gives; what is no price is wrong usage."""
    return dict(map(_given_price, options))


def price_of(model: str) -> Price:
    """Return what *model* costs by the price list; one that it does not know is wrong usage.

    Raises:
        MissingExtra: there is no price list.
    """
    check_price_list()
    price = PriceList().price(model)
    if price is None:
        raise typer.BadParameter(
            f"no price is known for {model!r}", param_hint="'--price-model'"
        ) from None
    return price


def known_cost_usd(prompt_tokens: int, completion_tokens: int, *, model: str) -> float | None:
    """Return what these tokens cost at *model*, or `None` without a price list."""
    try:
        return float(price_of(model).cost_usd(prompt_tokens, completion_tokens))
    except MissingExtra:
        return None


def dollars(cost: float) -> str:
    """Return *cost* in whole cents from one cent on, below that with two digits."""
    if abs(cost) >= 0.01:
        return f"{cost:,.2f} USD"
    decimals = 1 - math.floor(math.log10(abs(cost))) if cost else 0
    return f"{cost:.{decimals}f} USD"


def _given_price(option: str) -> tuple[str, Price]:
    model, equals, numbers = option.rpartition("=")
    try:
        input_usd, output_usd = map(float, numbers.split(","))
        if model and equals:
            return model, Price(input_usd=input_usd, output_usd=output_usd)
    except (ValueError, ConfigurationError):
        pass
    raise typer.BadParameter(
        f"a price is MODEL=IN,OUT in USD per million tokens; got {option!r}",
        param_hint="'--price'",
    )
