"""What encryption adds to an exact hit: the same answer in clear and encrypted, in turn.

Both caches read the text of the answer, one hit after the other, so that whatever else the machine
does hits both alike. The bytes are those of the stored answer.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import replace

from redis import asyncio as redis

from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder, ScriptedUpstream

_PROMPT = "What is the capital of France?"
_ANSWERS = (500, 4_000, 64_000)


async def run(settings: Settings) -> list[Row]:
    """Measure every size of answer."""
    return [await _measure(settings, size) for size in _ANSWERS]


async def _measure(settings: Settings, size: int) -> Row:
    namespace = f"bench.encryption.{time.time_ns()}"
    clear = CacheConfig(namespace=f"{namespace}.clear", compression=False)
    encrypted = replace(
        clear, namespace=f"{namespace}.encrypted", encryption_keys=[os.urandom(32)]
    )
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())
        for _ in range(2):
            upstream.answer("x" * size)
        caches: list[LLMCache] = []
        sizes = []
        for config in (clear, encrypted):
            cache = LLMCache(
                caches[0].redis_url if caches else settings.url,
                client=upstream.client(),
                embedder=FakeEmbedder(),
                config=config,
            )
            caches.append(await stack.enter_async_context(cache))
            reply = await cache.chat(_PROMPT)
            bare = redis.Redis.from_url(cache.redis_url)
            sizes.append(await bare.strlen(str(reply.key)))
            await bare.aclose()
        repeats = 300 if settings.quick else 3_000
        # Beginning with the other one each time: the first of a round is slower.
        rows = [await _race(caches, first=number % 2) for number in range(repeats)]
    return {
        "answer_bytes": size,
        "clear_us": statistics.median(row[0] for row in rows) * 1e6,
        "added_us": statistics.median(row[1] - row[0] for row in rows) * 1e6,
        "added_bytes": sizes[1] - sizes[0],
    }


async def _race(caches: list[LLMCache], *, first: int) -> list[float]:
    took_s = [0.0, 0.0]
    for at in (first, 1 - first):
        started_s = time.perf_counter()
        _ = (await caches[at].chat(_PROMPT)).text
        took_s[at] = time.perf_counter() - started_s
    return took_s


BENCHMARK = Micro(
    name="encryption",
    run=run,
    about=__doc__,
    columns={
        "answer bytes": "answer_bytes:,",
        "exact hit p50 µs": "clear_us:.0f",
        "encryption adds µs": "added_us:.1f",
        "adds bytes": "added_bytes:,",
    },
)
