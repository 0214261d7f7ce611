"""What tokens would have cost, by the price list of the extra `prices`."""

from __future__ import annotations

from llm_cache.errors import ConfigurationError, MissingExtra


def cost_usd(prompt_tokens: int, completion_tokens: int, *, model: str) -> float:
    """Return what these tokens cost at *model*. Offline.

    Raises:
        MissingExtra: there is no price list.
        ConfigurationError: it does not know the model.
    """
    try:
        from genai_prices import Usage, calc_price
    except ImportError as error:
        raise MissingExtra("the price list", "prices") from error
    usage = Usage(input_tokens=prompt_tokens, output_tokens=completion_tokens)
    try:
        return float(calc_price(usage, model_ref=model).total_price)
    except LookupError as error:
        raise ConfigurationError(
            f"no price is known for the model {model!r}: choose another --price-model"
        ) from error


def known_cost_usd(prompt_tokens: int, completion_tokens: int, *, model: str) -> float | None:
    """Return what `cost_usd` does, or `None` without a price list."""
    try:
        return cost_usd(prompt_tokens, completion_tokens, model=model)
    except MissingExtra:
        return None


def dollars(cost: float) -> str:
    """Return *cost* with at least two digits that say something."""
    if cost >= 0.995:
        return f"{cost:,.2f} USD"
    return f"{cost:.2g} USD" if cost >= 0.0001 else f"{cost:.7f} USD"
