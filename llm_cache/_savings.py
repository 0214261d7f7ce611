"""What a cache saves in a month, from a handful of figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_cache.errors import ConfigurationError
from llm_cache.prices import Price

DAYS_A_MONTH = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What a cache saves, in USD."""

    daily_usd: float
    """What the model would have cost for the answers that came from the cache, in a day."""
    embedding_usd: float
    """What embedding prompts costs in a day."""
    monthly_usd: float
    """30 days of savings, less 30 days of embedding."""
    redis_usd: float
    """What Redis costs in a month."""
    net_usd: float
    """`monthly_usd` less `redis_usd`: below 0, the cache costs more than it saves."""


def savings(
    *,
    daily_requests: float,
    hit_rate: float,
    prompt_tokens: float,
    completion_tokens: float,
    price: Price,
    embedding_tokens: float = 0,
    embedding_price: Price | None = None,
    redis_usd: float = 0,
) -> Savings:
    """Return what a cache saves.

    `30 × daily_requests × hit_rate × (prompt_tokens × input price + completion_tokens × output
    price) / 1,000,000`, less what embedding costs, and less Redis. 10,000 requests a day, half of
    them hits, of 500 + 300 tokens at 5 and 15 USD per million make 35 USD a day, 1,050 a month.

    Args:
        daily_requests: Calls in a day, hits and misses.
        hit_rate: Share of the calls that the cache answers, 0 to 1.
        prompt_tokens: Tokens of an average prompt, with all that goes before it.
        completion_tokens: Tokens of an average answer.
        price: What the model costs.
        embedding_tokens: Tokens embedded for an average call. Exact hits embed nothing, other
            calls the last user turn.
        embedding_price: What the embedding model costs; `None` for nothing, as on this machine.
        redis_usd: What Redis costs in a month.

    Raises:
        ConfigurationError: a figure is out of its range.
    """
    if not 0 <= hit_rate <= 1:
        raise ConfigurationError(f"hit_rate must be from 0 to 1; got {hit_rate!r}")
    for name, value in (
        ("daily_requests", daily_requests),
        ("prompt_tokens", prompt_tokens),
        ("completion_tokens", completion_tokens),
        ("embedding_tokens", embedding_tokens),
        ("redis_usd", redis_usd),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigurationError(f"{name} must be a number from 0; got {value!r}")
    call_usd = _cost_usd(price, prompt_tokens, completion_tokens)
    embed_usd = 0.0 if embedding_price is None else _cost_usd(embedding_price, embedding_tokens)
    return in_a_month(
        daily_usd=daily_requests * hit_rate * call_usd,
        embedding_usd=daily_requests * embed_usd,
        redis_usd=redis_usd,
    )


def in_a_month(*, daily_usd: float, embedding_usd: float, redis_usd: float = 0) -> Savings:
    """Return what so much a day comes to in a month."""
    monthly_usd = DAYS_A_MONTH * (daily_usd - embedding_usd)
    return Savings(
        daily_usd=daily_usd,
        embedding_usd=embedding_usd,
        monthly_usd=monthly_usd,
        redis_usd=redis_usd,
        net_usd=monthly_usd - redis_usd,
    )


def _cost_usd(price: Price, prompt_tokens: float, completion_tokens: float = 0.0) -> float:
    """Return the cost of an average call, whose tokens need not be whole."""
    cost = prompt_tokens * float(price.input_usd) + completion_tokens * float(price.output_usd)
    return cost / 1e6
