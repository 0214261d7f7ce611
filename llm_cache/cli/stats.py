"""`llm-cache stats`: what the cache has done, of all processes together."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from rich.text import Text

from llm_cache import CacheConfig, CacheStatus, LLMCache
from llm_cache.cli.options import (
    NAMESPACE,
    PRICE_MODEL,
    AsJson,
    Namespace,
    PriceModel,
    RedisUrl,
    make_config,
    refuse_missing_directory,
    without_secrets,
)
from llm_cache.cli.prices import dollars, known_cost_usd
from llm_cache.cli.screen import Screen, print_json, size, status_style
from llm_cache.cli.server import Index, indexes_of
from llm_cache.config import redis_url_from_env


def stats(
    *,
    redis_url: RedisUrl = None,
    namespace: Namespace = NAMESPACE,
    price_model: PriceModel = PRICE_MODEL,
    as_json: AsJson = False,
) -> None:
    """Show calls by status, hit rate, entries, memory and savings.

    Counts are those of all processes, less what each has counted in its last seconds. No index
    is made.
    """
    url = redis_url_from_env() if redis_url is None else redis_url
    refuse_missing_directory(url)
    # Without the semantic layer, because opening that would make an index.
    config = make_config(namespace=namespace, semantic=False)
    numbers, indexes = asyncio.run(_read(url, config))
    cost = known_cost_usd(
        numbers["prompt_tokens_saved"], numbers["completion_tokens_saved"], model=price_model
    )
    if as_json:
        print_json(
            {
                **numbers,
                "entries": None if indexes is None else sum(index.entries for index in indexes),
                "indexes": None if indexes is None else [asdict(index) for index in indexes],
                "usd_saved": cost,
                "price_model": price_model,
            }
        )
        return
    screen = Screen()
    screen.line((f"{namespace} at {without_secrets(url)}", "dim"))
    for label, value in _rows(numbers, indexes, cost, price_model):
        screen.fact(label, value)


async def _read(url: str, config: CacheConfig) -> tuple[dict[str, Any], tuple[Index, ...] | None]:
    async with LLMCache(url, config=config) as cache:
        numbers = await cache.server_stats()
        return numbers, await indexes_of(cache.redis_url, config.namespace)


def _rows(
    numbers: dict[str, Any],
    indexes: tuple[Index, ...] | None,
    cost: float | None,
    price_model: str,
) -> list[tuple[str, str | Text]]:
    calls: list[tuple[str, str | Text]] = [
        (status, Text(f"{numbers[status]:,}", status_style(status)))
        for status in map(str, CacheStatus)
    ]
    tokens = numbers["prompt_tokens_saved"] + numbers["completion_tokens_saved"]
    saved = f"{tokens:,} tokens"
    if cost is not None:
        saved += f", {dollars(cost)} at the prices of {price_model}"
    return [
        *calls,
        ("hit rate", f"{numbers['hit_rate']:.1%}"),
        ("saved", saved),
        *(("index", _described(index)) for index in indexes or ()),
        ("Redis memory", size(numbers["redis_memory_bytes"])),
    ]


def _described(index: Index) -> str:
    return f"{index.entries:,} entries of {index.dimensions} dimensions in {index.name}"
