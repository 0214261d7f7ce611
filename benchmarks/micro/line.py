"""How many searches are best on their way on one connection, beside a pool of 50.

A hundred callers search an index of 20,000 entries in one scope; a `GET` on another connection
tells what others feel meanwhile. `Line` has no public door.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from redis import asyncio as redis

from benchmarks.micro import material
from benchmarks.micro.semantic import (
    GivenVectors,
    Scope,
    bare_client,
    fill,
    placed,
    rate,
    searches,
)
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache._redis.line import Line

_ENTRIES = 20_000
_SEARCHES = 2_000
_ROUNDS = 5
_ON_THEIR_WAY = (1, 2, 4, 8, 16, 64)


async def run(settings: Settings) -> list[Row]:
    """Measure a line of each size, and a pool."""
    given = await material.load(settings)
    count = 1_000 if settings.quick else _ENTRIES
    texts = given.stored.part(np.arange(count))
    config = CacheConfig(
        namespace=f"bench.line.{time.time_ns()}", redis_timeout_s=60, added_latency_budget_s=60
    )
    async with LLMCache(settings.url, embedder=GivenVectors(384), config=config) as cache:
        await fill(cache, [Scope("You answer for a shop.", texts, texts.vectors)])
        commands = await _commands(cache, given)
        bare, other = bare_client(cache.redis_url), redis.Redis.from_url(cache.redis_url)
        lines = {size: Line(cache._connection, on_their_way=size) for size in _ON_THEIR_WAY}
        ways: dict[str, Callable[..., Awaitable[Any]]] = {
            f"line, {size} on their way": line.execute for size, line in lines.items()
        }
        ways["pool of 50"] = bare.execute_command
        try:
            return await _race(ways, commands, other, settings)
        finally:
            for line in lines.values():
                await line.aclose()
            await bare.aclose()
            await other.aclose()


async def _commands(cache: LLMCache, given: material.Material) -> list[tuple[Any, ...]]:
    asked = zip(given.asked.texts[:500], given.asked.vectors[:500], strict=True)
    places = [
        await placed(cache, text, vector, system="You answer for a shop.")
        for text, vector in asked
    ]
    return await searches(cache, places)


async def _race(
    ways: dict[str, Callable[..., Awaitable[Any]]],
    commands: list[tuple[Any, ...]],
    other: redis.Redis,
    settings: Settings,
) -> list[Row]:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    felt: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 if settings.quick else _ROUNDS):
        for name, execute in ways.items():

            async def search(i: int, execute: Callable[..., Awaitable[Any]] = execute) -> None:
                await execute(*commands[i % len(commands)])

            per_s, waits = await rate(search, 200 if settings.quick else _SEARCHES, other)
            rates[name].append(per_s)
            felt[name] += waits
    return [
        {
            "way": name,
            "searches_per_s": round(float(np.median(rates[name]))),
            "get_p50_us": float(np.percentile(felt[name], 50)) * 1e6,
            "get_p99_us": float(np.percentile(felt[name], 99)) * 1e6,
        }
        for name in ways
    ]


BENCHMARK = Micro(
    name="line",
    run=run,
    about=__doc__,
    columns={
        "": "way",
        "searches/s": "searches_per_s:,",
        "a GET beside them, p50 µs": "get_p50_us:,.0f",
        "p99": "get_p99_us:,.0f",
    },
)
