"""What tokens cost: prices of your own, and the price list of the extra `prices`. Offline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

from llm_cache.errors import ConfigurationError, MissingExtra

_MILLION = Decimal(1_000_000)
_DEFAULT_PROVIDER = "openai"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model's tokens cost, in USD per million.

    Raises:
        ConfigurationError: a price is not a number from 0 on.
    """

    input_usd: Decimal | float
    """Of a prompt's tokens."""
    output_usd: Decimal | float = 0
    """Of an answer's tokens."""
    cached_input_usd: Decimal | float | None = None
    """Of a prompt's tokens that the provider had in its own cache; `None` for no reduction."""

    def __post_init__(self) -> None:
        """Check the prices, and make them exact: `0.15` means fifteen hundredths."""
        for name in ("input_usd", "output_usd", "cached_input_usd"):
            value = getattr(self, name)
            if value is not None or name != "cached_input_usd":
                object.__setattr__(self, name, _usd(value, name))

    def cost_usd(
        self, prompt_tokens: int, completion_tokens: int = 0, *, cached_prompt_tokens: int = 0
    ) -> Decimal:
        """Return what so many tokens cost; *cached_prompt_tokens* are some of *prompt_tokens*."""
        prompt, completion, cached = map(_usd, self._in_order())
        plain = prompt_tokens - cached_prompt_tokens
        total = plain * prompt + cached_prompt_tokens * cached + completion_tokens * completion
        return total / _MILLION

    def per_token(self) -> dict[str, Decimal]:
        """Return what one token costs: `prompt`, `cached_prompt` and `completion`."""
        prompt, completion, cached = (_usd(usd) / _MILLION for usd in self._in_order())
        return {"prompt": prompt, "cached_prompt": cached, "completion": completion}

    def _in_order(self) -> tuple[object, object, object]:
        cached = self.input_usd if self.cached_input_usd is None else self.cached_input_usd
        return self.input_usd, self.output_usd, cached


class PriceList:
    """Prices by model: those that are given, then those of `genai-prices`, if that is installed.

    Args:
        prices: Prices that go before all others, by the model's name as it is called with.
    """

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        self._own = dict(prices or {})

    def load(self) -> None:
        """Read the price list now, if there is one, and not at the first look into it."""
        with suppress(ImportError):
            import genai_prices  # noqa: F401

    def price(self, model: str, *, prompt_tokens: float = 0) -> Price | None:
        """Return the price of *model*, or `None` where nobody knows it. Never a guess, never 0.

        Some models cost more from a length of the prompt on: the price is that of a call with
        *prompt_tokens*. A name may begin with its provider's, as `openai/gpt-4o`. A look
        into the list takes about a millisecond, the first one also a third of a second to read it.
        """
        own = self._own.get(model)
        return _listed(model, max(1, round(prompt_tokens))) if own is None else own


def check_price_list() -> None:
    """Make sure that there is a price list.

    Raises:
        MissingExtra: `genai-prices` is not installed.
    """
    try:
        import genai_prices  # noqa: F401
    except ImportError as error:
        raise MissingExtra("the price list", "prices") from error


def check_prices(prices: object) -> None:
    """Refuse what is neither `None` nor a mapping of models to prices.

    Raises:
        ConfigurationError: saying so.
    """
    if prices is None:
        return
    if not isinstance(prices, Mapping) or not all(
        isinstance(model, str) and isinstance(price, Price) for model, price in prices.items()
    ):
        raise ConfigurationError(
            'prices must map models to prices: {"my-model": Price(input_usd=…, output_usd=…)}'
        )


def _listed(model: str, prompt_tokens: int) -> Price | None:
    if not model:
        return None
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return None

    def cost(provider: str | None, name: str, **usage: int) -> Decimal:
        usage["input_tokens"] = prompt_tokens
        return Decimal(calc_price(Usage(**usage), name, provider_id=provider).total_price)

    for provider, name in _spellings(model):
        try:
            prompt = cost(provider, name)
            cached = cost(provider, name, cache_read_tokens=prompt_tokens)
            whole = cost(provider, name, output_tokens=1_000)
        except (LookupError, ValueError):
            continue
        return Price(
            input_usd=prompt * _MILLION / prompt_tokens,
            output_usd=(whole - prompt) * 1_000,
            cached_input_usd=cached * _MILLION / prompt_tokens,
        )
    return None


def _spellings(model: str) -> list[tuple[str | None, str]]:
    """Return the ways to look *model* up: the list finds embedding models by provider only."""
    provider, slash, name = model.partition("/")
    spellings: list[tuple[str | None, str]] = [(None, model), (_DEFAULT_PROVIDER, model)]
    return [*spellings, (provider, name)] if slash else spellings


def _usd(value: object, name: str = "a price") -> Decimal:
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:  # type: ignore[arg-type,operator]
        raise ConfigurationError(f"{name} must be USD per million tokens, from 0; got {value!r}")
    return Decimal(str(value))
