"""What tokens would have cost, by the price list of the extra `prices`."""

from __future__ import annotations

import math

import typer

from llm_cache.errors import MissingExtra


def cost_usd(prompt_tokens: int, completion_tokens: int, *, model: str) -> float:
    """Return what these tokens cost at *model*. Offline.

    Raises:
        MissingExtra: there is no price list.
        typer.BadParameter: it does not know the model.
    """
    try:
        from genai_prices import Usage, calc_price
    except ImportError as error:
        raise MissingExtra("the price list", "prices") from error
    usage = Usage(input_tokens=prompt_tokens, output_tokens=completion_tokens)
    try:
        return float(calc_price(usage, model_ref=model).total_price)
    except LookupError as error:
        raise typer.BadParameter(
            f"no price is known for {model!r}", param_hint="'--price-model'"
        ) from error


def known_cost_usd(prompt_tokens: int, completion_tokens: int, *, model: str) -> float | None:
    """Return what `cost_usd` does, or `None` without a price list."""
    try:
        return cost_usd(prompt_tokens, completion_tokens, model=model)
    except MissingExtra:
        return None


def dollars(cost: float) -> str:
    """Return *cost* in whole cents from one cent on, below that with two digits."""
    if cost >= 0.01:
        return f"{cost:,.2f} USD"
    decimals = 1 - math.floor(math.log10(cost)) if cost > 0 else 0
    return f"{cost:.{decimals}f} USD"
